"""What backs a revealed probe: its own call, at the time that its validator's seed drew."""

from __future__ import annotations

import pytest

from emcd.accounting.assignment import draw_time_ms
from emcd.accounting.probe_outcome import ProbeOutcome, compute_probe_outcome
from emcd.accounting.tally import CallTally, NodeTally, ProbedCall
from emcd.accounting.terms import make_terms
from emcd.proto.bundle import ProbeResult, RevealEntry
from emcd.proto.hashing import keccak
from emcd.proto.messages import Verdict
from emcd.types import ZERO_ADDRESS
from tests.support.round_world import MODEL_HASH, World, address_of, edited

NODE = address_of("node-1")
CALL_ID = keccak(b"one call")[:16]
REQUEST, RESPONSE = keccak(b"request"), keccak(b"response")
LATE_MS = 20


WORLD = World(node_names=("node-1",))
TERMS = make_terms(WORLD.close().bundle.header, WORLD.participants(), WORLD.validators())
PROBERS = [TERMS.assignments[NODE, slot].validator for slot in range(2)]


def claim(
    slot: int, number: int = 0, verdict: Verdict = Verdict.PASS, response: bytes = RESPONSE
) -> RevealEntry:
    """The reveal of a slot's validator, with a seed of its own, that names the one call."""
    probe = ProbeResult(NODE, slot, 1, CALL_ID, REQUEST, response, int(verdict), 1)
    entry = WORLD.make_reveal(WORLD.by_address[PROBERS[slot]], [probe])
    drawn: RevealEntry = edited(
        entry, reveal=edited(entry.reveal, seed=keccak(b"seed %d of %d" % (number, slot)))
    )
    return drawn


def due_ms(entry: RevealEntry) -> int:
    probe = entry.probes[0]
    return draw_time_ms(
        entry.reveal.seed, TERMS.beacon_hash, probe.node, probe.slot, TERMS.params, TERMS.round
    )


def outcome_of(
    reveals: list[RevealEntry], started_at_ms: int, *, is_proven: bool = True, counted: int = 0
) -> ProbeOutcome:
    call = ProbedCall(
        node=NODE,
        router=ZERO_ADDRESS,
        model_hash=MODEL_HASH,
        request_hash=REQUEST,
        response_hash=RESPONSE,
        receipt_hash=keccak(b"receipt"),
        started_at_ms=started_at_ms,
        is_proven=is_proven,
        counts=True,
    )
    tally = CallTally(nodes={NODE: NodeTally(9, counted)}, probed={CALL_ID: call})
    return compute_probe_outcome(TERMS, reveals, tally, {NODE})


@pytest.mark.parametrize("response", [RESPONSE, bytes(32)])
def test_error_about_a_call_is_voted_on_where_the_answer_is_proven(response: bytes) -> None:
    reveals = [claim(0, verdict=Verdict.ERROR, response=response)]

    answered = outcome_of(reveals, TERMS.start_ms, counted=1)
    lost = outcome_of(reveals, TERMS.start_ms, is_proven=False, counted=1)

    assert (answered.votable, lost.votable) == ({CALL_ID: keccak(b"receipt")}, {})
    assert answered.done == lost.done == {PROBERS[0]: 1}


@pytest.mark.parametrize(("counted", "done"), [(0, {PROBERS[0]: 1}), (1, {})])
def test_error_whose_call_is_not_there_is_done_where_the_node_answered_nobody(
    counted: int, done: dict[str, int]
) -> None:
    entry = claim(0, verdict=Verdict.ERROR)
    entry = edited(entry, probes=(edited(entry.probes[0], call_id=keccak(b"no call")[:16]),))

    assert outcome_of([entry], TERMS.start_ms, counted=counted).done == done


@pytest.mark.parametrize("number", range(6))
@pytest.mark.parametrize("honest_slot", [0, 1])
def test_backing_of_a_copied_call_stays_with_the_validator_that_made_it(
    number: int, honest_slot: int
) -> None:
    reveals = [claim(slot, number) for slot in range(2)]
    started_at_ms = due_ms(reveals[honest_slot]) + LATE_MS

    for order in (reveals, reveals[::-1]):
        outcome = outcome_of(order, started_at_ms)

        assert outcome.done == {PROBERS[honest_slot]: 1}
        assert [(probe.node, probe.prober) for probe in outcome.probes] == [(NODE, PROBERS[honest_slot])]
        assert outcome.votable == {CALL_ID: keccak(b"receipt")}


def test_backing_of_a_claim_without_a_rival_does_not_depend_on_the_time() -> None:
    assert outcome_of([claim(1)], TERMS.start_ms).done == {PROBERS[1]: 1}


def test_backing_of_claims_equally_near_goes_to_the_first_slot() -> None:
    pairs = [[claim(0, number), claim(1, number)] for number in range(20)]
    reveals = next(pair for pair in pairs if sum(map(due_ms, pair)) % 2 == 0)
    middle_ms = sum(map(due_ms, reveals)) // 2

    for order in (reveals, reveals[::-1]):
        assert outcome_of(order, middle_ms).done == {PROBERS[0]: 1}
