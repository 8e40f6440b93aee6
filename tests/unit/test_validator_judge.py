"""Verdicts: each step of VERIFICATION 5.3, and who is to blame for what."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest

from emcd.errors import RecoverableError
from emcd.proto.messages import Verdict
from emcd.proto.openai import Endpoint, read_request
from emcd.proto.records import RecordBatch, RecordKind, RecordProof, batch_root
from emcd.testing import make_key
from emcd.types import Hash
from emcd_validator.judge import Blame, Exchange, find_receipt_fault, find_record_fault
from tests.support.validator_world import (
    HUB,
    MODEL_HASH,
    FakeReference,
    answer_body,
    count_tokens,
    fake_vector,
    make_call,
    make_deployment,
    make_fake_judge,
)

DEPLOYMENT = make_deployment(1_800_000_000)
DOMAIN = DEPLOYMENT.staking_domain
NODE = make_key("node")
AT_MS = DEPLOYMENT.params.round_start_ms(7) + 500
TEXTS = ("first text", "and a second one")
BODY = msgspec.json.encode(
    {
        "input": TEXTS,
        "model": "all-MiniLM-L6-v2",
        "encoding_format": "float",
        "provider": {"only": [NODE.address]},
    }
)
UPSTREAM = read_request(Endpoint.EMBEDDINGS, BODY, evidence=True).body


def good_answer(noise: float = 0.0, tokens: int | None = None, *, base64: bool = False) -> bytes:
    vectors = tuple(fake_vector(text, noise) for text in TEXTS)
    return answer_body(vectors, count_tokens(TEXTS) if tokens is None else tokens, base64=base64)


def make_exchange(
    response: bytes, *, seen: bytes | None = None, upstream: bytes = UPSTREAM, **call: Any
) -> Exchange:
    made = make_call(DEPLOYMENT, NODE, upstream, response, AT_MS, **call)
    return Exchange(
        node=NODE.address,
        call_id=made.records.forward.call_id,
        model_hash=MODEL_HASH,
        request_body=BODY,
        status=200,
        response_body=response if seen is None else seen,
        receipt=made.receipt,
    )


async def judge(exchange: Exchange, reference: FakeReference | None = None) -> tuple[Verdict, str]:
    outcome = await make_fake_judge(DEPLOYMENT, reference).judge_exchange(exchange)
    return outcome.verdict, outcome.reason


@pytest.mark.parametrize("base64", [False, True])
async def test_judge_honest_answer_passes(base64: bool) -> None:
    assert (await judge(make_exchange(good_answer(base64=base64))))[0] is Verdict.PASS


@pytest.mark.parametrize(
    ("noise", "verdict"),
    [
        (9e-5, Verdict.PASS),
        (2e-3, Verdict.CLASS),
        (1e-2, Verdict.CLASS),
        (0.1, Verdict.GROSS),
        (0.9, Verdict.GROSS),
    ],
)
async def test_judge_distance_falls_into_its_band(noise: float, verdict: Verdict) -> None:
    assert (await judge(make_exchange(good_answer(noise))))[0] is verdict


async def test_judge_fragile_input_convicts_nobody() -> None:
    assert (await judge(make_exchange(good_answer(0.1)), FakeReference(scatter=0.03)))[0] is Verdict.PASS


async def test_judge_strike_is_rerun_and_pass_is_not() -> None:
    reference = FakeReference()
    await judge(make_exchange(good_answer()), reference)
    assert reference.runs == 1
    await judge(make_exchange(good_answer(0.1)), reference)
    assert reference.runs == 3


async def test_judge_token_count_mismatch_is_template_never_a_strike() -> None:
    assert (await judge(make_exchange(good_answer(0.9, tokens=3))))[0] is Verdict.TEMPLATE


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"not json",
        b'{"data": [], "usage": {"prompt_tokens": 9}}',
        answer_body((fake_vector("a"),), 9),
        answer_body((fake_vector("a"), fake_vector("b")[:-1]), 9),
        answer_body((fake_vector("a"), (*fake_vector("b")[:-1], float("nan"))), 9),
        msgspec.json.encode(
            {"data": [{"index": 0, "embedding": "AAAA"}] * 2, "usage": {"prompt_tokens": 9}},
        ),
        msgspec.json.encode({"data": [{"index": 0, "embedding": "=="}], "usage": {"prompt_tokens": 9}}),
    ],
)
async def test_judge_malformed_answer_is_an_error(body: bytes) -> None:
    assert (await judge(make_exchange(body)))[0] is Verdict.ERROR


async def test_judge_altered_request_blames_the_hub_not_the_node() -> None:
    verdict, reason = await judge(
        make_exchange(good_answer(0.9), upstream=UPSTREAM.replace(b"first", b"worst"))
    )
    assert verdict is Verdict.ERROR
    assert "another request" in reason


async def test_judge_altered_answer_blames_the_hub_not_the_node() -> None:
    verdict, reason = await judge(
        make_exchange(good_answer(), seen=good_answer(0.9), delivered=good_answer(0.9))
    )
    assert verdict is Verdict.ERROR
    assert "another answer" in reason


async def test_judge_answer_the_hub_did_not_sign_for_is_an_error() -> None:
    verdict, reason = await judge(make_exchange(good_answer(), seen=good_answer(0.9)))
    assert verdict is Verdict.ERROR
    assert "EMC-1961" in reason


async def test_judge_node_error_status_is_liveness() -> None:
    exchange = make_exchange(b'{"error": {}}', http_status=500)
    assert (await judge(replace(exchange, status=500)))[0] is Verdict.ERROR


def fault_of(*, call: dict[str, Any] | None = None, **changes: Any) -> str:
    exchange = make_exchange(good_answer(), **(call or {}))
    return find_receipt_fault(DOMAIN, HUB.address, replace(exchange, **changes))


def test_receipt_honest_has_no_fault() -> None:
    assert fault_of() == ""


def test_receipt_of_another_hub_node_or_model_is_a_fault() -> None:
    assert "EMC" in fault_of(call={"hub": make_key("other hub")})
    assert "forwarded to" in fault_of(node=make_key("other node").address)
    assert "another model" in fault_of(model_hash=Hash(bytes(32)))


def test_receipt_signed_by_somebody_else_is_a_fault() -> None:
    assert "EMC-1496" in fault_of(call={"receipt_key": make_key("other node")})
    assert "EMC-1496" in fault_of(call={"receipt_key": HUB})


def test_receipt_of_another_chain_is_a_fault() -> None:
    other = msgspec.structs.replace(DEPLOYMENT, chain_id=1)
    exchange = make_exchange(good_answer())
    assert "EMC-1495" in find_receipt_fault(other.staking_domain, HUB.address, exchange)


def test_receipt_with_an_empty_signature_is_a_fault() -> None:
    exchange = make_exchange(good_answer())
    for name in ("forward_proof", "receipt_proof", "delivery_proof"):
        bare = msgspec.structs.replace(getattr(exchange.receipt, name), signature=b"")
        changed = replace(exchange, receipt=msgspec.structs.replace(exchange.receipt, **{name: bare}))
        assert "EMC-1494" in find_receipt_fault(DOMAIN, HUB.address, changed)


def test_receipt_of_another_call_is_a_fault() -> None:
    assert "another call" in fault_of(call_id=bytes(16))


def test_receipt_without_the_nodes_part_is_a_fault() -> None:
    exchange = make_exchange(good_answer())
    bare = msgspec.structs.replace(exchange.receipt, receipt=None, receipt_proof=None)
    assert find_receipt_fault(DOMAIN, HUB.address, replace(exchange, receipt=bare))


def test_receipt_of_a_call_that_the_node_never_signed_is_a_fault() -> None:
    exchange = make_exchange(good_answer())
    delivery = msgspec.structs.replace(exchange.receipt.delivery, receipt_hash=bytes(32))
    hashes = (delivery.struct_hash(),)
    batch = RecordBatch(HUB.address, int(RecordKind.DELIVERY), batch_root(hashes), 1, AT_MS)
    proof = RecordProof(batch, HUB.sign(DOMAIN, batch), 0, ())
    bare = msgspec.structs.replace(
        exchange.receipt, receipt=None, receipt_proof=None, delivery=delivery, delivery_proof=proof
    )
    fault = find_receipt_fault(DOMAIN, HUB.address, replace(exchange, receipt=bare))
    assert fault == "the node signed no receipt"


def test_receipt_with_another_status_than_came_is_a_fault() -> None:
    assert "status" in fault_of(call={"http_status": 203})


def blame_of(**call: Any) -> Blame | None:
    seen = call.pop("seen", None)
    changes = call.pop("changes", {})
    exchange = replace(make_exchange(good_answer(), seen=seen, **call), **changes)
    fault = find_record_fault(DOMAIN, HUB.address, exchange)
    return None if fault is None else fault.blame


@pytest.mark.parametrize(
    ("call", "blame"),
    [
        ({}, None),
        ({"upstream": UPSTREAM.replace(b"first", b"worst")}, Blame.HUB),
        ({"seen": good_answer(0.9), "delivered": good_answer(0.9)}, Blame.HUB),
        ({"seen": good_answer(0.9)}, Blame.HUB),
        ({"changes": {"node": HUB.address}}, Blame.HUB),
        ({"changes": {"model_hash": Hash(bytes(32))}}, Blame.HUB),
        ({"http_status": 203}, Blame.HUB),
        ({"changes": {"call_id": bytes(16)}}, Blame.VOID),
        ({"receipt_key": HUB}, Blame.VOID),
        ({"hub": make_key("other hub")}, Blame.VOID),
    ],
    ids=str,
)
def test_blame_follows_from_the_records_alone(call: dict[str, Any], blame: Blame | None) -> None:
    assert blame_of(**dict(call)) == blame


def test_every_blame_has_its_sentence() -> None:
    assert len({blame.sentence for blame in Blame}) == len(Blame)


async def test_strike_blames_the_node_and_a_pass_nobody() -> None:
    judge = make_fake_judge(DEPLOYMENT)
    assert (await judge.judge_exchange(make_exchange(good_answer(0.9)))).blame is Blame.NODE
    assert (await judge.judge_exchange(make_exchange(good_answer()))).blame is Blame.NOBODY


async def test_transcript_is_judged_without_records_and_blames_nobody() -> None:
    judge = make_fake_judge(DEPLOYMENT)
    honest = await judge.judge_transcript(MODEL_HASH, "/v1/embeddings", UPSTREAM, good_answer())
    gross = await judge.judge_transcript(MODEL_HASH, "/v1/embeddings", UPSTREAM, good_answer(0.9))
    assert (honest.verdict, gross.verdict) == (Verdict.PASS, Verdict.GROSS)
    assert gross.blame is Blame.NOBODY
    failed = await judge.judge_transcript(MODEL_HASH, "/v1/embeddings", UPSTREAM, b"", 500)
    assert failed.verdict is Verdict.ERROR
    wrong = await judge.judge_transcript(MODEL_HASH, "/v1/completions", UPSTREAM, good_answer())
    assert wrong.verdict is Verdict.ERROR
    with pytest.raises(RecoverableError, match="EMC-1811"):
        await judge.judge_transcript(bytes(32), "/v1/embeddings", UPSTREAM, good_answer())


@pytest.mark.parametrize("asked", [{"logprobs": None}, {"return_token_ids": None}, {"stream": True}], ids=str)
def test_request_that_leaves_the_hub_something_to_cut_proves_nothing(asked: dict[str, Any]) -> None:
    table = {
        "model": "toy", "prompt": "a", "logprobs": 5, "seed": 1, "return_token_ids": True, "max_tokens": 4,
        **asked,
    }  # fmt: skip
    body = msgspec.json.encode({name: value for name, value in table.items() if value is not None})
    upstream = read_request(Endpoint.COMPLETIONS, body, evidence=True)
    made = make_call(
        DEPLOYMENT, NODE, upstream.body, b"whole", AT_MS, path="/v1/completions", delivered=b"cut"
    )
    exchange = Exchange(
        node=NODE.address, call_id=made.records.forward.call_id, model_hash=MODEL_HASH, request_body=body,
        status=200, response_body=b"cut", receipt=made.receipt, request_path="/v1/completions",
    )  # fmt: skip
    fault = find_record_fault(DOMAIN, HUB.address, exchange)
    assert fault is not None
    assert (fault.blame, "all of the evidence" in fault.reason) == (Blame.NOBODY, True)
