"""The tunnel's frames and their order: sans-IO, for both sides.

A message is a sequence of whole frames: type u8, call u32, length u32, payload. The hub opens
calls, their numbers grow by one. A call, seen from the hub: OPEN, BODY*, BODY_END out; HEAD,
DATA*, END in, or ERROR instead of the rest; CANCEL out at any time, which the node answers with
ERROR unless its END or ERROR is already under way. WINDOW gives credit for BODY or DATA: a frame
costs its payload and FRAME_COST, so that neither bytes nor small frames pile up beyond WINDOW.

Invariants: a frame out of order, over its window or its bound raises RemoteProtocolError and the
session is over; a call leaves the hub's table only by the node's last frame, so frames for a call
that is not there are always a fault on the hub's side and never on the node's, if it was there once.
Frames to send are collected; who drives the session takes them by `take_message`.
"""

from __future__ import annotations

import re
import struct
from collections import deque
from collections.abc import Iterator
from enum import IntEnum

from emcd.errors import LocalProtocolError, RecoverableError, RemoteProtocolError

FRAME_HEAD = struct.Struct("!BII")
FRAME_COST = 64
WINDOW_BYTES = 128 * 1024
PIECE_BYTES = 32 * 1024
META_BYTES = 64 * 1024
CONTROL_BYTES = 256 * 1024
CONTROLS_BYTES = 8 * 1024 * 1024  # of control messages not yet looked at
CONTROLS_MAX = 1024
MESSAGE_BYTES = 1024 * 1024
DETAIL_BYTES = 1024
LAST_CALL = 2**32 - 1
_CODE = re.compile(r"EMC-[0-9]{4}")
_CREDIT = struct.Struct("!I")


class FrameType(IntEnum):
    OPEN = 1
    BODY = 2
    BODY_END = 3
    HEAD = 4
    DATA = 5
    END = 6
    CANCEL = 7
    ERROR = 8
    WINDOW = 9
    CONTROL = 10
    GOAWAY = 11


_PAYLOAD_MAX = {
    FrameType.OPEN: META_BYTES,
    FrameType.BODY: PIECE_BYTES,
    FrameType.BODY_END: 0,
    FrameType.HEAD: META_BYTES,
    FrameType.DATA: PIECE_BYTES,
    FrameType.END: META_BYTES,
    FrameType.CANCEL: 0,
    FrameType.ERROR: DETAIL_BYTES + 8,
    FrameType.WINDOW: 4,
    FrameType.CONTROL: CONTROL_BYTES,
    FrameType.GOAWAY: 0,
}
_BOUNDS = {int(kind): bound for kind, bound in _PAYLOAD_MAX.items()}
_NO_CALL = frozenset((int(FrameType.CONTROL), int(FrameType.GOAWAY)))


def encode_frame(kind: FrameType, call: int, payload: bytes | memoryview = b"") -> bytes:
    """One frame. Raises: LocalProtocolError EMC-1423 when the payload is over its bound."""
    if len(payload) > _BOUNDS[kind]:
        raise LocalProtocolError("EMC-1423", f"{kind.name} of {len(payload)} bytes")
    return FRAME_HEAD.pack(kind, call, len(payload)) + payload


def split_frames(message: bytes) -> Iterator[tuple[int, int, bytes]]:
    """The frames of a message: type, call, payload. Raises: RemoteProtocolError EMC-1420, EMC-1423."""
    at, size = 0, len(message)
    while at < size:
        if size - at < FRAME_HEAD.size:
            raise RemoteProtocolError("EMC-1420", "a frame's head is cut")
        kind, call, length = FRAME_HEAD.unpack_from(message, at)
        bound = _BOUNDS.get(kind)
        if bound is None:
            raise RemoteProtocolError("EMC-1420", f"frame type {kind}")
        if length > bound:
            raise RemoteProtocolError("EMC-1423", f"{FrameType(kind).name} of {length} bytes")
        if (call == 0) != (kind in _NO_CALL):
            raise RemoteProtocolError("EMC-1420", f"{FrameType(kind).name} of call {call}")
        at += FRAME_HEAD.size
        if length > size - at:
            raise RemoteProtocolError("EMC-1420", "a frame's payload is cut")
        yield kind, call, message[at : at + length]
        at += length


def encode_error(call: int, code: str, detail: str) -> bytes:
    """An ERROR frame; the detail is cut to its bound."""
    if not _CODE.fullmatch(code):
        raise LocalProtocolError("EMC-1421", f"error code {code!r}")
    text = detail.encode("utf-8", "replace")[:DETAIL_BYTES].decode("utf-8", "ignore")
    return encode_frame(FrameType.ERROR, call, code.encode() + text.encode())


def decode_error(payload: bytes) -> RecoverableError:
    """What the node said, as it is raised to the call's owner. Raises: RemoteProtocolError EMC-1420."""
    try:
        code, detail = payload[:8].decode("ascii"), payload[8:].decode("utf-8")
    except UnicodeDecodeError as exc:
        raise RemoteProtocolError("EMC-1420", "an ERROR is not text") from exc
    if not _CODE.fullmatch(code):
        raise RemoteProtocolError("EMC-1420", "an ERROR has no code")
    return RecoverableError(code, detail)


def _decode_credit(payload: bytes) -> int:
    if len(payload) != _CREDIT.size:
        raise RemoteProtocolError("EMC-1420", "a WINDOW is not four bytes")
    credit: int = _CREDIT.unpack(payload)[0]
    if not 0 < credit <= WINDOW_BYTES:
        raise RemoteProtocolError("EMC-1422", f"a WINDOW of {credit}")
    return credit


class SendWindow:
    """What may still be sent on one call, in one direction."""

    __slots__ = ("credit",)

    def __init__(self) -> None:
        self.credit = WINDOW_BYTES

    def grant(self, payload: bytes) -> None:
        self.credit += _decode_credit(payload)
        if self.credit > WINDOW_BYTES:
            raise RemoteProtocolError("EMC-1422", f"credit of {self.credit}")

    def take_piece(self, left: int) -> int:
        """How many of `left` bytes the next frame may carry; 0 to wait. Small rests are waited for."""
        size = min(left, PIECE_BYTES)
        room = self.credit - FRAME_COST
        if room < min(size, PIECE_BYTES // 4):
            return 0
        size = min(size, room)
        self.credit -= size + FRAME_COST
        return size


class ReceiveWindow:
    """What the peer may still send on one call, in one direction."""

    __slots__ = ("consumed", "credit")

    def __init__(self) -> None:
        self.credit = WINDOW_BYTES
        self.consumed = 0

    def charge(self, payload: bytes) -> None:
        self.credit -= len(payload) + FRAME_COST
        if self.credit < 0:
            raise RemoteProtocolError("EMC-1422", "more was sent than the window allows")

    def consume(self, payload: bytes) -> bytes | None:
        """Give back a piece's cost; the WINDOW payload to send when half of the window is due."""
        self.consumed += len(payload) + FRAME_COST
        if self.consumed < WINDOW_BYTES // 2:
            return None
        due, self.consumed = self.consumed, 0
        self.credit += due
        return _CREDIT.pack(due)


class Session:
    """What both sides share: the outbox, control messages and the farewell."""

    def __init__(self) -> None:
        self.outbox: deque[bytes] = deque()
        self.outbox_bytes = 0
        self.controls: deque[bytes] = deque()
        self._controls_bytes = 0
        self.leaving = False
        self.peer_leaving = False

    def take_message(self, max_bytes: int = MESSAGE_BYTES // 4) -> bytes:
        """The frames that wait to be sent, as one message of about `max_bytes`; b"" for none."""
        outbox = self.outbox
        if self.outbox_bytes <= max_bytes:
            message = b"".join(outbox)
            outbox.clear()
            self.outbox_bytes = 0
            return message
        frames, size = [], 0
        while outbox and size < max_bytes:
            frames.append(outbox.popleft())
            size += len(frames[-1])
        self.outbox_bytes -= size
        return b"".join(frames)

    def _emit(self, frame: bytes) -> None:
        self.outbox.append(frame)
        self.outbox_bytes += len(frame)

    def send_control(self, payload: bytes) -> None:
        """Raises: LocalProtocolError EMC-1423 over CONTROL_BYTES."""
        self._emit(encode_frame(FrameType.CONTROL, 0, payload))

    def take_control(self) -> bytes:
        """The oldest control message that came."""
        payload = self.controls.popleft()
        self._controls_bytes -= len(payload)
        return payload

    def leave(self) -> None:
        """Say that no call will be opened, or accepted, from now on."""
        if not self.leaving:
            self.leaving = True
            self._emit(encode_frame(FrameType.GOAWAY, 0))

    def _receive_common(self, kind: int, payload: bytes) -> None:
        if kind == FrameType.CONTROL:
            self.controls.append(payload)
            self._controls_bytes += len(payload)
            if self._controls_bytes > CONTROLS_BYTES or len(self.controls) > CONTROLS_MAX:
                raise RemoteProtocolError("EMC-1423", "control messages pile up")
        elif kind == FrameType.GOAWAY and not payload:
            self.peer_leaving = True


def out_of_order(kind: int, call: int) -> RemoteProtocolError:
    return RemoteProtocolError("EMC-1421", f"{FrameType(kind).name} of call {call}")
