"""The hub's side of a tunnel session: it opens calls and reads answers. Sans-IO, pure.

See `emcd.proto.tunnel` for frames, order and windows.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from enum import Enum

from emcd.errors import RecoverableError
from emcd.proto.tunnel import (
    LAST_CALL,
    FrameType,
    ReceiveWindow,
    SendWindow,
    Session,
    decode_error,
    encode_frame,
    out_of_order,
    split_frames,
)


class HubState(Enum):
    OPEN = 1
    STREAMING = 2
    ENDED = 3
    CANCELLED = 4


class HubCall:
    """One call as the hub sees it. `notify` is run after each message that changed it."""

    __slots__ = (
        "body_left",
        "chunks",
        "end",
        "error",
        "head",
        "notify",
        "number",
        "receive",
        "send",
        "state",
    )

    def __init__(self, number: int, body: bytes) -> None:
        self.number = number
        self.state = HubState.OPEN
        self.head: bytes | None = None
        self.chunks: deque[bytes] = deque()
        self.end: bytes | None = None
        self.error: RecoverableError | None = None
        self.body_left: memoryview | None = memoryview(body)
        self.send = SendWindow()
        self.receive = ReceiveWindow()
        self.notify: Callable[[], None] | None = None


class HubSession(Session):
    """All calls of one tunnel, from the hub's side."""

    def __init__(self, max_calls: int = 1024) -> None:
        super().__init__()
        self.calls: dict[int, HubCall] = {}
        self._max_calls = max_calls
        self._last = 0

    def open(self, meta: bytes, body: bytes) -> HubCall:
        """Open a call; its body goes out as far as the window reaches.

        Raises: RecoverableError EMC-1424 too many calls are open, EMC-1425 one side is leaving;
            LocalProtocolError EMC-1423 when `meta` is over its bound.
        """
        if self.leaving or self.peer_leaving or self._last >= LAST_CALL:
            raise RecoverableError("EMC-1425", "no new calls on this tunnel")
        if len(self.calls) >= self._max_calls:
            raise RecoverableError("EMC-1424", f"{len(self.calls)} calls")
        frame = encode_frame(FrameType.OPEN, self._last + 1, meta)
        self._last += 1
        call = self.calls[self._last] = HubCall(self._last, body)
        self._emit(frame)
        self._send_body(call)
        return call

    def cancel(self, call: HubCall) -> None:
        """Stop a call; it stays in the table until the node has said its last word."""
        if call.state in (HubState.OPEN, HubState.STREAMING):
            call.state = HubState.CANCELLED
            call.chunks.clear()
            call.body_left = None
            self._emit(encode_frame(FrameType.CANCEL, call.number))

    def take_chunk(self, call: HubCall) -> bytes:
        """The next chunk that is there, giving its cost back to the node."""
        chunk = call.chunks.popleft()
        credit = call.receive.consume(chunk)
        if credit is not None and call.state is HubState.STREAMING:
            self._emit(encode_frame(FrameType.WINDOW, call.number, credit))
        return chunk

    def receive(self, message: bytes) -> None:
        """Take a message of the node. Raises: RemoteProtocolError EMC-1420 to 1423; then it is over."""
        touched: dict[int, HubCall] = {}
        for kind, number, payload in split_frames(message):
            if number == 0:
                self._receive_common(kind, payload)
                continue
            call = self.calls.get(number)
            if call is None:
                raise out_of_order(kind, number)
            if call.state is HubState.CANCELLED:
                self._receive_cancelled(call, kind, payload)
            else:
                self._receive_frame(call, kind, payload)
                touched[number] = call
        for call in touched.values():
            if call.notify is not None:
                call.notify()

    def _receive_frame(self, call: HubCall, kind: int, payload: bytes) -> None:
        if kind == FrameType.DATA and call.state is HubState.STREAMING:
            call.receive.charge(payload)
            call.chunks.append(payload)
        elif kind == FrameType.HEAD and call.state is HubState.OPEN:
            call.state = HubState.STREAMING
            call.head = payload
        elif kind == FrameType.END and call.state is HubState.STREAMING:
            call.end = payload
            self._close(call)
        elif kind == FrameType.ERROR:
            call.error = decode_error(payload)
            self._close(call)
        elif kind == FrameType.WINDOW:
            call.send.grant(payload)
            self._send_body(call)
        else:
            raise out_of_order(kind, call.number)

    def _receive_cancelled(self, call: HubCall, kind: int, payload: bytes) -> None:
        """What was under way when the hub cancelled: within the window, and thrown away."""
        if kind in (FrameType.END, FrameType.ERROR):
            self._close(call)
        elif kind == FrameType.DATA:
            call.receive.charge(payload)
        elif kind not in (FrameType.HEAD, FrameType.WINDOW):
            raise out_of_order(kind, call.number)

    def _close(self, call: HubCall) -> None:
        call.state = HubState.ENDED
        call.body_left = None
        del self.calls[call.number]

    def _send_body(self, call: HubCall) -> None:
        body = call.body_left
        if body is None:
            return
        while body and (size := call.send.take_piece(len(body))):
            self._emit(encode_frame(FrameType.BODY, call.number, body[:size]))
            body = body[size:]
        if body:
            call.body_left = body
        else:
            call.body_left = None
            self._emit(encode_frame(FrameType.BODY_END, call.number))
