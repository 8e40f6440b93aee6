"""Calls from the hub: checked against their forward record, served, receipted.

Owns the calls in flight. Invariants: no work before the forward record fits the call (this node,
this hub, this request, now); a call that does not fit gets neither answer nor receipt, since a
receipt binds the node to the forward; every other call ends with a receipt over exactly the bytes
that were sent, on disk before the hub sees the end.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import msgspec
import sha3
import trio

from emcd.accounting.usage import Usage
from emcd.clock import Clock
from emcd.errors import RecoverableError, RemoteProtocolError
from emcd.inference.manifest import model_hash
from emcd.metrics import counter, gauge
from emcd.proto.control import CallEnd, CallMeta, ResponseHead, decode_part, encode
from emcd.proto.openai import ENDPOINTS
from emcd.proto.params import MAX_CLOCK_SKEW_MS
from emcd.proto.records import Forward, Receipt, request_hash
from emcd.types import Address, Hash
from emcd_node.served_model import CallRequest, Refused, ServedModel, unavailable

_NO_USAGE = Usage(0, 0)
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


class Receipts(Protocol):
    """What is used of `ReceiptBook`."""

    def claim_call(self, call_id: bytes) -> None: ...
    async def give(self, forward: Forward, receipt: Receipt) -> None: ...


class _Named(msgspec.Struct, frozen=True):
    model: str
    stream: bool | None = None


_named = msgspec.json.Decoder(_Named)


class HashedReply:
    """Sends an answer and hashes what it sends."""

    def __init__(self, call: IncomingCall) -> None:
        self._call = call
        self._hash = sha3.keccak_256()
        self.status = 0

    async def start(self, status: int, content_type: str) -> None:
        self.status = status
        await self._call.start(encode(ResponseHead(status, content_type)))

    async def send(self, piece: bytes) -> None:
        self._hash.update(piece)
        await self._call.send(piece)

    async def refuse(self, refusal: Refused) -> None:
        await self.start(refusal.status, "application/json")
        await self.send(refusal.body())

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
    ) -> None:
        self._node = node
        self._hub = hub
        self._models = models
        self._hashes = {name: model_hash(model.manifest) for name, model in models.items()}
        self._receipts = receipts
        self._clock = clock
        self._max_parallel_calls = max_parallel_calls
        self._call_timeout_s = call_timeout_s
        self._idle = trio.lowlevel.ParkingLot()
        self.in_flight = 0
        self.refusing = False
        self.clock_complaint = ""

    async def serve(self, call: IncomingCall) -> None:
        """Serve one call to its end.

        Raises: RemoteProtocolError EMC-1498, EMC-2001, 2002, 2003 before any work; RecoverableError
        when the answer broke off or took too long. The tunnel tells the hub the code.
        Cancellation: the work is stopped, and there is no receipt.
        """
        started_at_ms = self._clock.now_ms()
        meta = decode_part(call.meta, CallMeta)
        self._require_fitting(meta, call.body, started_at_ms)
        self._receipts.claim_call(meta.forward.call_id)
        reply = HashedReply(call)
        self.in_flight += 1
        _IN_FLIGHT.labels(self._node).inc()
        try:
            usage = await self._answer_in_time(meta, call.body, reply)
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
            await call.finish(encode(CallEnd(receipt)))
        finally:
            self.in_flight -= 1
            _IN_FLIGHT.labels(self._node).dec()
            self._idle.unpark_all()
        _CALLS.labels(self._node, str(reply.status)).inc()
        _TOKENS.labels(self._node, "input").inc(usage.input_tokens)
        _TOKENS.labels(self._node, "output").inc(usage.output_tokens)

    async def wait_idle(self) -> None:
        """Wait until no call is in flight."""
        while self.in_flight:
            await self._idle.park()

    def _require_fitting(self, meta: CallMeta, body: bytes, now_ms: int) -> None:
        forward = meta.forward
        if forward.node != self._node:
            raise RemoteProtocolError("EMC-2001", f"it names node {forward.node}, this is {self._node}")
        if forward.hub != self._hub:
            raise RemoteProtocolError("EMC-2001", f"it names hub {forward.hub}, ours is {self._hub}")
        if len(forward.call_id) != 16:
            raise RemoteProtocolError("EMC-2001", f"a call id of {len(forward.call_id)} bytes")
        if request_hash(meta.path, body) != forward.request_hash:
            raise RemoteProtocolError("EMC-2001", "its request hash is not that of path and body")
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
        fault = _check_body(meta, body)
        if fault is not None:
            return fault
        return await model.answer(CallRequest(endpoint, meta.model, body, meta.stream), reply)


def _check_body(meta: CallMeta, body: bytes) -> Refused | None:
    try:
        named = _named.decode(body)
    except msgspec.ValidationError as exc:
        return Refused(400, "EMC-2005", str(exc))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        return Refused(400, "EMC-2005", f"the body is not JSON: {exc}")
    if named.model != meta.model:
        return Refused(400, "EMC-2005", "the body names another model than the call", param="model")
    if bool(named.stream) != meta.stream:
        return Refused(400, "EMC-2005", "the body's stream is not the call's", param="stream")
    return None
