"""Validators among each other: votes on what they recomputed, whoever else lies or stalls."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from starlette.requests import Request

from emcd.errors import RecoverableError
from emcd.ledger import Ledger
from emcd.proto.json_form import to_json
from emcd.proto.messages import BundleSeal, Verdict
from emcd.proto.records import format_call_id
from emcd.services import Health, HealthState
from emcd.testing import make_key, temporary_ledger
from emcd_validator.entry import Held, read_vote_item
from emcd_validator.offence_page import OffencePages
from emcd_validator.queries.bundles import list_bundles
from emcd_validator.queries.items import Kind, list_conflicts, list_items
from emcd_validator.revealer import reveal_round
from emcd_validator.role import SPEC
from emcd_validator.server import Pages
from emcd_validator.statement import write_seal
from emcd_validator.view import RoundView
from tests.support.round_world import edited
from tests.support.validator_world import (
    HUB,
    FakeHub,
    FakeReference,
    Parts,
    fake_embed,
    fake_vector,
    make_parts,
    make_world,
    set_clock,
)

NAMES = ("validator-1", "validator-2", "validator-3")
INDEX = 3


class WrongReference(FakeReference):
    """A validator that finds every answer wrong."""

    def compute(self, texts: Any) -> Any:
        run = super().compute(texts)
        return type(run)(tuple(fake_vector("x" + text) for text in texts), run.prompt_tokens)

    def compute_again(self, texts: Any) -> Any:
        return [tuple(fake_vector("x" + text) for text in texts)]


class DirectPeers:
    """Peers whose pages are read in place; some are changed, slow or dead on the way."""

    def __init__(self) -> None:
        self.pages: dict[str, Pages] = {}
        self.edit: dict[str, Any] = {}
        self.dead: set[str] = set()
        self.slow: set[str] = set()

    async def find_page(self, endpoint: str, what: str, key: int | bytes) -> Any:
        name = endpoint.rsplit("/", 1)[1]
        if name in self.slow:
            await trio.sleep_forever()
        if name in self.dead:
            raise RecoverableError("EMC-1301", name)
        pages = self.pages[name]
        if what == "evidence":
            assert isinstance(key, bytes)
            return self.edit.get("evidence", lambda page: page)(await read_evidence(pages, key))
        page = await getattr(pages, {"commitments": "_commitment", "reveals": "_reveal", "votes": "_votes",
                                     "seals": "_seals", "results": "_results"}[what])(key)  # fmt: skip
        return self.edit.get(what, lambda page: page)(page)


async def read_evidence(pages: Pages, call_id: bytes) -> Any:
    scope = {"type": "http", "path_params": {"call_id": format_call_id(call_id)}}
    answer = await pages._evidence(Request(scope))
    return msgspec.json.decode(bytes(answer.body)) if answer.status_code == 200 else None


@dataclass
class Net:
    hub: FakeHub
    peers: DirectPeers
    parts: dict[str, Parts]
    view: RoundView

    async def gather(self, name: str) -> Held:
        """One exchange with every peer, all at the same time."""
        voter, validator = self.parts[name].voter, self.parts[name].validator
        terms = self.view.terms(validator.params, validator.domain, HUB.address)
        with trio.move_on_after(0.5 if self.peers.slow else 20):
            async with trio.open_nursery() as nursery:
                for peer, endpoint in self.view.endpoints.items():
                    if peer != validator.address:
                        step = voter._exchange(self.view, terms, peer, endpoint)
                        nursery.start_soon(voter._guard, peer, INDEX, step)
        return await voter.list_held(INDEX)

    def verdicts(self, held: Held) -> dict[str, set[Verdict]]:
        by_name: dict[str, set[Verdict]] = {}
        for (_, author), entry in held.votes.items():
            name = next(name for name in NAMES if make_key(name).address == author)
            by_name.setdefault(name, set()).add(Verdict(entry.vote.verdict))
        return by_name


@pytest.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[Ledger]:
    async with temporary_ledger(tmp_path, {"validator": SPEC.migrations}) as opened:
        yield opened


async def make_net(ledger: Ledger, tmp_path: Path, *, noise: float = 0.0, liar: str = "") -> Net:
    """Three validators that probed one round; it is over, and nothing was exchanged yet."""
    hub = make_world(NAMES, embeds=[fake_embed(noise)] * 4, round_s=20)
    peers = DirectPeers()
    net = Net(hub, peers, {}, None)  # type: ignore[arg-type]
    params = hub.deployment.params
    for name in NAMES:
        reference = WrongReference() if name == liar else FakeReference()
        parts = net.parts[name] = make_parts(name, ledger, hub, tmp_path, peers=peers, reference=reference)
        offences = OffencePages(parts.validator, parts.offences.desk)
        peers.pages[name] = Pages(
            parts.validator, parts.attester, offences, lambda: Health(HealthState.READY)
        )
        set_clock(hub, params.round_start_ms(INDEX) - 500)
        await parts.committer.commit(INDEX)
        set_clock(hub, params.round_start_ms(INDEX) + 17_000)
        net.view = await parts.views.fetch_view(INDEX)
        await parts.committer.plan(net.view)
        await parts.prober.run_round(INDEX)
        set_clock(hub, parts.validator.reveal_at_ms(INDEX))
        await reveal_round(parts.validator, INDEX)
    return net


async def test_voters_confirm_a_cheat_each_for_himself(ledger: Ledger, tmp_path: Path) -> None:
    net = await make_net(ledger, tmp_path, noise=0.3)
    for _ in range(2):
        held = [await net.gather(name) for name in NAMES]
    assert all(net.verdicts(h) == {name: {Verdict.GROSS} for name in NAMES} for h in held)
    assert all(set(h.reveals) == {make_key(name).address for name in NAMES} for h in held)


async def test_voters_do_not_follow_a_framed_strike(ledger: Ledger, tmp_path: Path) -> None:
    net = await make_net(ledger, tmp_path, liar=NAMES[0])
    await net.gather(NAMES[1])
    await net.gather(NAMES[2])
    held = await net.gather(NAMES[2])
    assert net.verdicts(held) == {NAMES[1]: {Verdict.PASS}, NAMES[2]: {Verdict.PASS}}


async def test_voters_are_stalled_by_nobody(ledger: Ledger, tmp_path: Path) -> None:
    net = await make_net(ledger, tmp_path, noise=0.3)
    net.peers.slow = {NAMES[0]}
    held = await net.gather(NAMES[2])
    assert set(held.reveals) == {make_key(name).address for name in NAMES[1:]}
    net.peers.slow, net.peers.dead = set(), {NAMES[0]}
    held = await net.gather(NAMES[2])
    assert set(held.reveals) == {make_key(name).address for name in NAMES[1:]}
    assert held.votes


async def test_voters_hold_no_reveal_that_does_not_open_its_commitment(
    ledger: Ledger, tmp_path: Path
) -> None:
    net = await make_net(ledger, tmp_path)

    def lie(page: Any) -> Any:
        return {**page, "reveal": {**page["reveal"], "seed": "0x" + "11" * 32}}

    net.peers.edit["reveals"] = lie
    held = await net.gather(NAMES[2])
    assert set(held.reveals) == {make_key(NAMES[2]).address}


async def test_voters_do_not_vote_on_evidence_that_does_not_hold(ledger: Ledger, tmp_path: Path) -> None:
    net = await make_net(ledger, tmp_path, noise=0.3)
    net.peers.edit["evidence"] = lambda page: page and {**page, "response_body": page["request_body"]}
    held = await net.gather(NAMES[2])
    assert not held.votes
    assert len(held.reveals) == 3


@pytest.mark.parametrize("page", [None, [], {}, {"reveal": 5}, {"votes": [{}]}, "x"])
async def test_voters_take_no_garbage(ledger: Ledger, tmp_path: Path, page: Any) -> None:
    net = await make_net(ledger, tmp_path, noise=0.3)
    for what in ("commitments", "results", "reveals", "votes", "evidence"):
        net.peers.edit[what] = lambda _: page
    held = await net.gather(NAMES[2])
    assert set(held.reveals) == {make_key(NAMES[2]).address}
    assert not held.votes


async def test_voters_keep_a_second_statement_of_a_peer_as_evidence(ledger: Ledger, tmp_path: Path) -> None:
    net = await make_net(ledger, tmp_path, noise=0.3)
    for name in (NAMES[2], NAMES[0], NAMES[2]):
        await net.gather(name)
    me, other = net.parts[NAMES[2]], net.parts[NAMES[0]]
    items = await me.validator.read(lambda con: list_items(con, me.validator.address, INDEX, Kind.VOTE))
    held = next(item for item in items if item.author == other.validator.address)
    vote = edited(read_vote_item(held).vote, verdict=int(Verdict.PASS))
    signature = make_key(NAMES[0]).sign(me.validator.domain, vote)
    double = {"votes": [{"vote": to_json(vote), "signature": "0x" + signature.hex()}]}
    net.peers.edit["votes"] = lambda page: double
    net.peers.dead = {NAMES[1]}
    await net.gather(NAMES[2])
    conflicts = await me.validator.read(lambda con: list_conflicts(con, me.validator.address, INDEX))
    assert conflicts == [("vote", other.validator.address)]


async def test_voters_find_a_hub_that_sealed_two_bundles(ledger: Ledger, tmp_path: Path) -> None:
    net = await make_net(ledger, tmp_path)
    me = net.parts[NAMES[2]].validator
    set_clock(net.hub, net.hub.deployment.params.grace_end_ms(INDEX))
    seals = []
    for content in (b"\1", b"\2"):
        seal = BundleSeal(HUB.address, INDEX, content * 32)
        seals.append((seal, HUB.sign(me.domain, seal)))
    net.peers.edit["seals"] = lambda page: {"seals": [write_seal(*item) for item in seals]}
    with trio.move_on_after(0.3):
        await net.parts[NAMES[2]].voter.gather_seals(net.view)
    rows = await me.read(lambda con: list_bundles(con, me.address, INDEX))
    assert {row.bundle_hash for row in rows} == {b"\1" * 32, b"\2" * 32}


async def test_held_in_time_leaves_out_what_came_or_was_served_late(ledger: Ledger, tmp_path: Path) -> None:
    net = await make_net(ledger, tmp_path)
    parts = net.parts[NAMES[2]]
    await net.gather(NAMES[2])
    held = await parts.voter.list_held(INDEX, in_time=True)
    assert len(held.reveals) == 3
    assert set(held.commitments) == {make_key(NAMES[2]).address}
    late = make_parts(NAMES[2], ledger, net.hub, tmp_path)
    object.__setattr__(late.validator, "started_at_ms", net.hub.deployment.params.grace_end_ms(INDEX))
    assert await late.voter.list_held(INDEX, in_time=True) == Held()
