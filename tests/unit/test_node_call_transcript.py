"""What of a call is kept: exactly what its receipt is over, of models that can be judged, and nothing waits."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import trio

from emcd.accounting.usage import Usage
from emcd.clock import ManualClock
from emcd.inference.manifest import EngineManifest, Manifest
from emcd.inference.minilm import MINILM_MANIFEST
from emcd.proto.control import CallEnd, decode_part, encode
from emcd.proto.hashing import keccak
from emcd.proto.records import Forward, Receipt
from emcd_node import call_server
from emcd_node.call_server import CallServer
from emcd_node.served_model import CallRequest, Refused, Reply
from emcd_node.transcript import Transcript
from tests.support.node_network import CHAT, HUB_KEY, NODE_KEY, make_meta

NAME = MINILM_MANIFEST.name
BODY = b'{"model":"%s","messages":[],"stream":true}' % NAME.encode()


@dataclass
class Call:
    meta: bytes
    body: bytes = BODY
    sent: bytearray = field(default_factory=bytearray)
    end: bytes = b""

    async def start(self, head: bytes) -> None:
        await trio.lowlevel.checkpoint()

    async def send(self, chunk: bytes) -> None:
        await trio.lowlevel.checkpoint()
        self.sent += chunk

    async def finish(self, meta: bytes) -> None:
        self.end = meta

    async def answer(self, head: bytes, body: bytes, end: bytes) -> None:
        self.sent += body
        self.end = end


class Receipts:
    def claim_call(self, call_id: bytes) -> None: ...

    async def give(self, forward: Forward, receipt: Receipt) -> None:
        await trio.lowlevel.checkpoint()


@dataclass
class Model:
    manifest: Manifest
    kind: str
    pieces: tuple[bytes, ...]
    refusal: Refused | None = None
    hold: trio.Event | None = None

    def is_available(self) -> bool:
        return True

    def complaint(self) -> str:
        return ""

    async def run(self, *, task_status: Any = None) -> None: ...

    async def answer(self, request: CallRequest, reply: Reply) -> Usage | Refused:
        if self.refusal:
            return self.refusal
        await reply.start(200, self.kind)
        for piece in self.pieces:
            await reply.send(piece)
        if self.hold is not None:
            await self.hold.wait()
        return Usage(5, 2)


class Keeper:
    def __init__(self) -> None:
        self.kept: list[tuple[int, Transcript]] = []

    def offer(self, round_index: int, transcript: Transcript) -> bool:
        self.kept.append((round_index, transcript))
        return True


def make(model: Model, keeper: Keeper | None) -> tuple[CallServer, Call]:
    clock = ManualClock()
    server = CallServer(
        node=NODE_KEY.address,
        hub=HUB_KEY.address,
        models={NAME: model},
        receipts=Receipts(),
        clock=clock,
        max_parallel_calls=2,
        call_timeout_s=5,
        round_at=lambda at_ms: 77,
        transcripts=keeper,
    )
    meta = make_meta(BODY, clock=clock, path=CHAT, manifest=model.manifest, stream=True)
    return server, Call(encode(meta))


@pytest.mark.parametrize("kind", ["text/event-stream", "application/json"])
async def test_call_is_kept_with_the_bytes_that_its_receipt_is_over(kind: str) -> None:
    keeper = Keeper()
    server, call = make(Model(MINILM_MANIFEST, kind, (b"data: {}\n\n", b"data: [DONE]\n\n")), keeper)
    await server.serve(call)
    ((index, kept),) = keeper.kept
    assert index == 77
    assert kept.receipt == decode_part(call.end, CallEnd).receipt
    assert kept.response == bytes(call.sent) == b"data: {}\n\ndata: [DONE]\n\n"
    assert keccak(kept.response) == kept.receipt.response_hash
    assert (kept.request, kept.path, kept.status, kept.response_type) == (BODY, CHAT, 200, kind)


async def test_refused_call_is_kept_too() -> None:
    keeper = Keeper()
    server, call = make(Model(MINILM_MANIFEST, "", (), Refused(400, "EMC-2005", "no")), keeper)
    await server.serve(call)
    ((_, kept),) = keeper.kept
    assert kept.status == 400
    assert keccak(kept.response) == kept.receipt.response_hash


async def test_cancelled_stream_is_kept_as_far_as_it_was_sent() -> None:
    keeper = Keeper()
    model = Model(MINILM_MANIFEST, "text/event-stream", (b"data: {}\n\n",), hold=trio.Event())
    server, call = make(model, keeper)
    with trio.move_on_after(0.05):
        await server.serve(call)
    ((_, kept),) = keeper.kept
    assert kept.response == b"data: {}\n\n"
    assert keccak(kept.response) == kept.receipt.response_hash


async def test_model_that_nobody_can_judge_is_not_kept() -> None:
    keeper = Keeper()
    server, call = make(Model(EngineManifest(name=NAME), "text/event-stream", (b"x",)), keeper)
    await server.serve(call)
    assert call.end
    assert keeper.kept == []


@pytest.mark.parametrize("kind", ["text/event-stream", "application/json"])
async def test_answer_too_large_to_keep_is_served_all_the_same(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(call_server, "MAX_TRANSCRIPT_BYTES", 10)
    keeper = Keeper()
    server, call = make(Model(MINILM_MANIFEST, kind, (b"x" * 20, b"y")), keeper)
    await server.serve(call)
    assert bytes(call.sent) == b"x" * 20 + b"y"
    assert keeper.kept == []
