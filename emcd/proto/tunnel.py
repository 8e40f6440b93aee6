"""The tunnel's frames and their order: sans-IO, for both sides.

A message is a sequence of whole frames: type u8, call u32, length u32, payload. The hub opens
calls, their numbers grow by one. A call, seen from the hub: OPEN, BODY*, BODY_END out; HEAD,
DATA*, END in, or ERROR instead of the rest. What is small goes in one frame: CALL is OPEN with the
whole body, ANSWER is HEAD, body and END. CANCEL goes out at any time; the node ends a cancelled
call with END (over what it sent) or ERROR, and what was under way still comes. WINDOW gives credit
for BODY or DATA: a frame costs its payload and FRAME_COST, so that neither bytes nor small frames
pile up beyond WINDOW_BYTES; CALL and ANSWER need none, being one each.

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
INLINE_BYTES = 64 * 1024  # of a body that goes in one frame with the rest
META_BYTES = 64 * 1024
CONTROL_BYTES = 256 * 1024
CONTROLS_BYTES = 8 * 1024 * 1024  # of control messages not yet looked at
CONTROLS_MAX = 1024
MESSAGE_BYTES = 1024 * 1024
DETAIL_BYTES = 1024
LAST_CALL = 2**32 - 1
_CODE = re.compile(r"EMC-[0-9]{4}")
_CREDIT = struct.Struct("!I")
_CALL_HEAD = struct.Struct("!BIII")
_ANSWER_HEAD = struct.Struct("!BIIII")
_CALL_PARTS = struct.Struct("!I")
_ANSWER_PARTS = struct.Struct("!II")


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
    CALL = 12
    ANSWER = 13


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
    FrameType.CALL: META_BYTES + INLINE_BYTES + _CALL_PARTS.size,
    FrameType.ANSWER: 2 * META_BYTES + INLINE_BYTES + _ANSWER_PARTS.size,
}
_BOUNDS = {int(kind): bound for kind, bound in _PAYLOAD_MAX.items()}
_NO_CALL = frozenset((int(FrameType.CONTROL), int(FrameType.GOAWAY)))
_CALL = int(FrameType.CALL)
_ANSWER = int(FrameType.ANSWER)


def encode_frame(kind: FrameType, call: int, payload: bytes | memoryview = b"") -> bytes:
    """One frame. Raises: LocalProtocolError EMC-1423 when the payload is over its bound."""
    if len(payload) > _BOUNDS[kind]:
        raise LocalProtocolError("EMC-1423", f"{kind.name} of {len(payload)} bytes")
    return FRAME_HEAD.pack(kind, call, len(payload)) + payload


def encode_call(call: int, meta: bytes, body: bytes) -> bytes:
    """A CALL frame: `body` is at most INLINE_BYTES. Raises: LocalProtocolError EMC-1423."""
    if len(meta) > META_BYTES or len(body) > INLINE_BYTES:
        raise LocalProtocolError("EMC-1423", f"CALL of {len(meta)} and {len(body)} bytes")
    length = _CALL_PARTS.size + len(meta) + len(body)
    return b"".join((_CALL_HEAD.pack(_CALL, call, length, len(meta)), meta, body))


def decode_call(payload: bytes) -> tuple[bytes, bytes]:
    """Meta and body of a CALL. Raises: RemoteProtocolError EMC-1420, EMC-1423."""
    start = _CALL_PARTS.size
    end = start + _CALL_PARTS.unpack_from(payload)[0] if len(payload) >= start else -1
    if not 0 <= end <= len(payload):
        raise RemoteProtocolError("EMC-1420", "a CALL's parts do not fit")
    _require_parts(end - start, len(payload) - end)
    return payload[start:end], payload[end:]


def encode_answer(call: int, head: bytes, body: bytes, end: bytes) -> bytes:
    """An ANSWER frame: `body` is at most INLINE_BYTES. Raises: LocalProtocolError EMC-1423."""
    if len(head) > META_BYTES or len(end) > META_BYTES or len(body) > INLINE_BYTES:
        raise LocalProtocolError("EMC-1423", f"ANSWER of {len(head)}, {len(body)} and {len(end)} bytes")
    length = _ANSWER_PARTS.size + len(head) + len(body) + len(end)
    return b"".join((_ANSWER_HEAD.pack(_ANSWER, call, length, len(head), len(end)), head, end, body))


def decode_answer(payload: bytes) -> tuple[bytes, bytes, bytes]:
    """Head, body and end of an ANSWER. Raises: RemoteProtocolError EMC-1420, EMC-1423."""
    start = _ANSWER_PARTS.size
    if len(payload) < start:
        raise RemoteProtocolError("EMC-1420", "an ANSWER's parts do not fit")
    head_bytes, end_bytes = _ANSWER_PARTS.unpack_from(payload)
    middle = start + head_bytes
    last = middle + end_bytes
    if last > len(payload):
        raise RemoteProtocolError("EMC-1420", "an ANSWER's parts do not fit")
    _require_parts(max(head_bytes, end_bytes), len(payload) - last)
    return payload[start:middle], payload[last:], payload[middle:last]


def _require_parts(meta_bytes: int, body_bytes: int) -> None:
    if meta_bytes > META_BYTES or body_bytes > INLINE_BYTES:
        raise RemoteProtocolError("EMC-1423", f"parts of {meta_bytes} and {body_bytes} bytes")


def split_frames(message: bytes, at: int = 0) -> Iterator[tuple[int, int, bytes]]:
    """The frames of a message from `at` on: type, call, payload.

    Raises: RemoteProtocolError EMC-1420, EMC-1423.
    """
    size, find_bound, unpack = len(message), _BOUNDS.get, FRAME_HEAD.unpack_from
    while at < size:
        if size - at < FRAME_HEAD.size:
            raise RemoteProtocolError("EMC-1420", "a frame's head is cut")
        kind, call, length = unpack(message, at)
        at += FRAME_HEAD.size
        end = at + length
        if end > size or length > find_bound(kind, -1) or (call == 0) is not (kind in _NO_CALL):
            raise _find_fault(kind, call, length)
        yield kind, call, message[at:end]
        at = end


def _find_fault(kind: int, call: int, length: int) -> RemoteProtocolError:
    """What is wrong with a frame's head."""
    bound = _BOUNDS.get(kind)
    if bound is None:
        return RemoteProtocolError("EMC-1420", f"frame type {kind}")
    if length > bound:
        return RemoteProtocolError("EMC-1423", f"{FrameType(kind).name} of {length} bytes")
    if (call == 0) is not (kind in _NO_CALL):
        return RemoteProtocolError("EMC-1420", f"{FrameType(kind).name} of call {call}")
    return RemoteProtocolError("EMC-1420", "a frame's payload is cut")


def encode_error(call: int, code: str, detail: str) -> bytes:
    """An ERROR frame; the detail is cut to its bound."""
    if not _CODE.fullmatch(code):
        raise LocalProtocolError("EMC-1421", f"error code {code!r}")
    text = detail.encode("utf-8", "replace")[:DETAIL_BYTES].decode("utf-8", "ignore")
    return encode_frame(FrameType.ERROR, call, code.encode() + text.encode())


class StatedError(RecoverableError):
    """What an ERROR frame says: its code is the peer's word, whatever it claims of whom."""


def decode_error(payload: bytes) -> StatedError:
    """What the node said, as it is raised to the call's owner. Raises: RemoteProtocolError EMC-1420."""
    try:
        code, detail = payload[:8].decode("ascii"), payload[8:].decode("utf-8")
    except UnicodeDecodeError as exc:
        raise RemoteProtocolError("EMC-1420", "an ERROR is not text") from exc
    if not _CODE.fullmatch(code):
        raise RemoteProtocolError("EMC-1420", "an ERROR has no code")
    return StatedError(code, detail)


def decode_credit(payload: bytes) -> int:
    if len(payload) != _CREDIT.size:
        raise RemoteProtocolError("EMC-1420", "a WINDOW is not four bytes")
    credit: int = _CREDIT.unpack(payload)[0]
    if not 0 < credit <= WINDOW_BYTES:
        raise RemoteProtocolError("EMC-1422", f"a WINDOW of {credit}")
    return credit


def grant(credit: int, payload: bytes) -> int:
    """What may be sent after a WINDOW came. Raises: RemoteProtocolError EMC-1420, EMC-1422."""
    credit += decode_credit(payload)
    if credit > WINDOW_BYTES:
        raise RemoteProtocolError("EMC-1422", f"credit of {credit}")
    return credit


def piece_bytes(credit: int, left: int) -> int:
    """How many of `left` bytes the next frame carries; 0 to wait until a whole piece may be sent."""
    size = min(left, PIECE_BYTES)
    return size if size + FRAME_COST <= credit else 0


def charge(credit: int, payload: bytes) -> int:
    """What the peer may still send after a piece came. Raises: RemoteProtocolError EMC-1422."""
    credit -= len(payload) + FRAME_COST
    if credit < 0:
        raise RemoteProtocolError("EMC-1422", "more was sent than the window allows")
    return credit


def is_credit_due(consumed: int) -> bool:
    """Whether enough was consumed to tell the peer: half of the window."""
    return consumed >= WINDOW_BYTES // 2


def encode_window(call: int, consumed: int) -> bytes:
    """The WINDOW frame that gives back what was consumed."""
    return encode_frame(FrameType.WINDOW, call, _CREDIT.pack(consumed))


class Session:
    """What both sides share: the outbox, control messages and the farewell."""

    def __init__(self) -> None:
        self.outbox: deque[bytes] = deque()
        self.outbox_bytes = 0
        self.controls: deque[bytes] = deque()
        self._controls_bytes = 0
        self.leaving = False
        self.peer_leaving = False

    @property
    def has_news(self) -> bool:
        """Whether there is anything to send now."""
        return bool(self.outbox)

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
