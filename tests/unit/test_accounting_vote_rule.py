"""Which votes stand in a bundle: about answered probes alone, by members, bounded, each once."""

from __future__ import annotations

from typing import Any

import pytest

import emcd.accounting.evidence_rule as evidence_rule
from emcd.accounting.audit import audit_bundle
from emcd.accounting.evidence_rule import VoteRule, require_vote
from emcd.accounting.round_close import CallRecords
from emcd.accounting.terms import RoundTerms, make_terms
from emcd.errors import RemoteProtocolError
from emcd.proto.bundle import VoteEntry
from emcd.proto.bundle_codec import encode_bundle
from emcd.proto.eip712 import Domain
from emcd.proto.hashing import keccak
from emcd.proto.messages import TaskResult, Verdict, Vote
from emcd.proto.signing import sign
from emcd.types import ZERO_HASH
from tests.support.round_world import CHAIN_ID, DISTRIBUTOR, World, address_of, edited, secret_of

WORLD = World(node_names=("node-1",))
BUNDLE = WORLD.close().bundle
TERMS: RoundTerms = make_terms(BUNDLE.header, BUNDLE.participants, BUNDLE.validators)
CALL, RECEIPT = keccak(b"call")[:16], keccak(b"receipt")
VOTABLE = {CALL: RECEIPT}
MEMBER = "validator-1"
VOTE = Vote(address_of(MEMBER), WORLD.round, CALL, RECEIPT, int(Verdict.PASS), 5)


def signed(name: str = MEMBER, **changes: Any) -> VoteEntry:
    vote = edited(VOTE, **changes)
    return VoteEntry(vote, WORLD.sign(name, vote))


@pytest.mark.parametrize("verdict", Verdict)
def test_vote_of_a_member_about_an_answered_probe_stands(verdict: Verdict) -> None:
    require_vote(TERMS, signed(verdict=int(verdict)), VOTABLE)


def test_vote_that_saw_no_evidence_needs_no_receipt() -> None:
    require_vote(TERMS, signed(verdict=int(Verdict.ERROR), receipt_hash=ZERO_HASH), VOTABLE)


REFUSED: dict[str, VoteEntry] = {
    **{
        f"{verdict.name} without a receipt": signed(verdict=int(verdict), receipt_hash=ZERO_HASH)
        for verdict in Verdict
        if verdict is not Verdict.ERROR
    },
    "ERROR about another receipt": signed(verdict=int(Verdict.ERROR), receipt_hash=keccak(b"other")),
    "another receipt": signed(receipt_hash=keccak(b"other")),
    "a call that no probe names": signed(call_id=keccak(b"no call")[:16]),
    "no verdict": signed(verdict=0),
    "a verdict to come": signed(verdict=8),
    "of a node": signed("node-1", validator=address_of("node-1")),
    "of the hub": signed("hub", validator=address_of("hub")),
    "of a stranger": signed("stranger", validator=address_of("stranger")),
    "of the round before": signed(round=WORLD.round - 1),
    "of the round after": signed(round=WORLD.round + 1),
    "by another member": signed("validator-2"),
    "without a signature": VoteEntry(VOTE, b""),
    "with the signature of another vote": VoteEntry(VOTE, signed(verdict=int(Verdict.FAIL)).signature),
    "with the signature of another call": VoteEntry(VOTE, signed(call_id=bytes(16)).signature),
    "with the signature of a task's result": VoteEntry(
        VOTE, WORLD.sign(MEMBER, TaskResult(address_of(MEMBER), WORLD.round, RECEIPT, 1, 5))
    ),
    "for another chain": VoteEntry(VOTE, sign(Domain(1, WORLD.staking), VOTE, secret_of(MEMBER))),
    "for another contract": VoteEntry(VOTE, sign(Domain(CHAIN_ID, DISTRIBUTOR), VOTE, secret_of(MEMBER))),
}


@pytest.mark.parametrize("name", REFUSED)
def test_vote_that_may_not_stand_is_refused(name: str) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        require_vote(TERMS, REFUSED[name], VOTABLE)
    assert caught.value.code == "EMC-1923"


def test_votes_of_one_validator_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evidence_rule, "MAX_VOTES", 2)
    calls = {bytes([n]) * 16: RECEIPT for n in range(3)}
    rule = VoteRule(TERMS, calls)
    for call_id in list(calls)[:2]:
        rule.require(signed(call_id=call_id))

    with pytest.raises(RemoteProtocolError) as caught:
        rule.require(signed(call_id=bytes([2]) * 16))
    assert caught.value.code == "EMC-1923"
    other = address_of("validator-2")
    rule.require(signed("validator-2", validator=other, call_id=bytes(16)))


def test_bundle_with_too_many_votes_is_refused_and_a_close_leaves_them_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(node_names=("node-1",), verdicts={"node-1": Verdict.FAIL})
    whole = world.close()
    assert len(whole.bundle.votes) == 8
    monkeypatch.setattr(evidence_rule, "MAX_VOTES", 1)

    outcome = audit_bundle(whole.data)
    assert outcome.difference is not None
    assert (outcome.difference.code, outcome.difference.section) == ("EMC-1923", "votes")

    cut = world.close()
    assert len(cut.bundle.votes) == 4
    assert audit_bundle(cut.data).ok


def test_audit_takes_votes_about_passes_and_refuses_those_about_users_calls() -> None:
    probe = next(p for probes in WORLD.probes.values() for p in probes)
    probed = next(c for c in WORLD.calls if c.forward.call_id == probe.call_id)
    used = next(c for c in WORLD.calls if c.delivery.vault_micro)
    votes = [WORLD.make_vote(name, probed, Verdict.PASS) for name in WORLD.validator_names]
    closed = WORLD.close(votes=votes)
    assert (len(closed.bundle.votes), audit_bundle(closed.data).ok) == (4, True)

    wrong = WORLD.make_vote(MEMBER, used, Verdict.PASS)
    assert [row.code for row in WORLD.close(votes=[wrong]).left_out] == ["EMC-1923"]
    rows = tuple(sorted((*closed.bundle.votes, wrong), key=lambda e: e.vote.call_id))
    refused = audit_bundle(encode_bundle(edited(closed.bundle, votes=rows))).difference
    assert refused is not None
    assert "no revealed probe with an answer is about this call" in str(refused)


def probed_world(verdict: Verdict) -> tuple[World, CallRecords]:
    """A world whose probes have one verdict, and the call of the first."""
    world = World(node_names=("node-1",), verdicts={"node-1": verdict})
    probe = next(p for probes in world.probes.values() for p in probes)
    return world, next(c for c in world.calls if c.forward.call_id == probe.call_id)


def test_vote_about_a_probe_that_names_nobody_there_is_left_out() -> None:
    world, call = probed_world(Verdict.OFFLINE)

    assert world.close(votes=[world.make_vote(MEMBER, call, Verdict.FAIL)]).bundle.votes == ()


@pytest.mark.parametrize("verdict", [Verdict.ERROR, Verdict.TEMPLATE])
def test_audit_takes_votes_about_answers_called_unusable(verdict: Verdict) -> None:
    world, call = probed_world(verdict)
    votes = [world.make_vote(name, call, Verdict.PASS) for name in world.validator_names]
    closed = world.close(votes=votes)
    outcome = audit_bundle(closed.data)

    assert len(closed.bundle.votes) == 4
    assert outcome.ok
    prober = next(who for who, probes in world.probes.items() if probes[0].call_id == call.forward.call_id)
    row = next(r for r in closed.bundle.results if r.node == prober)
    assert (row.reason, row.credits_micro) == ("mistake", 0)


def test_vote_about_an_error_whose_answer_is_not_proven_is_left_out() -> None:
    world, call = probed_world(Verdict.ERROR)
    vote = world.make_vote(MEMBER, call, Verdict.PASS)
    world.calls = [item for item in world.calls if item is not call]

    assert world.close(votes=[vote]).bundle.votes == ()
