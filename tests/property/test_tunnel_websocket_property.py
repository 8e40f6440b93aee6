"""The tunnel's WebSocket frames against those of the websockets package, and against garbage."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Generator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.frames import Close, Frame, Opcode

from emcd.errors import RemoteProtocolError
from emcd.net.tunnel_websocket import (
    BINARY,
    CLOSE,
    PING,
    PONG,
    FrameReader,
    WebSocketError,
    decode_close,
    encode,
    encode_close,
)
from emcd.proto.tunnel import MESSAGE_BYTES

PAYLOADS = st.one_of(
    st.binary(max_size=200), st.sampled_from([125, 126, 127, 65535, 65536, 70_000]).map(bytes)
)
FRAMES = st.lists(
    st.one_of(
        st.tuples(st.just(BINARY), PAYLOADS),
        st.tuples(st.sampled_from([PING, PONG, CLOSE]), st.binary(max_size=125)),
    ),
    max_size=8,
)


def pieces_of(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({cut % (len(data) + 1) for cut in cuts} | {0, len(data)})
    return [data[a:b] for a, b in itertools.pairwise(places)]


@given(FRAMES, st.booleans(), st.lists(st.integers(0, 10**6), max_size=20))
def test_frames_cut_anywhere_come_out_whole(
    frames: list[tuple[int, bytes]], is_masked: bool, cuts: list[int]
) -> None:
    reader = FrameReader(is_masked)
    data = b"".join(Frame(Opcode(kind), payload).serialize(mask=is_masked) for kind, payload in frames)
    found = [frame for piece in pieces_of(data, cuts) for frame in reader.feed(piece)]
    assert found == frames


@given(FRAMES, st.booleans())
def test_frames_encoded_are_what_websockets_reads(frames: list[tuple[int, bytes]], is_masked: bool) -> None:
    data = b"".join(encode(kind, payload, is_masked) for kind, payload in frames)
    at = 0

    def read_exact(size: int) -> Generator[None, None, bytes]:
        nonlocal at
        yield from ()
        at += size
        return data[at - size : at]

    for kind, payload in frames:
        try:
            next(Frame.parse(read_exact, mask=is_masked))
        except StopIteration as stop:
            assert (stop.value.opcode, bytes(stop.value.data), stop.value.fin) == (kind, payload, True)
    assert at == len(data)


@given(st.lists(st.binary(max_size=50), min_size=1, max_size=10), st.booleans())
def test_frames_in_fragments_become_one_message(parts: list[bytes], is_masked: bool) -> None:
    reader = FrameReader(is_masked)
    found = []
    for number, part in enumerate(parts):
        opcode = Opcode.CONT if number else Opcode.BINARY
        frame = Frame(opcode, part, fin=number == len(parts) - 1)
        found += reader.feed(frame.serialize(mask=is_masked))
        found += reader.feed(Frame(Opcode.PING, b"between").serialize(mask=is_masked))
    assert [payload for kind, payload in found if kind == BINARY] == [b"".join(parts)]


@given(st.binary(max_size=300), st.booleans())
@settings(max_examples=300)
def test_frames_of_garbage_are_refused_or_wait(data: bytes, is_masked: bool) -> None:
    reader = FrameReader(is_masked)
    try:
        found = reader.feed(data)
    except RemoteProtocolError:
        return
    assert sum(len(payload) for _, payload in found) <= len(data)


@pytest.mark.parametrize(
    ("data", "close_code"),
    [
        (b"\xc2\x00", 1002),
        (b"\x82\x80", 1002),
        (b"\x83\x00", 1002),
        (b"\x8b\x00", 1002),
        (b"\x80\x00", 1002),
        (b"\x09\x00", 1002),
        (b"\x89\x7e\x00\x7e", 1002),
        (b"\x02\x00\x82\x00", 1002),
        (b"\x82\x7f" + struct.pack("!Q", MESSAGE_BYTES + 1), 1009),
        (b"\x82\x7f" + struct.pack("!Q", 2**64 - 1), 1009),
        (b"\x02\x7f" + struct.pack("!Q", MESSAGE_BYTES) + bytes(MESSAGE_BYTES) + b"\x80\x01", 1009),
        (b"\x02\x00" + b"\x00\x00" * 100, 1009),
    ],
)
def test_frame_that_is_none_is_refused_before_its_payload(data: bytes, close_code: int) -> None:
    with pytest.raises(WebSocketError) as caught:
        FrameReader(is_masked=False).feed(data)
    assert caught.value.close_code == close_code
    assert caught.value.code == "EMC-1417"


def test_frame_of_text_is_refused() -> None:
    with pytest.raises(RemoteProtocolError, match="EMC-1420"):
        FrameReader(is_masked=False).feed(b"\x81\x00")


def test_frame_without_a_mask_is_refused_where_one_must_be() -> None:
    with pytest.raises(WebSocketError):
        FrameReader(is_masked=True).feed(b"\x82\x00")


@given(st.integers(3000, 4999), st.text(max_size=200), st.booleans())
def test_close_round_trips_and_its_reason_is_cut(code: int, reason: str, is_masked: bool) -> None:
    reason = reason.encode("utf-8", "ignore").decode()
    ((kind, payload),) = FrameReader(is_masked).feed(encode_close(code, reason, is_masked))
    assert kind == CLOSE
    assert Close.parse(payload).reason == decode_close(payload)[1]
    assert decode_close(payload)[0] == code
    assert reason.startswith(decode_close(payload)[1])


@pytest.mark.parametrize("payload", [b"", b"\x03"])
def test_close_without_a_code_says_so(payload: bytes) -> None:
    assert decode_close(payload) == (1005, "")
