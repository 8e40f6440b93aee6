"""A bundle against a witness: each thing a hub can leave out or alter has its code."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from emcd.accounting.audit import audit_bundle
from emcd.accounting.receipt import CallReceipt
from emcd.accounting.round_close import CallRecords
from emcd.proto.bundle import CommitmentEntry, RevealEntry, VoteEntry
from emcd.proto.hashing import keccak
from emcd.proto.messages import Verdict
from emcd.proto.records import RecordProof
from emcd.types import ZERO_HASH
from emcd_validator.bundle_check import (
    Knowledge,
    KnownDeposit,
    OwnCall,
    find_refusal,
    list_wanted,
    read_facts,
)
from emcd_validator.entry import Held
from tests.support.round_world import SealedBundle, World, address_of, edited


class PlainWorld(World):
    """A world of embeddings: what the node signed is what the caller got."""

    def make_call(self, node: str, started_at_ms: int, **options: Any) -> CallRecords:
        hashes: list[bytes] = []

        def edit(kind: str, record: Any) -> Any:
            if kind == "receipt":
                hashes.append(record.response_hash)
            return edited(record, body_hash=hashes[0]) if kind == "delivery" else record

        return super().make_call(node, started_at_ms, edit=edit, **options)


WORLD = PlainWorld(
    round=20, node_names=("node-1", "node-2"), verdicts={"node-2": Verdict.GROSS}, calls_per_node=2
)
CLOSED = WORLD.close()
CALLS = {call.forward.call_id: call for call in WORLD.calls}
STRUCK = {
    probe.call_id: CALLS[probe.call_id].delivery.receipt_hash
    for probes in WORLD.probes.values()
    for probe in probes
    if probe.verdict == Verdict.GROSS
}
ME = next(author for author, probes in WORLD.probes.items() if probes and author in WORLD.by_address)
DEPOSIT = KnownDeposit(keccak(b"account"), 10**18, 1_000_000, 998)


def own_call(call: CallRecords) -> OwnCall:
    assert call.receipt is not None
    batch = WORLD.batches([call])[0]
    proof = RecordProof(batch.batch, batch.signature, 0, ())
    receipt = CallReceipt(call.forward, proof, call.receipt, proof, call.delivery, proof)
    return OwnCall(call.forward.call_id, call.forward.request_hash, call.delivery.body_hash, receipt)


def held_of(closed: SealedBundle) -> Held:
    bundle = closed.bundle
    return Held(
        {entry.commitment.validator: entry for entry in bundle.commitments},
        {entry.reveal.validator: entry for entry in bundle.reveals},
        {(entry.vote.call_id, entry.vote.validator): entry for entry in bundle.votes},
    )


HELD = held_of(CLOSED)
OWN = Held(
    {ME: HELD.commitments[ME]},
    {ME: HELD.reveals[ME]},
    {key: entry for key, entry in HELD.votes.items() if key[1] == ME},
)
KNOWLEDGE = Knowledge(
    validator=ME,
    round=20,
    own=OWN,
    held=HELD,
    own_calls=[own_call(CALLS[probe.call_id]) for probe in WORLD.probes[ME]],
    struck=STRUCK,
    deposits={3: DEPOSIT},
    vault_used_micro=-(10**9),
)


def vault_of(closed: SealedBundle) -> int:
    return audit_bundle(closed.data).vault_micro


def refusal_of(closed: SealedBundle = CLOSED, **changes: Any) -> str:
    knowledge = replace(KNOWLEDGE, **changes)
    refusal = find_refusal(read_facts(closed.data, list_wanted(knowledge), vault_of(closed)), knowledge)
    return f"{refusal.code}: {refusal.reason}" if refusal else ""


def test_bundle_that_says_what_the_witness_knows_is_signed() -> None:
    assert STRUCK
    assert KNOWLEDGE.own_calls
    assert refusal_of() == ""


def test_bundle_without_own_commitment_and_reveal_is_refused() -> None:
    without = WORLD.close(
        commitments=[e for e in WORLD.commitments() if e.commitment.validator != ME],
        reveals=[e for e in WORLD.reveals() if e.reveal.validator != ME],
    )
    assert refusal_of(without).startswith(f"EMC-1822: the commitment of {ME}")


def test_bundle_without_a_peers_reveal_is_refused() -> None:
    peer = next(v for v in WORLD.probes if v != ME)
    without = WORLD.close(reveals=[e for e in WORLD.reveals() if e.reveal.validator != peer])
    assert refusal_of(without).startswith(f"EMC-1822: the reveal of {peer}")


def test_bundle_without_a_reveal_that_was_not_held_in_time_is_signed() -> None:
    peer = next(v for v in WORLD.probes if v != ME)
    without = WORLD.close(reveals=[e for e in WORLD.reveals() if e.reveal.validator != peer], votes=[])
    reveals = {author: entry for author, entry in HELD.reveals.items() if author != peer}
    assert refusal_of(without, held=replace(HELD, reveals=reveals, votes={})) == ""


def test_bundle_with_another_reveal_of_own_key_is_refused() -> None:
    other: RevealEntry = edited(HELD.reveals[ME], probes=())
    assert refusal_of(own=replace(OWN, reveals={ME: other})).startswith("EMC-1821")


def test_bundle_with_another_commitment_of_own_key_is_refused() -> None:
    assert "own commitment" in refusal_of(own=replace(OWN, commitments={}))


def test_bundle_with_an_own_vote_never_given_is_refused() -> None:
    assert OWN.votes
    assert refusal_of(own=replace(OWN, votes={})).startswith("EMC-1821")


@pytest.mark.parametrize("keep", [0, 1])
def test_bundle_that_drops_votes_on_a_strike_is_refused(keep: int) -> None:
    votes = WORLD.votes()
    without = WORLD.close(votes=[v for v in votes if v.vote.validator == ME][:keep])
    assert refusal_of(without).startswith("EMC-1822: the vote of")


PASSED = next(
    probe
    for author, probes in WORLD.probes.items()
    for probe in probes
    if author != ME and probe.verdict == Verdict.PASS
)


def pass_vote(verdict: Verdict = Verdict.PASS, receipt_hash: bytes | None = None) -> VoteEntry:
    """A peer's vote on a call that its prober called a PASS."""
    name = next(
        name
        for name in WORLD.validator_names
        if address_of(name) != ME and PASSED not in WORLD.probes[address_of(name)]
    )
    entry = WORLD.make_vote(name, CALLS[PASSED.call_id], verdict)
    if receipt_hash is None:
        return entry
    vote = edited(entry.vote, receipt_hash=receipt_hash)
    return VoteEntry(vote, WORLD.sign(name, vote))


def with_vote(entry: VoteEntry) -> Held:
    return replace(HELD, votes={**HELD.votes, (entry.vote.call_id, entry.vote.validator): entry})


@pytest.mark.parametrize(
    ("verdict", "receipt_hash"),
    [(Verdict.PASS, None), (Verdict.GROSS, None), (Verdict.ERROR, ZERO_HASH), (Verdict.ERROR, None)],
)
def test_bundle_that_drops_a_vote_on_what_passed_is_refused(
    verdict: Verdict, receipt_hash: bytes | None
) -> None:
    entry = pass_vote(verdict, receipt_hash)
    assert refusal_of(held=with_vote(entry)).startswith(f"EMC-1822: the vote of {entry.vote.validator}")
    whole = WORLD.close(votes=[*WORLD.votes(), entry])
    assert entry in whole.bundle.votes
    assert refusal_of(whole, held=with_vote(entry)) == ""


@pytest.mark.parametrize(
    ("verdict", "receipt_hash"), [(Verdict.PASS, ZERO_HASH), (Verdict.PASS, keccak(b"another receipt"))]
)
def test_bundle_without_a_vote_about_no_receipt_of_the_call_is_signed(
    verdict: Verdict, receipt_hash: bytes
) -> None:
    assert refusal_of(held=with_vote(pass_vote(verdict, receipt_hash))) == ""


def test_bundle_that_drops_a_vote_on_an_answer_called_unusable_is_refused() -> None:
    """Though nobody's evidence of it was checked here, it backs the probe: others must be heard on it."""
    world = PlainWorld(round=20, node_names=("node-1",), verdicts={"node-1": Verdict.ERROR})
    author, probe = next((author, probes[0]) for author, probes in world.probes.items() if probes)
    call = next(call for call in world.calls if call.forward.call_id == probe.call_id)
    voter = next(name for name in world.validator_names if address_of(name) != author)
    entry = world.make_vote(voter, call, Verdict.PASS)
    whole, without = world.close(votes=[entry]), world.close(votes=[])
    held = held_of(whole)
    mine = Held({author: held.commitments[author]}, {author: held.reveals[author]})
    known = {"validator": author, "own": mine, "held": held, "own_calls": (), "struck": {}}

    assert refusal_of(whole, **known) == ""
    assert refusal_of(without, **known).startswith(f"EMC-1822: the vote of {address_of(voter)}")


def test_bundle_without_a_vote_on_a_call_that_backs_no_probe_is_signed() -> None:
    call_id = next(c for c in CALLS if all(p.call_id != c for ps in WORLD.probes.values() for p in ps))
    entry = pass_vote()
    vote = edited(entry.vote, call_id=call_id, receipt_hash=CALLS[call_id].delivery.receipt_hash)
    assert refusal_of(held=with_vote(edited(entry, vote=vote))) == ""


def test_bundle_without_votes_on_a_call_that_two_probes_name_is_signed() -> None:
    struck_probe = next(p for ps in WORLD.probes.values() for p in ps if p.call_id in STRUCK)

    def copy(entry: RevealEntry) -> RevealEntry:
        claimed = [
            edited(p, call_id=struck_probe.call_id) if p.call_id in STRUCK else p for p in entry.probes
        ]
        changed: RevealEntry = edited(entry, probes=tuple(claimed))
        return changed

    copied = {author: copy(entry) for author, entry in HELD.reveals.items()}
    own = replace(OWN, reveals={ME: copied[ME]}, votes={})
    struck = {struck_probe.call_id: STRUCK[struck_probe.call_id]}
    knowledge = replace(KNOWLEDGE, own=own, held=replace(HELD, reveals=copied), struck=struck)
    facts = replace(
        read_facts(CLOSED.data, list_wanted(knowledge), vault_of(CLOSED)), reveals=copied, votes={}
    )
    assert find_refusal(facts, knowledge) is None


def test_bundle_without_the_struck_call_is_refused() -> None:
    without = WORLD.close(calls=[c for c in WORLD.calls if c.forward.call_id not in STRUCK])
    assert refusal_of(without, own_calls=()).startswith("EMC-1824")


def test_bundle_without_an_own_probe_is_refused() -> None:
    mine = KNOWLEDGE.own_calls[0].call_id
    without = WORLD.close(calls=[c for c in WORLD.calls if c.forward.call_id != mine])
    assert refusal_of(without, struck={}).startswith("EMC-1823")
    assert "is missing" in refusal_of(without, struck={})


def test_bundle_without_an_own_probe_that_has_no_receipt_is_signed() -> None:
    """Its node withheld the batch, for which no honest hub can answer."""
    call = KNOWLEDGE.own_calls[0]
    bare = [replace(call, receipt=None)]
    without = WORLD.close(calls=[c for c in WORLD.calls if c.forward.call_id != call.call_id])
    assert refusal_of(without, struck={}, own_calls=bare) == ""
    wrong = [replace(call, receipt=None, body_hash=keccak(b"x"))]
    assert "another answer" in refusal_of(own_calls=wrong)


def test_bundle_with_another_request_or_answer_of_an_own_probe_is_refused() -> None:
    call = KNOWLEDGE.own_calls[0]
    assert "another request" in refusal_of(own_calls=[replace(call, request_hash=keccak(b"x"))])
    assert "another answer" in refusal_of(own_calls=[replace(call, body_hash=keccak(b"x"))])


def test_bundle_with_another_answer_delivered_than_the_node_signed_is_refused() -> None:
    call = KNOWLEDGE.own_calls[0]
    facts = read_facts(CLOSED.data, list_wanted(KNOWLEDGE), vault_of(CLOSED))
    entry = facts.calls[call.call_id]
    assert entry.receipt is not None
    altered = edited(entry, receipt=edited(entry.receipt, response_hash=keccak(b"what the node said")))
    refusal = find_refusal(replace(facts, calls={**facts.calls, call.call_id: altered}), KNOWLEDGE)
    assert refusal is not None
    assert "than the node signed" in refusal.reason


def test_bundle_with_other_records_than_the_receipt_is_refused() -> None:
    call = KNOWLEDGE.own_calls[0]
    assert call.receipt is not None
    delivery = edited(call.receipt.delivery, credits_micro=1)
    assert "other records" in refusal_of(
        own_calls=[replace(call, receipt=edited(call.receipt, delivery=delivery))]
    )


def test_bundle_that_leaves_the_proof_of_an_own_probe_out_is_refused() -> None:
    call_id = KNOWLEDGE.own_calls[0].call_id
    batches = [b for b in WORLD.batches() if CALLS[call_id].receipt.struct_hash() not in b.record_hashes]  # type: ignore[union-attr]
    assert refusal_of(WORLD.close(batches=batches), struck={}, held=Held()).startswith("EMC-1823")


def test_bundle_that_leaves_out_a_filed_call_is_refused() -> None:
    filed = (bytes(16), address_of("node-1"))
    assert refusal_of(omissions=[filed]).startswith("EMC-1825")
    known = next(iter(CALLS))
    assert refusal_of(omissions=[(known, address_of("node-1"))]) == ""


def test_bundle_with_a_filed_call_and_no_proof_of_it_is_refused() -> None:
    named = {probe.call_id for probes in WORLD.probes.values() for probe in probes}
    call = next(call for call in WORLD.calls if call.forward.call_id not in named)
    assert call.receipt is not None
    proof = call.receipt.struct_hash()
    closed = WORLD.close(batches=[b for b in WORLD.batches() if proof not in b.record_hashes])
    filed = [(call.forward.call_id, call.forward.node)]
    own = {"own_calls": (), "struck": {}, "held": Held()}
    assert refusal_of(closed, **own) == ""
    assert refusal_of(closed, omissions=filed, **own).startswith("EMC-1825")


def test_peer_that_signed_two_plans_makes_no_bundle_incomplete() -> None:
    peer = next(v for v in WORLD.probes if v != ME)
    name = next(name for name in WORLD.validator_names if address_of(name) == peer)
    plan = edited(HELD.commitments[peer].commitment, commitment=keccak(b"another plan"))
    other = CommitmentEntry(plan, WORLD.sign(name, plan))
    closed = WORLD.close(
        commitments=[other if e.commitment.validator == peer else e for e in WORLD.commitments()], votes=[]
    )
    assert peer not in held_of(closed).reveals
    assert refusal_of(closed, held=replace(HELD, votes={}), own=replace(OWN, votes={})) == ""


@pytest.mark.parametrize(
    "changes",
    [
        {"deposits": {}},
        {"deposits": {3: replace(DEPOSIT, credits_micro=1)}},
        {"deposits": {3: replace(DEPOSIT, account=bytes(32))}},
        {"deposits": {3: replace(DEPOSIT, block=5)}},
        {"credited": frozenset({3})},
    ],
)
def test_bundle_with_a_deposit_the_vault_has_not_is_refused(changes: dict[str, Any]) -> None:
    assert refusal_of(**changes).startswith("EMC-1832")


def test_bundle_that_spends_more_than_was_ever_bought_is_refused() -> None:
    assert refusal_of(vault_used_micro=0).startswith("EMC-1832")
    assert "were ever bought" in refusal_of(vault_used_micro=0)
