"""A node before an external engine: relayed to the byte, and its faults are nobody else's."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from emcd.clock import SystemClock
from emcd.config import KeyFile
from emcd.errors import RecoverableError
from emcd.inference.manifest import EngineManifest, model_hash
from emcd.ledger import Ledger
from emcd.proto.control import CallEnd, decode_part, encode
from emcd.proto.records import request_hash
from emcd.role import HealthState
from emcd.testing import make_context, running_role, temporary_ledger
from emcd_node import engine_model, queries
from emcd_node.config import ModelConfig, NodeConfig
from emcd_node.role import SPEC, NodeRole
from emcd_node.schema import MIGRATIONS
from tests.support.inference_engine import MODELS, SILENCE, ScriptedEngine, answer, scripted_engine, sse
from tests.support.node_network import (
    CHAT,
    DEPLOYMENT,
    HUB_KEY,
    NODE_KEY,
    Answered,
    TestHub,
    make_meta,
    poll_until,
    running_hub,
)

KEY = KeyFile(Path("node.json"))
MODEL = EngineManifest(name="m")
USAGE = {"prompt_tokens": 11, "completion_tokens": 4, "total_tokens": 15}

SPEECH, HEARD, RESPONSES = "/v1/audio/speech", "/v1/audio/transcriptions", "/v1/responses"
SPOKEN = b'{"model":"m","input":"x","voice":"v"}'
ASKED = b'{"model":"m","input":"x"}'
FORM = (
    b'--B\r\nContent-Disposition: form-data; name="model"\r\n\r\nm\r\n'
    b'--B\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nsound\r\n--B--\r\n'
)
COMPLAINT = b'{"error":{"message":"bad temperature","type":"t","param":"temperature"}}'


@pytest.fixture
async def node_ledger(tmp_path: Path) -> AsyncIterator[Ledger]:
    async with temporary_ledger(tmp_path, {"node": MIGRATIONS}) as ledger:
        yield ledger


@asynccontextmanager
async def running_network(
    ledger: Ledger, pieces: Sequence[bytes], **fields: Any
) -> AsyncIterator[tuple[TestHub, NodeRole, ScriptedEngine]]:
    """Hub, node and an engine that answers every chat with `pieces`."""
    async with scripted_engine({CHAT: pieces}) as engine, running_hub() as hub:
        model = ModelConfig("engine", "m", url=engine.url, head_timeout_s=0.3, idle_timeout_s=0.3, **fields)
        config = NodeConfig(KEY, HUB_KEY.address, hub.url, model=(model,), reconnect_max_s=0.3)
        context = make_context(
            "node", ledger, deployment=DEPLOYMENT, clock=SystemClock(), keys={KEY: NODE_KEY}
        )
        role = SPEC.build(config)
        assert isinstance(role, NodeRole)
        async with running_role(role, context):
            yield hub, role, engine


def _chat(stream: bool = False) -> bytes:
    return msgspec.json.encode(
        {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": stream}
    )


async def _call(hub: TestHub, stream: bool = False) -> Answered:
    return (await hub.call(_chat(stream), path=CHAT, manifest=MODEL, stream=stream)).require_sound()


async def test_engine_whole_answer_is_relayed_to_the_byte(node_ledger: Ledger) -> None:
    body = b'{ "choices": [],\n "usage": ' + msgspec.json.encode(USAGE) + b"}"
    async with running_network(node_ledger, [answer(200, body)]) as (hub, _, engine):
        got = await _call(hub)
        assert (got.status, got.content_type, got.body) == (200, "application/json", body)
        assert (got.end.receipt.input_tokens, got.end.receipt.output_tokens) == (11, 4)
        assert engine.seen[-1].body == _chat()
        assert hub.statuses[0].status.models == (model_hash(MODEL),)


async def test_engine_stream_is_relayed_to_the_byte_as_it_comes(node_ledger: Ledger) -> None:
    pieces = sse({"choices": [{"delta": {"content": "a"}}]}, {"choices": [], "usage": USAGE})
    async with running_network(node_ledger, pieces) as (hub, _, engine):
        first_seen = trio.Event()
        engine.between = first_seen.wait  # the engine goes on only when the first piece has arrived
        await hub.until(lambda: hub.peer)
        assert hub.peer is not None
        body = _chat(True)
        meta = make_meta(body, path=CHAT, manifest=MODEL, stream=True)
        engine.answers[CHAT] = [pieces[0] + pieces[1], *pieces[2:]]
        received = b""
        async with hub.peer.call(encode(meta), body) as call:
            await call.head()
            async for chunk in call.chunks():
                received += chunk
                first_seen.set()
            end = decode_part(await call.end(), CallEnd)
        assert received.startswith(b'data: {"choices"')
        assert received.endswith(b"data: [DONE]\n\n")
        assert (end.receipt.input_tokens, end.receipt.output_tokens) == (11, 4)


@pytest.mark.parametrize(
    ("pieces", "status", "emc_code"),
    [
        ([answer(400, COMPLAINT)], 400, "EMC-2005"),
        ([answer(422, b"plain words", "text/plain")], 422, "EMC-2005"),
        ([answer(413, b"\xff\xff")], 413, "EMC-2005"),
        ([answer(401, b'{"error":{"message":"your key sk-secret is wrong"}}')], 502, "EMC-2007"),
        ([answer(404, b"{}")], 502, "EMC-2007"),
        ([answer(429, b"{}")], 503, "EMC-2007"),
        ([answer(500, b"trace")], 502, "EMC-2007"),
        ([answer(503, b"")], 503, "EMC-2007"),
        ([b"HTTP/1.1 302 X\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n"], 502, "EMC-2007"),
        ([answer(200, b"<html>", "text/html")], 502, "EMC-2007"),
        ([answer(200, b"not json")], 502, "EMC-2007"),
        ([answer(200, b"[1]")], 502, "EMC-2007"),
        ([answer(200, b"{}", length=10)], 502, "EMC-2007"),
        ([b"garbage\r\n\r\n"], 502, "EMC-2007"),
        ([SILENCE], 504, "EMC-2007"),
        (sse({"usage": USAGE}), 502, "EMC-2007"),  # a stream that nobody asked for
    ],
)
async def test_engine_fault_before_the_head_is_told_with_a_receipt(
    node_ledger: Ledger, pieces: Sequence[bytes], status: int, emc_code: str
) -> None:
    async with running_network(node_ledger, pieces) as (hub, _, _engine):
        got = await _call(hub)
        assert got.status == status
        error = got.json()["error"]
        assert error["emc_code"] == emc_code
        assert "sk-secret" not in error["message"]
        assert "127.0.0.1" not in error["message"]  # the operator's network is nobody's business
        assert (got.end.receipt.input_tokens, got.end.receipt.output_tokens) == (0, 0)


async def test_engine_answers_a_stream_request_whole_is_its_fault(node_ledger: Ledger) -> None:
    async with running_network(node_ledger, [answer(200, b"{}")]) as (hub, _, _engine):
        got = await _call(hub, stream=True)
        assert (got.status, got.content_type) == (502, "application/json")


@pytest.mark.parametrize(
    ("path", "body", "pieces", "status", "content_type"),
    [
        (SPEECH, SPOKEN, [answer(200, b"ID3", "audio/mpeg")], 200, "audio/mpeg"),
        (SPEECH, SPOKEN, [answer(200, b"{}")], 502, "application/json"),
        (SPEECH, SPOKEN, [answer(200, b"<html>", "text/html")], 502, "application/json"),
        (HEARD, FORM, [answer(200, b"a", "text/plain")], 200, "text/plain"),
        (HEARD, FORM, [answer(200, b"a", "text/html")], 502, "application/json"),
        (HEARD, FORM, [answer(200, b"[1]")], 502, "application/json"),
        (RESPONSES, ASKED, [answer(200, b"{}")], 404, "application/json"),  # not among its endpoints
    ],
)
async def test_engine_answers_of_other_endpoints_are_what_they_may_be(
    node_ledger: Ledger, path: str, body: bytes, pieces: Sequence[bytes], status: int, content_type: str
) -> None:
    endpoints = ("speech", "transcriptions")
    manifest = EngineManifest(name="m", endpoints=endpoints)
    async with running_network(node_ledger, [], endpoints=endpoints) as (hub, _, engine):
        engine.answers[path] = pieces
        kind = "multipart/form-data; boundary=B" if path == HEARD else "application/json"
        hashed = request_hash(path, body, kind)
        meta = make_meta(body, path=path, manifest=manifest, stream=path == SPEECH, request_hash=hashed)
        meta = msgspec.structs.replace(meta, content_type=kind)
        got = (await hub.call(body, meta)).require_sound()
        assert (got.status, got.content_type) == (status, content_type)
        assert (got.end.receipt.input_tokens, got.end.receipt.output_tokens) == (0, 0)
        if status == 200:
            assert (engine.seen[-1].body, engine.seen[-1].headers["content-type"]) == (body, kind)


async def test_engine_error_in_a_stream_passes_and_fails_the_call(node_ledger: Ledger) -> None:
    pieces = sse({"choices": [1]}, {"error": {"message": "out of memory"}})
    async with running_network(node_ledger, pieces) as (hub, _, _engine):
        meta = make_meta(_chat(True), path=CHAT, manifest=MODEL, stream=True)
        with pytest.raises(RecoverableError) as caught:
            await hub.call(_chat(True), meta)
        assert caught.value.code == "EMC-2007"


async def test_engine_complaint_keeps_its_message_and_field(node_ledger: Ledger) -> None:
    async with running_network(node_ledger, [answer(400, COMPLAINT)]) as (hub, _, _engine):
        error = (await _call(hub)).json()["error"]
        assert (error["message"], error["type"], error["param"]) == ("bad temperature", "t", "temperature")


@pytest.mark.parametrize(
    "pieces",
    [
        sse({"choices": []}, ended=False),
        sse({"choices": []}, done=False),
        [*sse({"choices": []}, ended=False), SILENCE],
    ],
)
async def test_engine_cut_stream_fails_the_call_without_a_receipt(
    node_ledger: Ledger, pieces: Sequence[bytes]
) -> None:
    async with running_network(node_ledger, pieces) as (hub, _, _engine):
        meta = make_meta(_chat(True), path=CHAT, manifest=MODEL, stream=True)
        with pytest.raises(RecoverableError) as caught:
            await hub.call(_chat(True), meta)
        assert caught.value.code == "EMC-2007"
        assert "127.0.0.1" not in caught.value.detail
        row = await node_ledger.read(
            lambda con: queries.find_receipt(con, NODE_KEY.address, meta.forward.call_id)
        )
        assert row is None


@pytest.mark.parametrize("usage", [{"prompt_tokens": -5}, {"prompt_tokens": 1 << 70}, "many", None])
async def test_engine_lying_about_usage_counts_nothing(node_ledger: Ledger, usage: object) -> None:
    body = msgspec.json.encode({"choices": []} if usage is None else {"usage": str(usage)})
    if isinstance(usage, dict):
        body = b'{"usage":{"prompt_tokens":%d,"completion_tokens":1}}' % usage["prompt_tokens"]
    async with running_network(node_ledger, [answer(200, body)]) as (hub, _, _engine):
        got = await _call(hub)
        assert (got.status, got.end.receipt.input_tokens, got.end.receipt.output_tokens) == (200, 0, 0)


async def test_engine_hub_cancels_engine_is_hung_up_on(node_ledger: Ledger) -> None:
    pieces = [*sse({"choices": []}, ended=False), SILENCE]
    async with running_network(node_ledger, pieces) as (hub, _, engine):
        with trio.move_on_after(0.15):
            await _call(hub, stream=True)
        with trio.fail_after(2):
            await engine.hung_up.wait()


async def test_engine_away_its_model_is_not_advertised_until_it_is_back(
    node_ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_model, "PROBE_INTERVAL_S", 0.05)
    async with running_network(node_ledger, [answer(200, b"{}")]) as (hub, node, engine):
        assert node.health().state is not HealthState.STARTING
        engine.answers["/v1/models"] = [answer(500, b"")]
        await hub.until(lambda: hub.statuses and hub.statuses[-1].status.models == ())
        assert node.health().state is HealthState.DEGRADED
        assert (await _call(hub)).status == 503
        engine.answers["/v1/models"] = [answer(200, b'{"data":[{"id":"other"}]}')]
        await poll_until(lambda: "other" in node.health().reason)
        engine.answers["/v1/models"] = [answer(200, MODELS)]
        await hub.until(lambda: hub.statuses[-1].status.models == (model_hash(MODEL),))
        assert hub.statuses[-1].manifests or any(status.manifests for status in hub.statuses[-3:])
        assert node.health().state is HealthState.READY


async def test_engine_connection_refused_turns_calls_away_at_once(node_ledger: Ledger) -> None:
    async with scripted_engine({}) as gone:
        url = gone.url
    async with running_network(node_ledger, [answer(200, b"{}")]) as (hub, node, _engine):
        model = node._models["m"]
        assert isinstance(model, engine_model.EngineModel)
        model._engine = type(model._engine)(url, times=model._engine.times)
        assert (await _call(hub)).status == 502
        assert not model.is_available()


async def test_engine_key_goes_to_the_engine_alone(
    node_ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENGINE_KEY", "sk-operator")
    pieces = [answer(200, b"{}")]
    async with running_network(node_ledger, pieces, api_key_env="ENGINE_KEY") as (hub, node, engine):
        await _call(hub)
        assert {seen.headers["authorization"] for seen in engine.seen} == {"Bearer sk-operator"}
        assert "sk-operator" not in repr(vars(node)) + repr(vars(node._models["m"]))
