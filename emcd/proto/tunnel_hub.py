"""The hub's side of a tunnel session: it opens calls and reads answers. Sans-IO, pure.

See `emcd.proto.tunnel` for frames, order and windows. A call's body waits in the call, not in the
outbox: `take_message` takes a piece of each in turn, so that a large one delays no small one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from enum import Enum
from typing import Any

import msgspec

from emcd.errors import RecoverableError
from emcd.proto.tunnel import (
    FRAME_COST,
    INLINE_BYTES,
    LAST_CALL,
    MESSAGE_BYTES,
    PIECE_BYTES,
    WINDOW_BYTES,
    FrameType,
    Session,
    charge,
    decode_answer,
    decode_error,
    encode_call,
    encode_frame,
    encode_window,
    grant,
    is_credit_due,
    out_of_order,
    piece_bytes,
    split_frames,
)

_DATA = int(FrameType.DATA)
_HEAD = int(FrameType.HEAD)
_END = int(FrameType.END)
_ERROR = int(FrameType.ERROR)
_ANSWER = int(FrameType.ANSWER)
_WINDOW = int(FrameType.WINDOW)
_OPEN_BODY_BYTES = 32 * 1024 * 1024
"""Of small bodies that wait to be sent with their calls: beyond it no call is opened."""


class HubState(Enum):
    OPEN = 1
    STREAMING = 2
    ENDED = 3


_IS_OPEN = HubState.OPEN
_IS_STREAMING = HubState.STREAMING
_IS_ENDED = HubState.ENDED
"""Names of this module: to read a member of an Enum costs four times as much."""


class HubCall(msgspec.Struct, eq=False):
    """One call as the hub sees it.

    Attributes:
        head, end: as the node gave them, None until they came.
        error: why the call failed, for whoever waits for it.
        patient: it waits for the tunnel to be resumed; else it is given up soon after the loss.
        owner: whatever who opened the call wants to find here.
        on_end: called once, when END or ERROR came or the call was given up; then it is None.
        on_data: called after each message that brought a head or data; None: the body is collected.
    """

    number: int
    on_end: Callable[[HubCall], None] | None
    on_data: Callable[[HubCall], None] | None
    max_bytes: int
    state: HubState = _IS_OPEN
    head: bytes | None = None
    chunks: list[bytes | bytearray] = []  # msgspec makes each call its own
    end: bytes | None = None
    error: RecoverableError | None = None
    patient: bool = False
    owner: Any = None
    cancelled: bool = False
    dropped: bool = False
    size: int = 0
    body_left: memoryview | None = None
    window: int = WINDOW_BYTES
    consumed: int = 0
    credit: int = WINDOW_BYTES
    uploading: bool = False

    def body(self) -> bytes:
        """All of a collected body; b"" when nobody wanted it any more."""
        chunks = self.chunks
        return bytes(chunks[0]) if len(chunks) == 1 else b"".join(chunks)  # bytes() of bytes copies nothing


def _gather(chunks: list[bytes | bytearray], payload: bytes) -> None:
    """Keep a piece of a collected body; small ones are joined, since each object costs far more than its bytes."""
    if chunks and len(chunks[-1]) + len(payload) <= PIECE_BYTES:
        last = chunks[-1]
        if type(last) is not bytearray:
            last = chunks[-1] = bytearray(last)
        last += payload
    else:
        chunks.append(payload)


class HubSession(Session):
    """All calls of one tunnel, from the hub's side."""

    def __init__(self, max_calls: int = 1024) -> None:
        super().__init__()
        self.calls: dict[int, HubCall] = {}
        self._uploads: deque[HubCall] = deque()
        self._max_calls = max_calls
        self._last = 0

    def open(
        self,
        meta: bytes,
        body: bytes,
        on_end: Callable[[HubCall], None] | None = None,
        on_data: Callable[[HubCall], None] | None = None,
        max_bytes: int = 0,
    ) -> HubCall:
        """Open a call. Its body is kept until it is sent.

        Args:
            max_bytes: of the answer's body, where it is collected.

        Raises: RecoverableError EMC-1424 too many calls are open, EMC-1425 one side is leaving;
            LocalProtocolError EMC-1423 when `meta` is over its bound.
        """
        if self.leaving or self.peer_leaving or self._last >= LAST_CALL:
            raise RecoverableError("EMC-1425", "no new calls on this tunnel")
        if len(self.calls) >= self._max_calls or self.outbox_bytes > _OPEN_BODY_BYTES:
            raise RecoverableError("EMC-1424", f"{len(self.calls)} calls")
        number = self._last + 1
        is_small = len(body) <= INLINE_BYTES
        frame = encode_call(number, meta, body) if is_small else encode_frame(FrameType.OPEN, number, meta)
        self._last = number
        call = self.calls[number] = HubCall(number, on_end, on_data, max_bytes)
        self._emit(frame)
        if not is_small:
            call.body_left = memoryview(body)
            self._queue_upload(call)
        return call

    def cancel(self, call: HubCall) -> None:
        """Stop a call: what is under way still comes, until the node's END or ERROR."""
        if call.state is not _IS_ENDED and not call.cancelled:
            call.cancelled = True
            call.body_left = None
            self._emit(encode_frame(FrameType.CANCEL, call.number))

    def drop(self, call: HubCall) -> None:
        """Nobody waits for the call any more: what it brings is thrown away, but for its end."""
        call.on_end = call.on_data = None
        call.dropped = True
        call.chunks.clear()
        self.cancel(call)

    def take(self, call: HubCall) -> bytes:
        """All data that is there, giving its cost back to the node; b"" for none."""
        chunks = call.chunks
        if not chunks:
            return b""
        data = bytes(chunks[0]) if len(chunks) == 1 else b"".join(chunks)
        self._consume(call, len(data) + len(chunks) * FRAME_COST)
        call.chunks = []
        return data

    def receive(self, message: bytes, at: int = 0) -> list[HubCall]:
        """Take a message of the node from `at` on.

        Returns: the calls that it changed, each once.
        Raises: RemoteProtocolError EMC-1420 to 1423; then the session is over.
        """
        calls, touched = self.calls, {}
        for kind, number, payload in split_frames(message, at):
            if number == 0:
                self._receive_common(kind, payload)
                continue
            call = calls.get(number)
            if call is None:
                raise out_of_order(kind, number)
            if kind == _DATA:
                self._receive_data(call, payload)
            elif kind == _ANSWER and call.state is _IS_OPEN:
                call.head, body, call.end = decode_answer(payload)
                self._collect(call, body)
                self._close(call)
            else:
                self._receive_frame(call, kind, payload)
            touched[number] = call
        return list(touched.values())

    @property
    def has_news(self) -> bool:
        return bool(self.outbox or self._uploads)

    def take_message(self, max_bytes: int = MESSAGE_BYTES // 4) -> bytes:
        """As `Session.take_message`, with the bodies that the windows let through."""
        while self._uploads and self.outbox_bytes < max_bytes:
            self._send_piece(self._uploads.popleft())
        return super().take_message(max_bytes)

    def _receive_data(self, call: HubCall, payload: bytes) -> None:
        if call.state is not _IS_STREAMING:
            raise out_of_order(_DATA, call.number)
        call.window = charge(call.window, payload)
        self._collect(call, payload)
        if call.on_data is None and not call.dropped:
            self._consume(call, len(payload) + FRAME_COST)

    def _receive_frame(self, call: HubCall, kind: int, payload: bytes) -> None:
        if kind == _HEAD and call.state is _IS_OPEN:
            call.state = _IS_STREAMING
            call.head = payload
        elif kind == _END and call.state is _IS_STREAMING:
            call.end = payload
            self._close(call)
        elif kind == _ERROR:
            error = decode_error(payload)
            call.error = call.error or error
            self._close(call)
        elif kind == _WINDOW:
            call.credit = grant(call.credit, payload)
            self._queue_upload(call)
        else:
            raise out_of_order(kind, call.number)

    def _collect(self, call: HubCall, payload: bytes) -> None:
        if call.dropped:
            return
        if call.on_data is not None:
            if payload:
                call.chunks.append(payload)
        else:
            if payload:
                _gather(call.chunks, payload)
            call.size += len(payload)
            if call.size > call.max_bytes:
                text = f"an answer of more than {call.max_bytes} bytes"
                call.error = call.error or RecoverableError("EMC-1428", text)
                call.dropped = True
                call.chunks.clear()
                if call.end is None:
                    self.cancel(call)

    def _consume(self, call: HubCall, cost: int) -> None:
        call.consumed += cost
        if is_credit_due(call.consumed) and call.state is _IS_STREAMING:
            self._emit(encode_window(call.number, call.consumed))
            call.window += call.consumed
            call.consumed = 0

    def _close(self, call: HubCall) -> None:
        call.state = _IS_ENDED
        call.body_left = None
        del self.calls[call.number]

    def _queue_upload(self, call: HubCall) -> None:
        """Put a call in the line of bodies, if it is not there and may send."""
        body = call.body_left
        if body is not None and not call.uploading and piece_bytes(call.credit, len(body)):
            call.uploading = True
            self._uploads.append(call)

    def _send_piece(self, call: HubCall) -> None:
        """Send the next piece of a body; the call goes to the end of the line while it may send."""
        body = call.body_left
        call.uploading = False
        if body is None:
            return
        size = piece_bytes(call.credit, len(body))
        call.credit -= size + FRAME_COST
        self._emit(encode_frame(FrameType.BODY, call.number, body[:size]))
        if size < len(body):
            call.body_left = body[size:]
            self._queue_upload(call)
        else:
            call.body_left = None
            self._emit(encode_frame(FrameType.BODY_END, call.number))
