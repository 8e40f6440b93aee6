"""Hub and node sessions against each other, and against peers that break the order."""

from __future__ import annotations

from typing import Any

import pytest

from emcd.errors import LocalProtocolError, RecoverableError, RemoteProtocolError
from emcd.proto.tunnel import (
    INLINE_BYTES,
    META_BYTES,
    PIECE_BYTES,
    WINDOW_BYTES,
    FrameType,
    encode_answer,
    encode_call,
    encode_error,
    encode_frame,
    split_frames,
)
from emcd.proto.tunnel_hub import HubCall, HubSession, HubState
from emcd.proto.tunnel_node import NodeCall, NodeSession, NodeState

T = FrameType


def frame(kind: FrameType, call: int = 1, payload: bytes = b"") -> bytes:
    return encode_frame(kind, call, payload)


def pump(hub: HubSession, node: NodeSession) -> None:
    """Carry all messages until both are silent."""
    while (to_node := hub.take_message()) or node.has_news:
        if to_node:
            node.receive(to_node)
        if to_hub := node.take_message():
            hub.receive(to_hub)


def ignore(call: HubCall) -> None:
    """A reader of a stream that takes its data when it wants."""


def opened(
    body: bytes = b"body", on_data: Any = ignore, max_bytes: int = 0
) -> tuple[HubSession, HubCall, NodeSession, NodeCall]:
    hub, node = HubSession(), NodeSession()
    call = hub.open(b"meta", body, None, on_data, max_bytes)
    pump(hub, node)
    return hub, call, node, node.ready.popleft()


def test_call_whole_life_is_seen_on_both_sides() -> None:
    hub, call, node, incoming = opened()
    assert (incoming.meta, node.take_body(incoming)) == (b"meta", b"body")
    node.start(incoming, b"head")
    assert node.send_piece(incoming, memoryview(b"one")) == 3
    node.send_piece(incoming, memoryview(b"two"))
    node.finish(incoming, b"end")
    assert hub.receive(node.take_message()) == [call]
    assert call.head == b"head"
    assert call.chunks == [b"one", b"two"]
    assert (hub.take(call), hub.take(call)) == (b"onetwo", b"")
    assert call.end == b"end"
    assert not (hub.calls or node.calls)


@pytest.mark.parametrize("size", [0, 1, PIECE_BYTES, WINDOW_BYTES - 1, WINDOW_BYTES, 10 * WINDOW_BYTES + 7])
def test_call_body_of_any_size_arrives_whole(size: int) -> None:
    body = bytes(n % 251 for n in range(size))
    hub, _, node, incoming = opened(body)
    assert node.take_body(incoming) == body
    assert not hub.has_news


def test_body_that_is_released_makes_room_for_others_once() -> None:
    hub, node = HubSession(), NodeSession(bodies_bytes=10)
    calls = [hub.open(b"meta", bytes(6)), hub.open(b"meta", bytes(4)), hub.open(b"meta", bytes(1))]
    pump(hub, node)
    assert calls[2].error is not None
    first = node.ready.popleft()
    for _ in range(2):
        node.release_body(first)
    calls = [hub.open(b"meta", bytes(6)), hub.open(b"meta", bytes(1))]
    pump(hub, node)
    assert [call.error is None for call in calls] == [True, False]
    node.fail(first, "EMC-1427", "")
    node.release_body(first)
    late = hub.open(b"meta", bytes(1))
    pump(hub, node)
    assert late.error is not None


def test_call_body_waits_for_the_window() -> None:
    hub = HubSession()
    hub.open(b"meta", bytes(10 * WINDOW_BYTES))
    sent = 0
    while message := hub.take_message(1000):
        assert len(message) < PIECE_BYTES + 1000
        sent += len(message)
    assert WINDOW_BYTES - PIECE_BYTES < sent < WINDOW_BYTES + 1000
    assert not hub.has_news


def test_call_large_body_holds_up_no_small_one() -> None:
    hub = HubSession()
    large = [hub.open(b"", bytes(WINDOW_BYTES)).number for _ in range(2)]
    small = hub.open(b"", b"x").number
    kinds = [(kind, number) for kind, number, _ in split_frames(hub.take_message(PIECE_BYTES))]
    assert kinds == [(T.OPEN, large[0]), (T.OPEN, large[1]), (T.CALL, small), (T.BODY, large[0])]
    assert [number for _, number, _ in split_frames(hub.take_message(2 * PIECE_BYTES))] == large[::-1]


@pytest.mark.parametrize("size", [0, 1, INLINE_BYTES])
def test_call_answer_in_one_frame_arrives_whole(size: int) -> None:
    hub, call, node, incoming = opened(on_data=None, max_bytes=INLINE_BYTES)
    assert node.answer(incoming, b"head", bytes(size), b"end")
    assert len(node.outbox) == 1
    assert hub.receive(node.take_message()) == [call]
    assert (call.head, call.body(), call.end, call.error) == (b"head", bytes(size), b"end", None)
    assert not (hub.calls or node.calls)


def test_call_answer_too_large_for_one_frame_says_so() -> None:
    _, _, node, incoming = opened()
    assert not node.answer(incoming, b"head", bytes(INLINE_BYTES + 1), b"end")
    assert not node.has_news
    node.start(incoming, b"head")


def test_call_collected_gives_the_window_back_by_itself() -> None:
    hub, call, node, incoming = opened(on_data=None, max_bytes=10 * WINDOW_BYTES)
    node.start(incoming, b"head")
    left = memoryview(bytes(10 * WINDOW_BYTES))
    while left:
        sent = node.send_piece(incoming, left)
        assert sent
        left = left[sent:]
        pump(hub, node)
    node.finish(incoming, b"end")
    pump(hub, node)
    assert call.body() == bytes(10 * WINDOW_BYTES)


@pytest.mark.parametrize("inline", [True, False])
def test_call_collected_over_its_bound_is_cancelled(inline: bool) -> None:
    hub, call, node, incoming = opened(on_data=None, max_bytes=999)
    if inline:
        node.answer(incoming, b"", bytes(1000), b"end")
    else:
        node.start(incoming, b"")
        node.send_piece(incoming, memoryview(bytes(1000)))
    assert hub.receive(node.take_message()) == [call]
    assert call.error is not None
    assert call.error.code == "EMC-1428"
    assert call.body() == b""
    pump(hub, node)
    assert incoming.cancelled is not inline


def test_call_data_waits_for_the_reader() -> None:
    hub, call, node, incoming = opened()
    node.start(incoming, b"head")
    data = memoryview(bytes(10 * WINDOW_BYTES))
    sent = node.send_piece(incoming, data)
    pump(hub, node)
    assert 0 < sent < WINDOW_BYTES
    assert node.send_piece(incoming, data[sent:]) == 0
    assert len(hub.take(call)) == sent
    woken: list[int] = []
    incoming.notify = lambda: woken.append(1)
    pump(hub, node)
    assert woken
    assert node.send_piece(incoming, data[sent:]) > 0


def test_call_error_of_the_node_ends_it() -> None:
    hub, call, node, incoming = opened()
    node.fail(incoming, "EMC-1601", "no such model")
    node.fail(incoming, "EMC-1602", "again")
    pump(hub, node)
    assert call.error is not None
    assert (call.error.code, call.error.detail) == ("EMC-1601", "no such model")
    assert not (hub.calls or node.calls)


def test_call_cancelled_stays_open_until_the_node_ends_it() -> None:
    hub, call, node, incoming = opened()
    node.start(incoming, b"head")
    node.send_piece(incoming, memoryview(b"one"))
    woken: list[int] = []
    incoming.notify = lambda: woken.append(1)
    hub.cancel(call)
    hub.cancel(call)
    pump(hub, node)
    assert incoming.cancelled
    assert woken == [1]
    assert hub.calls
    assert node.calls
    node.finish(incoming, b"receipt over one")
    pump(hub, node)
    assert (call.head, hub.take(call), call.end) == (b"head", b"one", b"receipt over one")
    assert not (hub.calls or node.calls)


def test_call_cancelled_while_its_answer_is_under_way_still_gets_it() -> None:
    hub, call, node, incoming = opened()
    node.start(incoming, b"head")
    node.send_piece(incoming, memoryview(b"data"))
    node.finish(incoming, b"end")
    hub.cancel(call)
    pump(hub, node)
    assert (hub.take(call), call.end) == (b"data", b"end")
    assert not (hub.calls or node.calls)


def test_call_dropped_throws_away_all_but_its_end() -> None:
    hub, call, node, incoming = opened()
    node.start(incoming, b"head")
    node.send_piece(incoming, memoryview(b"data"))
    node.finish(incoming, b"end")
    hub.drop(call)
    pump(hub, node)
    assert not call.chunks
    assert (call.head, call.end) == (b"head", b"end")
    assert not (hub.calls or node.calls)


def test_call_dropped_after_it_was_cancelled_is_cancelled_once() -> None:
    hub, call, node, _ = opened()
    hub.cancel(call)
    hub.drop(call)
    assert [kind for kind, _, _ in split_frames(hub.take_message())] == [T.CANCEL]


@pytest.mark.parametrize("size", [INLINE_BYTES + 1, 2 * WINDOW_BYTES])
def test_call_cancelled_before_its_body_is_there_is_ended_by_the_session(size: int) -> None:
    hub, node = HubSession(), NodeSession()
    call = hub.open(b"meta", bytes(size))
    node.receive(hub.take_message(1000))
    hub.cancel(call)
    pump(hub, node)
    assert call.error is not None
    assert call.error.code == "EMC-1426"
    assert not (node.ready or hub.calls or node.calls or hub.has_news)


def test_call_ended_at_the_node_sends_nothing_more() -> None:
    _, _, node, incoming = opened()
    node.fail(incoming, "EMC-1427", "")
    node.take_message()
    node.start(incoming, b"late")
    assert node.send_piece(incoming, memoryview(b"late")) == 4
    assert node.answer(incoming, b"late", b"late", b"late")
    node.finish(incoming, b"late")
    assert node.outbox_bytes == 0


def test_call_ended_early_lets_late_body_frames_pass() -> None:
    hub, node = HubSession(), NodeSession(body_bytes=1000)
    call = hub.open(b"meta", bytes(5 * WINDOW_BYTES))
    pump(hub, node)
    assert call.error is not None
    assert call.error.code == "EMC-1428"
    assert not (hub.calls or node.calls)


def test_node_bodies_over_their_common_bound_are_refused() -> None:
    hub, node = HubSession(), NodeSession(bodies_bytes=100_000)
    one, two = hub.open(b"", bytes(60_000)), hub.open(b"", bytes(60_000))
    pump(hub, node)
    assert one.error is None
    assert two.error is not None
    assert two.error.code == "EMC-1424"
    node.fail(node.ready.popleft(), "EMC-1427", "")
    three = hub.open(b"", bytes(60_000))
    pump(hub, node)
    assert three.error is None


def test_node_calls_over_the_bound_are_refused() -> None:
    hub, node = HubSession(), NodeSession(max_calls=1)
    hub.open(b"", b"")
    two = hub.open(b"", b"")
    pump(hub, node)
    assert two.error is not None
    assert two.error.code == "EMC-1424"


def test_hub_calls_over_the_bound_are_not_opened() -> None:
    hub = HubSession(max_calls=1)
    hub.open(b"", b"")
    with pytest.raises(RecoverableError, match="EMC-1424"):
        hub.open(b"", b"")


def test_hub_meta_over_its_bound_leaves_no_call() -> None:
    hub = HubSession()
    with pytest.raises(LocalProtocolError, match="EMC-1423"):
        hub.open(bytes(META_BYTES + 1), b"")
    assert hub.calls == {}
    assert hub.open(b"", b"").number == 1


def test_leaving_hub_opens_no_call() -> None:
    hub = HubSession()
    hub.leave()
    with pytest.raises(RecoverableError, match="EMC-1425"):
        hub.open(b"", b"")


def test_leaving_node_refuses_what_crosses_and_finishes_what_it_has() -> None:
    hub, call, node, incoming = opened()
    node.leave()
    late = hub.open(b"", b"")
    node.receive(hub.take_message())
    node.start(incoming, b"head")
    node.finish(incoming, b"end")
    pump(hub, node)
    assert late.error is not None
    assert late.error.code == "EMC-1425"
    assert call.end == b"end"
    with pytest.raises(RecoverableError, match="EMC-1425"):
        hub.open(b"", b"")


@pytest.mark.parametrize(
    "frames",
    [
        [frame(T.DATA)],
        [frame(T.END)],
        [frame(T.HEAD), frame(T.HEAD)],
        [frame(T.OPEN)],
        [frame(T.BODY)],
        [frame(T.BODY_END)],
        [frame(T.CANCEL)],
        [frame(T.HEAD, 2)],
        [frame(T.WINDOW, 2, b"\0\0\0\1")],
        [frame(T.HEAD), frame(T.END), frame(T.DATA)],
        [frame(T.HEAD), frame(T.END), frame(T.END)],
        [frame(T.HEAD), encode_answer(1, b"", b"", b"")],
        [encode_answer(1, b"", b"", b""), frame(T.END)],
        [encode_call(1, b"", b"")],
        [encode_error(1, "EMC-1601", ""), frame(T.HEAD)],
        [encode_error(1, "EMC-1601", ""), encode_error(1, "EMC-1601", "")],
    ],
)
def test_hub_frames_out_of_order_end_the_session(frames: list[bytes]) -> None:
    hub = HubSession()
    hub.open(b"", b"")
    with pytest.raises(RemoteProtocolError, match="EMC-1421"):
        hub.receive(b"".join(frames))


@pytest.mark.parametrize(
    "frames",
    [
        [frame(T.OPEN, 2)],
        [frame(T.OPEN), frame(T.OPEN)],
        [frame(T.OPEN), frame(T.OPEN, 3)],
        [frame(T.BODY)],
        [frame(T.BODY_END)],
        [frame(T.CANCEL)],
        [frame(T.OPEN), frame(T.BODY_END), frame(T.BODY)],
        [frame(T.OPEN), frame(T.BODY_END), frame(T.BODY_END)],
        [frame(T.OPEN), frame(T.HEAD)],
        [frame(T.OPEN), frame(T.DATA)],
        [frame(T.OPEN), frame(T.END)],
        [frame(T.OPEN), encode_error(1, "EMC-1601", "")],
        [frame(T.OPEN), frame(T.CANCEL), frame(T.HEAD)],
        [encode_call(2, b"", b"")],
        [encode_call(1, b"", b""), encode_call(1, b"", b"")],
        [encode_call(1, b"", b""), frame(T.BODY)],
        [encode_call(1, b"", b""), frame(T.BODY_END)],
        [encode_call(1, b"", b""), frame(T.CANCEL), frame(T.CANCEL)],
        [encode_call(1, b"", b""), encode_answer(1, b"", b"", b"")],
    ],
)
def test_node_frames_out_of_order_end_the_session(frames: list[bytes]) -> None:
    node = NodeSession()
    with pytest.raises(RemoteProtocolError, match="EMC-1421"):
        node.receive(b"".join(frames))


def test_hub_data_over_the_window_ends_the_session() -> None:
    hub = HubSession()
    hub.open(b"", b"", None, ignore)
    hub.receive(frame(T.HEAD))
    with pytest.raises(RemoteProtocolError, match="EMC-1422"):
        hub.receive(frame(T.DATA, 1, bytes(PIECE_BYTES)) * 5)


def test_hub_data_over_the_window_of_a_dropped_call_ends_the_session() -> None:
    hub = HubSession()
    hub.drop(hub.open(b"", b""))
    hub.receive(frame(T.HEAD))
    with pytest.raises(RemoteProtocolError, match="EMC-1422"):
        hub.receive(frame(T.DATA, 1, bytes(PIECE_BYTES)) * 5)


def test_node_body_is_gathered_only_as_credit_is_given() -> None:
    node = NodeSession()
    node.receive(frame(T.OPEN))
    for _ in range(3):
        node.receive(frame(T.BODY, 1, bytes(PIECE_BYTES)))
    credit = [payload for kind, _, payload in split_frames(node.take_message()) if kind == T.WINDOW]
    assert credit


def test_node_answer_out_of_order_is_our_fault() -> None:
    _, _, node, incoming = opened()
    with pytest.raises(LocalProtocolError, match="EMC-1421"):
        node.send_piece(incoming, memoryview(b"x"))
    with pytest.raises(LocalProtocolError, match="EMC-1421"):
        node.finish(incoming, b"")
    node.start(incoming, b"")
    with pytest.raises(LocalProtocolError, match="EMC-1421"):
        node.start(incoming, b"")
    assert incoming.state is NodeState.STREAMING


def test_hub_cancel_after_the_end_says_nothing() -> None:
    hub, call, node, incoming = opened()
    node.start(incoming, b"")
    node.finish(incoming, b"")
    pump(hub, node)
    hub.cancel(call)
    assert call.state is HubState.ENDED
    assert hub.outbox_bytes == 0


@pytest.mark.parametrize("sizes", [(2,) * 70_000, (1, 30_000, 1), (PIECE_BYTES, 1, PIECE_BYTES), (5,)])
def test_collected_body_is_whole_and_small_pieces_are_joined(sizes: tuple[int, ...]) -> None:
    hub, call, _, _ = opened(on_data=None, max_bytes=1 << 20)
    hub.receive(frame(T.HEAD, 1, b"h"))
    pieces = [bytes([index % 251]) * size for index, size in enumerate(sizes)]

    for piece in pieces:
        hub.receive(frame(T.DATA, 1, piece))
    hub.receive(frame(T.END, 1, b"e"))

    assert call.body() == b"".join(pieces)
    assert type(call.body()) is bytes
    assert len(call.chunks) <= 2 * sum(map(len, pieces)) // PIECE_BYTES + 2
