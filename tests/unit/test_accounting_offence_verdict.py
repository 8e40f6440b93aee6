"""What validators do wrong with verdicts: two results of a round, a PASS for what is a GROSS."""

from __future__ import annotations

from typing import Any

import pytest

from emcd.accounting.offence import (
    DoubleResults,
    FalseVerdict,
    OffenceKind,
    OffenceTerms,
    Proof,
    SignedResults,
    SignedTask,
    SignedTaskResult,
    check_offence,
    evidence_hash,
    offence_of,
    read_proof,
    require_statement,
    slash_order,
    write_proof,
)
from emcd.errors import RemoteProtocolError
from emcd.keys import SigningKey
from emcd.proto.eip712 import Domain
from emcd.proto.hashing import keccak
from emcd.proto.messages import Offence, PlanCommitment, Results, Task, TaskResult, Verdict
from emcd.proto.transcript import MAX_TRANSCRIPT_BYTES, Transcript, require_transcript, transcript_hash
from emcd.testing import make_key
from tests.support.round_world import edited

STAKING = Domain(31337, make_key("staking").address)
DISTRIBUTOR = Domain(31337, make_key("distributor").address)
FOREIGN_CHAIN = Domain(1, STAKING.verifying_contract)
SENDER, ACCUSED, STRANGER, HUB = (make_key(name) for name in ("sender", "accused", "stranger", "hub"))
A, B = keccak(b"a"), keccak(b"b")
TRANSCRIPT = Transcript(A, "/v1/embeddings", b'{"input":"x"}', 200, "application/json", b"{}", B)
TASK_HASH = transcript_hash(TRANSCRIPT)


def terms(recomputed: Verdict | None = Verdict.GROSS) -> OffenceTerms:
    return OffenceTerms(
        staking=STAKING,
        distributor=DISTRIBUTOR,
        hubs=(HUB.address,),
        members=(SENDER.address, ACCUSED.address),
        first_round=3,
        last_round=9,
        recomputed=recomputed,
    )


def results(
    probes: bytes,
    index: int = 7,
    *,
    key: SigningKey = ACCUSED,
    by: SigningKey = ACCUSED,
    domain: Domain = STAKING,
) -> SignedResults:
    said = Results(by.address, index, probes, 1_800_000_000_000)
    return SignedResults(said, key.sign(domain, said))


def accusation(
    *,
    sender: SigningKey = SENDER,
    receiver: SigningKey = ACCUSED,
    task_key: SigningKey | None = None,
    result_key: SigningKey | None = None,
    domain: Domain = STAKING,
    transcript: Transcript = TRANSCRIPT,
    task: dict[str, Any] | None = None,
    result: dict[str, Any] | None = None,
) -> FalseVerdict:
    asked = edited(Task(sender.address, receiver.address, 7, TASK_HASH), **(task or {}))
    said = edited(TaskResult(receiver.address, 7, TASK_HASH, int(Verdict.PASS), 12), **(result or {}))
    return FalseVerdict(
        SignedTask(asked, (task_key or sender).sign(domain, asked)),
        SignedTaskResult(said, (result_key or receiver).sign(domain, said)),
        transcript,
    )


DOUBLE = DoubleResults(results(A), results(B))
FALSE = accusation()
PLAN = PlanCommitment(ACCUSED.address, 7, A, 1_800_000_000_000)

REFUSED: dict[str, tuple[str, Proof]] = {
    "one result twice": ("EMC-1981", DoubleResults(results(A), results(A))),
    "one outcome signed at two times": (
        "EMC-1981",
        DoubleResults(results(A), SignedResults(edited(results(A).results, signed_at_ms=1), b"")),
    ),
    "results of two rounds": ("EMC-1981", DoubleResults(results(A), results(B, 8))),
    "results of two validators": (
        "EMC-1981",
        DoubleResults(results(A), results(B, by=SENDER, key=SENDER)),
    ),
    "results by another key": ("EMC-1982", DoubleResults(results(A), results(B, key=SENDER))),
    "results for another chain": ("EMC-1982", DoubleResults(results(A), results(B, domain=FOREIGN_CHAIN))),
    "results for another contract": ("EMC-1982", DoubleResults(results(A), results(B, domain=DISTRIBUTOR))),
    "results without a signature": (
        "EMC-1982",
        DoubleResults(results(A), SignedResults(results(B).results, b"")),
    ),
    "results with the signature of a plan": (
        "EMC-1982",
        DoubleResults(results(A), SignedResults(results(B).results, ACCUSED.sign(STAKING, PLAN))),
    ),
    "results of no member": (
        "EMC-1983",
        DoubleResults(results(A, by=STRANGER, key=STRANGER), results(B, by=STRANGER, key=STRANGER)),
    ),
    "results of an old round": ("EMC-1984", DoubleResults(results(A, 2), results(B, 2))),
    "results of a round to come": ("EMC-1984", DoubleResults(results(A, 10), results(B, 10))),
    "a false verdict with another's result": ("EMC-1982", accusation(result_key=SENDER)),
    "a false verdict whose task nobody sent": ("EMC-1982", accusation(task_key=STRANGER)),
    "a false verdict of another chain": ("EMC-1982", accusation(domain=FOREIGN_CHAIN)),
    "a false verdict of another contract": ("EMC-1982", accusation(domain=DISTRIBUTOR)),
    "a false verdict without a signature": (
        "EMC-1982",
        edited(FALSE, result=SignedTaskResult(FALSE.result.result, b"")),
    ),
    "a false verdict without the task's": ("EMC-1982", edited(FALSE, task=SignedTask(FALSE.task.task, b""))),
    "a false verdict that says FAIL": ("EMC-1981", accusation(result={"verdict": int(Verdict.FAIL)})),
    "a false verdict that says ERROR": ("EMC-1981", accusation(result={"verdict": int(Verdict.ERROR)})),
    "a false verdict on another transcript": (
        "EMC-1981",
        accusation(transcript=edited(TRANSCRIPT, response_body=b"[]")),
    ),
    "a false verdict on another nonce": ("EMC-1981", accusation(transcript=edited(TRANSCRIPT, nonce=A))),
    "a task of another round": ("EMC-1981", accusation(task={"round": 6})),
    "a task for somebody else": ("EMC-1981", accusation(task={"receiver": STRANGER.address})),
    "a task on another transcript": ("EMC-1981", accusation(task={"task_hash": A})),
    "a false verdict of an old round": ("EMC-1984", accusation(task={"round": 2}, result={"round": 2})),
    "a false verdict of no member": ("EMC-1983", accusation(receiver=STRANGER)),
    "a false verdict told by no member": ("EMC-1983", accusation(sender=STRANGER)),
    "a false verdict told by the hub": ("EMC-1983", accusation(sender=HUB)),
    "a false verdict to oneself": ("EMC-1983", accusation(sender=ACCUSED)),
    "a transcript of a model without a hash": (
        "EMC-1990",
        accusation(transcript=edited(TRANSCRIPT, model_hash=b"")),
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_offence_of_a_validator_that_is_none_is_refused_with_its_code(name: str) -> None:
    code, proof = REFUSED[name]
    with pytest.raises(RemoteProtocolError) as caught:
        check_offence(terms(), read_proof(write_proof(proof)))
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("proof", "kind"), [(DOUBLE, OffenceKind.DOUBLE_RESULTS), (FALSE, OffenceKind.FALSE_VERDICT)]
)
def test_offence_of_a_validator_is_found_and_costs_a_twentieth(proof: Proof, kind: OffenceKind) -> None:
    offence = check_offence(terms(), read_proof(write_proof(proof)))

    assert offence == Offence(kind, ACCUSED.address, 7)
    assert slash_order(offence, 1).bps == 500


@pytest.mark.parametrize("recomputed", [None, *(v for v in Verdict if v is not Verdict.GROSS)])
def test_false_verdict_convicts_only_when_the_own_run_says_gross(recomputed: Verdict | None) -> None:
    require_statement(terms(recomputed), FALSE)
    with pytest.raises(RemoteProtocolError) as caught:
        check_offence(terms(recomputed), FALSE)
    assert caught.value.code == "EMC-1991"


def test_offence_of_a_validator_has_one_identity_whatever_its_proof() -> None:
    other = edited(FALSE, transcript=edited(TRANSCRIPT, nonce=A))
    assert evidence_hash(offence_of(FALSE)) == evidence_hash(offence_of(other))
    assert evidence_hash(offence_of(DOUBLE)) == evidence_hash(
        offence_of(DoubleResults(results(B), results(keccak(b"c"))))
    )
    assert evidence_hash(offence_of(DOUBLE)) != evidence_hash(offence_of(FALSE))


@pytest.mark.parametrize("field", Transcript.__struct_fields__)
def test_transcript_hash_covers_every_field(field: str) -> None:
    value = getattr(TRANSCRIPT, field)
    other = value + 1 if isinstance(value, int) else value + value[:1]

    assert transcript_hash(edited(TRANSCRIPT, **{field: other})) != TASK_HASH


@pytest.mark.parametrize(
    "changes",
    [
        {"model_hash": bytes(31)},
        {"nonce": b""},
        {"request_body": bytes(MAX_TRANSCRIPT_BYTES + 1)},
        {"response_body": bytes(MAX_TRANSCRIPT_BYTES)},
        {"request_path": "/" * 201},
        {"content_type": "a" * 201},
        {"status": 99},
        {"status": 600},
    ],
)
def test_transcript_that_is_none_is_refused(changes: dict[str, Any]) -> None:
    require_transcript(TRANSCRIPT)
    with pytest.raises(RemoteProtocolError) as caught:
        require_transcript(edited(TRANSCRIPT, **changes))
    assert caught.value.code == "EMC-1990"
