"""A text model in the node: opened or not, refused before any work, failed before and after the head."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from emcd.accounting.event_stream import StreamMeter
from emcd.accounting.usage import Usage
from emcd.clock import ManualClock
from emcd.errors import ConfigError, RecoverableError
from emcd.inference.decoder_session import DecoderSession
from emcd.inference.generator import GeneratorSettings
from emcd.inference.manifest import TextManifest
from emcd.inference.model_folder import ModelFolder
from emcd.inference.text_tokenizer import SLICE_CHARS, TextTokenizer
from emcd.proto.openai_shape import Endpoint
from emcd_node.served_model import CallRequest, Refused
from emcd_node.text_model import TextModel
from tests.support.decoder_model import ToyDecoder, toy_decoder
from tests.support.text_world import TEXT_MODEL, write_toy_folder

__all__ = ["toy_decoder"]

MESSAGES = [{"role": "user", "content": "hi"}]


class Sent:
    """A reply that notes what it is given."""

    def __init__(self) -> None:
        self.status = 0
        self.body = b""

    async def start(self, status: int, content_type: str) -> None:
        self.status = status

    async def send(self, piece: bytes) -> None:
        assert self.status
        await trio.lowlevel.checkpoint()
        self.body += piece

    def end_events(self) -> StreamMeter:
        raise AssertionError("the model states its usage itself")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, toy_decoder: ToyDecoder) -> ModelFolder:
    return write_toy_folder(tmp_path_factory.mktemp("models"), toy_decoder)


def make_model(folder: ModelFolder, load: Callable[[], ModelFolder] | None = None) -> TextModel:
    assert isinstance(folder.manifest, TextManifest)
    settings = GeneratorSettings(max_running=2, waiting_calls=0)
    return TextModel(folder.manifest, load or (lambda: folder), settings, clock=ManualClock())


@asynccontextmanager
async def opened(folder: ModelFolder) -> AsyncIterator[TextModel]:
    model = make_model(folder)
    async with trio.open_nursery() as nursery:
        await nursery.start(model.run)
        yield model
        nursery.cancel_scope.cancel()


def request(endpoint: Endpoint = Endpoint.CHAT, **fields: Any) -> CallRequest:
    asked = {"messages": MESSAGES} if endpoint is Endpoint.CHAT else {"prompt": "hi"}
    body = {"model": TEXT_MODEL, "max_tokens": 8, "seed": 3, **asked, **fields}
    return CallRequest(endpoint, TEXT_MODEL, msgspec.json.encode(body), bool(fields.get("stream")))


async def refused(model: TextModel, asked: CallRequest) -> Refused:
    sent = Sent()
    outcome = await model.answer(asked, sent)
    assert isinstance(outcome, Refused)
    assert sent.status == 0
    return outcome


async def test_answer_before_it_is_open_is_a_503(folder: ModelFolder) -> None:
    model = make_model(folder)
    assert (await refused(model, request())).status == 503
    assert not model.is_available()
    assert "is being opened" in model.complaint()


async def test_model_that_fails_its_golden_vectors_is_not_served(folder: ModelFolder) -> None:
    def load() -> ModelFolder:
        raise ConfigError("EMC-1634", "too far off")

    model = make_model(folder, load)
    async with trio.open_nursery() as nursery:
        await nursery.start(model.run)
        assert not model.is_available()
        assert "EMC-1634" in model.complaint()
        assert (await refused(model, request())).status == 503
        nursery.cancel_scope.cancel()


async def test_model_whose_files_are_wrong_does_not_start(folder: ModelFolder) -> None:
    def load() -> ModelFolder:
        raise ConfigError("EMC-1602", "model.onnx")

    with pytest.raises(ConfigError, match="EMC-1602"):
        await make_model(folder, load).run()


async def test_answer_whole_has_openais_shape(folder: ModelFolder) -> None:
    async with opened(folder) as model:
        sent = Sent()
        usage = await model.answer(request(), sent)
        assert model.complaint() == ""
    body = msgspec.json.decode(sent.body)
    (choice,) = body["choices"]
    assert body["object"] == "chat.completion"
    assert body["id"].startswith("chatcmpl-")
    assert body["created"] == ManualClock().now_ms() // 1000
    assert set(choice) == {"index", "message", "logprobs", "finish_reason"}
    assert choice["message"]["role"] == "assistant"
    made = body["usage"]["completion_tokens"]
    assert usage == Usage(body["usage"]["prompt_tokens"], made)
    assert body["usage"]["total_tokens"] == sum(usage)


async def test_answer_streamed_ends_with_usage_and_done(folder: ModelFolder) -> None:
    async with opened(folder) as model:
        sent = Sent()
        asked = request(Endpoint.COMPLETIONS, stream=True, stream_options={"include_usage": True})
        usage = await model.answer(asked, sent)
    *events, usage_event, done = sent.body.decode().strip().split("\n\n")
    assert done == "data: [DONE]"
    assert msgspec.json.decode(usage_event.removeprefix("data: "))["usage"]["completion_tokens"] == usage[1]  # type: ignore[index]
    chunks = [msgspec.json.decode(event.removeprefix("data: ")) for event in events]
    assert {chunk["object"] for chunk in chunks} == {"text_completion"}
    assert {chunk["usage"] for chunk in chunks} == {None}
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        (request(Endpoint.EMBEDDINGS, input="x"), "model"),
        (request(Endpoint.COMPLETIONS, prompt=[5, 320]), "prompt"),
        (request(Endpoint.COMPLETIONS, prompt=[-1]), "prompt"),
        (request(Endpoint.COMPLETIONS, prompt=[2**70]), "prompt"),
    ],
)
async def test_answer_to_what_it_can_not_read_is_a_400(
    folder: ModelFolder, asked: CallRequest, param: str
) -> None:
    async with opened(folder) as model:
        found = await refused(model, asked)
    assert (found.status, found.emc_code, found.param) == (400, "EMC-2005", param)


@pytest.mark.parametrize(
    "asked",
    [
        request(max_tokens=121),
        request(messages=[{"role": "user", "content": "\u20ac" * 100}]),
        request(messages=[{"role": "user", "content": "x" * 1_000_000}]),
        request(Endpoint.COMPLETIONS, prompt=[1] * 128),
        request(Endpoint.COMPLETIONS, prompt=[1] * 121),
    ],
)
async def test_answer_beyond_the_context_is_told_as_openai_does(
    folder: ModelFolder, asked: CallRequest
) -> None:
    async with opened(folder) as model:
        found = await refused(model, asked)
    assert (found.status, found.emc_code, found.code) == (400, "EMC-2026", "context_length_exceeded")
    assert "maximum context length is 128 tokens" in found.message


async def test_long_prompt_is_refused_after_a_slice_and_keeps_no_short_one_waiting(
    folder: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The manifest's longest token is taken for longer here, so that the characters alone say nothing."""
    gate, read = threading.Event(), list[int]()
    encode = TextTokenizer._encode

    def hold(self: TextTokenizer, text: str, *, specials: bool) -> list[int]:
        read.append(len(text))
        assert len(text) < 1000 or gate.wait(10)
        return encode(self, text, specials=specials)

    monkeypatch.setattr(TextTokenizer, "_encode", hold)
    found: list[Refused] = []

    async def ask_long(model: TextModel) -> None:
        found.append(await refused(model, request(messages=[{"role": "user", "content": "x " * 100_000}])))

    async with opened(folder) as model:
        assert model._tokenizer is not None
        monkeypatch.setattr(model._tokenizer, "longest_bytes", 10_000)
        async with trio.open_nursery() as callers:
            callers.start_soon(ask_long, model)
            await trio.testing.wait_all_tasks_blocked()
            with trio.fail_after(5):
                assert isinstance(await model.answer(request(), Sent()), Usage)
            assert not found
            gate.set()
    assert [answer.code for answer in found] == ["context_length_exceeded"]
    assert [size for size in read if size > 1000] == [SLICE_CHARS]


async def test_answer_that_fails_before_its_head_can_go_to_another_node(
    folder: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RecoverableError("EMC-1651", "no memory")

    async with opened(folder) as model:
        monkeypatch.setattr(DecoderSession, "run", fail)
        for stream in (False, True):
            found = await refused(model, request(stream=stream))
            assert (found.status, found.emc_code) == (503, "EMC-1651")


async def test_answer_that_breaks_after_its_head_is_raised(
    folder: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = Sent()

    async def start(status: int, content_type: str) -> None:
        sent.status = status
        monkeypatch.setattr(DecoderSession, "run", fail)

    def fail(*_: object) -> None:
        raise RecoverableError("EMC-1651", "no memory")

    async with opened(folder) as model:
        monkeypatch.setattr(sent, "start", start)
        with pytest.raises(RecoverableError, match="EMC-1651"):
            await model.answer(request(stream=True, max_tokens=100, stop=None), sent)


async def test_answer_when_the_batch_is_full_is_a_503_until_a_caller_leaves(
    folder: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()
    run = DecoderSession.run

    def wait(*args: Any) -> Any:
        assert gate.wait(10)
        return run(*args)

    monkeypatch.setattr(DecoderSession, "run", wait)
    async with opened(folder) as model:
        async with trio.open_nursery() as callers:
            for _ in range(2):
                callers.start_soon(model.answer, request(), Sent())
            await trio.testing.wait_all_tasks_blocked()
            found = await refused(model, request())
            assert (found.status, found.emc_code) == (503, "EMC-2006")
            callers.cancel_scope.cancel()
        gate.set()
        assert isinstance(await model.answer(request(), Sent()), Usage)
