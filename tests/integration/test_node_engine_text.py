"""An engine that is sold under a manifest: only the promised one is served, its evidence in the one form."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from emcd.accounting.event_stream import PassingStream, StreamMeter
from emcd.accounting.usage import Usage
from emcd.errors import RecoverableError
from emcd.inference.golden_tokens import make_text_golden
from emcd.inference.manifest import TextManifest
from emcd.inference.model_folder import hash_files, write_model_folder
from emcd.inference.text_tokenizer import TextTokenizer
from emcd.proto.openai_shape import JSON, Endpoint
from emcd_node.config import ModelConfig
from emcd_node.engine_answer import EvidenceForm
from emcd_node.engine_model import EVENT_STREAM, EngineModel
from emcd_node.model_choice import make_model
from emcd_node.served_model import CallRequest, Refused
from tests.support.decoder_model import ToyDecoder, toy_decoder
from tests.support.inference_engine import ScriptedEngine, answer, scripted_engine, sse

__all__ = ["toy_decoder"]
LLAMA = {"build_info": "b6500-8ff2060"}
PATH = "/v1/completions"
EVIDENCE = {"logprobs": 5, "seed": 2**62, "return_token_ids": True}


@dataclass
class Kept:
    """A reply that keeps what it is told."""

    endpoint: Endpoint = Endpoint.COMPLETIONS
    head: tuple[int, str] = (0, "")
    pieces: list[bytes] = field(default_factory=list)

    async def start(self, status: int, content_type: str) -> None:
        self.head = (status, content_type)

    async def send(self, piece: bytes) -> None:
        self.pieces.append(piece)

    def end_events(self) -> StreamMeter:
        stream = PassingStream(self.endpoint)
        stream.feed(b"".join(self.pieces))
        stream.end()
        return stream.meter


@pytest.fixture(scope="module")
def models_dir(tmp_path_factory: pytest.TempPathFactory, toy_decoder: ToyDecoder) -> Path:
    """Two folders of the toy: one sold behind llama.cpp from 6000 on, one behind vLLM."""
    folder = tmp_path_factory.mktemp("models")
    golden = make_text_golden(toy_decoder.onnx, toy_decoder.tokenizer, context_tokens=128, stop_tokens=(0, 2))
    files: dict[str, bytes | Path] = {
        "model.onnx": toy_decoder.onnx,
        "tokenizer.json": toy_decoder.tokenizer,
        "chat_template.jinja": toy_decoder.folder / "chat_template.jinja",
        "golden.json": golden,
    }
    for name, engine, versions in (("on-llama", "llama.cpp", ">=6000,<7000"), ("on-vllm", "vllm", "")):
        manifest = TextManifest(
            name="m", files=hash_files(files), context_tokens=128, vocab_tokens=320, bos_token=None,
            stop_tokens=(0, 2), engine=engine, engine_versions=versions, sampler="engine",
        )  # fmt: skip
        write_model_folder(folder, name, manifest, files)
    return folder


async def open_model(engine: ScriptedEngine, models_dir: Path, manifest: str) -> EngineModel:
    model = make_model(ModelConfig("engine", "m", url=engine.url, manifest=manifest), models_dir)
    assert isinstance(model, EngineModel)
    if manifest:
        model._form = model._load() if model._load else None
    await model.probe()
    return model


def ask(**fields: Any) -> CallRequest:
    body = msgspec.json.encode({"model": "m", "prompt": "the fox", **fields})
    return CallRequest(Endpoint.COMPLETIONS, "m", body, bool(fields.get("stream")), JSON)


def told(words: TextTokenizer, token: int) -> dict[str, Any]:
    data = words.token_bytes(token)
    return {"id": token, "token": data.decode(), "bytes": list(data), "logprob": -0.5, "top_logprobs": []}


@pytest.mark.parametrize(
    ("manifest", "answers", "reason"),
    [
        (
            "on-llama",
            {"/props": {"build_info": "b5999-x"}},
            "llama.cpp >=6000,<7000, and this is llama.cpp b5999-x",
        ),
        (
            "on-llama",
            {"/version": {"version": "6500"}},
            "promises llama.cpp >=6000,<7000, and this is vllm 6500",
        ),
        ("on-vllm", {}, "promises vllm, and this is an unknown engine"),
    ],
)
async def test_engine_other_than_promised_is_not_served(
    models_dir: Path, manifest: str, answers: dict[str, Any], reason: str
) -> None:
    scripted = {path: [answer(200, json.dumps(body).encode())] for path, body in answers.items()}
    async with scripted_engine(scripted) as engine:
        model = await open_model(engine, models_dir, manifest)
        assert not model.is_available()
        assert reason in model.complaint()
        refused = await model.answer(ask(), Kept())
        assert isinstance(refused, Refused)
        assert refused.status == 503
        assert not any(PATH in seen.line for seen in engine.seen)
        engine.answers.pop("/version", None)
        engine.answers["/props"] = [answer(200, json.dumps(LLAMA).encode())]
        await model.probe()
        assert model.is_available() == (manifest == "on-llama")


async def test_whole_answer_of_the_promised_engine_is_brought_into_form(
    models_dir: Path, toy_decoder: ToyDecoder
) -> None:
    words = TextTokenizer(toy_decoder.tokenizer)
    prompt = words.encode("the fox", specials=True)
    usage = {"prompt_tokens": len(prompt), "completion_tokens": 1, "total_tokens": len(prompt) + 1}
    body = {"choices": [{"text": "a", "logprobs": {"content": [told(words, 90)]}}], "usage": usage}
    async with scripted_engine(
        {"/props": [answer(200, json.dumps(LLAMA).encode())], PATH: [answer(200, json.dumps(body).encode())]}
    ) as engine:
        model = await open_model(engine, models_dir, "on-llama")
        reply = Kept()
        assert await model.answer(ask(**EVIDENCE), reply) == Usage(len(prompt), 1)
        got = json.loads(b"".join(reply.pieces))
        assert got["prompt_token_ids"] == prompt
        assert got["choices"][0]["token_ids"] == [90]
        assert got["choices"][0]["logprobs"]["token_logprobs"] == [-0.5]
        sent = json.loads(engine.seen[-1].body)
        assert sent.items() >= {"logprobs": 5, "top_k": 0, "min_p": 0, "repeat_penalty": 1}.items()
        assert "return_token_ids" not in sent
        assert model.describe() == "m: llama.cpp b6500-8ff2060"


@pytest.mark.parametrize("stream", [False, True])
async def test_answer_about_several_prompts_names_none_for_all(models_dir: Path, stream: bool) -> None:
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    choices = [{"index": n, "text": "a", "prompt_token_ids": list(range(n + 1))} for n in range(2)]
    whole = [answer(200, json.dumps({"choices": choices, "usage": usage}).encode())]
    events = sse(*({"choices": [choice]} for choice in choices), {"choices": [], "usage": usage})
    scripted = {"/version": [answer(200, b'{"version":"0.10.2"}')], PATH: events if stream else whole}
    async with scripted_engine(scripted) as engine:
        model = await open_model(engine, models_dir, "on-vllm")
        reply = Kept()
        asked = ask(prompt=["a", "b c"], stream=stream, **EVIDENCE)
        assert await model.answer(asked, reply) == Usage(3, 2)
        events = [piece.removeprefix(b"data: ") for piece in b"".join(reply.pieces).split(b"\n\n")]
        parts = [json.loads(event) for event in events if event.startswith(b"{")]
        assert [choice for part in parts for choice in part["choices"]] == choices
        assert not any("prompt_token_ids" in part for part in parts)


async def test_long_prompts_of_an_engine_keep_no_short_one_waiting(
    models_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, make_prompt = threading.Event(), EvidenceForm.make_prompt

    def hold(self: EvidenceForm, endpoint: Endpoint, body: bytes) -> list[int] | None:
        assert len(body) < 1000 or gate.wait(10)
        return make_prompt(self, endpoint, body)

    monkeypatch.setattr(EvidenceForm, "make_prompt", hold)
    usage = {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}
    body = json.dumps({"choices": [{"text": "a"}], "usage": usage}).encode()
    known = {"/props": [answer(200, json.dumps(LLAMA).encode())]}
    async with scripted_engine({**known, PATH: [answer(200, body)] * 4}) as engine:
        model = await open_model(engine, models_dir, "on-llama")
        async with trio.open_nursery() as callers:
            for _ in range(3):
                callers.start_soon(model.answer, ask(prompt="x " * 50_000), Kept())
            await trio.testing.wait_all_tasks_blocked()
            with trio.fail_after(5):
                assert await model.answer(ask(), Kept()) == Usage(3, 1)
            assert model._reading.long.borrowed_tokens == 1
            gate.set()


async def test_stream_of_the_promised_engine_is_brought_into_form(
    models_dir: Path, toy_decoder: ToyDecoder
) -> None:
    words = TextTokenizer(toy_decoder.tokenizer)
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    chunks = [
        {"choices": [{"text": "a", "logprobs": {"content": [told(words, token)]}}]} for token in (90, 91)
    ]
    scripted = {
        "/props": [answer(200, json.dumps(LLAMA).encode())],
        PATH: sse(*chunks, {"choices": [], "usage": usage}),
    }
    async with scripted_engine(scripted) as engine:
        model = await open_model(engine, models_dir, "on-llama")
        reply = Kept()
        assert await model.answer(ask(stream=True, **EVIDENCE), reply) == Usage(3, 2)
        assert reply.head == (200, EVENT_STREAM)
        events = b"".join(reply.pieces).split(b"\n\n")[:-2]
        read = [json.loads(event.removeprefix(b"data: ")) for event in events]
        assert [chunk["choices"][0]["token_ids"] for chunk in read[:2]] == [[90], [91]]
        assert read[0]["prompt_token_ids"] == words.encode("the fox", specials=True)


async def test_model_that_promises_its_name_alone_passes_bytes_unchanged(models_dir: Path) -> None:
    body = b'{ "choices" : [{"text":"a","logprobs":{"content":[{"id":5}]}}], "usage":{"prompt_tokens":1} }'
    async with scripted_engine(
        {"/version": [answer(200, b'{"version":"0.10.2"}')], PATH: [answer(200, body)]}
    ) as engine:
        model = await open_model(engine, models_dir, "")
        reply = Kept()
        await model.answer(ask(temperature=0.5), reply)
        assert b"".join(reply.pieces) == body
        sent = json.loads(engine.seen[-1].body)
        assert sent.items() >= {"temperature": 0.5, "top_k": -1, "repetition_penalty": 1}.items()


TRANSFORMERS = {"paths": {"/load_model": {}, "/reset": {}, "/v1/chat/completions": {}}}


@pytest.mark.parametrize("states_usage", [True, False])
async def test_stream_that_transformers_serve_does_not_end_is_ended_after_its_usage(
    models_dir: Path, states_usage: bool
) -> None:
    usage = {"usage": {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}} if states_usage else {}
    stream = sse(
        {"choices": [{"text": "a"}]},
        {"choices": [{"text": "", "finish_reason": "stop"}], **usage},
        done=False,
    )
    whoami = {"/openapi.json": [answer(200, json.dumps(TRANSFORMERS).encode())]}
    async with scripted_engine({**whoami, PATH: stream}) as engine:
        model = await open_model(engine, models_dir, "")
        reply = Kept()
        if not states_usage:
            with pytest.raises(RecoverableError, match="without its end"):
                await model.answer(ask(stream=True), reply)
            return
        assert await model.answer(ask(stream=True), reply) == Usage(3, 1)
        assert b"".join(reply.pieces).endswith(b"data: [DONE]\n\n")


async def test_ollama_that_penalises_repetition_is_not_served(models_dir: Path, tmp_path: Path) -> None:
    manifest = msgspec.structs.replace(
        make_model(
            ModelConfig("engine", "m", url="http://127.0.0.1:1/v1", manifest="on-vllm"), models_dir
        ).manifest,
        engine="ollama",
    )
    show = {"/api/show": [answer(200, b'{"parameters":"top_k 0\\nrepeat_penalty 1.1"}')]}
    async with scripted_engine({"/api/version": [answer(200, b'{"version":"0.13"}')], **show}) as engine:
        base = await open_model(engine, models_dir, "")
        model = EngineModel("m", base._engine, manifest=manifest)
        await model.probe()
        assert "repeat_penalty is 1.1" in model.complaint()
        engine.answers["/api/show"] = [answer(200, b'{"parameters":"top_k 0\\nrepeat_penalty 1"}')]
        await model.probe()
        assert model.complaint() == ""
