"""kill -9 in the middle of a round: no acknowledged call is lost, and the round settles once."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from emcd.accounting.audit import audit_bundle
from emcd.proto.bundle_codec import decode_bundle
from emcd.proto.records import format_call_id
from tests.support.devnet import Devnet

pytestmark = pytest.mark.chaos


@pytest.fixture
def devnet(tmp_path: Path) -> Iterator[Devnet]:
    made = Devnet(tmp_path / "devnet")
    made.start()
    yield made
    made.stop()


def test_devnet_killed_in_a_round_loses_no_acknowledged_call_and_settles_once(devnet: Devnet) -> None:
    summary = devnet.summary
    with httpx.Client(headers={"Authorization": f"Bearer {summary['api_key']}"}, timeout=30) as client:
        acknowledged, killed_round = _call_until_killed(devnet, client, summary)
        devnet.start()
        _wait_until(lambda: _state_of(client, summary, killed_round) in ("published", "active"), 150)
        data = client.get(f"{summary['hub_url']}/api/rounds/{killed_round}/bundle").content
        publications = _count_publications(client, summary, killed_round)
    outcome = audit_bundle(data)
    assert outcome.ok, outcome.difference
    held = {format_call_id(call.forward.call_id) for call in decode_bundle(data).calls}
    lost = [call_id for call_id, number in acknowledged if number == killed_round and call_id not in held]
    assert not lost
    assert publications == 1


def _call_until_killed(
    devnet: Devnet, client: httpx.Client, summary: dict[str, Any]
) -> tuple[list[tuple[str, int]], int]:
    """Call through the first half of a round, then kill the daemon; what was acknowledged, and the round."""
    length, genesis = summary["round_seconds"], summary["genesis_time"]
    while (time.time() - genesis) < 0 or (time.time() - genesis) % length > 1.0:
        time.sleep(0.05)
    number = int((time.time() - genesis) // length)
    acknowledged = []
    until = genesis + (number + 0.5) * length
    while time.time() < until:
        body = {"model": "all-MiniLM-L6-v2", "input": f"call {len(acknowledged)}"}
        answer = client.post(f"{summary['hub_url']}/v1/embeddings", json=body)
        assert answer.status_code == 200, answer.text
        acknowledged.append((answer.headers["x-emc-call-id"], number))
    os.kill(devnet.pid, signal.SIGKILL)
    assert len(acknowledged) > 20
    return acknowledged, number


def _state_of(client: httpx.Client, summary: dict[str, Any], number: int) -> str:
    rounds = client.get(f"{summary['hub_url']}/api/rounds").json()["rounds"]
    return next((str(entry["state"]) for entry in rounds if entry["round"] == number), "")


def _count_publications(client: httpx.Client, summary: dict[str, Any], number: int) -> int:
    """How many times the distributor took this round, by its events."""
    from web3 import Web3

    from emcd.chain.contracts import load_artifact

    abi = load_artifact("Distributor").abi
    web3 = Web3(Web3.HTTPProvider(summary["rpc_url"]))
    contract = web3.eth.contract(address=summary["contracts"]["distributor"], abi=abi)
    events = contract.events.RootPublished().get_logs(from_block=0)
    return sum(1 for event in events if event["args"]["round"] == number)


def _wait_until(condition: Any, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.5)
