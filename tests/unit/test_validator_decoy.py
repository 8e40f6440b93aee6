"""Decoys: plainly wrong to a judge, and in nothing else unlike a real answer."""

from __future__ import annotations

import math
import struct
from base64 import b64encode
from random import Random
from typing import Any

import msgspec
import pytest

from emcd.proto.messages import Verdict
from emcd.proto.transcript import MAX_TRANSCRIPT_BYTES, transcript_hash
from emcd_validator.decoy import Sample, make_decoys, rewrite
from tests.support.validator_world import (
    MINILM_NAME,
    MODEL_HASH,
    answer_body,
    count_tokens,
    fake_vector,
    make_deployment,
    make_fake_judge,
)

JUDGE = make_fake_judge(make_deployment(1_800_000_000))
EMBEDDINGS, CHAT, COMPLETIONS = "/v1/embeddings", "/v1/chat/completions", "/v1/completions"


def embedded(*texts: str, base64: bool = False) -> Sample:
    request = msgspec.json.encode({"input": list(texts), "model": MINILM_NAME})
    vectors = tuple(map(fake_vector, texts))
    return Sample(MODEL_HASH, EMBEDDINGS, request, answer_body(vectors, count_tokens(texts), base64=base64))


def chat(words: list[str], *, ids: list[int] | None = None) -> Sample:
    entries = [
        {
            "token": word,
            "logprob": -0.1 * (place + 1),
            "bytes": list(word.encode()),
            "top_logprobs": [
                {"token": word, "logprob": -0.1 * (place + 1), "bytes": list(word.encode())},
                {"token": "?", "logprob": -5.0, "bytes": [63]},
            ],
        }
        for place, word in enumerate(words)
    ]
    table = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1_800_000_000,
        "model": "m",
        "prompt_token_ids": [1, 2, 3],
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "".join(words)},
                "logprobs": {"content": entries},
                "token_ids": ids or list(range(10, 10 + len(words))),
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 3, "completion_tokens": len(words), "total_tokens": 3 + len(words)},
    }
    return Sample(b"\7" * 32, CHAT, b"{}", msgspec.json.encode(table))


def completion() -> Sample:
    logprobs = {
        "tokens": ["a", "b"],
        "token_logprobs": [-0.5, -0.25],
        "top_logprobs": [{"a": -0.5, "x": -3.0}, {"b": -0.25}],
        "text_offset": [0, 1],
    }
    choice = {"index": 0, "text": "ab", "logprobs": logprobs, "token_ids": [4, 5], "finish_reason": "stop"}
    usage = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
    table = {"id": "cmpl-9", "created": 5, "model": "m", "choices": [choice], "usage": usage}
    return Sample(b"\7" * 32, COMPLETIONS, b"{}", msgspec.json.encode(table))


def decode(sample: Sample) -> dict[str, Any]:
    return dict(msgspec.json.decode(sample.response))


async def verdict(sample: Sample) -> Verdict:
    judged = await JUDGE.judge_transcript(sample.model_hash, sample.path, sample.request, sample.response)
    return judged.verdict


@pytest.mark.parametrize("base64", [False, True])
@pytest.mark.parametrize("seed", range(10))
async def test_spoilt_vectors_are_gross_and_rewritten_ones_pass(base64: bool, seed: int) -> None:
    rng, sample = Random(seed), embedded("one text", "another text", base64=base64)
    decoys = make_decoys(sample, [embedded("a third")], rng)
    assert len(decoys) == 3
    for decoy in decoys:
        assert await verdict(decoy) is Verdict.GROSS
        rewritten = rewrite(decoy, rng)
        assert rewritten is not None
        assert await verdict(Sample(MODEL_HASH, EMBEDDINGS, sample.request, rewritten.response_body)) is (
            Verdict.GROSS
        )
    real = rewrite(sample, rng)
    assert real is not None
    assert await verdict(Sample(MODEL_HASH, EMBEDDINGS, sample.request, real.response_body)) is Verdict.PASS


def test_rewritten_twice_is_two_tasks_in_other_bytes_and_the_same_form() -> None:
    rng = Random(1)
    for sample in (embedded("text"), embedded("text", base64=True), chat(["Hi", " there"]), completion()):
        one, two = rewrite(sample, rng), rewrite(sample, rng)
        assert one is not None
        assert two is not None
        assert one.response_body != two.response_body != sample.response
        assert transcript_hash(one) != transcript_hash(two)
        assert (one.request_body, one.status) == (sample.request, 200)
        assert shape(msgspec.json.decode(one.response_body)) == shape(decode(sample))


def shape(value: Any) -> Any:
    """The form of an answer without its numbers and texts."""
    if isinstance(value, dict):
        return {key: shape(item) for key, item in value.items()}
    return [shape(item) for item in value] if isinstance(value, list) else type(value)


def test_rewritten_logprobs_stay_within_an_honest_engines_noise() -> None:
    rewritten = rewrite(chat(["Hi", " there"]), Random(2))
    assert rewritten is not None
    table = msgspec.json.decode(rewritten.response_body)
    entry = table["choices"][0]["logprobs"]["content"][1]
    assert entry["logprob"] == pytest.approx(-0.2, abs=2e-6)
    assert entry["logprob"] == entry["top_logprobs"][0]["logprob"] <= 0
    assert table["id"].startswith("chatcmpl-")
    assert table["choices"][0]["message"]["content"] == "Hi there"


def test_spoilt_chat_answers_are_wrong_each_in_its_way() -> None:
    sample, other = chat(["Hi", " there", "!"]), chat(["No", "."], ids=[7, 8])
    seen = set()
    for seed in range(20):
        for decoy in make_decoys(sample, [other], Random(seed)):
            table, before = decode(decoy), decode(sample)
            choice, honest = table["choices"][0], before["choices"][0]
            ids = choice["token_ids"]
            assert (
                "".join(entry["token"] for entry in choice["logprobs"]["content"])
                == (choice["message"]["content"])
            )
            assert table["usage"]["completion_tokens"] == len(ids) == len(choice["logprobs"]["content"])
            if ids == [7, 8]:
                seen.add("other answer")
            elif ids != honest["token_ids"]:
                assert sorted(ids) == sorted(honest["token_ids"])
                seen.add("tokens moved")
            else:
                shifts = [
                    new["logprob"] - old["logprob"]
                    for new, old in zip(
                        choice["logprobs"]["content"], honest["logprobs"]["content"], strict=True
                    )
                ]
                assert all(-3 < shift < -0.4 for shift in shifts)
                seen.add("logprobs shifted")
    assert seen == {"other answer", "tokens moved", "logprobs shifted"}


def test_spoilt_completion_lowers_every_logprob_once() -> None:
    (decoy,) = make_decoys(completion(), [], Random(3))
    found = decode(decoy)["choices"][0]["logprobs"]
    assert all(
        -2.6 < after - before < -0.4
        for after, before in zip(found["token_logprobs"], (-0.5, -0.25), strict=True)
    )
    assert found["top_logprobs"][0]["a"] == found["token_logprobs"][0]
    assert -5.5 < found["top_logprobs"][0]["x"] < -3.4


@pytest.mark.parametrize(
    "response",
    [b"", b"[]", b"nonsense", b"data: {}\n\n", b'{"data": [{}]}', b'{"data": 5}', b'{"choices": [5]}', b"{}",
     b'{"data": [{"embedding": "%%%"}]}', b'{"choices": [{"logprobs": {"content": [{}]}}]}'],
)  # fmt: skip
def test_answer_of_another_form_is_left_alone(response: bytes) -> None:
    for path in (EMBEDDINGS, CHAT):
        sample = Sample(MODEL_HASH, path, b"{}", response)
        assert make_decoys(sample, [sample], Random(1)) == []
        written = rewrite(sample, Random(1))
        assert written is None or msgspec.json.decode(written.response_body) == msgspec.json.decode(response)


FLT_MAX = b64encode(struct.pack("<8f", *[3.4028234e38] * 8)).decode()
HUGE = b'[{"logprobs":{"content":[{"token":"a","logprob":-' + b"9" * 400 + b"}]}}]"


def with_field(sample: Sample, name: bytes, value: bytes) -> Sample:
    """The same answer with a field more, or another one."""
    response = sample.response[:-1] + b',"' + name + b'":' + value + b"}"
    return Sample(sample.model_hash, sample.path, sample.request, response)


@pytest.mark.parametrize(
    ("sample", "name", "value"),
    [
        (chat(["Hi"]), b"data", b'[{"embedding":"' + FLT_MAX.encode() + b'"}]'),
        (embedded("text"), b"choices", b'[{"logprobs":{"content":[{"token":"a","logprob":-0.5}]}}]'),
    ],
)
def test_section_that_was_not_asked_for_is_not_touched(sample: Sample, name: bytes, value: bytes) -> None:
    odd = with_field(sample, name, value)
    for seed in range(20):
        written = rewrite(odd, Random(seed))
        assert written is not None
        assert msgspec.json.decode(written.response_body)[name.decode()] == msgspec.json.decode(value)


@pytest.mark.parametrize(
    ("sample", "name", "value"),
    [
        (embedded("text"), b"data", b'[{"embedding":"' + FLT_MAX.encode() + b'"}]'),
        (chat(["Hi"]), b"choices", HUGE),
        (completion(), b"choices", HUGE),
        (chat(["Hi"]), b"created", b"18446744073709551615"),
        (chat(["Hi"]), b"x", b"[" * 1000 + b"]" * 1000),
        (chat(["Hi"]), b"choices", b'{"a": 1}'),
        (chat(["Hi"]), b"choices", b'[{"logprobs": {"content": [{"token": "a", "logprob": null}]}}]'),
    ],
)
def test_odd_answer_of_a_node_raises_nothing(sample: Sample, name: bytes, value: bytes) -> None:
    odd = with_field(sample, name, value)
    for seed in range(20):
        rewrite(odd, Random(seed))
        make_decoys(odd, [sample, odd], Random(seed))
        make_decoys(sample, [sample, odd], Random(seed))


def test_answer_of_several_choices_is_no_decoy_and_is_put_into_none() -> None:
    sample, other = chat(["Hi", " there"]), chat(["No", " way"], ids=[7, 8])
    table = decode(sample)
    table["choices"] *= 2
    several = Sample(sample.model_hash, CHAT, b"{}", msgspec.json.encode(table))
    for seed in range(20):
        assert make_decoys(several, [other], Random(seed)) == []
        for decoy in make_decoys(other, [several], Random(seed)):
            assert len(decode(decoy)["choices"]) == 1


def test_tokens_of_which_few_would_change_are_not_swapped() -> None:
    words, ids = ["a", "b", *["c"] * 40], [1, 2, *[3] * 40]
    sample, longer = chat(words, ids=ids), chat([*words, "d"], ids=[*ids, 4])
    for seed in range(20):
        for decoy in make_decoys(sample, [longer], Random(seed)):
            assert decode(decoy)["choices"][0]["token_ids"] == ids


def test_answer_too_large_for_a_task_is_left_alone() -> None:
    sample = embedded("text")
    assert (
        rewrite(Sample(MODEL_HASH, EMBEDDINGS, bytes(MAX_TRANSCRIPT_BYTES), sample.response), Random(1))
        is None
    )


def test_spoilt_vector_keeps_its_length() -> None:
    for decoy in make_decoys(embedded("text"), [], Random(5)):
        row = decode(decoy)["data"][0]["embedding"]
        assert math.hypot(*row) == pytest.approx(1, abs=1e-6)
