"""Calls: the forward record is checked before work, and the receipt is over what was sent."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from emcd.accounting.usage import Usage
from emcd.clock import ManualClock
from emcd.errors import EmcdError, RecoverableError, RemoteProtocolError
from emcd.inference.manifest import EngineManifest, Manifest
from emcd.proto.control import CallEnd, CallMeta, ResponseHead, decode_part, encode
from emcd.proto.hashing import keccak
from emcd.proto.records import Forward, Receipt, request_hash
from emcd.testing import make_key
from emcd_node.call_server import CallServer
from emcd_node.served_model import CallRequest, Refused, Reply
from tests.support.node_network import CHAT, HUB_KEY, NODE_KEY, make_meta

MODEL = EngineManifest(name="m")
BODY = b'{"model":"m","messages":[]}'


@dataclass
class FakeCall:
    meta: bytes
    body: bytes = BODY
    head: ResponseHead | None = None
    pieces: list[bytes] = field(default_factory=list)
    end: CallEnd | None = None

    async def start(self, head: bytes) -> None:
        self.head = decode_part(head, ResponseHead)

    async def send(self, chunk: bytes) -> None:
        await trio.lowlevel.checkpoint()
        self.pieces.append(chunk)

    async def finish(self, meta: bytes) -> None:
        self.end = decode_part(meta, CallEnd)

    async def answer(self, head: bytes, body: bytes, end: bytes) -> None:
        await self.start(head)
        await self.send(body)
        await self.finish(end)

    @property
    def content(self) -> bytes:
        return b"".join(self.pieces)

    @property
    def error(self) -> dict[str, Any]:
        return dict(msgspec.json.decode(self.content)["error"])


@dataclass
class FakeReceipts:
    given: list[tuple[Forward, Receipt]] = field(default_factory=list)
    claimed: set[bytes] = field(default_factory=set)
    fault: EmcdError | None = None

    def claim_call(self, call_id: bytes) -> None:
        if call_id in self.claimed:
            raise RemoteProtocolError("EMC-2002", call_id.hex())
        self.claimed.add(call_id)

    async def give(self, forward: Forward, receipt: Receipt) -> None:
        if self.fault is not None:
            raise self.fault
        self.given.append((forward, receipt))


@dataclass
class FakeModel:
    manifest: Manifest = MODEL
    kind: str = "application/json"
    pieces: tuple[bytes, ...] = (b"one", b"two")
    usage: Usage = field(default_factory=lambda: Usage(5, 2))
    fault: EmcdError | None = None
    refusal: Refused | None = None
    hold: trio.Event | None = None
    requests: list[CallRequest] = field(default_factory=list)

    def is_available(self) -> bool:
        return True

    def complaint(self) -> str:
        return ""

    async def run(self, *, task_status: Any = None) -> None: ...

    async def answer(self, request: CallRequest, reply: Reply) -> Usage | Refused:
        self.requests.append(request)
        if self.refusal:
            return self.refusal
        await reply.start(200, self.kind)
        for piece in self.pieces:
            await reply.send(piece)
        if self.hold is not None:
            await self.hold.wait()
        if self.fault:
            raise self.fault
        return self.usage


class Fixture:
    """A server with everything around it faked."""

    def __init__(self, **limits: Any) -> None:
        self.clock = ManualClock()
        self.model = FakeModel()
        self.receipts = FakeReceipts()
        self.server = CallServer(
            node=NODE_KEY.address,
            hub=HUB_KEY.address,
            models={"m": self.model},
            receipts=self.receipts,
            clock=self.clock,
            max_parallel_calls=limits.get("max_parallel_calls", 2),
            call_timeout_s=limits.get("call_timeout_s", 5),
        )

    def meta(self, body: bytes = BODY, **changes: Any) -> CallMeta:
        fields: dict[str, Any] = {"path": CHAT, "manifest": MODEL, **changes}
        return make_meta(body, clock=self.clock, **fields)

    async def serve(self, body: bytes = BODY, meta: CallMeta | None = None, **changes: Any) -> FakeCall:
        call = FakeCall(encode(meta or self.meta(body, **changes)), body)
        await self.server.serve(call)
        return call


async def test_serve_good_call_is_answered_and_receipted() -> None:
    fixture = Fixture()
    meta = fixture.meta()
    call = await fixture.serve(meta=meta)
    assert call.head == ResponseHead(200, "application/json")
    assert call.content == b"onetwo"
    assert call.end is not None
    now = fixture.clock.now_ms()
    expected = Receipt(meta.forward.struct_hash(), keccak(b"onetwo"), 200, 5, 2, now, now)
    assert call.end.receipt == expected
    assert fixture.receipts.given == [(meta.forward, expected)]


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"node": make_key("other").address}, "EMC-2001"),
        ({"hub": make_key("other").address}, "EMC-2001"),
        ({"request_hash": bytes(32)}, "EMC-2001"),
        ({"request_hash": b""}, "EMC-2001"),
        ({"call_id": b"short"}, "EMC-2001"),
        ({"started_at_ms": 0}, "EMC-2003"),
        ({"started_at_ms": ManualClock().now_ms() + 30_001}, "EMC-2003"),
        ({"started_at_ms": ManualClock().now_ms() - 30_001}, "EMC-2003"),
    ],
)
async def test_serve_forward_that_does_not_fit_gets_no_work_and_no_receipt(
    changes: dict[str, Any], code: str
) -> None:
    fixture = Fixture()
    with pytest.raises(RemoteProtocolError) as caught:
        await fixture.serve(**changes)
    assert caught.value.code == code
    assert fixture.model.requests == []
    assert fixture.receipts.given == []
    assert bool(fixture.server.clock_complaint) == (code == "EMC-2003")


@pytest.mark.parametrize("meta", [b"", b"\xc1", b"\x90", encode(ResponseHead(200, ""))])
async def test_serve_garbage_meta_is_a_protocol_error(meta: bytes) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        await Fixture().server.serve(FakeCall(meta))
    assert caught.value.code == "EMC-1498"


async def test_serve_body_changed_on_the_way_is_refused() -> None:
    fixture = Fixture()
    call = FakeCall(encode(fixture.meta()), BODY + b" ")
    with pytest.raises(RemoteProtocolError, match="request hash"):
        await fixture.server.serve(call)
    meta = msgspec.structs.replace(fixture.meta(), path="/v1/completions")
    with pytest.raises(RemoteProtocolError, match="request hash"):
        await fixture.server.serve(FakeCall(encode(meta), BODY))


async def test_serve_same_call_id_twice_is_refused() -> None:
    fixture = Fixture()
    meta = fixture.meta()
    await fixture.serve(meta=meta)
    with pytest.raises(RemoteProtocolError) as caught:
        await fixture.serve(meta=meta)
    assert caught.value.code == "EMC-2002"
    assert len(fixture.receipts.given) == 1


@pytest.mark.parametrize(
    ("body", "changes", "status", "code"),
    [
        (b"not json", {}, 400, "EMC-2005"),
        (b"[]", {}, 400, "EMC-2005"),
        (b'{"model":"\xff"}', {}, 400, "EMC-2005"),
        (b"{}", {}, 400, "EMC-2005"),
        (b'{"model":"other"}', {}, 400, "EMC-2005"),
        (b'{"model":"m","stream":true}', {}, 400, "EMC-2005"),
        (b'{"model":"m"}', {"stream": True}, 400, "EMC-2005"),
        (b'{"model":"m","stream":"yes"}', {}, 400, "EMC-2005"),
        (b"[" * 5000, {}, 400, "EMC-2005"),
        (BODY, {"manifest": EngineManifest(name="unknown")}, 404, "EMC-2004"),
        (BODY, {"model_hash": bytes(32)}, 404, "EMC-2004"),
        (BODY, {"path": "/v1/files"}, 404, "EMC-2004"),
    ],
)
async def test_serve_request_at_fault_is_answered_in_openai_shape_with_a_receipt(
    body: bytes, changes: dict[str, Any], status: int, code: str
) -> None:
    fixture = Fixture()
    call = await fixture.serve(body, **changes)
    assert call.head == ResponseHead(status, "application/json")
    assert call.error["emc_code"] == code
    assert call.error["type"] == "invalid_request_error"
    assert set(call.error) == {"message", "type", "param", "code", "emc_code"}
    ((_, receipt),) = fixture.receipts.given
    assert (receipt.http_status, receipt.input_tokens, receipt.output_tokens) == (status, 0, 0)
    assert receipt.response_hash == keccak(call.content)
    assert fixture.model.requests == []


async def test_serve_model_refusal_is_passed_on() -> None:
    fixture = Fixture()
    fixture.model.refusal = Refused(422, "EMC-2005", "too odd", param="messages")
    call = await fixture.serve()
    assert call.head == ResponseHead(422, "application/json")
    assert call.error["param"] == "messages"


async def test_serve_above_capacity_is_refused_with_a_receipt() -> None:
    fixture = Fixture(max_parallel_calls=1)
    fixture.model.hold = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fixture.serve)
        await trio.testing.wait_all_tasks_blocked()
        assert fixture.server.in_flight == 1
        call = await fixture.serve()
        assert call.head == ResponseHead(503, "application/json")
        assert call.error["emc_code"] == "EMC-2006"
        fixture.model.hold.set()
    assert fixture.server.in_flight == 0
    assert [receipt.http_status for _, receipt in fixture.receipts.given] == [503, 200]


async def test_serve_while_draining_is_refused_and_idle_is_awaited() -> None:
    fixture = Fixture()
    fixture.model.hold = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fixture.serve)
        await trio.testing.wait_all_tasks_blocked()
        fixture.server.refusing = True
        assert (await fixture.serve()).error["emc_code"] == "EMC-2008"
        idle = trio.Event()

        async def wait_idle() -> None:
            await fixture.server.wait_idle()
            idle.set()

        nursery.start_soon(wait_idle)
        await trio.testing.wait_all_tasks_blocked()
        assert not idle.is_set()
        fixture.model.hold.set()
    assert idle.is_set()


async def test_serve_receipt_not_on_disk_call_has_no_end() -> None:
    fixture = Fixture()
    fixture.receipts.fault = RecoverableError("EMC-2013", "disk")
    call = FakeCall(encode(fixture.meta()))
    with pytest.raises(RecoverableError):
        await fixture.server.serve(call)
    assert call.end is None


async def test_serve_answer_broken_off_gives_no_receipt() -> None:
    fixture = Fixture()
    fixture.model.fault = RecoverableError("EMC-1304", "cut")
    with pytest.raises(RecoverableError):
        await fixture.serve()
    assert fixture.receipts.given == []
    assert fixture.server.in_flight == 0


async def stream_until_cancelled(fixture: Fixture, path: str, *pieces: bytes) -> tuple[CallMeta, FakeCall]:
    """A stream of the model's that the hub cancels when these pieces were sent."""
    body = b'{"model":"m","messages":[],"stream":true}'
    meta = fixture.meta(body, path=path, stream=True)
    call = FakeCall(encode(meta), body)
    fixture.model.kind, fixture.model.pieces, fixture.model.hold = "text/event-stream", pieces, trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fixture.server.serve, call)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    return meta, call


async def test_serve_cancelled_stream_ends_with_a_receipt_over_what_was_sent() -> None:
    fixture = Fixture()
    event = b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'
    meta, call = await stream_until_cancelled(fixture, CHAT, event, event * 2, event[:20])
    prompt = len(call.body) // 6
    assert call.end is not None
    receipt = call.end.receipt
    assert call.content == event * 3 + event[:20]
    assert receipt.response_hash == keccak(call.content)
    assert receipt.forward_hash == meta.forward.struct_hash()
    assert (receipt.http_status, receipt.input_tokens, receipt.output_tokens) == (200, prompt, 3)
    assert fixture.receipts.given == [(meta.forward, receipt)]
    assert fixture.server.in_flight == 0


async def test_serve_cancelled_stream_counts_what_its_engine_stated() -> None:
    fixture = Fixture()
    event = b'data: {"choices":[{}],"usage":{"prompt_tokens":9,"completion_tokens":5}}\n\n'
    _, call = await stream_until_cancelled(fixture, CHAT, event)
    assert call.end is not None
    assert (call.end.receipt.input_tokens, call.end.receipt.output_tokens) == (9, 5)


async def test_serve_cancelled_stream_whose_receipt_is_not_on_disk_has_no_end() -> None:
    fixture = Fixture()
    fixture.receipts.fault = RecoverableError("EMC-2013", "disk")
    _, call = await stream_until_cancelled(fixture, CHAT, b"data: x\n\n")
    assert call.end is None
    assert fixture.server.in_flight == 0


async def test_serve_form_is_hashed_with_its_content_type() -> None:
    fixture = Fixture()
    body = (
        b'--B\r\nContent-Disposition: form-data; name="model"\r\n\r\nm\r\n'
        b'--B\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nsound\r\n--B--\r\n'
    )
    path, kind = "/v1/audio/transcriptions", "multipart/form-data; boundary=B"
    changes = {"path": path, "request_hash": request_hash(path, body, kind)}
    meta = msgspec.structs.replace(fixture.meta(body, **changes), content_type=kind)
    call = await fixture.serve(body, meta)
    assert call.head == ResponseHead(200, "application/json")
    assert fixture.model.requests[0].content_type == kind
    meta = msgspec.structs.replace(fixture.meta(body, **changes), content_type=kind + "x")
    with pytest.raises(RemoteProtocolError, match="content type"):
        await fixture.serve(body, meta)


async def test_serve_cancelled_call_gives_no_receipt() -> None:
    fixture = Fixture()
    fixture.model.hold = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fixture.serve)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert fixture.receipts.given == []
    assert fixture.server.in_flight == 0


async def test_serve_endless_call_is_cut(autojump_clock: trio.testing.MockClock) -> None:
    fixture = Fixture(call_timeout_s=3)
    fixture.model.hold = trio.Event()
    with pytest.raises(RecoverableError) as caught:
        await fixture.serve()
    assert caught.value.code == "EMC-2007"
    assert fixture.receipts.given == []


async def test_serve_clock_steps_back_receipt_still_has_an_order() -> None:
    fixture = Fixture()
    fixture.model.hold = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fixture.serve)
        await trio.testing.wait_all_tasks_blocked()
        fixture.clock.advance(-5)
        fixture.model.hold.set()
    ((_, receipt),) = fixture.receipts.given
    assert receipt.finished_at_ms >= receipt.started_at_ms
