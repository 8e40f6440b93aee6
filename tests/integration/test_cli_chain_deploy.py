"""`emcd chain deploy` on anvil: dry by default, recorded, compared byte for byte with the plan."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import trio

from emcd.chain.contracts import CONTRACT_NAMES, load_artifact
from emcd.chain.deploy import contract_addresses, predict_address
from emcd.cli.deployment.progress import progress_file
from emcd.keys import write_keystore
from emcd.money import decode_wei
from emcd.proto.address import address_bytes
from emcd.proto.network import decode_deployment
from emcd.testing import make_key, temporary_ledger
from tests.support.anvil import CHAIN_ID
from tests.support.chain_cli import PASSWORD, Done, Node, Office, anvil_node, open_network, run_cli
from tests.support.deployment import DEPLOYER, STEPS, Cut, CuttingRpc, deploy, error_of, run_sender, send
from tests.support.devchain import CHAIN_ID as EMBEDDED_ID
from tests.support.devchain import ETHER, RICH, running_devchain

pytestmark = pytest.mark.anvil


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    with anvil_node() as running:
        yield running


@pytest.fixture
def office(node: Node, tmp_path: Path) -> Iterator[Office]:
    """A chain as it began, for every test."""
    snapshot = node.call("evm_snapshot")
    yield Office(node, tmp_path)
    node.call("evm_setAutomine", True)
    node.call("evm_revert", snapshot)


# ------------------------------------------------------------------------- dry run and deployment


def test_dry_run_sends_nothing_and_tells_what_will_be(office: Office) -> None:
    plan = office.plan()
    dry = deploy(office, plan, "--json")
    shown = dry.json

    assert (dry.code, shown["sent"], shown["faults"]) == (0, False, [])
    assert office.node.nonce(DEPLOYER.address) == 0
    assert not (office.home / "deployments").exists()
    assert [c["address"] for c in shown["contracts"]] == [
        predict_address(DEPLOYER.address, n) for n in range(STEPS)
    ]

    sent = send(office, plan)
    assert sent.code == 0, sent.err
    for told, done in zip(shown["contracts"], sent.json["contracts"].values(), strict=True):
        assert (told["address"], told["creation_hash"]) == (done["address"], done["creation_hash"])
        assert done["gas_used"] <= told["gas"] <= done["gas_used"] * 1.01
    assert int(shown["max_cost_wei"]) >= int(sent.json["cost_wei"]) > 0


def test_deployment_is_recorded_and_is_what_daemons_read(office: Office) -> None:
    plan = office.plan(params="[params]\nvalidator_set_size = 4\ncompute_minimum_token = 2500")
    done = send(office, plan)
    record = json.loads((office.home / "deployments" / f"{CHAIN_ID}.json").read_text())
    deployment_file = office.home / "deployments" / str(CHAIN_ID) / "deployment.json"
    deployment = decode_deployment(deployment_file.read_bytes())

    assert done.code == 0, done.err
    assert record["contracts"] == done.json["contracts"]
    assert list(record["contracts"]) == list(CONTRACT_NAMES)
    assert record["sources_sha256"] == load_artifact("Staking").sources_sha256
    assert {name: entry["address"] for name, entry in record["contracts"].items()} == contract_addresses(
        deployment
    )
    assert all(check["ok"] for check in record["verification"])
    assert decode_wei(deployment.params.compute_minimum_wei) == 2_500 * ETHER
    assert (
        deployment.deployed_block == record["block"] == min(c["block"] for c in record["contracts"].values())
    )
    for entry in record["contracts"].values():
        receipt = office.node.call("eth_getTransactionReceipt", entry["tx_hash"])
        assert receipt["contractAddress"].lower() == entry["address"].lower()
    assert not progress_file(office.home / "deployments", CHAIN_ID).exists()
    network = open_network(office, deployment_file)
    trio.run(network.chain.require_chain)
    assert trio.run(network.chain.token.fetch_total_supply) == 900_000_000 * ETHER
    assert trio.run(network.chain.token.fetch_balance, DEPLOYER.address) == 0


def test_second_deployment_of_a_chain_is_refused_without_new(office: Office) -> None:
    first = send(office, office.plan())
    plan = office.plan(genesis_in_s=900)
    again, dry = send(office, plan), deploy(office, plan)

    assert error_of(again)["code"] == "EMC-2152"
    assert office.node.nonce(DEPLOYER.address) == STEPS
    assert (dry.code, "EMC-2152" in dry.out) == (1, True)

    anew = send(office, plan, "--new")
    assert anew.code == 0, anew.err
    folder = office.home / "deployments"
    token = first.json["contracts"]["EMCToken"]["address"][2:10].lower()
    assert (
        json.loads((folder / f"{CHAIN_ID}-{token}.json").read_text())["contracts"] == first.json["contracts"]
    )
    assert decode_deployment((folder / f"{CHAIN_ID}-{token}" / "deployment.json").read_bytes())
    assert json.loads((folder / f"{CHAIN_ID}.json").read_text())["contracts"] == anew.json["contracts"]
    assert first.json["contracts"] != anew.json["contracts"]


def test_deploy_without_a_yes_sends_nothing(office: Office) -> None:
    done = deploy(office, office.plan(), "--send")

    assert done.code == 130
    assert "for at most" in done.err
    assert office.node.nonce(DEPLOYER.address) == 0


@pytest.mark.parametrize(
    ("prepare", "code", "words"),
    [
        (lambda o: o.node.fund(DEPLOYER.address, ETHER // 10_000), "EMC-2157", "lacks"),
        (
            lambda o: o.node.call("anvil_setCode", predict_address(DEPLOYER.address, 2), "0x01"),
            "EMC-2150",
            "code",
        ),
    ],
)
def test_what_is_in_the_way_on_chain_is_a_fault(office: Office, prepare: Any, code: str, words: str) -> None:
    plan, key = office.plan(), office.key("deployer")
    prepare(office)
    done = office.run("chain", "deploy", plan, "--keystore", key, "--send", "--yes", "--json")

    assert (error_of(done)["code"], words in error_of(done)["message"]) == (code, True)
    assert office.node.nonce(DEPLOYER.address) == 0


def test_wrong_chain_and_dead_endpoint_are_faults_not_tracebacks(office: Office) -> None:
    wrong = deploy(office, office.plan(chain_id="chain_id = 5"), "--json")
    dead = deploy(office, office.plan(), "--rpc", "http://127.0.0.1:1", "--json")

    assert [fault["code"] for fault in wrong.json["faults"]] == ["EMC-1501"]
    assert [fault["code"] for fault in dead.json["faults"]] == ["EMC-1502"]


def test_plan_for_another_deployer_is_refused(office: Office) -> None:
    done = deploy(office, office.plan(deployer=f'deployer = "{make_key("other").address}"'), "--json")

    assert any("the plan is for" in fault["message"] for fault in done.json["faults"])


def test_profile_without_a_plan_deploys(office: Office) -> None:
    options = ("--profile", "devnet", "--chain-id", CHAIN_ID, "--rpc", office.node.url)
    done = office.run("chain", "deploy", *options, "--keystore", office.key("deployer"), "--yes", "--json")
    dry = done.json
    sent = office.run(
        "chain", "deploy", *options, "--keystore", office.key("deployer"), "--send", "--yes", "--json"
    )

    assert (dry["sent"], dry["faults"]) == (False, [])
    assert sent.code == 0, sent.err
    assert sent.json["plan"]["holders"] == {DEPLOYER.address: str(900_000_000 * ETHER)}


# ------------------------------------------------------------------------- what is compared


def tamper_code(office: Office, address: str, old: bytes, new: bytes) -> None:
    code = bytes.fromhex(office.node.call("eth_getCode", address, "latest")[2:])
    assert old in code
    office.node.call("anvil_setCode", address, "0x" + code.replace(old, new, 1).hex())


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("immutable", "Distributor code"),
        ("byte", "Staking code"),
        ("storage", "EMCToken state: totalSupply() is"),
    ],
)
def test_chain_that_holds_something_else_is_found_and_not_recorded(
    office: Office, what: str, words: str
) -> None:
    plan, _ = office.plan(), office.key("deployer")
    with pytest.raises(Cut):
        run_sender(office, plan, CuttingRpc(office.node.url, STEPS, after=True))
    guardian, thief = (address_bytes(make_key(name).address) for name in ("guardian", "thief"))
    token, _, staking, distributor, _ = (predict_address(DEPLOYER.address, n) for n in range(STEPS))
    if what == "immutable":
        tamper_code(office, distributor, guardian, thief)
    elif what == "byte":
        code = office.node.call("eth_getCode", staking, "latest")
        office.node.call("anvil_setCode", staking, code[:-2] + ("00" if code[-2:] != "00" else "01"))
    else:
        office.node.call("anvil_setStorageAt", token, hex(2), "0x" + "00" * 31 + "07")

    done = send(office, plan)

    assert error_of(done)["code"] == "EMC-2158"
    assert words in error_of(done)["message"]
    assert not (office.home / "deployments" / f"{CHAIN_ID}.json").exists()
    assert not (office.home / "deployments" / str(CHAIN_ID)).exists()


async def test_deployment_and_status_on_the_embedded_chain(tmp_path: Path) -> None:
    """The same command on a node of our own, which mines a block a second."""
    write_keystore(tmp_path / "rich.json", RICH, PASSWORD, kdf="light")
    async with temporary_ledger(tmp_path, {}) as ledger, running_devchain(ledger, tmp_path) as url:

        def run(*arguments: object) -> Done:
            with mock.patch.dict(os.environ, {"EMCD_KEY_PASSWORD": PASSWORD}):
                return run_cli("chain", *arguments, "--rpc", url, "--json")

        profile = ("--profile", "devnet", "--chain-id", EMBEDDED_ID, "--out", tmp_path / "made")
        key = ("--keystore", tmp_path / "rich.json")
        sent = await trio.to_thread.run_sync(lambda: run("deploy", *profile, *key, "--yes", "--send"))
        assert sent.code == 0, sent.err
        shown = await trio.to_thread.run_sync(
            lambda: run("status", "--deployment", sent.json["deployment_file"])
        )

    assert shown.code == 0, shown.err
    assert all(item["ok"] for item in shown.json["contracts"])
