"""A call as its node keeps it, and its form on disk. Pure.

A segment is a row of frames: a header with the call's id, the size and a checksum, then the transcript
compressed. What is damaged, as the last frame after a crash, ends the segment.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

import msgspec

from emcd.proto.records import Forward, Receipt

_HEADER = struct.Struct("<4s16sII")
_MARK = b"EMT1"
_LEVEL = 1
MAX_TRANSCRIPT_BYTES = 80 << 20
"""Of request and answer together, before they are compressed: a larger call is not kept. It has room for
the largest request of a hub (16 MiB), and the largest answer that is taken of an engine (64 MiB)."""


class Transcript(msgspec.Struct, frozen=True, array_like=True):
    """What was asked, what was answered, and the two records that say so."""

    forward: Forward
    receipt: Receipt
    path: str
    content_type: str
    request: bytes
    status: int
    response_type: str
    response: bytes


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Transcript).decode


def pack(transcript: Transcript) -> bytes:
    """The frame of a transcript. Blocks for as long as compressing takes: call it in a thread."""
    body = zlib.compress(_encode(transcript), _LEVEL)
    return _HEADER.pack(_MARK, transcript.forward.call_id, len(body), zlib.crc32(body)) + body


def iter_frames(data: bytes | memoryview) -> Iterator[tuple[bytes, int, int]]:
    """(call id, start, end) of the bodies of a segment, up to the first frame that is none or not whole."""
    at = 0
    while at + _HEADER.size <= len(data):
        mark, call_id, size, _ = _HEADER.unpack_from(data, at)
        start = at + _HEADER.size
        if mark != _MARK or start + size > len(data):
            return
        yield call_id, start, start + size
        at = start + size


def unpack(data: bytes | memoryview, start: int, end: int) -> Transcript | None:
    """The transcript whose body stands there; None where it is damaged."""
    _, _, _, checksum = _HEADER.unpack_from(data, start - _HEADER.size)
    body = data[start:end]
    if zlib.crc32(body) != checksum:
        return None
    inflater = zlib.decompressobj()
    try:
        raw = inflater.decompress(body, 2 * MAX_TRANSCRIPT_BYTES)
        return _decode(raw)
    except (zlib.error, msgspec.MsgspecError):
        return None
