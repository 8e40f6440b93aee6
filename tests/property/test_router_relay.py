"""Whatever a node sends, however slowly it is taken, and whenever the hub cancels: what passes is what was sent.

The node's receipt is over exactly the bytes that it sent; so the hub must get all of them before it
gets the receipt, or no receipt at all.
"""

from __future__ import annotations

from typing import Any

import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from emcd.errors import RecoverableError
from emcd.proto.control import RoutedMeta, encode
from emcd.proto.tunnel import PIECE_BYTES
from emcd.proto.tunnel_hub import HubCall
from emcd.testing import make_key
from emcd_router.relay import CallRelay
from emcd_router.room import NodeRoom

HUB, NODE = make_key("hub").address, make_key("node").address


class Node:
    """The node's tunnel: says its script, one event at a time, each after so many steps of the loop."""

    def __init__(self, script: list[tuple[int, Any]], nursery: trio.Nursery) -> None:
        self.script = script
        self.nursery = nursery
        self.call = HubCall(1, None, None, 0)
        self.sent = b""
        self.cancelled = self.dropped = False

    def submit(self, meta: bytes, body: bytes, on_end: Any, *, max_bytes: int, on_data: Any) -> HubCall:
        assert (meta, body) == (b"meta", b"body")
        self.call.on_end, self.call.on_data = on_end, on_data
        self.nursery.start_soon(self._play)
        return self.call

    async def _play(self) -> None:
        call = self.call
        for steps, event in self.script:
            for _ in range(steps):
                await trio.lowlevel.checkpoint()
            if event == "head":
                call.head = b"head"
            elif event == "end":
                call.end = b"receipt"
            elif event == "error":
                call.error = RecoverableError("EMC-1427", "the handler failed")
            elif not self.cancelled:  # a node that was cancelled sends no more, but its last word
                call.chunks.append(event)
                self.sent += event
            handler = call.on_end if event in ("end", "error") else call.on_data
            if handler is not None:
                handler(call)

    def take(self, call: HubCall) -> bytes:
        data = b"".join(call.chunks)
        call.chunks.clear()
        return data

    def cancel(self, call: HubCall) -> None:
        self.cancelled = True

    def drop(self, call: HubCall) -> None:
        self.dropped = True
        call.on_end = call.on_data = None


class Upstream:
    """The hub's end of the call; takes each piece after so many steps of the loop."""

    def __init__(self, pauses: list[int]) -> None:
        self.meta = encode(RoutedMeta(NODE, b"meta"))
        self.body = b"body"
        self.pauses = pauses
        self.heads: list[bytes] = []
        self.got = b""
        self.ends: list[bytes] = []

    async def _wait(self) -> None:
        for _ in range(self.pauses.pop() if self.pauses else 0):
            await trio.lowlevel.checkpoint()

    def release_body(self) -> None:
        self.body = b""

    async def start(self, head: bytes) -> None:
        await self._wait()
        assert not self.heads
        self.heads.append(head)

    async def send(self, piece: bytes) -> None:
        """Whole, or not at all when it is cancelled."""
        assert 0 < len(piece) <= PIECE_BYTES
        assert self.heads
        await self._wait()
        self.got += piece

    async def finish(self, end: bytes) -> None:
        await self._wait()
        assert self.heads
        assert not self.ends
        self.ends.append(end)

    async def answer(self, head: bytes, body: bytes, end: bytes) -> None:
        await self._wait()
        assert not self.heads
        self.heads.append(head)
        self.got += body
        self.ends.append(end)


class Desk:
    """Knows one node."""

    def __init__(self, node: Any) -> None:
        self.node = node

    def find(self, node: str, hub: str) -> Any:
        return self.node if (node, hub) == (NODE, HUB) else None


class Held:
    def __init__(self, peer: Node) -> None:
        self.peer = peer
        self.room = NodeRoom(0, 0)
        self.room.set_capacity(1)


PIECES = st.one_of(st.binary(min_size=1, max_size=20), st.just(bytes(PIECE_BYTES + 7)))


async def test_body_is_held_until_the_node_has_it() -> None:
    async with trio.open_nursery() as nursery:
        node = Node([], nursery)
        node.call.body_left = memoryview(b"body")
        held, upstream = Held(node), Upstream([])
        held.room._bytes_left = 10
        call: Any = upstream
        desk: Any = Desk(held)
        nursery.start_soon(CallRelay(desk).serve, HUB, call)
        await trio.testing.wait_all_tasks_blocked()
        while_stalled = (held.room._bytes_left, upstream.body)
        node.call.body_left, node.call.head = None, b"head"
        assert node.call.on_data is not None
        node.call.on_data(node.call)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert while_stalled == (6, b"body")
    assert (held.room._bytes_left, upstream.body) == (10, b"")


SCRIPTS = st.tuples(
    st.lists(st.tuples(st.integers(0, 3), PIECES), max_size=6), st.sampled_from(["end", "error", "silence"])
)


@settings(max_examples=200, deadline=None)
@given(SCRIPTS, st.lists(st.integers(0, 4), max_size=12), st.none() | st.integers(0, 40), st.integers(0, 3))
def test_receipt_passes_after_all_that_it_is_over_and_nothing_else_passes(
    script: tuple[list[tuple[int, Any]], str], pauses: list[int], cancel_at: int | None, steps: int
) -> None:
    pieces, last = script
    if last == "silence" and cancel_at is None:
        cancel_at = 40
    events = [(steps, "head"), *pieces, *([] if last == "silence" else [(steps, last)])]

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            node, upstream = Node(events, nursery), Upstream(list(pauses))
            held = Held(node)
            relay: Any = CallRelay(Desk(held))  # type: ignore[arg-type]
            error: RecoverableError | None = None
            with trio.CancelScope() as scope:

                async def cancel(after: int) -> None:
                    for _ in range(after):
                        await trio.lowlevel.checkpoint()
                    scope.cancel()

                if cancel_at is not None:
                    nursery.start_soon(cancel, cancel_at)
                try:
                    await relay.serve(HUB, upstream)
                except RecoverableError as exc:
                    error = exc
            nursery.cancel_scope.cancel()
        assert node.sent.startswith(upstream.got)
        if upstream.ends:
            assert upstream.ends == [b"receipt"]
            assert upstream.got == node.sent
            assert not node.dropped
        if scope.cancelled_caught:
            assert node.cancelled
            assert upstream.ends or last != "end" or node.call.end is None or node.dropped
        elif error is not None:
            assert last == "error"
            assert error.code == "EMC-1427"
            assert not upstream.ends
        else:
            assert upstream.ends
        assert held.room.in_flight == 0
        assert node.call.on_data is None

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0.0))
