"""Results first, and what is judged again: drawn and mistrusted PASSes, accusations, evidence withheld."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from emcd.accounting.offence import OffenceKind
from emcd.accounting.recheck import is_recheck
from emcd.ledger import Ledger
from emcd.proto.bundle import ProbeResult, RevealEntry, VoteEntry
from emcd.proto.json_form import to_json
from emcd.proto.messages import Results, Reveal, Verdict, Vote
from emcd.testing import make_key, temporary_ledger
from emcd.types import ZERO_HASH
from emcd_validator.duty import is_mistrusted, list_accused, list_duties, list_votable
from emcd_validator.entry import Held, ResultsEntry
from emcd_validator.queries.items import list_results
from emcd_validator.queries.offences import list_offences
from emcd_validator.revealer import reveal_round, sign_results
from emcd_validator.role import SPEC
from tests.support.round_world import edited
from tests.support.validator_world import set_clock
from tests.unit.test_validator_voter import INDEX, NAMES, Net, make_net

ME, PEER = make_key("me"), make_key("peer").address
NODE = make_key("node").address


def probe(number: int, verdict: Verdict) -> ProbeResult:
    call_id = bytes(16) if verdict is Verdict.OFFLINE else bytes([number]) * 16
    return ProbeResult(NODE, number, 0, call_id, ZERO_HASH, ZERO_HASH, int(verdict), 0)


REVEAL = RevealEntry(
    Reveal(PEER, INDEX, bytes(32), bytes(32), bytes(32), b"\5" * 32),
    b"",
    (
        probe(1, Verdict.PASS),
        probe(2, Verdict.GROSS),
        probe(3, Verdict.PASS),
        probe(4, Verdict.OFFLINE),
        probe(5, Verdict.CLASS),
        probe(6, Verdict.TEMPLATE),
        probe(7, Verdict.ERROR),
    ),
)


def slots(found: Any) -> list[int]:
    return [item.slot for item in found]


def test_duties_are_strikes_then_accused_then_drawn() -> None:
    none = list_duties(REVEAL, accused=set(), is_drawn=lambda call: False, judges_all=False)
    assert slots(none) == [2, 5]
    drawn = list_duties(
        REVEAL, accused={b"\3" * 16}, is_drawn=lambda call: call == b"\1" * 16, judges_all=False
    )
    assert slots(drawn) == [2, 5, 3, 1]
    unusable = list_duties(
        REVEAL, accused={b"\7" * 16}, is_drawn=lambda call: call == b"\6" * 16, judges_all=False
    )
    assert slots(unusable) == [2, 5, 7, 6]
    everything = list_duties(REVEAL, accused={b"\3" * 16}, is_drawn=lambda call: False, judges_all=True)
    assert slots(everything) == [2, 5, 3, 1, 6, 7]


def test_votable_are_answers_whatever_was_said_of_them() -> None:
    held = Held(reveals={PEER: REVEAL})
    assert list_votable(held) == {bytes([number]) * 16 for number in (1, 2, 3, 5, 6, 7)}


@pytest.mark.parametrize(
    ("verdict", "accused"),
    [(Verdict.FAIL, True), (Verdict.GROSS, True), (Verdict.CLASS, True), (Verdict.ERROR, True),
     (Verdict.PASS, False), (Verdict.TEMPLATE, True)],
)  # fmt: skip
def test_accused_is_what_a_vote_calls_other_than_a_pass(verdict: Verdict, accused: bool) -> None:
    vote = VoteEntry(Vote(PEER, INDEX, b"\1" * 16, ZERO_HASH, int(verdict), 0), b"")
    assert list_accused(Held(votes={(b"\1" * 16, PEER): vote})) == ({b"\1" * 16} if accused else set())


@pytest.mark.parametrize(("number", "accused"), [(1, False), (6, True), (7, True)])
def test_accused_is_what_is_called_unusable_and_has_a_vote(number: int, accused: bool) -> None:
    call_id = bytes([number]) * 16
    vote = VoteEntry(Vote(PEER, INDEX, call_id, b"\1" * 32, int(Verdict.PASS), 0), b"")
    held = Held(reveals={PEER: REVEAL}, votes={(call_id, PEER): vote})
    assert list_accused(held) == ({call_id} if accused else set())


def test_peer_is_mistrusted_unless_its_results_came_first_and_are_those_it_reveals() -> None:
    said = ResultsEntry(Results(PEER, INDEX, b"\5" * 32, 1), b"")
    other = ResultsEntry(Results(PEER, INDEX, b"\6" * 32, 1), b"")
    assert not is_mistrusted(Held(results={PEER: said}, results_at_ms={PEER: 100}), REVEAL, 100)
    assert is_mistrusted(Held(results={PEER: said}, results_at_ms={PEER: 101}), REVEAL, 100)
    assert is_mistrusted(Held(results={PEER: other}, results_at_ms={PEER: 100}), REVEAL, 100)
    assert is_mistrusted(Held(), REVEAL, 100)


@pytest.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[Ledger]:
    async with temporary_ledger(tmp_path, {"validator": SPEC.migrations}) as opened:
        yield opened


async def hold_results(net: Net, name: str) -> None:
    """Fetch everybody's results in time."""
    voter, validator = net.parts[name].voter, net.parts[name].validator
    set_clock(net.hub, validator.params.round_end_ms(INDEX) + 100)
    terms = net.view.terms(validator.params, validator.domain, validator.hub)
    for peer, endpoint in net.view.endpoints.items():
        if peer != validator.address:
            assert await voter._fetch_own_results(net.view, terms, peer, endpoint)


def votes_of(held: Held, name: str) -> dict[bytes, Verdict]:
    address = make_key(name).address
    return {call: Verdict(entry.vote.verdict) for (call, who), entry in held.votes.items() if who == address}


def passes_of(held: Held, name: str) -> set[bytes]:
    entry = held.reveals[make_key(name).address]
    return {item.call_id for item in entry.probes if item.verdict == Verdict.PASS}


async def gather_late(net: Net, name: str) -> Held:
    set_clock(net.hub, net.parts[name].validator.tasks_end_ms(INDEX))
    return await net.gather(name)


async def test_results_are_signed_once_and_the_reveal_opens_to_them(ledger: Ledger, tmp_path: Path) -> None:
    net = await make_net(ledger, tmp_path)
    validator = net.parts[NAMES[0]].validator
    results, reveal = await sign_results(validator, INDEX), await reveal_round(validator, INDEX)
    assert results is not None
    assert reveal is not None
    assert reveal.reveal.probes_hash == results.results.probes_hash
    assert reveal.probes == results.probes
    set_clock(net.hub, validator.params.round_end_ms(INDEX) - 1)
    assert await sign_results(validator, INDEX) is None


async def test_passes_of_trusted_peers_are_judged_as_the_own_seed_draws(
    ledger: Ledger, tmp_path: Path
) -> None:
    net = await make_net(ledger, tmp_path)
    name = NAMES[2]
    await hold_results(net, name)
    held = await gather_late(net, name)
    me, params = make_key(name).address, net.hub.deployment.params
    powers = net.view.terms(params, net.parts[name].validator.domain, make_key("hub").address).powers
    seed = held.reveals[me].reveal.seed
    drawn = {
        call
        for peer in NAMES[:2]
        for call in passes_of(held, peer)
        if is_recheck(seed, call, me, make_key(peer).address, powers, params)
    }
    assert votes_of(held, name).keys() == drawn


async def test_passes_of_a_peer_without_results_are_all_judged(ledger: Ledger, tmp_path: Path) -> None:
    net = await make_net(ledger, tmp_path)
    set_clock(net.hub, net.parts[NAMES[2]].validator.reveal_at_ms(INDEX) + 1)
    held = await net.gather(NAMES[2])
    assert votes_of(held, NAMES[2]) == {}  # no evidence of what passed is shown before tasks are due
    held = await gather_late(net, NAMES[2])
    expected = passes_of(held, NAMES[0]) | passes_of(held, NAMES[1])
    assert votes_of(held, NAMES[2]) == dict.fromkeys(expected, Verdict.PASS)
    assert expected


async def test_pass_that_somebody_calls_a_strike_is_judged_by_all(ledger: Ledger, tmp_path: Path) -> None:
    net = await make_net(ledger, tmp_path, liar=NAMES[0])  # its votes on the others' PASSes are strikes
    await gather_late(net, NAMES[0])
    name = NAMES[2]
    await hold_results(net, name)
    await gather_late(net, name)
    held = await gather_late(net, name)
    accused = {call for call, verdict in votes_of(held, NAMES[0]).items() if verdict.is_strike}
    others = accused - passes_of(held, name)
    assert others
    mine = votes_of(held, name)
    assert {mine[call] for call in others} == {Verdict.PASS}


async def test_evidence_withheld_is_voted_an_error_once_it_is_due(ledger: Ledger, tmp_path: Path) -> None:
    net = await make_net(ledger, tmp_path, noise=0.3)
    net.peers.edit["evidence"] = lambda page: None
    held = await gather_late(net, NAMES[2])
    assert votes_of(held, NAMES[2]) == {}
    set_clock(net.hub, net.parts[NAMES[2]].validator.evidence_due_ms(INDEX))
    held = await net.gather(NAMES[2])
    found = votes_of(held, NAMES[2])
    assert found
    assert set(found.values()) == {Verdict.ERROR}
    receipts = {held.votes[call, make_key(NAMES[2]).address].vote.receipt_hash for call in found}
    assert receipts == {ZERO_HASH}
    assert not set(found) & set(await net.parts[NAMES[2]].voter.list_struck(INDEX))


async def test_evidence_that_does_not_hold_is_voted_an_error_too(ledger: Ledger, tmp_path: Path) -> None:
    net = await make_net(ledger, tmp_path, noise=0.3)
    net.peers.edit["evidence"] = lambda page: page and {**page, "response_body": page["request_body"]}
    set_clock(net.hub, net.parts[NAMES[2]].validator.evidence_due_ms(INDEX))
    held = await net.gather(NAMES[2])
    assert set(votes_of(held, NAMES[2]).values()) == {Verdict.ERROR}


async def test_error_vote_of_one_makes_all_look_for_the_evidence(ledger: Ledger, tmp_path: Path) -> None:
    net = await make_net(ledger, tmp_path)
    net.peers.edit["evidence"] = lambda page: None
    set_clock(net.hub, net.parts[NAMES[0]].validator.evidence_due_ms(INDEX))
    await net.gather(NAMES[0])
    net.peers.edit.clear()
    name = NAMES[2]
    await hold_results(net, name)
    set_clock(net.hub, net.parts[name].validator.evidence_due_ms(INDEX))
    await net.gather(name)
    held = await net.gather(name)
    missed = {call for call in votes_of(held, NAMES[0]) if call in passes_of(held, NAMES[1])}
    assert missed
    assert {votes_of(held, name)[call] for call in missed} == {Verdict.PASS}


async def test_nobody_votes_while_its_own_judge_is_wrong(ledger: Ledger, tmp_path: Path) -> None:
    net = await make_net(ledger, tmp_path, noise=0.3)
    net.parts[NAMES[2]].voter.own_judge.note_passed(INDEX, "wrong")
    assert votes_of(await gather_late(net, NAMES[2]), NAMES[2]) == {}


def second_results(net: Net, name: str, **changes: Any) -> dict[str, Any]:
    key = make_key(name)
    said = edited(Results(key.address, INDEX, b"\7" * 32, 5), **changes)
    signature = key.sign(net.hub.deployment.staking_domain, said)
    return {"results": to_json(said), "signature": "0x" + signature.hex()}


async def test_two_results_of_a_peer_are_an_offence_whoever_shows_the_second(
    ledger: Ledger, tmp_path: Path
) -> None:
    net = await make_net(ledger, tmp_path)
    double = second_results(net, NAMES[0])
    net.peers.edit["results"] = lambda page: page and {"results": [*page["results"], double]}
    await hold_results(net, NAMES[2])
    parts = net.parts[NAMES[2]]
    assert await parts.offences.desk.collect() == 1
    rows = await parts.validator.read(lambda con: list_offences(con, parts.validator.address, 0))
    assert [(row.offence.kind, row.offence.offender) for row in rows] == [
        (OffenceKind.DOUBLE_RESULTS, make_key(NAMES[0]).address)
    ]
    held = await parts.validator.read(lambda con: list_results(con, parts.validator.address, INDEX))
    assert len(held) == 4  # of three validators, and the second: shown to whoever asks here


async def test_results_of_another_time_about_the_same_probes_are_no_offence(
    ledger: Ledger, tmp_path: Path
) -> None:
    net = await make_net(ledger, tmp_path)
    first = await sign_results(net.parts[NAMES[0]].validator, INDEX)
    assert first is not None
    again = second_results(net, NAMES[0], probes_hash=first.results.probes_hash)
    net.peers.edit["results"] = lambda page: page and {"results": [*page["results"], again]}
    await hold_results(net, NAMES[2])
    assert await net.parts[NAMES[2]].offences.desk.collect() == 0


@pytest.mark.parametrize(
    "change", [{"round": INDEX + 1}, {"validator": make_key("x").address}, {"probes_hash": b"\1"}]
)
async def test_results_that_no_member_signed_are_not_held(
    ledger: Ledger, tmp_path: Path, change: dict[str, Any]
) -> None:
    net = await make_net(ledger, tmp_path)
    key = make_key(NAMES[0])
    said = edited(Results(key.address, INDEX, b"\7" * 32, 5), **change)
    signature = b"\1" * 65 if "probes_hash" in change else key.sign(net.hub.deployment.staking_domain, said)
    page = {"results": [{"results": to_json(said), "signature": "0x" + signature.hex()}]}
    net.peers.edit["results"] = lambda _: msgspec.json.decode(msgspec.json.encode(page))
    await net.gather(NAMES[2])
    validator = net.parts[NAMES[2]].validator
    held = await validator.read(lambda con: list_results(con, validator.address, INDEX))
    assert {item.author for item in held} == {validator.address}
