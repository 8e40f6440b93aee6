"""The node's side of a tunnel session: calls come in, answers go out. Sans-IO, pure.

See `emcd.proto.tunnel` for frames, order and windows. A call's body is gathered whole before the
call is handed out, within `body_bytes` a call and `bodies_bytes` for all that are being gathered
or worked on. A call that the hub cancels stays open until it is ended here, by whoever serves it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from enum import Enum

from emcd.errors import LocalProtocolError
from emcd.proto.tunnel import (
    FRAME_COST,
    INLINE_BYTES,
    WINDOW_BYTES,
    FrameType,
    Session,
    charge,
    decode_call,
    encode_answer,
    encode_error,
    encode_frame,
    encode_window,
    grant,
    is_credit_due,
    out_of_order,
    piece_bytes,
    split_frames,
)

_CALL = int(FrameType.CALL)
_OPEN = int(FrameType.OPEN)
_FROM_HUB = frozenset((FrameType.BODY, FrameType.BODY_END, FrameType.CANCEL, FrameType.WINDOW))


class NodeState(Enum):
    GATHERING = 1
    READY = 2
    STREAMING = 3
    CLOSED = 4


class NodeCall:
    """One call as the node sees it. `notify` is run when credit came or the hub cancelled."""

    __slots__ = (
        "body",
        "body_bytes",
        "cancelled",
        "consumed",
        "credit",
        "meta",
        "notify",
        "number",
        "state",
        "window",
    )

    def __init__(self, number: int, meta: bytes) -> None:
        self.number = number
        self.meta = meta
        self.body = bytearray()
        self.body_bytes = 0
        self.state = NodeState.GATHERING
        self.cancelled = False
        self.credit = WINDOW_BYTES
        self.window = WINDOW_BYTES
        self.consumed = 0
        self.notify: Callable[[], None] | None = None


class NodeSession(Session):
    """All calls of one tunnel, from the node's side."""

    def __init__(
        self, max_calls: int = 1024, body_bytes: int = 32 * 1024 * 1024, bodies_bytes: int = 256 * 1024 * 1024
    ) -> None:
        super().__init__()
        self.calls: dict[int, NodeCall] = {}
        self.ready: deque[NodeCall] = deque()
        self._max_calls = max_calls
        self._body_bytes = body_bytes
        self._bodies_left = bodies_bytes
        self._last = 0

    def start(self, call: NodeCall, head: bytes) -> None:
        """Send the answer's head. Raises: LocalProtocolError EMC-1421 out of order, 1423 too large."""
        if call.state is NodeState.CLOSED:
            return
        if call.state is not NodeState.READY:
            raise LocalProtocolError("EMC-1421", "a second head")
        self._emit(encode_frame(FrameType.HEAD, call.number, head))
        call.state = NodeState.STREAMING

    def send_piece(self, call: NodeCall, data: memoryview) -> int:
        """Send what the window allows of `data`, in whole pieces; returns how much, 0 to wait for credit."""
        if call.state is NodeState.CLOSED:
            return len(data)
        if call.state is not NodeState.STREAMING:
            raise LocalProtocolError("EMC-1421", "data before the head")
        sent = 0
        while sent < len(data) and (size := piece_bytes(call.credit, len(data) - sent)):
            call.credit -= size + FRAME_COST
            self._emit(encode_frame(FrameType.DATA, call.number, data[sent : sent + size]))
            sent += size
        return sent

    def answer(self, call: NodeCall, head: bytes, body: bytes, end: bytes) -> bool:
        """Send a whole answer in one frame. Returns: False, and nothing is sent, when it is too large."""
        if call.state is NodeState.CLOSED:
            return True
        if call.state is not NodeState.READY:
            raise LocalProtocolError("EMC-1421", "a second head")
        if len(body) > INLINE_BYTES:
            return False
        self._emit(encode_answer(call.number, head, body, end))
        self._close(call)
        return True

    def finish(self, call: NodeCall, meta: bytes) -> None:
        """Send the call's last word."""
        if call.state is NodeState.CLOSED:
            return
        if call.state is not NodeState.STREAMING:
            raise LocalProtocolError("EMC-1421", "an end before the head")
        self._emit(encode_frame(FrameType.END, call.number, meta))
        self._close(call)

    def fail(self, call: NodeCall, code: str, detail: str) -> None:
        """End a call with an error, unless it has ended."""
        if call.state is not NodeState.CLOSED:
            self._emit(encode_error(call.number, code, detail))
            self._close(call)

    def take_body(self, call: NodeCall) -> bytes:
        """The call's whole body, which is kept here no longer; it counts until `release_body` or the end."""
        body = bytes(call.body)
        call.body.clear()
        return body

    def release_body(self, call: NodeCall) -> None:
        """Whoever took the body keeps it no longer: there is room for others."""
        if call.state is not NodeState.CLOSED:
            self._bodies_left += call.body_bytes
            call.body_bytes = 0

    def receive(self, message: bytes, at: int = 0) -> None:
        """Take a message of the hub from `at` on: whole calls appear in `ready`.

        Raises: RemoteProtocolError EMC-1420 to 1423; then it is over.
        """
        for kind, number, payload in split_frames(message, at):
            if number == 0:
                self._receive_common(kind, payload)
            elif kind == _CALL:
                meta, body = decode_call(payload)
                call = self._open(number, meta)
                if call is not None:
                    self._gather(call, body)
                    self._ready(call)
            elif kind == _OPEN:
                self._open(number, payload)
            elif (call := self.calls.get(number)) is not None:
                self._receive_frame(call, kind, payload)
            elif number > self._last or kind not in _FROM_HUB:
                raise out_of_order(kind, number)

    def _open(self, number: int, meta: bytes) -> NodeCall | None:
        if number != self._last + 1:
            raise out_of_order(FrameType.OPEN, number)
        self._last = number
        if self.leaving:
            self._emit(encode_error(number, "EMC-1425", "the node is leaving"))
        elif len(self.calls) >= self._max_calls:
            self._emit(encode_error(number, "EMC-1424", f"{len(self.calls)} calls"))
        else:
            call = self.calls[number] = NodeCall(number, meta)
            return call
        return None

    def _ready(self, call: NodeCall) -> None:
        if call.state is NodeState.GATHERING:
            call.state = NodeState.READY
            self.ready.append(call)

    def _receive_frame(self, call: NodeCall, kind: int, payload: bytes) -> None:
        gathering = call.state is NodeState.GATHERING
        if kind == FrameType.BODY and gathering:
            call.window = charge(call.window, payload)
            self._gather(call, payload)
            if call.state is NodeState.GATHERING:
                self._consume(call, payload)
        elif kind == FrameType.BODY_END and gathering:
            self._ready(call)
        elif kind == FrameType.WINDOW:
            call.credit = grant(call.credit, payload)
            if call.notify is not None:
                call.notify()
        elif kind == FrameType.CANCEL and not call.cancelled:
            call.cancelled = True
            if gathering:
                self.fail(call, "EMC-1426", "cancelled by the hub")
            if call.notify is not None:
                call.notify()
        else:
            raise out_of_order(kind, call.number)

    def _gather(self, call: NodeCall, payload: bytes) -> None:
        """Add to a body; a call that is over a bound is failed."""
        self._bodies_left -= len(payload)
        call.body += payload
        call.body_bytes += len(payload)
        if call.body_bytes > self._body_bytes:
            self.fail(call, "EMC-1428", f"more than {self._body_bytes} bytes")
        elif self._bodies_left < 0:
            self.fail(call, "EMC-1424", "the bodies of open calls fill the node's memory")

    def _consume(self, call: NodeCall, payload: bytes) -> None:
        call.consumed += len(payload) + FRAME_COST
        if is_credit_due(call.consumed):
            self._emit(encode_window(call.number, call.consumed))
            call.window += call.consumed
            call.consumed = 0

    def _close(self, call: NodeCall) -> None:
        call.state = NodeState.CLOSED
        self._bodies_left += call.body_bytes
        del self.calls[call.number]
