"""`emcd chain status` on anvil: exact amounts, every endpoint by itself, code that differs is said."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from emcd.accounting.emission import cumulative_wei
from emcd.chain import BlockRef
from emcd.cli.chain_view.endpoint import EndpointView, judge_endpoints, view_endpoints
from emcd.testing import make_key
from emcd.types import ZERO_HASH, Hash
from tests.support.anvil import CHAIN_ID
from tests.support.chain_cli import (
    VALIDATORS,
    Network,
    Node,
    Office,
    anvil_node,
    deploy_network,
    open_network,
    restored,
    wallet_of,
)
from tests.support.devchain import ETHER

pytestmark = pytest.mark.anvil
SPARE = 12_345_678_901_234_567_890


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    """Just deployed; three of the four validators of genesis have staked."""
    with anvil_node() as node:
        network = deploy_network(Office(node, tmp_path_factory.mktemp("office")))
        for name in VALIDATORS[:3]:
            network.join(name)
        yield network


@pytest.fixture
def network(fresh: Network) -> Iterator[Network]:
    with restored(fresh, fresh.office.home) as found:
        yield found


@pytest.fixture
def running(network: Network) -> Network:
    """The fourth has staked too; round 13."""
    network.join("v4")
    network.to_round(13)
    return network


def status(network: Network, *arguments: str, code: int = 0) -> Any:
    done = network.run("chain", "status", "--json", *arguments)
    assert done.code == code, done.err
    return done.json


def test_status_before_genesis_tells_who_is_missing(network: Network) -> None:
    found = status(network)
    text = network.run("chain", "status").out

    assert found["clock"]["round"] < 0
    assert [(item["name"], item["state"]) for item in found["expected"]] == [
        ("v1", "staked"), ("v2", "staked"), ("v3", "staked"), ("v4", "missing"),
    ]  # fmt: skip
    assert found["validators"]["is_preview"] is True
    assert len(found["validators"]["members"]) == 3
    assert found["emission"]["scheduled_wei"] == "0"
    assert "validators of genesis: 3 of 4 have staked" in text
    assert "genesis 20" in text


def test_status_of_bound_but_unstaked_validator_says_so(network: Network) -> None:
    network.bind("v4")

    assert status(network)["expected"][3]["state"] == "bound"


def test_status_amounts_are_exact_to_the_wei(running: Network) -> None:
    holder = make_key("holder")
    running.send(holder, running.chain.token.call("burn", SPARE))
    found = status(running)

    assert found["token"] == {
        "supply_wei": str(900_000_000 * ETHER - SPARE), "minted_wei": "0", "burnt_wei": str(SPARE),
    }  # fmt: skip
    assert found["staking"]["total_wei"] == str(4_000_000 * ETHER)
    assert found["validators"]["total_wei"] == str(4_000_000 * ETHER)
    assert found["validators"]["quorum_wei"] == str(2 * 4_000_000 * ETHER // 3 + 1)
    assert found["emission"]["scheduled_wei"] == str(cumulative_wei(12))
    assert found["vault"] == {
        "micro_per_token": "1000000000",
        "deposits": 0,
        "treasury": None,
        "treasury_bps": 0,
    }
    text = running.run("chain", "status").out
    assert "899,999,987.6543 EMC" in text
    assert "quorum 2,666,666.6666 of 4,000,000.0000 EMC" in text


def test_status_clock_is_that_of_the_contracts(running: Network) -> None:
    clock, params = status(running)["clock"], running.chain.deployment.params

    assert (clock["round"], clock["epoch"]) == (13, 1)
    assert clock["round"] == trio.run(running.chain.staking.fetch_current_round)
    assert clock["round_ends_s"] == params.round_start_ms(14) // 1000
    assert clock["epoch_ends_s"] == params.round_start_ms(24) // 1000


def test_status_follows_a_publication_from_pending_to_active_or_void(running: Network) -> None:
    assert status(running)["publications"]["last_round"] is None
    root = running.publish(12)
    pending = status(running)["publications"]
    assert pending["pending"][0]["root"] == "0x" + root.root.hex()
    assert (pending["last_round"], pending["tip_round"], pending["active_round"]) == (12, 12, None)
    assert "unless vetoed" in running.run("chain", "status").out
    running.to_round(16)
    active = status(running)

    assert active["publications"]["active_round"] == 12
    assert active["publications"]["pending"] == []
    assert active["emission"]["published_wei"] == str(root.cumulative_wei)


def test_status_names_every_participant_with_power(running: Network) -> None:
    members = status(running)["validators"]["members"]

    assert {m["node"]: (m["wallet"], m["share_bps"]) for m in members} == {
        make_key(name).address: (wallet_of(name).address, 2_500) for name in VALIDATORS
    }


def test_status_of_changed_code_exits_1_and_names_the_contract(running: Network) -> None:
    vault = running.chain.deployment.vault
    node = running.office.node
    code = node.call("eth_getCode", vault, "latest")
    node.call("anvil_setCode", vault, code[:-2] + ("00" if code[-2:] != "00" else "01"))
    found = status(running, code=1)

    assert [item["contract"] for item in found["contracts"] if not item["ok"]] == ["CreditVault"]
    assert "1 DIFFER" in running.run("chain", "status").out


def test_status_of_another_guardian_than_the_record_is_found(running: Network) -> None:
    """An immutable that the code's own getter tells: the code is sound, the record gives it away."""
    distributor, node = running.chain.deployment.distributor, running.office.node
    code: str = node.call("eth_getCode", distributor, "latest")
    guardian, thief = (make_key(name).address[2:].lower() for name in ("guardian", "thief"))
    assert guardian in code
    node.call("anvil_setCode", distributor, code.replace(guardian, thief))
    found = status(running, code=1)

    assert all(item["ok"] for item in found["contracts"])
    assert found["differs_from_record"][0].startswith(f"the guardian is {make_key('thief').address}")
    assert "DIFFERS from the deployment's record: the guardian" in running.run("chain", "status").out


@pytest.fixture(scope="module")
def other_node() -> Iterator[Node]:
    """A node of the same chain id with a chain of its own."""
    with anvil_node() as node:
        node.mine(400)
        yield node


def test_status_judges_every_endpoint_by_itself(running: Network, other_node: Node) -> None:
    url = running.office.node.url
    urls = [url, "http://127.0.0.1:1", url.replace("127.0.0.1", "localhost"), other_node.url]
    config = running.office.home / "emcd.toml"
    config.write_text(
        f'[network]\ndeployment = "{running.deployment_file}"\n[chain]\nconfirmations = 1\n'
        f'rpc_urls = {json.dumps(urls)}\n[[role]]\nkind = "settler"\n'
        'key = "k.json"\nhub_url = "http://127.0.0.1:1"\n'
    )
    done = running.office.run("--config", config, "chain", "status", "--json")
    shown = json.loads(done.out)["endpoints"]

    assert done.code == 1
    assert [item["ok"] for item in shown] == [True, False, True, False], shown
    assert "tells another chain" in shown[3]["problem"]
    assert shown[1]["block"] is None


def test_status_of_two_endpoints_that_contradict_each_other_believes_neither(
    running: Network, other_node: Node
) -> None:
    views = trio.run(view_endpoints, (running.office.node.url, other_node.url), CHAIN_ID)

    assert all("contradict each other" in view.problem for view in views)


def test_status_of_an_endpoint_far_behind_says_how_far(running: Network) -> None:
    views = [EndpointView("a", head(100), common=head(90)), EndpointView("b", head(90), common=head(90))]
    judge_endpoints(views)

    assert [view.problem for view in views] == ["", "10 blocks behind"]


def head(number: int) -> BlockRef:
    return BlockRef(number, Hash(number.to_bytes(32, "big")), 0, ZERO_HASH)


def test_status_of_contracts_that_are_not_there_is_a_numbered_fault(
    running: Network, other_node: Node
) -> None:
    done = running.office.run(
        "chain", "status", "--deployment", running.deployment_file, "--rpc", other_node.url
    )

    assert (done.code, done.err[:8]) == (1, "EMC-1515")


def test_status_of_a_deployment_with_other_parameters_says_so(running: Network, tmp_path: Path) -> None:
    table = json.loads(running.deployment_file.read_text())
    table["params"]["minimum_judges"] = 3
    changed = tmp_path / "deployment.json"
    changed.write_text(json.dumps(table))
    network = open_network(running.office, changed)
    found = status(network, code=1)

    assert "EMC-1542" in found["parameters"]["problem"]
