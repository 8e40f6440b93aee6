"""A deployment that is cut, or meets a chain that is not kind, goes on and deploys nothing twice."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio

from emcd.chain import Call, JsonRpc
from emcd.chain.deploy import contract_addresses, predict_address
from emcd.chain.sender import send_call
from emcd.chain.tx import GWEI, FeePolicy
from emcd.cli.deployment.plan_file import load_plan
from emcd.cli.deployment.preview import Preview, preview_deployment
from emcd.cli.deployment.progress import Progress, load_progress, only_one, progress_file
from emcd.cli.deployment.send import DeploymentSender, SendPolicy
from emcd.errors import FatalError
from emcd.testing import make_key
from tests.support.anvil import CHAIN_ID
from tests.support.chain_cli import PASSWORD, Node, Office, anvil_node
from tests.support.deployment import DEPLOYER, STEPS, Cut, CuttingRpc, deploy, error_of, run_sender, send
from tests.support.process import make_environment

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


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("number", range(1, STEPS + 1))
def test_deployment_cut_at_any_contract_goes_on_and_deploys_nothing_twice(
    office: Office, number: int, after: bool
) -> None:
    plan, _ = office.plan(), office.key("deployer")
    with pytest.raises(Cut):
        run_sender(office, plan, CuttingRpc(office.node.url, number, after))
    begun = load_progress(progress_file(office.home / "deployments", CHAIN_ID))
    assert begun is not None
    assert not (office.home / "deployments" / f"{CHAIN_ID}.json").exists()

    dry = deploy(office, plan, "--json")
    assert dry.json["resumes"] is True
    outcome = run_sender(office, plan, JsonRpc([office.node.url], CHAIN_ID))

    assert office.node.nonce(DEPLOYER.address) == STEPS
    addresses = list(contract_addresses(outcome.deployment).values())
    assert addresses == [predict_address(DEPLOYER.address, n) for n in range(STEPS)]
    assert [step.address for step in begun.steps] == addresses
    assert all(check.ok for check in outcome.checks)


def test_deployment_cut_after_its_record_ends_with_the_same_record(office: Office) -> None:
    plan = office.plan()
    sent = send(office, plan)
    record = office.home / "deployments" / f"{CHAIN_ID}.json"
    before = record.read_text()
    steps = [
        {
            "contract": name, "address": entry["address"], "nonce": entry["nonce"],
            "creation_hash": entry["creation_hash"], "gas_limit": 1,
            "attempts": [{"tx_hash": entry["tx_hash"], "raw": "0x", "max_fee_wei": "1", "tip_wei": "1", "signed_at_s": 1}],
        }
        for name, entry in sent.json["contracts"].items()
    ]  # fmt: skip
    first = office.node.call("eth_getBlockByNumber", "0x0", False)["hash"]
    progress_file(record.parent, CHAIN_ID).write_text(
        json.dumps(
            {
                "format": 1,
                "chain_id": CHAIN_ID,
                "chain_hash": first,
                "deployer": DEPLOYER.address,
                "steps": steps,
            }
        )
    )

    again = send(office, plan)

    assert again.code == 0, again.err
    assert record.read_text() == before
    assert not progress_file(record.parent, CHAIN_ID).exists()


def test_process_killed_between_contracts_goes_on(tmp_path: Path) -> None:
    """kill -9 of the real command, on a chain that takes its time."""
    with anvil_node("--block-time", "1") as node:
        office = Office(node, tmp_path)
        plan, key = office.plan(), office.key("deployer")
        command = [
            sys.executable,
            "-m",
            "emcd",
            "chain",
            "deploy",
            plan,
            "--keystore",
            key,
            "--send",
            "--yes",
        ]
        environment = {**make_environment(), "EMCD_KEY_PASSWORD": PASSWORD}
        process = subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        file = progress_file(tmp_path / "deployments", CHAIN_ID)
        deadline = time.monotonic() + 60
        while sum(len(step.attempts) for step in _steps(file)) < 2:
            assert process.poll() is None, process.stderr and process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.communicate()

        done = send(office, plan)

        assert done.code == 0, done.err
        assert node.nonce(DEPLOYER.address) == STEPS


def _steps(file: Path) -> list[Any]:
    with suppress(FileNotFoundError):
        progress = load_progress(file)
        return list(progress.steps) if progress else []
    return []


def test_two_runs_at_once_are_one(office: Office) -> None:
    plan, _ = office.plan(), office.key("deployer")
    with only_one(office.home / "deployments", CHAIN_ID):
        done = send(office, plan)

    assert error_of(done)["code"] == "EMC-2155"
    assert office.node.nonce(DEPLOYER.address) == 0


# ------------------------------------------------------------------------- what can't go on


def cut_after_first(office: Office, plan: Path) -> None:
    office.key("deployer")
    with pytest.raises(Cut):
        run_sender(office, plan, CuttingRpc(office.node.url, 2, after=False))
    assert office.node.nonce(DEPLOYER.address) == 1


def test_cut_deployment_with_another_plan_is_refused(office: Office) -> None:
    plan = office.plan()
    cut_after_first(office, plan)
    other = send(office, office.plan(guardian=f'guardian = "{make_key("other").address}"'))

    assert error_of(other)["code"] == "EMC-2153"
    assert office.node.nonce(DEPLOYER.address) == 1
    assert send(office, plan).code == 0


def test_cut_deployment_by_another_key_is_refused(office: Office) -> None:
    plan = office.plan()
    cut_after_first(office, plan)
    done = office.run(
        "chain", "deploy", plan, "--keystore", office.key("another"), "--send", "--yes", "--json"
    )

    assert error_of(done)["code"] == "EMC-2153"


def test_cut_deployment_on_a_chain_that_began_anew_is_refused_until_set_aside(
    office: Office, tmp_path: Path
) -> None:
    plan = office.plan()
    cut_after_first(office, plan)
    with anvil_node() as fresh:
        fresh.fund(DEPLOYER.address)
        elsewhere = send(office, plan, "--rpc", fresh.url)
        assert error_of(elsewhere)["code"] == "EMC-2153"
        assert "another chain of id" in error_of(elsewhere)["message"]
        anew = send(office, plan, "--rpc", fresh.url, "--new")

    assert anew.code == 0, anew.err
    assert (tmp_path / "deployments" / f"{CHAIN_ID}.progress-1.json").exists()


def test_nonce_used_by_another_transaction_ends_the_run_with_its_reason(office: Office) -> None:
    plan = office.plan()
    cut_after_first(office, plan)
    network = JsonRpc([office.node.url], CHAIN_ID)

    async def pay() -> None:
        await send_call(network, CHAIN_ID, DEPLOYER, Call(make_key("other").address, b"", 5))

    trio.run(pay)
    with pytest.raises(FatalError) as caught:
        run_sender(office, plan, network)

    assert caught.value.code == "EMC-2156"
    assert not (office.home / "deployments" / f"{CHAIN_ID}.json").exists()


def test_damaged_state_is_refused_not_overwritten(office: Office) -> None:
    plan, _ = office.plan(), office.key("deployer")
    folder = office.home / "deployments"
    folder.mkdir()
    progress_file(folder, CHAIN_ID).write_text("{")

    assert error_of(send(office, plan))["code"] == "EMC-2154"
    assert progress_file(folder, CHAIN_ID).read_text() == "{"
    assert office.node.nonce(DEPLOYER.address) == 0


# ------------------------------------------------------------------------- a chain that is not kind


async def prepare_sender(
    office: Office, plan: Path, policy: SendPolicy, said: list[str]
) -> tuple[DeploymentSender, Progress, Preview]:
    folder = office.home / "deployments"
    folder.mkdir(exist_ok=True)
    read, _ = load_plan(plan)
    assert read is not None
    rpc = JsonRpc([office.node.url], CHAIN_ID)
    shown = await preview_deployment(read, DEPLOYER.address, rpc, folder, anew=False)
    assert shown.faults == []
    assert shown.progress is not None
    file = progress_file(folder, CHAIN_ID)
    return (
        DeploymentSender(rpc, DEPLOYER, shown.steps, shown.progress, file, policy, said.append),
        shown.progress,
        shown,
    )


def policy_for_tests(**changes: Any) -> SendPolicy:
    fees = FeePolicy(ceiling_wei=100 * GWEI, bump_after_s=1, resend_after_s=0.2, max_transaction_cost_wei=0)
    return replace(SendPolicy(fees, confirmations=1, poll_s=0.05, timeout_s=40), **changes)


async def test_transaction_that_is_not_mined_is_paid_more_for_under_the_same_nonce(office: Office) -> None:
    plan, _ = office.plan(), office.key("deployer")
    said: list[str] = []
    sender, progress, _ = await prepare_sender(office, plan, policy_for_tests(), said)
    office.node.call("evm_setAutomine", False)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sender.run)
        with trio.fail_after(20):
            while len(progress.steps[0].attempts) < 2:
                await trio.sleep(0.05)
        office.node.call("anvil_dropAllTransactions")
        await trio.sleep(0.5)
        office.node.call("evm_setAutomine", True)
        office.node.mine()

    first, second = progress.steps[0].attempts[:2]
    assert int(second.max_fee_wei) >= int(first.max_fee_wei) * 1.1
    assert any("not mined yet" in line for line in said)
    assert office.node.nonce(DEPLOYER.address) == STEPS


async def test_reorganisation_before_the_confirmations_is_repaired(office: Office) -> None:
    plan, _ = office.plan(), office.key("deployer")
    said: list[str] = []
    sender, _, shown = await prepare_sender(office, plan, policy_for_tests(confirmations=4), said)
    found: dict[str, Any] = {}

    async def run() -> None:
        found.update(await sender.run())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        with trio.fail_after(20):
            while not any("confirmations" in line for line in said):
                await trio.sleep(0.02)
        office.node.call("anvil_reorg", 3, [])
        with trio.fail_after(20):
            while not any("reorganisation took" in line for line in said):
                await trio.sleep(0.02)
        while not found:
            office.node.mine()
            await trio.sleep(0.05)

    assert [found[step.contract].contract for step in shown.steps] == [step.address for step in shown.steps]
    assert office.node.nonce(DEPLOYER.address) == STEPS
