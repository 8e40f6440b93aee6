"""Evidence that the settler brings: one silent validator keeps nobody waiting, a refusal is remembered."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import trio
import trio.testing

from emcd.clock import ManualClock
from emcd.log import get_logger
from emcd.proto.messages import RoundRoot
from emcd.proto.params import devnet_params
from emcd.testing import make_key
from emcd.types import Address
from emcd_settler.attestation import Attestation
from emcd_settler.peer import ProofAnswer
from emcd_settler.slasher import REPORT_S, Slasher

NAMES = ("good", "refusing", *(f"silent {n}" for n in range(20)))
NODES = {make_key(name).address: name for name in NAMES}
PAIRS = [
    tuple(Attestation(make_key(liar).address, RoundRoot(0, seed * 32, b"r" * 32, 1), bytes(65)) for seed in (b"a", b"b"))
    for liar in ("liar", "other liar")
]  # fmt: skip


class Peers:
    """Validators: one takes evidence, one refuses it, the others never answer in time."""

    def __init__(self, silent_s: float) -> None:
        self.asked: list[str] = []
        self._silent_s = silent_s

    async def bring_proof(self, validator: Address, endpoint: str, body: bytes) -> ProofAnswer:
        name = NODES[validator]
        self.asked.append(name)
        if name.startswith("silent"):
            await trio.sleep(self._silent_s)
            return ProofAnswer.NONE
        return ProofAnswer.TAKEN if name == "good" else ProofAnswer.REFUSED


def make_slasher(peers: Peers) -> Slasher:
    async def fetch_validator_set(_: int) -> Any:
        return SimpleNamespace(members=[(node, 1) for node in NODES])

    async def find_participant(node: Address) -> Any:
        return SimpleNamespace(endpoint=f"https://{node}.example")

    async def read(_: Any) -> Any:
        return PAIRS

    staking = SimpleNamespace(fetch_validator_set=fetch_validator_set, find_participant=find_participant)
    return Slasher(
        instance="settler",
        params=devnet_params(0),
        chain=cast("Any", SimpleNamespace(staking=staking)),
        outbox=cast("Any", None),
        ledger=cast("Any", SimpleNamespace(read=read)),
        clock=ManualClock(),
        peers=cast("Any", peers),
        log=get_logger(),
    )


async def test_report_silent_validators_cost_one_timeout_together(
    autojump_clock: trio.testing.MockClock,
) -> None:
    peers = Peers(10.0)
    start = trio.current_time()
    await make_slasher(peers)._report(0)
    assert trio.current_time() - start <= 10.5
    assert [peers.asked.count(name) for name in NAMES] == [2, 2, *[1] * 20]


async def test_report_has_one_deadline_for_everybody(autojump_clock: trio.testing.MockClock) -> None:
    peers = Peers(10_000.0)
    start = trio.current_time()
    await make_slasher(peers)._report(0)
    assert trio.current_time() - start <= REPORT_S + 0.5


async def test_report_what_was_refused_is_not_sent_again(autojump_clock: trio.testing.MockClock) -> None:
    peers = Peers(1.0)
    slasher = make_slasher(peers)
    for _ in range(3):
        await slasher._report(0)
    assert [peers.asked.count(name) for name in NAMES] == [2, 2, *[3] * 20]
