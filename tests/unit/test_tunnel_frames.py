"""Frames: what is malformed is refused, whatever it claims to be."""

from __future__ import annotations

import struct

import pytest

from emcd.errors import LocalProtocolError, RemoteProtocolError
from emcd.proto.tunnel import (
    CONTROL_BYTES,
    CONTROLS_MAX,
    DETAIL_BYTES,
    FRAME_COST,
    INLINE_BYTES,
    META_BYTES,
    PIECE_BYTES,
    WINDOW_BYTES,
    FrameType,
    Session,
    StatedError,
    charge,
    decode_answer,
    decode_call,
    decode_error,
    encode_answer,
    encode_call,
    encode_error,
    encode_frame,
    encode_window,
    grant,
    is_credit_due,
    piece_bytes,
    split_frames,
)
from emcd.proto.tunnel_hub import HubSession


def raw(kind: int, call: int, length: int, payload: bytes = b"") -> bytes:
    return struct.pack("!BII", kind, call, length) + payload


def test_frames_of_a_message_come_out_in_order() -> None:
    message = encode_frame(FrameType.HEAD, 7, b"head") + encode_frame(FrameType.DATA, 7, memoryview(b"data"))
    message += encode_frame(FrameType.END, 2**32 - 1) + encode_frame(FrameType.CONTROL, 0, b"c")
    assert list(split_frames(message)) == [
        (FrameType.HEAD, 7, b"head"),
        (FrameType.DATA, 7, b"data"),
        (FrameType.END, 2**32 - 1, b""),
        (FrameType.CONTROL, 0, b"c"),
    ]


def test_frames_of_an_empty_message_are_none() -> None:
    assert list(split_frames(b"")) == []


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (b"\x05", "EMC-1420"),
        (raw(5, 1, 0)[:-1], "EMC-1420"),
        (raw(5, 1, 1), "EMC-1420"),
        (raw(5, 1, 4, b"abc"), "EMC-1420"),
        (raw(0, 1, 0), "EMC-1420"),
        (raw(14, 1, 0), "EMC-1420"),
        (raw(12, 0, 4, bytes(4)), "EMC-1420"),
        (raw(12, 1, META_BYTES + INLINE_BYTES + 5), "EMC-1423"),
        (raw(255, 1, 0), "EMC-1420"),
        (raw(5, 0, 0), "EMC-1420"),
        (raw(10, 1, 0), "EMC-1420"),
        (raw(11, 3, 0), "EMC-1420"),
        (raw(5, 1, PIECE_BYTES + 1), "EMC-1423"),
        (raw(5, 1, 2**32 - 1), "EMC-1423"),
        (raw(3, 1, 1, b"x"), "EMC-1423"),
        (raw(7, 1, 1, b"x"), "EMC-1423"),
        (raw(11, 0, 1, b"x"), "EMC-1423"),
        (raw(5, 1, 0) + b"\0", "EMC-1420"),
    ],
)
def test_frames_malformed_raise(message: bytes, code: str) -> None:
    with pytest.raises(RemoteProtocolError, match=code):
        list(split_frames(message))


@pytest.mark.parametrize(
    ("kind", "size"),
    [
        (FrameType.OPEN, META_BYTES),
        (FrameType.DATA, PIECE_BYTES),
        (FrameType.CONTROL, CONTROL_BYTES),
        (FrameType.CANCEL, 0),
    ],
)
def test_frame_over_its_bound_cannot_be_made(kind: FrameType, size: int) -> None:
    encode_frame(kind, 1, bytes(size))
    with pytest.raises(LocalProtocolError, match="EMC-1423"):
        encode_frame(kind, 1, bytes(size + 1))


def test_error_round_trips_and_is_cut() -> None:
    ((_, _, payload),) = split_frames(encode_error(1, "EMC-1601", "no model é"))
    error = decode_error(payload)
    assert (type(error), error.code, error.detail) == (StatedError, "EMC-1601", "no model é")
    ((_, _, payload),) = split_frames(encode_error(1, "EMC-1601", "é" * 5000))
    assert len(decode_error(payload).detail.encode()) <= DETAIL_BYTES
    assert decode_error(payload).detail.startswith("ééé")


@pytest.mark.parametrize("payload", [b"", b"EMC-", b"emc-1601", b"EMC-16o1x", b"EMC-1601\xff", b"\xff" * 8])
def test_error_malformed_raises(payload: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match="EMC-1420"):
        decode_error(payload)


@pytest.mark.parametrize("code", ["", "EMC-16", "EMC-16011", "1601"])
def test_error_without_a_code_cannot_be_made(code: str) -> None:
    with pytest.raises(LocalProtocolError):
        encode_error(1, code, "")


def test_window_all_of_it_can_be_sent_and_no_more() -> None:
    sender = receiver = WINDOW_BYTES
    sent = 0
    while size := piece_bytes(sender, 10**9):
        sender -= size + FRAME_COST
        receiver = charge(receiver, bytes(size))
        sent += size
    assert WINDOW_BYTES - PIECE_BYTES - FRAME_COST * 4 <= sent < WINDOW_BYTES
    assert receiver == sender >= 0
    with pytest.raises(RemoteProtocolError, match="EMC-1422"):
        charge(receiver, bytes(PIECE_BYTES))


def test_window_empty_frames_cost_too() -> None:
    credit = WINDOW_BYTES
    for _ in range(WINDOW_BYTES // FRAME_COST):
        credit = charge(credit, b"")
    with pytest.raises(RemoteProtocolError, match="EMC-1422"):
        charge(credit, b"")


@pytest.mark.parametrize("left", [1, 10_000, PIECE_BYTES, PIECE_BYTES + 1])
def test_window_pieces_are_never_cut_short(left: int) -> None:
    size = min(left, PIECE_BYTES)
    assert piece_bytes(size + FRAME_COST, left) == size
    assert piece_bytes(size + FRAME_COST - 1, left) == 0


def test_window_credit_comes_back_when_half_is_consumed() -> None:
    credit, consumed = WINDOW_BYTES, 0
    for _ in range(100):
        assert piece_bytes(credit, 10_000) == 10_000
        credit -= 10_000 + FRAME_COST
        consumed += 10_000 + FRAME_COST
        if is_credit_due(consumed):
            ((_, _, payload),) = split_frames(encode_window(1, consumed))
            credit, consumed = grant(credit, payload), 0


@pytest.mark.parametrize("payload", [b"", b"\0\0\0\0", b"\0\0\0", b"\xff\xff\xff\xff", struct.pack("!I", 1)])
def test_window_credit_that_was_not_spent_raises(payload: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match=r"EMC-142[02]"):
        grant(WINDOW_BYTES, payload)


def test_call_and_answer_round_trip() -> None:
    ((_, _, call),) = split_frames(encode_call(3, b"meta", b"body"))
    assert decode_call(call) == (b"meta", b"body")
    ((_, _, answer),) = split_frames(encode_answer(3, b"head", b"body", b"end"))
    assert decode_answer(answer) == (b"head", b"body", b"end")


@pytest.mark.parametrize("payload", [b"", b"\0\0\0", b"\0\0\0\5meta", b"\xff\xff\xff\xff"])
def test_call_of_parts_that_do_not_fit_raises(payload: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match="EMC-1420"):
        decode_call(payload)


@pytest.mark.parametrize("payload", [bytes(7), b"\0\0\0\1\0\0\0\0", b"\xff" * 8, b"\0\0\0\2\0\0\0\2abc"])
def test_answer_of_parts_that_do_not_fit_raises(payload: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match="EMC-1420"):
        decode_answer(payload)


def test_parts_over_their_bound_raise() -> None:
    body = bytes(INLINE_BYTES + 1)
    with pytest.raises(RemoteProtocolError, match="EMC-1423"):
        decode_call(struct.pack("!I", 0) + body)
    with pytest.raises(RemoteProtocolError, match="EMC-1423"):
        decode_call(struct.pack("!I", META_BYTES + 1) + bytes(META_BYTES + 1))
    with pytest.raises(RemoteProtocolError, match="EMC-1423"):
        decode_answer(struct.pack("!II", 0, 0) + body)
    with pytest.raises(RemoteProtocolError, match="EMC-1423"):
        decode_answer(struct.pack("!II", META_BYTES + 1, 0) + bytes(META_BYTES + 1))
    for meta, inline in ((b"", body), (bytes(META_BYTES + 1), b"")):
        with pytest.raises(LocalProtocolError, match="EMC-1423"):
            encode_call(1, meta, inline)
        with pytest.raises(LocalProtocolError, match="EMC-1423"):
            encode_answer(1, meta, inline, b"")
        with pytest.raises(LocalProtocolError, match="EMC-1423"):
            encode_answer(1, b"", inline, meta)


def test_session_messages_are_taken_in_bounded_pieces() -> None:
    session = Session()
    for _ in range(10):
        session.send_control(bytes(1000))
    assert len(session.take_message(2500)) == 3 * 1009
    assert session.outbox_bytes == 7 * 1009
    assert len(session.take_message()) == 7 * 1009
    assert session.take_message() == b""
    assert session.outbox_bytes == 0


def test_session_controls_that_nobody_takes_end_it() -> None:
    session = HubSession()
    message = encode_frame(FrameType.CONTROL, 0, b"x")
    for _ in range(CONTROLS_MAX):
        session.receive(message)
    with pytest.raises(RemoteProtocolError, match="EMC-1423"):
        session.receive(message)


def test_session_large_controls_that_nobody_takes_end_it() -> None:
    session = HubSession()
    message = encode_frame(FrameType.CONTROL, 0, bytes(CONTROL_BYTES))
    for _ in range(32):
        session.receive(message)
    assert session.take_control() == bytes(CONTROL_BYTES)
    session.receive(message)
    with pytest.raises(RemoteProtocolError, match="EMC-1423"):
        session.receive(message)


def test_session_leave_is_said_once() -> None:
    session = Session()
    session.leave()
    session.leave()
    assert session.take_message() == encode_frame(FrameType.GOAWAY, 0)
