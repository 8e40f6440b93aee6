"""Two sessions joined by a link that cuts anywhere, drops what is under way, and comes back."""

from __future__ import annotations

from collections import deque

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from emcd.proto.tunnel import PIECE_BYTES, WINDOW_BYTES
from emcd.proto.tunnel_hub import HubCall, HubSession, HubState
from emcd.proto.tunnel_node import NodeCall, NodeSession, NodeState
from emcd.proto.tunnel_resume import HEADER, KEPT_BYTES, MessageLog

CALLS = 5


PATTERN = bytes(range(251)) * (4 * WINDOW_BYTES // 251)


def text(seed: int, start: int, size: int) -> bytes:
    """Bytes that tell whose they are and where they stand."""
    first = (seed * 31 + start) % 251
    return (PATTERN * (1 + size // len(PATTERN)))[first : first + size]


class Side:
    """One side's log, and what it has on the link towards the other."""

    def __init__(self, session: HubSession | NodeSession) -> None:
        self.session = session
        self.log = MessageLog()
        self.under_way: deque[bytes] = deque()
        self.again: deque[bytes] = deque()

    def send(self, max_bytes: int) -> None:
        if self.again:
            self.under_way.append(self.log.stamp_again(self.again.popleft()))
        elif not self.log.is_full and (frames := self.session.take_message(max_bytes)):
            self.under_way.append(self.log.stamp(frames))


class ResumeMachine(RuleBasedStateMachine):
    """Calls of a hub at a node, over a liar of a link."""

    def __init__(self) -> None:
        super().__init__()
        self.hub_session, self.node_session = HubSession(CALLS), NodeSession(CALLS)
        self.hub, self.node = Side(self.hub_session), Side(self.node_session)
        self.calls: dict[int, HubCall] = {}
        self.bodies: dict[int, int] = {}
        self.incoming: dict[int, NodeCall] = {}
        self.served: set[int] = set()
        self.sent: dict[int, int] = {}
        self.read: dict[int, bytes] = {}
        self.controls = [0, 0]

    # What hub and node do.

    @precondition(lambda self: len(self.hub_session.calls) < CALLS)
    @rule(size=st.sampled_from([0, 10, PIECE_BYTES, WINDOW_BYTES * 2]))
    def open(self, size: int) -> None:
        number = len(self.bodies) + 1
        call = self.hub_session.open(b"meta", text(number, 0, size), None, lambda call: None)
        assert call.number == number
        self.calls[number], self.bodies[number] = call, size
        self.read[number], self.sent[number] = b"", 0

    @precondition(lambda self: self.incoming)
    @rule(data=st.data(), size=st.sampled_from([1, 5000, PIECE_BYTES * 2]))
    def stream(self, data: st.DataObject, size: int) -> None:
        number = data.draw(st.sampled_from(sorted(self.incoming)))
        call = self.incoming[number]
        if call.state is NodeState.READY:
            self.node_session.start(call, b"head %d" % number)
        if call.state is NodeState.STREAMING:
            piece = memoryview(text(number, self.sent[number], size))
            self.sent[number] += self.node_session.send_piece(call, piece)

    @precondition(lambda self: self.incoming)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.incoming)))
        call = self.incoming.pop(number)
        if call.state is NodeState.READY and not self.sent[number]:
            self.node_session.answer(call, b"head %d" % number, b"", b"end %d" % number)
        else:
            self.node_session.finish(call, b"end %d" % number)

    @precondition(lambda self: self.calls)
    @rule(data=st.data())
    def take(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.calls)))
        self.read[number] += self.hub_session.take(self.calls[number])

    @precondition(lambda self: self.calls)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        self.hub_session.cancel(self.calls[data.draw(st.sampled_from(sorted(self.calls)))])

    @rule(ours=st.booleans())
    def control(self, ours: bool) -> None:
        side = self.hub_session if ours else self.node_session
        side.send_control(b"%d" % self.controls[ours])
        self.controls[ours] += 1

    # What the link does.

    @rule(limit=st.sampled_from([1, 1000, 10**6]), ours=st.booleans())
    def send(self, limit: int, ours: bool) -> None:
        (self.hub if ours else self.node).send(limit)

    @rule(ours=st.booleans())
    def acknowledge(self, ours: bool) -> None:
        side = self.hub if ours else self.node
        side.under_way.append(side.log.ack())

    @rule()
    def deliver_to_node(self) -> None:
        if not self.hub.under_way:
            return
        message = self.hub.under_way.popleft()
        if self.node.log.accept(message):
            self.node_session.receive(message, HEADER.size)
        while self.node_session.ready:
            call = self.node_session.ready.popleft()
            assert call.number not in self.served
            self.served.add(call.number)
            assert self.node_session.take_body(call) == text(call.number, 0, self.bodies[call.number])
            if call.state is not NodeState.CLOSED:
                self.incoming[call.number] = call

    @rule()
    def deliver_to_hub(self) -> None:
        if self.node.under_way:
            message = self.node.under_way.popleft()
            if self.hub.log.accept(message):
                self.hub_session.receive(message, HEADER.size)

    @rule()
    def cut_and_resume(self) -> None:
        """Everything under way is lost; both say what they have."""
        hub_has, node_has = self.hub.log.received, self.node.log.received
        for side, has in ((self.hub, node_has), (self.node, hub_has)):
            side.under_way.clear()
            side.again = deque(side.log.resume(has))

    # What must hold.

    @invariant()
    def memory_is_bounded(self) -> None:
        for side in (self.hub, self.node):
            assert side.log.kept_bytes < KEPT_BYTES + 10**6
        for call in self.hub_session.calls.values():
            assert sum(map(len, call.chunks)) <= WINDOW_BYTES

    @invariant()
    def what_was_read_is_what_was_sent(self) -> None:
        for number, read in self.read.items():
            assert len(read) <= self.sent[number]
            assert read[-100:] == text(number, len(read) - len(read[-100:]), len(read[-100:]))

    def teardown(self) -> None:
        """Let everything end over a link that works again: every call has its answer, once."""
        self.cut_and_resume()
        for _ in range(2000):
            for number in list(self.incoming):
                call = self.incoming.pop(number)
                if call.state is NodeState.READY:
                    self.node_session.start(call, b"head %d" % number)
                self.node_session.finish(call, b"end %d" % number)
            for side in (self.hub, self.node):
                side.send(10**6)
                side.under_way.append(side.log.ack())
            while self.hub.under_way or self.node.under_way:
                self.deliver_to_node()
                self.deliver_to_hub()
            if (
                not self.hub_session.calls
                and not (self.hub.session.has_news or self.hub.again)
                and not (self.node.session.has_news or self.node.again)
            ):
                break
        assert not (self.hub_session.calls or self.node_session.calls)
        for number, ended in self.calls.items():
            self.read[number] += self.hub_session.take(ended)
            assert ended.state is HubState.ENDED
            if ended.error is None:
                assert (ended.head, ended.end) == (b"head %d" % number, b"end %d" % number)
            else:
                assert ended.cancelled
            assert self.read[number] == text(number, 0, self.sent[number])
        assert list(self.node_session.controls) == [b"%d" % n for n in range(self.controls[True])]
        assert list(self.hub_session.controls) == [b"%d" % n for n in range(self.controls[False])]
        for ours, theirs in ((self.hub, self.node), (self.node, self.hub)):
            theirs.log.accept(ours.log.ack())
        assert self.hub.log.kept_bytes == self.node.log.kept_bytes == 0


TestResumeMachine = ResumeMachine.TestCase
TestResumeMachine.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
