"""Calls through real tunnels: many, slow, cancelled, cut."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trio

from emcd.errors import ConfigError, RecoverableError, RemoteProtocolError
from emcd.net.tunnel import HubCall, IncomingCall, TunnelLimits
from emcd.proto.tunnel import WINDOW_BYTES
from tests.support.net_world import WAIT_S
from tests.support.tunnel_proxy import TO_NODE, tunnel_proxy
from tests.support.tunnel_world import NODE, drop_control, hub_world, node_world, tunnel_world


async def until(condition: Callable[[], bool]) -> None:
    """Look until it is so; the caller has the deadline."""
    while not condition():
        await trio.sleep(0.01)


class Handler:
    """A node's handler that streams until it is stopped, and tells how that was."""

    def __init__(self, piece: bytes = b"x" * 1000, limit: int | None = None) -> None:
        self.piece = piece
        self.limit = limit
        self.sent = 0
        self.running = 0
        self.cancelled = trio.Event()

    async def __call__(self, call: IncomingCall) -> None:
        self.running += 1
        try:
            await call.start(b"")
            while self.limit is None or self.sent < self.limit:
                await call.send(self.piece)
                self.sent += len(self.piece)
                await trio.lowlevel.checkpoint()
            await call.finish(b"")
        except trio.Cancelled:
            self.cancelled.set()
            raise
        finally:
            self.running -= 1


async def test_tunnel_call_is_answered() -> None:
    async with tunnel_world() as (_, _, peer):
        assert peer.address == NODE.address
        async with peer.call(b"meta", b"body") as call:
            assert await call.head() == b"head meta"
            assert [chunk async for chunk in call.chunks()] == [b"body"]
            assert await call.end() == b"end"
        async with peer.call(b"", b"") as call:
            assert await call.whole(0) == (b"head ", b"", b"end")
        assert peer.open_calls == 0


async def test_tunnel_200_calls_at_once_are_answered_each() -> None:
    async with tunnel_world() as (_, _, peer):

        async def one(number: int) -> None:
            body = number.to_bytes(4, "big") * 25_000
            async with peer.call(b"%d" % number, body) as call:
                assert await call.whole(100_000) == (b"head %d" % number, body, b"end")

        with trio.fail_after(WAIT_S):
            async with trio.open_nursery() as nursery:
                for number in range(200):
                    nursery.start_soon(one, number)


async def test_tunnel_large_bodies_both_ways_are_whole() -> None:
    body = bytes(range(256)) * 12_000
    async with tunnel_world() as (_, _, peer), peer.call(b"", body) as call:
        with trio.fail_after(WAIT_S):
            assert (await call.whole(1 << 24))[1] == body


async def test_tunnel_slow_reader_holds_up_only_its_own_call() -> None:
    handler = Handler()

    async def on_call(call: IncomingCall) -> None:
        if call.meta == b"stream":
            await handler(call)
        else:
            await call.start(b"")
            await call.finish(b"quick")

    async with tunnel_world(on_call) as (_, _, peer), peer.call(b"stream", b"") as slow:
        assert await slow.head() == b""
        with trio.fail_after(WAIT_S):
            for _ in range(100):
                async with peer.call(b"", b"") as call:
                    assert await call.end() == b"quick"
            before = handler.sent
            await trio.sleep(0.1)
            assert handler.sent == before <= WINDOW_BYTES
            read = 0
            while read < 4 * WINDOW_BYTES:
                read += len(await anext(slow))


async def test_tunnel_call_left_early_cancels_the_handler() -> None:
    handler = Handler()
    async with tunnel_world(handler) as (_, node, peer):
        async with peer.call(b"", b"") as call:
            await anext(call.chunks())
        with trio.fail_after(1):
            await handler.cancelled.wait()
            await until(lambda: not peer.open_calls and not node.link.in_flight)
        assert node.errors == []


async def test_tunnel_caller_cancelled_cancels_the_handler() -> None:
    handler = Handler()
    async with tunnel_world(handler) as (_, _, peer):
        with trio.move_on_after(0.1) as scope:
            async with peer.call(b"", b"") as call:
                await call.end()
        assert scope.cancelled_caught
        with trio.fail_after(1):
            await handler.cancelled.wait()


async def test_tunnel_call_stopped_gets_what_is_under_way_and_the_handlers_end() -> None:
    sent: list[int] = []

    async def on_call(call: IncomingCall) -> None:
        await call.start(b"head")
        try:
            while True:
                await call.send(b"x" * 1000)
                await trio.sleep(0.001)
        finally:
            with trio.move_on_after(1, shield=True):
                sent.append(call.sent_bytes)
                await call.finish(b"receipt over %d" % call.sent_bytes)

    async with tunnel_world(on_call) as (_, node, peer):
        async with peer.call(b"", b"") as call:
            await call.head()
            read = len(await anext(call))
            call.stop()
            with trio.fail_after(1):
                async for chunk in call:
                    read += len(chunk)
                assert await call.end() == b"receipt over %d" % read
        assert sent == [read]
        assert peer.open_calls == 0
        assert node.errors == []


async def test_tunnel_call_stopped_whose_handler_gives_no_end_says_so() -> None:
    handler = Handler()
    async with tunnel_world(handler) as (_, node, peer):
        async with peer.call(b"", b"") as call:
            await call.head()
            call.stop()
            with trio.fail_after(1), pytest.raises(RecoverableError, match="EMC-1426"):
                await call.end()
        assert handler.cancelled.is_set()
        assert node.errors == []


async def test_tunnel_call_left_after_the_stop_has_an_orphan() -> None:
    async def on_call(call: IncomingCall) -> None:
        await call.start(b"head")
        try:
            await trio.sleep_forever()
        finally:
            with trio.move_on_after(1, shield=True):
                await trio.sleep(0.1)
                await call.finish(b"late receipt")

    async with tunnel_world(on_call) as (_, _, peer):
        orphans: list[HubCall] = []
        peer.on_orphan = orphans.append
        async with peer.call(b"", b"") as call:
            call.owner = "ours"
            await call.head()
        with trio.fail_after(2):
            await until(lambda: bool(orphans))
        assert [(o.owner, o.head, o.end, o.body()) for o in orphans] == [
            ("ours", b"head", b"late receipt", b"")
        ]


async def test_tunnel_call_cancelled_before_its_body_is_there_never_starts() -> None:
    handler = Handler()
    async with tunnel_world(handler) as (_, _, peer):
        async with peer.call(b"", bytes(10 * WINDOW_BYTES)):
            pass
        with trio.fail_after(1):
            await until(lambda: not peer.open_calls)
        assert handler.sent == handler.running == 0


async def test_tunnel_handler_that_fails_gives_its_code() -> None:
    async def on_call(call: IncomingCall) -> None:
        if call.meta == b"known":
            raise RecoverableError("EMC-1601", "no such model")
        if call.meta == b"late":
            await call.start(b"head")
            await call.send(b"half")
            await call.fail("EMC-1602", "engine died")
        elif call.meta == b"bug":
            raise ValueError("a secret")

    async with tunnel_world(on_call) as (_, node, peer):
        for meta, code in ((b"known", "EMC-1601"), (b"bug", "EMC-1427"), (b"nothing", "EMC-1427")):
            async with peer.call(meta, b"") as call:
                with pytest.raises(RecoverableError) as caught:
                    await call.head()
            assert caught.value.code == code
            assert "secret" not in caught.value.detail
        async with peer.call(b"late", b"") as call:
            assert await call.head() == b"head"
            assert await anext(call) == b"half"
            with pytest.raises(RecoverableError, match="EMC-1602"):
                await anext(call)
        assert len(node.errors) == 2


async def test_tunnel_answer_over_its_bound_is_cut() -> None:
    handler = Handler()
    async with tunnel_world(handler) as (_, _, peer):
        async with peer.call(b"", b"") as call:
            with pytest.raises(RecoverableError, match="EMC-1428"):
                await call.whole(10_000)
        with trio.fail_after(1):
            await handler.cancelled.wait()


async def test_tunnel_lost_for_good_ends_calls_and_handlers_at_once() -> None:
    handler = Handler(piece=b"x" * 100_000)
    failed: list[str] = []

    async with (
        hub_world(TunnelLimits(resume_s=0)) as hub,
        tunnel_proxy(hub.port) as proxy,
        node_world(hub, handler, url=proxy.url) as node,
        trio.open_nursery() as nursery,
    ):
        peer = await hub.peer()

        async def one() -> None:
            async with peer.call(b"", b"") as call:
                await call.head()
                try:
                    await trio.sleep(0.05)
                    await call.end()
                except RecoverableError as exc:
                    failed.append(exc.code)

        for _ in range(20):
            nursery.start_soon(one)
        await trio.sleep(0.1)
        with trio.fail_after(1):
            proxy.cut()
            await until(lambda: len(failed) == 20 and not handler.running)
        assert set(failed) == {"EMC-1412"}
        await peer.closed.wait()
        with pytest.raises(RecoverableError, match="EMC-1412"):
            async with peer.call(b"", b""):
                pass
        with pytest.raises(RecoverableError, match="EMC-1412"):
            await peer.send_control(b"")
        fault = await node.until_ended()
        assert fault is not None
        assert fault.code == "EMC-1412"
        await hub.until(lambda: hub.history[-1] == "left")
        assert hub.errors == []


async def test_tunnel_node_cancelled_is_gone_for_the_hub_at_once() -> None:
    async with hub_world() as hub, node_world(hub) as node:
        peer = await hub.peer()
        node.scope.cancel()
        with trio.fail_after(1):
            await peer.closed.wait()
        await hub.until(lambda: NODE.address not in hub.peers)


async def test_tunnel_controls_go_both_ways_in_order() -> None:
    got: list[bytes] = []

    async def on_control(message: bytes) -> None:
        got.append(message)
        if message == b"bad":
            raise ValueError

    async with hub_world() as hub, node_world(hub, on_control=on_control) as node:
        peer = await hub.peer()
        messages = [b"%d" % n for n in range(50)] + [b"bad", bytes(200_000), b"last"]
        for message in messages:
            await peer.send_control(message)
            await node.link.send_control(message)
        await hub.until(lambda: len(hub.controls) == len(messages))
        with trio.fail_after(1):
            await until(lambda: len(got) == len(messages))
        assert got == hub.controls == messages
        assert len(node.errors) == 1


async def test_tunnel_hub_handler_that_returns_closes_the_tunnel() -> None:
    async def on_peer(peer: Any) -> None:
        await peer.send_control(b"bye")

    got: list[bytes] = []

    async def on_control(message: bytes) -> None:
        got.append(message)

    async with hub_world(on_peer=on_peer) as hub, node_world(hub, on_control=on_control) as node:
        assert await node.until_ended() is None
    assert got == [b"bye"]


async def test_tunnel_hub_handler_that_fails_closes_only_its_tunnel() -> None:
    async def on_peer(peer: Any) -> None:
        raise ValueError

    async with hub_world(on_peer=on_peer) as hub:
        for count in (1, 2):
            async with node_world(hub) as node:
                await node.until_ended()
            assert len(hub.errors) == count


async def test_tunnel_newer_one_of_a_node_replaces_the_older() -> None:
    async with hub_world() as hub, node_world(hub) as older:
        first = await hub.peer()
        async with node_world(hub) as newer:
            fault = await older.until_ended()
            assert isinstance(fault, RemoteProtocolError)
            assert fault.code == "EMC-1410"
            await hub.until(lambda: hub.peers.get(NODE.address) not in (None, first))
            second = await hub.peer()
            assert first.closed.is_set()
            async with second.call(b"", b"x") as call:
                assert (await call.whole(10))[1] == b"x"
            assert hub.history == ["joined", "left", "joined"]
            assert not newer.ended.is_set()


async def test_tunnel_node_drain_finishes_what_it_has() -> None:
    handler = Handler(limit=3 * WINDOW_BYTES)
    async with tunnel_world(handler) as (_, node, peer):
        async with peer.call(b"", b"") as call:
            await call.head()
            node.drain.set()
            with trio.fail_after(1):
                await until(lambda: peer.leaving)
            with pytest.raises(RecoverableError, match="EMC-1425"):
                async with peer.call(b"", b""):
                    pass
            assert not node.ended.is_set()
            assert await call.end() == b""
        assert await node.until_ended() is None
        assert not handler.cancelled.is_set()


async def test_tunnel_hub_drain_lets_calls_end_and_nodes_know() -> None:
    handler = Handler(limit=3 * WINDOW_BYTES)
    async with hub_world() as hub, node_world(hub, handler) as node:
        peer = await hub.peer()
        async with peer.call(b"", b"") as call:
            await call.head()
            hub.drain.set()
            with trio.fail_after(1):
                await node.link.leaving.wait()
            with pytest.raises(RecoverableError, match="EMC-1409"):
                async with node_world(hub):
                    pass
            assert await call.end() == b""
        assert await node.until_ended() is None
        with trio.fail_after(2):
            await hub.ended.wait()


async def test_tunnel_hub_drain_that_takes_too_long_cuts() -> None:
    handler = Handler()
    async with hub_world(TunnelLimits(drain_s=0.2)) as hub, node_world(hub, handler) as node:
        peer = await hub.peer()
        async with peer.call(b"", b"") as call:
            await call.head()
            hub.drain.set()
            with trio.fail_after(3):
                await hub.ended.wait()
            with pytest.raises(RecoverableError, match="EMC-1412"):
                await call.end()
        await node.until_ended()
        assert handler.cancelled.is_set()


async def test_tunnel_calls_over_the_bound_are_refused_here() -> None:
    handler = Handler()
    async with (
        tunnel_world(handler, TunnelLimits(open_calls=2)) as (_, _, peer),
        peer.call(b"", b""),
        peer.call(b"", b""),
    ):
        with pytest.raises(RecoverableError, match="EMC-1424"):
            async with peer.call(b"", b""):
                pass


async def test_tunnel_silent_peer_is_found_by_ping() -> None:
    limits = TunnelLimits(ping_interval_s=0.2, ping_timeout_s=0.2, close_s=0.2, resume_s=0)
    async with (
        hub_world(limits) as hub,
        tunnel_proxy(hub.port) as proxy,
        node_world(hub, url=proxy.url) as node,
    ):
        peer = await hub.peer()
        await trio.sleep(0.6)
        assert peer.live
        proxy.silence()
        with trio.fail_after(3):
            await peer.closed.wait()
            await node.link.closed.wait()


async def test_tunnel_that_is_busy_one_way_is_not_taken_for_silent() -> None:
    limits = TunnelLimits(ping_interval_s=0.1, ping_timeout_s=0.2, resume_s=0)
    handler = Handler(piece=b"x" * 20_000)
    async with tunnel_world(handler, limits) as (_, node, peer):
        async with peer.call(b"", b"") as call:
            await call.head()
            read = 0
            with trio.move_on_after(0.8):
                async for chunk in call:
                    read += len(chunk)
        assert read > WINDOW_BYTES
        assert peer.live
        assert node.link.live


async def test_tunnel_peer_that_stops_reading_is_cut() -> None:
    limits = TunnelLimits(write_stall_s=0.3, close_s=0.2, resume_s=0)
    async with hub_world(limits) as hub, tunnel_proxy(hub.port) as proxy, node_world(hub, url=proxy.url):
        peer = await hub.peer()
        proxy.silence(TO_NODE)
        code = ""
        with trio.fail_after(5):
            while not code:
                try:
                    await peer.send_control(bytes(250_000))
                except RecoverableError as exc:
                    code = exc.code
        assert code == "EMC-1412"
        assert peer.closed.is_set()


async def test_tunnel_hub_off_loopback_without_tls_does_not_start() -> None:
    from emcd.net.tunnel import serve_tunnels
    from tests.support.tunnel_world import DOMAIN, HUB, HubWorld

    world = HubWorld()
    with pytest.raises(ConfigError, match="EMC-1414"):
        await serve_tunnels(
            host="0.0.0.0", port=0, key=HUB, domain=DOMAIN, on_peer=world.on_peer, authorize=world.authorize
        )


@pytest.mark.parametrize(
    ("url", "pinned"),
    [("ws://hub.example:8421", True), ("wss://hub.example:8421", False), ("ws://10.0.0.1", True)],
)
async def test_tunnel_node_off_loopback_without_tls_or_pin_does_not_start(url: str, pinned: bool) -> None:
    from emcd.net.tunnel import run_tunnel
    from tests.support.tunnel_world import DOMAIN, HUB, echo_call

    with pytest.raises(ConfigError, match="EMC-1414"):
        await run_tunnel(
            url,
            key=NODE,
            domain=DOMAIN,
            hub_address=HUB.address if pinned else None,
            on_call=echo_call,
            on_control=drop_control,
        )
