"""Tunnel sessions under any schedule of calls, pieces and cancellations, and under garbage."""

from __future__ import annotations

import contextlib
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from emcd.errors import RemoteProtocolError
from emcd.proto.tunnel import (
    META_BYTES,
    PIECE_BYTES,
    WINDOW_BYTES,
    FrameType,
    decode_error,
    encode_error,
    encode_frame,
    split_frames,
)
from emcd.proto.tunnel_auth import HubHandshake, NodeHandshake
from emcd.proto.tunnel_hub import HubCall, HubSession
from emcd.proto.tunnel_node import NodeCall, NodeSession, NodeState

CALL_KINDS = [k for k in FrameType if k not in (FrameType.CONTROL, FrameType.GOAWAY)]
FRAMES = st.one_of(
    st.tuples(
        st.sampled_from([FrameType.OPEN, FrameType.HEAD, FrameType.END, FrameType.DATA]),
        st.binary(max_size=50),
    ),
    st.tuples(st.sampled_from([FrameType.CANCEL, FrameType.BODY_END]), st.just(b"")),
    st.tuples(st.just(FrameType.WINDOW), st.integers(0, 2**18).map(lambda n: n.to_bytes(4, "big"))),
    st.tuples(st.just(FrameType.ERROR), st.binary(max_size=20).map(lambda b: b"EMC-1427" + b)),
)
STREAM = st.lists(st.tuples(FRAMES, st.integers(1, 4)), max_size=20).map(
    lambda rows: b"".join(encode_frame(kind, call, payload) for (kind, payload), call in rows)
)


@given(st.lists(st.tuples(st.sampled_from(CALL_KINDS), st.integers(1, 2**32 - 1), st.binary(max_size=4))))
def test_frames_round_trip(rows: list[tuple[FrameType, int, bytes]]) -> None:
    kept = [
        (kind, call, b"" if kind in (FrameType.CANCEL, FrameType.BODY_END) else payload)
        for kind, call, payload in rows
    ]
    assert list(split_frames(b"".join(encode_frame(*row) for row in kept))) == kept


@given(st.binary(max_size=400) | STREAM)
@settings(max_examples=300)
def test_garbage_ends_a_session_by_its_own_error_or_passes(message: bytes) -> None:
    hub = HubSession()
    for _ in range(3):
        hub.open(b"", b"")
    with contextlib.suppress(RemoteProtocolError):
        hub.receive(message)
    node = NodeSession()
    with contextlib.suppress(RemoteProtocolError):
        node.receive(message)
    assert len(node.calls) <= 4
    assert node.outbox_bytes < 10_000


@given(STREAM, st.data())
def test_message_cut_anywhere_is_refused_or_a_prefix(message: bytes, data: st.DataObject) -> None:
    whole = list(split_frames(message))
    cut = message[: data.draw(st.integers(0, len(message)))]
    try:
        part = list(split_frames(cut))
    except RemoteProtocolError:
        return
    assert part == whole[: len(part)]


@given(st.from_regex(r"\AEMC-[0-9]{4}\Z"), st.text(max_size=2000))
def test_error_round_trips(code: str, detail: str) -> None:
    ((_, _, payload),) = split_frames(encode_error(1, code, detail))
    error = decode_error(payload)
    assert error.code == code
    assert detail.encode("utf-8", "replace").decode().startswith(error.detail)


@given(st.binary(max_size=300))
def test_handshake_garbage_is_refused(message: bytes) -> None:
    from emcd.keys import SigningKey
    from emcd.proto.eip712 import Domain
    from emcd.types import ParticipantRole

    key = SigningKey(b"\1" * 32)
    domain = Domain(1, key.address)
    hub = HubHandshake(key, domain, bytes(32))
    node = NodeHandshake(key, domain, b"\1" * 32, ParticipantRole.COMPUTE, None)
    node.prove(hub.hello(), 0)
    refused = 0
    for attempt in (
        lambda: hub.check(message, 0, frozenset({ParticipantRole.COMPUTE})),
        lambda: node.prove(message, 0),
        lambda: node.check(message, 0),
    ):
        try:
            attempt()
        except RemoteProtocolError:
            refused += 1
    assert refused == 3


class TunnelMachine(RuleBasedStateMachine):
    """Both sides, with the wires between them as queues that a rule empties message by message."""

    def __init__(self) -> None:
        super().__init__()
        self.hub = HubSession(max_calls=6)
        self.node = NodeSession(max_calls=6)
        self.calls: dict[int, HubCall] = {}
        self.bodies: dict[int, bytes] = {}
        self.incoming: dict[int, NodeCall] = {}
        self.sent: Counter[int] = Counter()
        self.read: Counter[int] = Counter()

    @precondition(lambda self: len(self.hub.calls) < 6)
    @rule(size=st.sampled_from([0, 10, PIECE_BYTES, WINDOW_BYTES * 2]))
    def open(self, size: int) -> None:
        body = bytes(size)
        call = self.hub.open(b"meta", body, None, lambda call: None)
        self.calls[call.number] = call
        self.bodies[call.number] = body

    @rule(limit=st.sampled_from([1, 1000, 10**6]))
    def carry_to_node(self, limit: int) -> None:
        if message := self.hub.take_message(limit):
            self.node.receive(message)
        while self.node.ready:
            call = self.node.ready.popleft()
            if call.state is not NodeState.CLOSED:
                assert self.node.take_body(call) == self.bodies[call.number]
                self.incoming[call.number] = call

    @rule(limit=st.sampled_from([1, 1000, 10**6]))
    def carry_to_hub(self, limit: int) -> None:
        if message := self.node.take_message(limit):
            self.hub.receive(message)

    @precondition(lambda self: self.incoming)
    @rule(data=st.data(), size=st.sampled_from([0, 1, 5000, WINDOW_BYTES]))
    def answer(self, data: st.DataObject, size: int) -> None:
        call = self.incoming[data.draw(st.sampled_from(sorted(self.incoming)))]
        if call.state is NodeState.READY:
            self.node.start(call, b"head")
        sent = self.node.send_piece(call, memoryview(bytes(size)))
        if call.state is not NodeState.CLOSED:
            self.sent[call.number] += sent

    @precondition(lambda self: self.incoming)
    @rule(data=st.data(), fails=st.booleans())
    def finish(self, data: st.DataObject, fails: bool) -> None:
        call = self.incoming.pop(data.draw(st.sampled_from(sorted(self.incoming))))
        if fails or call.state is NodeState.READY:
            self.node.fail(call, "EMC-1427", "x")
        else:
            self.node.finish(call, b"end")

    @precondition(lambda self: self.calls)
    @rule(data=st.data())
    def read_some(self, data: st.DataObject) -> None:
        call = self.calls[data.draw(st.sampled_from(sorted(self.calls)))]
        self.read[call.number] += len(self.hub.take(call))

    @precondition(lambda self: self.calls)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        self.hub.drop(self.calls.pop(data.draw(st.sampled_from(sorted(self.calls)))))

    @invariant()
    def what_waits_is_bounded(self) -> None:
        for call in self.hub.calls.values():
            assert sum(map(len, call.chunks)) <= WINDOW_BYTES
        assert self.hub.outbox_bytes == sum(map(len, self.hub.outbox))
        assert self.node.outbox_bytes == sum(map(len, self.node.outbox))
        assert self.node.outbox_bytes <= 7 * (2 * WINDOW_BYTES + META_BYTES) + 50 * 1024

    def teardown(self) -> None:
        """Let everything end: no call is left behind, and nothing that was sent is lost."""
        for _ in range(10_000):
            if not (self.hub.has_news or self.node.has_news or self.hub.calls):
                break
            self.carry_to_node(10**6)
            self.carry_to_hub(10**6)
            for incoming in self.incoming.values():
                self.node.fail(incoming, "EMC-1427", "x")
        assert not (self.hub.calls or self.node.calls)
        for number, call in self.calls.items():
            self.read[number] += len(self.hub.take(call))
            assert self.read[number] == self.sent[number]


TestTunnelMachine = TunnelMachine.TestCase
TestTunnelMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
