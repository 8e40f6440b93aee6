"""What the node's own code answers, many calls in one batch, passes before the validator's judge."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import trio

from emcd.accounting.event_stream import StreamMeter
from emcd.inference.generator import GeneratorSettings
from emcd.inference.manifest import TextManifest
from emcd.inference.model_folder import load_model_folder
from emcd.proto.messages import Verdict
from emcd.proto.openai import ENDPOINTS, read_request
from emcd_node.served_model import CallRequest
from emcd_node.text_model import TextModel
from emcd_validator.model import JudgedModel
from emcd_validator.reference_text import TextReference
from emcd_validator.verdict_run import judge_writing
from tests.support.text_writer import CHAT, COMPLETIONS, NAME, make_request, make_text_model

WORDS = ("the quick brown fox", "jumps over", "pack my box with five dozen", "é \U0001f98a liquor jugs")


class Sent:
    """A reply that keeps what it is given."""

    def __init__(self) -> None:
        self.body = b""

    async def start(self, status: int, content_type: str) -> None:
        assert status == 200

    async def send(self, piece: bytes) -> None:
        await trio.lowlevel.checkpoint()
        self.body += piece

    def end_events(self) -> StreamMeter:
        raise AssertionError("the model states its usage itself")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> JudgedModel:
    return make_text_model(tmp_path_factory.mktemp("models"))


def list_requests() -> list[tuple[str, bytes]]:
    """Chats and completions, whole and streamed, in every way of sampling."""
    ways: list[dict[str, Any]] = [
        {},
        {"temperature": 0},
        {"temperature": 0.7, "top_p": 0.9},
        {"temperature": 1.3, "top_k": 20},
        {"max_tokens": 1},
        {"stop": ["o", "th"]},
    ]
    stream = {"stream": True, "stream_options": {"include_usage": True}}
    requests = []
    for number, (way, words, how) in enumerate(itertools.product(ways, WORDS, ({}, stream))):
        path = (CHAT, COMPLETIONS)[number % 2]
        asked = {"messages": [{"role": "user", "content": words}]} if path == CHAT else {"prompt": words}
        requests.append((path, make_request(path, seed=number - 20, **way, **how, **asked)))
    return requests


@pytest.mark.parametrize("threads", [1, 2])
async def test_answers_of_an_honest_node_pass(model: JudgedModel, threads: int) -> None:
    assert isinstance(model.manifest, TextManifest)
    node = TextModel(
        model.manifest,
        lambda: load_model_folder(model.models_dir, NAME),
        GeneratorSettings(max_running=8),
        threads,
    )
    requests = list_requests()
    answers: dict[int, bytes] = {}

    async def ask(number: int, path: str, body: bytes) -> None:
        upstream = read_request(ENDPOINTS[path], body, evidence=True)
        assert upstream.hidden is None
        sent = Sent()
        await node.answer(CallRequest(ENDPOINTS[path], NAME, upstream.body, upstream.stream), sent)
        answers[number] = sent.body

    async with trio.open_nursery() as nursery:
        await nursery.start(node.run)
        async with trio.open_nursery() as calls:
            for number, (path, body) in enumerate(requests):
                calls.start_soon(ask, number, path, body)
        nursery.cancel_scope.cancel()
    reference = TextReference(model, 1)
    for number, (path, body) in enumerate(requests):
        judged = judge_writing(reference, model, path, body, answers[number])
        assert judged.verdict is Verdict.PASS, (path, body, answers[number], judged)
