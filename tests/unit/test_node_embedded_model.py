"""Requests for embeddings that are refused before any work, and the answer's two forms."""

from __future__ import annotations

import base64

import msgspec
import numpy as np
import pytest

from emcd.inference.embedder import EmbedderSettings, EmbedResult
from emcd.inference.minilm import MINILM_MANIFEST, MINILM_NAME, ModelFiles
from emcd.proto.openai import MAX_INPUTS, Endpoint
from emcd_node.embedded_model import MAX_TEXT_CHARS, EmbeddedModel, write_answer
from emcd_node.served_model import CallRequest, Refused


class NoReply:
    """A reply that must not be used."""

    async def start(self, status: int, content_type: str) -> None:
        raise AssertionError("an answer was begun")

    async def send(self, piece: bytes) -> None:
        raise AssertionError("an answer was sent")


def _no_files() -> ModelFiles:
    raise AssertionError("the model was opened")


async def _refusal(body: bytes, endpoint: Endpoint = Endpoint.EMBEDDINGS) -> Refused:
    model = EmbeddedModel(MINILM_MANIFEST, _no_files, EmbedderSettings())
    outcome = await model.answer(CallRequest(endpoint, MINILM_NAME, body, False), NoReply())
    assert isinstance(outcome, Refused)
    return outcome


def _body(**fields: object) -> bytes:
    return msgspec.json.encode({"model": MINILM_NAME, **fields})


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"", None),
        (b"{", None),
        (b'{"model":"\xff"}', None),
        (b"[" * 5000, None),
        (_body(), None),
        (_body(input=None), "input"),
        (_body(input=[]), "input"),
        (_body(input=""), "input"),
        (_body(input=["a", ""]), "input"),
        (_body(input=[1, 2, 3]), "input"),
        (_body(input=[[1, 2], [3]]), "input"),
        (_body(input=["x"] * (MAX_INPUTS + 1)), "input"),
        (_body(input="x" * (MAX_TEXT_CHARS + 1)), "input"),
        (_body(input="x", dimensions=10), "dimensions"),
        (_body(input="x", encoding_format="hex"), None),
    ],
)
async def test_answer_request_at_fault_is_a_400(body: bytes, param: str | None) -> None:
    refusal = await _refusal(body)
    assert (refusal.status, refusal.emc_code, refusal.param) == (400, "EMC-2005", param)


async def test_answer_chat_with_an_embedding_model_is_a_400() -> None:
    assert (await _refusal(_body(messages=[]), Endpoint.CHAT)).status == 400


async def test_answer_before_the_model_is_open_is_a_503() -> None:
    assert (await _refusal(_body(input="x"))).status == 503


def test_write_answer_has_openais_shape_in_both_forms() -> None:
    vectors = np.array([[0.1, -0.2], [1e-8, 1.0]], np.float32)
    result = EmbedResult(vectors, (3, 4))
    plain = msgspec.json.decode(write_answer("m", result, False))
    assert plain["object"] == "list"
    assert plain["model"] == "m"
    assert plain["usage"] == {"prompt_tokens": 7, "total_tokens": 7}
    assert [item["index"] for item in plain["data"]] == [0, 1]
    assert {item["object"] for item in plain["data"]} == {"embedding"}
    read = np.array([item["embedding"] for item in plain["data"]], np.float32)
    np.testing.assert_array_equal(read, vectors)  # bit for bit: a verdict is about these numbers
    packed = msgspec.json.decode(write_answer("m", result, True))
    read = np.array([np.frombuffer(base64.b64decode(item["embedding"]), "<f4") for item in packed["data"]])
    np.testing.assert_array_equal(read, vectors)
