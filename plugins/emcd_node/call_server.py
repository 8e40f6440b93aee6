"""Calls from the hub: checked against their forward record, served, receipted.

Owns the calls in flight. Invariants: no work before the forward record fits the call (this node,
this hub, this request, now); a call that does not fit gets neither answer nor receipt, since a
receipt binds the node to the forward; every other call ends with a receipt over exactly the bytes
that were sent, on disk before the hub sees the end. That goes for a stream that the hub cancels, too: its
receipt is over what was sent until then, by what the engine stated, else by `count_cut`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Protocol

import sha3
import trio

from emcd.accounting.event_stream import PassingStream, StreamMeter, count_cut
from emcd.accounting.usage import Usage
from emcd.clock import Clock
from emcd.errors import ProtocolError, RecoverableError, RemoteProtocolError
from emcd.inference.manifest import EngineManifest, model_hash
from emcd.metrics import counter, gauge
from emcd.proto.control import CallEnd, CallMeta, ResponseHead, decode_part, encode
from emcd.proto.openai import ENDPOINTS, Endpoint, RequestError, read_named
from emcd.proto.params import MAX_CLOCK_SKEW_MS
from emcd.proto.records import Forward, Receipt, request_hash
from emcd.proto.tunnel import PIECE_BYTES
from emcd.types import ZERO_ADDRESS, Address, Hash
from emcd_node.served_model import CallRequest, Refused, ServedModel, unavailable
from emcd_node.transcript import MAX_TRANSCRIPT_BYTES, Transcript

_NO_USAGE = Usage(0, 0)
_LAST_WORD_S = 2.0
"""How long the receipt of a cancelled stream may take; the hub waits for one second."""
_LARGE_BYTES = 1 << 20
"""A body from this size on is hashed beside the loop: a megabyte takes two milliseconds."""
_CALLS = counter("emcd_node_calls_total", "Calls by the status that was answered.", ("node", "status"))
_TOKENS = counter("emcd_node_tokens_total", "Tokens by direction.", ("node", "direction"))
_IN_FLIGHT = gauge("emcd_node_calls_in_flight", "Calls being served.", ("node",))


class IncomingCall(Protocol):
    """What is used of `emcd.net.tunnel.IncomingCall`."""

    @property
    def meta(self) -> bytes: ...
    @property
    def body(self) -> bytes: ...
    async def start(self, head: bytes) -> None: ...
    async def send(self, chunk: bytes) -> None: ...
    async def finish(self, meta: bytes) -> None: ...
    async def answer(self, head: bytes, body: bytes, end: bytes) -> None: ...


class Receipts(Protocol):
    """What is used of `ReceiptBook`."""

    def claim_call(self, call_id: bytes) -> None: ...
    async def give(self, forward: Forward, receipt: Receipt) -> None: ...


class Transcripts(Protocol):
    """What is used of `TranscriptKeeper`."""

    def offer(self, round_index: int, transcript: Transcript) -> bool: ...


class HashedReply:
    """Sends an answer, hashes and meters what it sends. A stream goes out as it comes, all else at the end."""

    def __init__(self, call: IncomingCall, meta: CallMeta, *, keep: bool = False) -> None:
        """`keep`: what was sent of a stream is wanted afterwards."""
        self._call = call
        self._meta = meta
        self._keep = keep
        self._kept_bytes = 0
        self.content_type = ""
        self._hash = sha3.keccak_256()
        self._head = b""
        self._held: list[bytes] = []
        self._events: PassingStream | None = None
        self.status = 0
        self.is_live = False
        """Whether the hub has seen some of it."""

    async def start(self, status: int, content_type: str) -> None:
        self.status, self.content_type = status, content_type
        self._head = encode(ResponseHead(status, content_type))
        if not self._meta.stream or status != 200:
            return
        if content_type.startswith("text/event-stream"):
            self._events = PassingStream(ENDPOINTS[self._meta.path])
        await self._call.start(self._head)
        self.is_live = True

    async def send(self, piece: bytes) -> None:
        if not self.is_live:
            self._held.append(piece)
            self._hash.update(piece)
            return
        for at in range(0, len(piece), PIECE_BYTES):
            part = piece[at : at + PIECE_BYTES]
            await self._call.send(part)
            self._hash.update(part)
            self._keep_sent(part)
            if self._events is not None:
                self._events.feed(part)

    def end_events(self) -> StreamMeter:
        assert self._events is not None, "not an event stream"
        self._events.end()
        return self._events.meter

    @property
    def counted(self) -> Usage:
        """What was used by the bytes sent so far, which the hub counts alike."""
        if self._events is None:
            return _NO_USAGE
        meter = self._events.meter
        return count_cut(ENDPOINTS[self._meta.path], self._call.body, meter.usage, meter.produced)

    async def refuse(self, refusal: Refused) -> None:
        await self.start(refusal.status, "application/json")
        await self.send(refusal.body())

    async def finish(self, end: bytes) -> None:
        """Send what was held, and the call's last word."""
        if self.is_live:
            await self._call.finish(end)
        else:
            await self._call.answer(self._head, b"".join(self._held), end)

    def _keep_sent(self, part: bytes) -> None:
        if self._keep and self._kept_bytes <= MAX_TRANSCRIPT_BYTES:
            self._kept_bytes += len(part)
            self._held.append(part)

    def take_kept(self) -> bytes | None:
        """All that was sent; None where it is not wanted, or too much."""
        if not self._keep or self._kept_bytes > MAX_TRANSCRIPT_BYTES:
            return None
        return b"".join(self._held)

    def response_hash(self) -> Hash:
        return Hash(self._hash.digest())


class CallServer:
    """Serves calls of one hub with one node's models."""

    def __init__(
        self,
        *,
        node: Address,
        hub: Address,
        models: Mapping[str, ServedModel],
        receipts: Receipts,
        clock: Clock,
        max_parallel_calls: int,
        call_timeout_s: float,
        round_at: Callable[[int], int] = lambda at_ms: 0,
        transcripts: Transcripts | None = None,
    ) -> None:
        """`transcripts`: where calls of models that can be judged are kept; `round_at` says of which round."""
        self._node = node
        self._hub = hub
        self._models = models
        self._hashes = {name: model_hash(model.manifest) for name, model in models.items()}
        self._receipts = receipts
        self._clock = clock
        self._max_parallel_calls = max_parallel_calls
        self._call_timeout_s = call_timeout_s
        self._round_at = round_at
        self._transcripts = transcripts
        self._judged = {
            name for name, model in models.items() if not isinstance(model.manifest, EngineManifest)
        }
        self._idle = trio.lowlevel.ParkingLot()
        self.in_flight = 0
        self.refusing = False
        self.clock_complaint = ""

    async def serve(self, call: IncomingCall, router: Address = ZERO_ADDRESS) -> None:
        """Serve one call to its end; it came through that router, or from the hub itself.

        Raises: RemoteProtocolError EMC-1498, EMC-2001, 2002, 2003, 2015 before any work; RecoverableError
        when the answer broke off or took too long. The tunnel tells the hub the code.
        Cancellation: the work is stopped; a stream that had begun ends with a receipt over what was sent.
        """
        started_at_ms = self._clock.now_ms()
        meta = decode_part(call.meta, CallMeta)
        if meta.forward.router != router:  # the receipt would countersign another router's work
            raise RemoteProtocolError("EMC-2015", f"it names {meta.forward.router}, it came through {router}")
        await self._require_fitting(meta, call.body, started_at_ms)
        self._receipts.claim_call(meta.forward.call_id)
        reply = HashedReply(call, meta, keep=self._transcripts is not None and meta.model in self._judged)
        self.in_flight += 1
        _IN_FLIGHT.labels(self._node).inc()
        end = b""
        try:
            usage = await self._answer_in_time(meta, call.body, reply)
            end = await self._give_receipt(meta, reply, usage, started_at_ms)
            self._keep_transcript(meta, call.body, reply, end)
            await reply.finish(end)
        except trio.Cancelled:
            if reply.is_live:
                with (
                    trio.move_on_after(_LAST_WORD_S, shield=True),
                    suppress(RecoverableError, ProtocolError),  # the tunnel is gone: nobody listens
                ):
                    if not end:
                        end = await self._give_receipt(meta, reply, reply.counted, started_at_ms)
                        self._keep_transcript(meta, call.body, reply, end)
                    await reply.finish(end)
            raise
        finally:
            self.in_flight -= 1
            _IN_FLIGHT.labels(self._node).dec()
            self._idle.unpark_all()

    async def _give_receipt(
        self, meta: CallMeta, reply: HashedReply, usage: Usage, started_at_ms: int
    ) -> bytes:
        """Put the call's receipt on disk. Returns: the call's last word."""
        receipt = Receipt(
            forward_hash=meta.forward.struct_hash(),
            response_hash=reply.response_hash(),
            http_status=reply.status,
            input_tokens=usage.input_tokens,
            output_tokens=usage.output_tokens,
            started_at_ms=started_at_ms,
            finished_at_ms=max(started_at_ms, self._clock.now_ms()),
        )
        await self._receipts.give(meta.forward, receipt)
        _CALLS.labels(self._node, str(reply.status)).inc()
        _TOKENS.labels(self._node, "input").inc(usage.input_tokens)
        _TOKENS.labels(self._node, "output").inc(usage.output_tokens)
        return encode(CallEnd(receipt))

    def _keep_transcript(self, meta: CallMeta, body: bytes, reply: HashedReply, end: bytes) -> None:
        response = reply.take_kept()
        if self._transcripts is None or response is None:
            return
        receipt = decode_part(end, CallEnd).receipt
        self._transcripts.offer(
            self._round_at(receipt.finished_at_ms),
            Transcript(
                meta.forward,
                receipt,
                meta.path,
                meta.content_type,
                body,
                reply.status,
                reply.content_type,
                response,
            ),
        )

    async def wait_idle(self) -> None:
        """Wait until no call is in flight."""
        while self.in_flight:
            await self._idle.park()

    async def _require_fitting(self, meta: CallMeta, body: bytes, now_ms: int) -> None:
        forward = meta.forward
        if forward.node != self._node:
            raise RemoteProtocolError("EMC-2001", f"it names node {forward.node}, this is {self._node}")
        if forward.hub != self._hub:
            raise RemoteProtocolError("EMC-2001", f"it names hub {forward.hub}, ours is {self._hub}")
        if len(forward.call_id) != 16:
            raise RemoteProtocolError("EMC-2001", f"a call id of {len(forward.call_id)} bytes")
        if await _hash_request(meta, body) != forward.request_hash:
            raise RemoteProtocolError(
                "EMC-2001", "its request hash is not that of path, body and content type"
            )
        apart_ms = now_ms - forward.started_at_ms
        if abs(apart_ms) > MAX_CLOCK_SKEW_MS:
            self.clock_complaint = f"the hub's clock and this node's are {apart_ms / 1000:.0f} s apart"
            raise RemoteProtocolError("EMC-2003", self.clock_complaint)
        self.clock_complaint = ""

    async def _answer_in_time(self, meta: CallMeta, body: bytes, reply: HashedReply) -> Usage:
        with trio.move_on_after(self._call_timeout_s):
            outcome = await self._answer(meta, body, reply)
            if isinstance(outcome, Usage):
                return outcome
            await reply.refuse(outcome)
            return _NO_USAGE
        raise RecoverableError("EMC-2007", f"the call took longer than {self._call_timeout_s} s")

    async def _answer(self, meta: CallMeta, body: bytes, reply: HashedReply) -> Usage | Refused:
        if self.refusing:
            return unavailable("EMC-2008", "the node is shutting down")
        if self.in_flight > self._max_parallel_calls:
            return unavailable("EMC-2006", f"the node serves {self._max_parallel_calls} calls at a time")
        endpoint = ENDPOINTS.get(meta.path)
        if endpoint is None:
            return Refused(404, "EMC-2004", f"{meta.path[:80]} is not served", code="not_found")
        model = self._models.get(meta.model)
        if model is None or self._hashes[meta.model] != meta.forward.model_hash:
            return Refused(
                404,
                "EMC-2004",
                f"model {meta.model[:80]!r} is not served",
                code="model_not_found",
                param="model",
            )
        fault = _check_body(endpoint, meta, body)
        if fault is not None:
            return fault
        return await model.answer(
            CallRequest(endpoint, meta.model, body, meta.stream, meta.content_type), reply
        )


async def _hash_request(meta: CallMeta, body: bytes) -> Hash:
    if len(body) < _LARGE_BYTES:
        return request_hash(meta.path, body, meta.content_type)
    return await trio.to_thread.run_sync(request_hash, meta.path, body, meta.content_type)


def _check_body(endpoint: Endpoint, meta: CallMeta, body: bytes) -> Refused | None:
    try:
        model, stream = read_named(endpoint, body, meta.content_type)
    except RequestError as exc:
        return Refused(400, "EMC-2005", exc.detail, param=exc.param)
    if model != meta.model:
        return Refused(400, "EMC-2005", "the body names another model than the call", param="model")
    if stream != meta.stream:
        return Refused(400, "EMC-2005", "the body's stream is not the call's", param="stream")
    return None
