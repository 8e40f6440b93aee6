"""A node and its hub's bundles: what is missing is found out, filed, and followed until it is carried."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from emcd.accounting.receipt import check_receipt
from emcd.accounting.round_close import CallRecords
from emcd.clock import ManualClock
from emcd.errors import RecoverableError, RemoteProtocolError
from emcd.keys import SigningKey
from emcd.ledger import Ledger
from emcd.log import get_logger
from emcd.net.http_client import Response
from emcd.proto.control import ProofMessage
from emcd.proto.merkle import build_proof, build_tree, record_leaf
from emcd.proto.messages import BundleSeal
from emcd.proto.params import PriceTable
from emcd.proto.records import RecordKind, RecordProof
from emcd.services import FixedParameters
from emcd.testing import temporary_ledger
from emcd.types import Hash
from emcd_node import queries
from emcd_node.bundle_scan import Scanned, scan_bundle
from emcd_node.filing import Filer, make_filing
from emcd_node.hub_pages import RoundWord
from emcd_node.hub_proofs import HubProofs
from emcd_node.omission_row import CallState, count_states, list_claims, list_omissions
from emcd_node.omission_watch import OmissionWatch
from emcd_node.queries import BatchRow, ReceiptRow
from emcd_node.schema import MIGRATIONS
from emcd_validator.statement import read_filing
from tests.support.round_world import SealedBundle, World, address_of, secret_of

KEY = SigningKey(secret_of("node-1"))
HUB = SigningKey(secret_of("hub"))
FIRST = 7
VALIDATORS = {address_of(f"validator-{n}"): f"http://v{n}" for n in (1, 2, 3)}


@dataclass
class Hub:
    """Sealed rounds as a node sees them; `hidden` bundles are not served."""

    folder: Path
    world: World
    rounds: dict[int, SealedBundle] = field(default_factory=dict)
    words: dict[int, RoundWord] = field(default_factory=dict)
    seals: dict[int, bytes] = field(default_factory=dict)
    scans: int = 0
    asked: int = 0

    def seal(
        self, index: int, calls: Sequence[CallRecords], previous: int, total: int = 0, credits_micro: int = 0
    ) -> SealedBundle:
        """Close a round with these calls alone."""
        world = World(round=index)
        facts = {"previous_round": previous}
        closed = world.close(
            facts, calls=[*calls], batches=self.world.batches(calls), reveals=[], commitments=[], votes=[]
        )
        self.rounds[index] = closed
        content = BundleSeal(HUB.address, index, closed.bundle_hash)
        self.seals[index] = HUB.sign(self.world.domain, content)
        self.words[index] = RoundWord(previous, total or len(calls), credits_micro, 0)
        return closed

    async def find_word(self, base: str, index: int) -> RoundWord | None:
        self.asked += 1
        return self.words.get(index)

    async def scan(self, base: str, index: int) -> Scanned | None:
        self.scans += 1
        path = self.folder / "bundle"
        path.write_bytes(self.rounds[index].data)
        try:
            return scan_bundle(path, index, KEY.address, HUB.address, self.world.domain, self.seals[index])
        except RemoteProtocolError as exc:
            raise RecoverableError("EMC-2031", str(exc)) from exc


class Directory:
    """Everybody is where the chain says."""

    async def fetch_hub(self, index: int) -> str:
        return "http://hub"

    async def fetch_validators(self, index: int) -> dict[Any, str]:
        return dict(VALIDATORS)


@dataclass
class Mailbox:
    """What validators were sent, and what they say to it."""

    status: int = 202
    bodies: list[tuple[str, bytes]] = field(default_factory=list)
    away: set[str] = field(default_factory=set)

    async def request(self, method: str, url: str, *, body: bytes = b"", **_: Any) -> Response:
        if any(url.startswith(endpoint) for endpoint in self.away):
            raise RecoverableError("EMC-1301", url)
        self.bodies.append((url, body))
        return Response(self.status, {}, b'{"state": "new"}', url)


@dataclass
class Node:
    """The part of a node that watches bundles."""

    ledger: Ledger
    hub: Hub
    watch: OmissionWatch
    clock: ManualClock
    mail: Mailbox

    @property
    def own(self) -> list[CallRecords]:
        return [call for call in self.hub.world.calls if call.forward.node == KEY.address]

    async def step_in(self, index: int) -> None:
        self.clock.at_ms = self.hub.world.params.round_start_ms(index) + 10
        await self.watch.step()

    async def states(self) -> dict[str, int]:
        counts = await self.ledger.read(lambda con: count_states(con, KEY.address))
        return {state.value: count for state, count in counts.items() if state is not CallState.UNPAID}

    async def learn(self, calls: Sequence[CallRecords], *, sent: bool = True, forwards: bool = True) -> None:
        """The node gave receipts, and the hub's deliveries came with their proofs."""
        world = self.hub.world
        for call in calls:
            receipt = call.receipt
            assert receipt is not None
            receipt_hash = receipt.struct_hash()
            row = ReceiptRow(
                KEY.address, call.forward.call_id, call.forward.struct_hash(), receipt_hash,
                msgspec.msgpack.encode(call.forward), msgspec.msgpack.encode(receipt), FIRST,
            )  # fmt: skip
            signed = world.sign_batch("node-1", RecordKind.RECEIPT, [receipt_hash])
            root, packed = Hash(signed.batch.root), msgspec.msgpack.encode(signed.batch)
            batch = BatchRow(KEY.address, root, packed, receipt_hash, FIRST)
            await self.ledger.write(lambda con, row=row: queries.insert_receipts(con, [row]))  # type: ignore[misc]
            await self.ledger.write(lambda con, batch=batch: queries.insert_batch(con, batch))  # type: ignore[misc]
            if sent:
                await self.ledger.write(
                    lambda con, root=root: queries.mark_batch_sent(con, KEY.address, root, 1)  # type: ignore[misc]
                )
        proofs = HubProofs(self.ledger, KEY.address, HUB.address, world.domain, world.params, self.clock)
        if forwards:
            await proofs.take(self._prove(RecordKind.FORWARD, [call.forward for call in calls]))
        deliveries = [call.delivery for call in calls]
        await proofs.take(self._prove(RecordKind.DELIVERY, deliveries, tuple(deliveries)))

    def _prove(self, kind: RecordKind, records: Sequence[Any], deliveries: Any = ()) -> ProofMessage:
        hashes = [record.struct_hash() for record in records]
        signed = self.hub.world.sign_batch("hub", kind, hashes)
        tree = build_tree([record_leaf(item) for item in hashes])
        proofs = [
            RecordProof(signed.batch, signed.signature, i, tuple(build_proof(tree, i)))
            for i in range(len(hashes))
        ]
        return ProofMessage(tuple(hashes), tuple(proofs), deliveries)


@pytest.fixture
async def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Node]:
    async with temporary_ledger(tmp_path, {"node": MIGRATIONS}) as ledger:
        hub, clock, mail = Hub(tmp_path, World(round=FIRST)), ManualClock(), Mailbox()
        clock.at_ms = hub.world.params.round_start_ms(FIRST)
        monkeypatch.setattr("emcd_node.filing.request", mail.request)
        watch = OmissionWatch(
            node=KEY.address,
            params=hub.world.params,
            parameters=FixedParameters(hub.world.params, PriceTable()),
            ledger=ledger,
            clock=clock,
            pages=cast("Any", hub),
            directory=cast("Any", Directory()),
            filer=Filer(KEY, hub.world.domain, timeout_s=1),
            log=get_logger(),
        )
        yield Node(ledger, hub, watch, clock, mail)


async def test_watch_asks_nobody_while_nothing_is_expected(node: Node) -> None:
    node.hub.seal(FIRST, node.own, FIRST - 1)
    await node.step_in(FIRST + 5)
    assert (node.hub.asked, node.hub.scans, node.mail.bodies) == (0, 0, [])


async def test_watch_of_an_honest_bundle_files_nothing(node: Node) -> None:
    await node.learn(node.own)
    await node.step_in(FIRST + 1)
    assert node.hub.asked == 0, "the round is not closed"
    node.hub.seal(FIRST, node.hub.world.calls, FIRST - 1)
    await node.step_in(FIRST + 2)
    assert await node.states() == {"carried": len(node.own)}
    assert node.mail.bodies == []
    assert node.watch.complaint == ""


async def test_watch_waits_for_a_bundle_that_is_not_sealed_yet(node: Node) -> None:
    await node.learn(node.own)
    for index in (2, 3, 4):
        await node.step_in(FIRST + index)
    assert await node.states() == {"expected": len(node.own)}
    node.hub.seal(FIRST, node.own, FIRST - 1)
    await node.step_in(FIRST + 4)
    assert await node.states() == {"carried": len(node.own)}


async def test_watch_files_what_a_bundle_leaves_out_until_one_carries_it(node: Node) -> None:
    *kept, dropped = node.own
    await node.learn(node.own)
    node.hub.seal(FIRST, kept, FIRST - 1)
    await node.step_in(FIRST + 2)
    assert await node.states() == {"carried": len(kept), "filed": 1}
    assert "1 calls" in node.watch.complaint
    assert sorted(url for url, _ in node.mail.bodies) == sorted(f"{e}/omissions" for e in VALIDATORS.values())
    assert len({body for _, body in node.mail.bodies}) == 1
    call = read_filing(node.mail.bodies[0][1]).call
    outcome = check_receipt(node.hub.world.domain, HUB.address, call)
    assert (outcome.fault, outcome.counts) == (None, True)
    assert call.forward == dropped.forward
    node.hub.seal(FIRST + 1, [], FIRST)
    await node.step_in(FIRST + 3)
    assert len(node.mail.bodies) == 3, "filed once with each"
    node.hub.seal(FIRST + 2, [dropped], FIRST + 1)
    await node.step_in(FIRST + 4)
    assert await node.states() == {"carried": len(node.own)}
    assert node.watch.complaint == ""
    [listed] = await node.ledger.read(lambda con: list_omissions(con, KEY.address, 9))
    assert (listed.call_id, listed.state, listed.filed_with, listed.carried_in) == (
        dropped.forward.call_id, "carried", 3, FIRST + 2,
    )  # fmt: skip


async def test_watch_does_not_blame_the_hub_for_a_batch_that_never_went_out(node: Node) -> None:
    await node.learn(node.own[:2], sent=False)
    await node.learn(node.own[2:])
    node.hub.seal(FIRST, node.own[2:], FIRST - 1)
    await node.step_in(FIRST + 2)
    assert await node.states() == {"carried": len(node.own) - 2, "expected": 2}
    assert node.mail.bodies == []


async def test_watch_files_with_those_that_were_away_when_they_are_back(node: Node) -> None:
    node.mail.away = {"http://v1", "http://v2", "http://v3"}
    await node.learn(node.own)
    node.hub.seal(FIRST, node.own[1:], FIRST - 1)
    await node.step_in(FIRST + 2)
    assert (await node.states())["missing"] == 1
    node.mail.away = {"http://v3"}
    await node.watch.step()
    node.mail.away = set()
    await node.watch.step()
    await node.watch.step()
    assert sorted(url for url, _ in node.mail.bodies) == [f"http://v{n}/omissions" for n in (1, 2, 3)]


async def test_watch_does_not_repeat_what_validators_refuse(node: Node) -> None:
    node.mail.status = 400
    await node.learn(node.own)
    node.hub.seal(FIRST, node.own[1:], FIRST - 1)
    await node.step_in(FIRST + 2)
    await node.watch.step()
    assert (await node.states())["missing"] == 1
    assert len(node.mail.bodies) == 3


async def test_watch_expects_calls_anew_when_their_bundle_came_to_nothing(node: Node) -> None:
    await node.learn(node.own)
    node.hub.seal(FIRST, node.own, FIRST - 1)
    await node.step_in(FIRST + 2)
    assert await node.states() == {"carried": len(node.own)}
    node.hub.seal(FIRST + 1, node.own[1:], FIRST - 1)
    await node.step_in(FIRST + 3)
    assert await node.states() == {"carried": len(node.own) - 1, "filed": 1}


async def test_watch_trusts_the_numbers_of_a_large_bundle_and_looks_when_they_differ(node: Node) -> None:
    await node.learn(node.own)
    vault_micro = sum(call.delivery.vault_micro for call in node.own)
    assert vault_micro > 0
    node.hub.seal(FIRST, node.own[1:], FIRST - 1, total=10**6, credits_micro=vault_micro)
    await node.step_in(FIRST + 2)
    assert (node.hub.scans, await node.states()) == (0, {"carried": len(node.own)})
    other = Node(node.ledger, node.hub, node.watch, node.clock, node.mail)
    node.hub.seal(FIRST + 1, node.own[1:], FIRST - 1, total=10**6, credits_micro=vault_micro - 1)
    await other.step_in(FIRST + 3)
    assert (node.hub.scans, (await node.states()).get("filed")) == (1, 1)


@pytest.mark.parametrize("lie", ["seal", "round", "bytes"])
async def test_watch_believes_no_bundle_that_the_hub_did_not_seal(node: Node, lie: str) -> None:
    await node.learn(node.own)
    closed = node.hub.seal(FIRST, node.own, FIRST - 1)
    if lie == "seal":
        node.hub.seals[FIRST] = KEY.sign(
            node.hub.world.domain, BundleSeal(HUB.address, FIRST, closed.bundle_hash)
        )
    elif lie == "round":
        node.hub.rounds[FIRST] = World(round=FIRST + 1).close()
    else:
        data = bytearray(closed.data)
        data[len(data) // 2] ^= 1
        node.hub.rounds[FIRST] = SealedBundle(closed.closed, bytes(data))
    with pytest.raises(RecoverableError) as caught:
        await node.step_in(FIRST + 2)
    assert caught.value.code == "EMC-2031"
    assert await node.states() == {"expected": len(node.own)}


async def test_watch_gives_up_what_no_bundle_may_carry_any_more(node: Node) -> None:
    await node.learn(node.own[:1])
    node.hub.seal(FIRST, [], FIRST - 1)
    await node.step_in(FIRST + 2)
    assert await node.states() == {"filed": 1}
    late = FIRST + node.hub.world.params.carry_rounds + 3
    node.mail.bodies.clear()
    await node.step_in(late)
    assert await node.states() == {"lost": 1}
    assert node.mail.bodies == []


async def test_filing_without_the_hubs_proof_is_not_made(node: Node) -> None:
    await node.learn(node.own[:1], forwards=False)
    node.hub.seal(FIRST, [], FIRST - 1)
    await node.step_in(FIRST + 2)
    assert await node.states() == {"missing": 1}
    assert node.mail.bodies == []


async def test_filing_is_the_same_at_every_try(node: Node) -> None:
    await node.learn(node.own[:1])
    node.hub.seal(FIRST, [], FIRST - 1)
    await node.step_in(FIRST + 2)
    [claim] = await node.ledger.read(lambda con: list_claims(con, KEY.address, 9))
    domain = node.hub.world.domain
    assert make_filing(claim, KEY, domain) == make_filing(claim, KEY, domain) == node.mail.bodies[0][1]


async def test_watch_goes_on_where_it_stood_after_a_restart(node: Node) -> None:
    await node.learn(node.own)
    node.hub.seal(FIRST, node.own[1:], FIRST - 1)
    await node.step_in(FIRST + 2)
    watch = OmissionWatch(
        node=KEY.address, params=node.hub.world.params,
        parameters=FixedParameters(node.hub.world.params, PriceTable()), ledger=node.ledger,
        clock=node.clock, pages=cast("Any", node.hub), directory=cast("Any", Directory()),
        filer=Filer(KEY, node.hub.world.domain, timeout_s=1), log=get_logger(),
    )  # fmt: skip
    scans = node.hub.scans
    await watch.step()
    assert node.hub.scans == scans, "a round is looked at once"
    assert len(node.mail.bodies) == 6, "validators know it already; they are told again"
    assert (await node.states())["filed"] == 1
