"""A session goes on over another connection: nothing lost, nothing twice, and nobody else gets in."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from websockets.exceptions import ConnectionClosed
from websockets.trio.client import connect

from emcd.clock import SystemClock
from emcd.errors import RecoverableError, RemoteProtocolError
from emcd.net.tls import client_context, server_context
from emcd.net.tunnel import HubCall, IncomingCall, TunnelLimits, TunnelPeer
from emcd.proto.tunnel import WINDOW_BYTES
from emcd.proto.tunnel_auth import FRESH, NodeHandshake, Resume
from emcd.proto.tunnel_resume import KEPT_BYTES
from emcd.types import ParticipantRole
from tests.support.net_world import WAIT_S, Tls
from tests.support.tunnel_proxy import TunnelProxy, tunnel_proxy
from tests.support.tunnel_world import (
    DOMAIN,
    HUB,
    NODE,
    OTHER,
    HubWorld,
    NodeWorld,
    echo_call,
    hub_world,
    node_world,
)

QUICK = TunnelLimits(give_up_s=0.2, resume_s=5)


async def until(condition: Callable[[], object]) -> None:
    with trio.fail_after(WAIT_S):
        while not condition():
            await trio.sleep(0.005)


@asynccontextmanager
async def cut_world(
    on_call: Any = echo_call, limits: TunnelLimits = QUICK, **options: Any
) -> AsyncIterator[tuple[HubWorld, TunnelProxy, NodeWorld, TunnelPeer]]:
    async with (
        hub_world(limits) as hub,
        tunnel_proxy(hub.port) as proxy,
        node_world(hub, on_call, url=proxy.url, **options) as node,
    ):
        yield hub, proxy, node, await hub.peer()


class Counting:
    """A handler that streams numbers, as fast as they go or when it is told."""

    def __init__(self, count: int, gate: trio.Event | None = None) -> None:
        self.pieces = [b"%07d " % number for number in range(count)]
        self.text = b"".join(self.pieces)
        self.gate = gate
        self.started = self.finished = 0

    async def __call__(self, call: IncomingCall) -> None:
        self.started += 1
        await call.start(b"head")
        for piece in self.pieces:
            await call.send(piece)
            await trio.lowlevel.checkpoint()
        if self.gate is not None:
            await self.gate.wait()
        await call.finish(b"end")
        self.finished += 1


@pytest.mark.parametrize("half", [False, True])
async def test_resume_stream_goes_on_where_it_was(half: bool) -> None:
    handler = Counting(30_000)
    async with cut_world(handler) as (hub, proxy, node, peer):
        async with peer.call(b"", b"") as call:
            call.patient = True
            await call.head()
            got = bytearray()
            cuts = 0
            with trio.fail_after(WAIT_S):
                async for chunk in call:
                    got += chunk
                    if len(got) > (cuts + 1) * 50_000:
                        cuts += 1
                        proxy.cut(half=half)
                        await trio.sleep(0.02)
                assert await call.end() == b"end"
        assert bytes(got) == handler.text
        assert cuts == 4
        assert proxy.accepted == 5
        assert handler.started == handler.finished == 1
        assert hub.history == ["joined"]
        assert hub.errors == node.errors == []


async def test_resume_over_tls_goes_on_and_its_farewell_waits_for_nobody(tmp_path: Path) -> None:
    tls = Tls.make(tmp_path)
    handler = Counting(30_000)
    limits = TunnelLimits(close_s=60)
    async with (
        hub_world(limits, ssl_context=server_context(tls.cert_file, tls.key_file)) as hub,
        tunnel_proxy(hub.port) as proxy,
        node_world(
            hub, handler, url=f"wss://localhost:{proxy.port}", ssl_context=client_context(tls.ca_file)
        ) as node,
    ):
        peer = await hub.peer()
        got = bytearray()
        async with peer.call(b"", b"") as call:
            call.patient = True
            with trio.fail_after(WAIT_S):
                async for chunk in call:
                    if not got:
                        proxy.cut()
                    got += chunk
        assert bytes(got) == handler.text
        assert proxy.accepted == 2
        with trio.fail_after(WAIT_S):
            node.drain.set()
            assert await node.until_ended() is None
            await hub.until(lambda: hub.history == ["joined", "left"])


async def test_resume_large_bodies_both_ways_are_whole() -> None:
    body = secrets.token_bytes(3_000_000)
    async with cut_world() as (_, proxy, _, peer):
        proxy.budget["to hub"], proxy.budget["to node"] = 700_000, 1_000_000
        async with peer.call(b"m", body) as call:
            call.patient = True
            with trio.fail_after(WAIT_S):
                assert await call.whole(1 << 24) == (b"head m", body, b"end")
        assert proxy.accepted >= 3


async def test_resume_result_finished_while_cut_arrives() -> None:
    gate = trio.Event()
    handler = Counting(3, gate)
    async with cut_world(handler) as (_, proxy, node, peer):
        async with peer.call(b"", b"") as call:
            call.patient = True
            await call.head()
            proxy.refusing = True
            proxy.cut()
            await until(lambda: not (peer.live or node.link.live))
            gate.set()
            await until(lambda: handler.finished)
            proxy.refusing = False
            with trio.fail_after(WAIT_S):
                assert await call.whole(100) == (b"head", handler.text, b"end")


async def test_suspended_peer_takes_no_call_and_says_so_at_once() -> None:
    async with cut_world() as (_, proxy, node, peer):
        told: list[bool] = []
        peer.on_live = told.append
        proxy.refusing = True
        with trio.fail_after(1):
            proxy.cut()
            await until(lambda: told == [False])
        assert not peer.live
        assert not peer.closed.is_set()
        with pytest.raises(RecoverableError, match="EMC-1413"):
            peer.submit(b"", b"", lambda call: None)
        with pytest.raises(RecoverableError, match="EMC-1413"):
            async with peer.call(b"", b""):
                pass
        proxy.refusing = False
        await until(lambda: told == [False, True])
        async with peer.call(b"", b"x") as call:
            assert (await call.whole(10))[1] == b"x"
        await until(lambda: node.link.live)


async def test_suspended_call_is_given_up_soon_unless_it_is_patient() -> None:
    gate = trio.Event()
    async with cut_world(Counting(1, gate)) as (_, proxy, _, peer):
        async with peer.call(b"", b"") as patient, peer.call(b"", b"") as hasty:
            patient.patient = True
            await patient.head()
            await hasty.head()
            assert await anext(hasty)
            proxy.refusing = True
            proxy.cut()
            with trio.fail_after(1), pytest.raises(RecoverableError, match="EMC-1413"):
                await anext(hasty)
            proxy.refusing = False
            gate.set()
            with trio.fail_after(WAIT_S):
                assert await patient.end() == b"end"


async def test_suspended_for_less_than_the_patience_gives_up_nothing() -> None:
    gate = trio.Event()
    async with cut_world(Counting(1, gate), TunnelLimits(give_up_s=3)) as (_, proxy, _, peer):
        async with peer.call(b"", b"") as call:
            await call.head()
            proxy.cut()
            gate.set()
            with trio.fail_after(WAIT_S):
                assert await call.end() == b"end"


async def test_given_up_call_that_was_finished_all_the_same_has_an_orphan() -> None:
    gate = trio.Event()
    handler = Counting(2, gate)
    ended: list[tuple[str, bytes | None]] = []
    orphans: list[HubCall] = []

    def on_end(call: HubCall) -> None:
        ended.append((call.error.code if call.error else "", call.end))

    async with cut_world(handler) as (_, proxy, _, peer):
        peer.on_orphan = orphans.append
        peer.submit(b"", b"", on_end, max_bytes=1000).owner = "ours"
        await until(lambda: handler.started)
        proxy.refusing = True
        proxy.cut()
        await until(lambda: ended)
        assert ended == [("EMC-1413", None)]
        gate.set()
        await until(lambda: handler.finished)
        proxy.refusing = False
        await until(lambda: orphans)
        assert [(o.owner, o.head, o.body(), o.end) for o in orphans] == [
            ("ours", b"head", handler.text, b"end")
        ]
        assert len(ended) == 1
        assert peer.open_calls == 0


async def test_suspended_for_too_long_is_over_on_both_sides() -> None:
    handler = Counting(1, trio.Event())
    async with cut_world(handler, TunnelLimits(give_up_s=0.1, resume_s=0.4)) as (hub, proxy, node, peer):
        async with peer.call(b"", b"") as call:
            call.patient = True
            await call.head()
            proxy.refusing = True
            proxy.cut()
            with trio.fail_after(3), pytest.raises(RecoverableError, match="EMC-1412"):
                await call.end()
        assert peer.closed.is_set()
        await hub.until(lambda: hub.history == ["joined", "left"])
        fault = await node.until_ended()
        assert fault is not None
        assert fault.code == "EMC-1412"
        assert handler.finished == 0


async def test_resume_with_a_hub_that_was_restarted_is_refused() -> None:
    async with hub_world(QUICK) as first, hub_world(QUICK) as second, tunnel_proxy(first.port) as proxy:
        async with node_world(first, url=proxy.url) as node:
            await first.peer()
            proxy.hub_port = second.port
            proxy.cut()
            fault = await node.until_ended()
            assert isinstance(fault, RecoverableError)
            assert fault.code == "EMC-1415"
        assert second.history == []
        async with node_world(first, url=proxy.url):
            await second.peer()


async def test_resume_is_refused_once_the_key_is_not_authorized_any_more() -> None:
    async with cut_world() as (hub, proxy, node, _):
        hub.authorized.clear()
        proxy.cut()
        fault = await node.until_ended()
        assert fault is not None
        assert fault.code == "EMC-1407"


async def test_controls_sent_while_cut_arrive_once_in_order() -> None:
    got: list[bytes] = []

    async def on_control(message: bytes) -> None:
        got.append(message)

    async with cut_world(on_control=on_control) as (hub, proxy, node, peer):
        sent = 0
        for _ in range(5):
            for _ in range(20):
                await peer.send_control(b"%d" % sent)
                await node.link.send_control(b"%d" % sent)
                sent += 1
                await trio.sleep(0)
            proxy.cut()
            await trio.sleep(0.01)
        expected = [b"%d" % number for number in range(sent)]
        await until(lambda: len(got) >= sent and len(hub.controls) >= sent)
        await until(lambda: node.link.live)
        assert got == hub.controls == expected


async def test_controls_posted_while_cut_are_bounded() -> None:
    async with cut_world() as (_, proxy, _, peer):
        proxy.refusing = True
        proxy.cut()
        await until(lambda: not peer.live)
        posted = 0
        while peer.post_control(bytes(100_000)):
            posted += 1
        assert 5 < posted < 20


async def test_drain_of_a_node_while_cut_delivers_what_it_finished() -> None:
    gate = trio.Event()
    handler = Counting(2, gate)
    async with cut_world(handler) as (_, proxy, node, peer):
        async with peer.call(b"", b"") as call:
            call.patient = True
            await call.head()
            proxy.refusing = True
            proxy.cut()
            await until(lambda: not node.link.live)
            node.drain.set()
            gate.set()
            await until(lambda: handler.finished)
            proxy.refusing = False
            with trio.fail_after(WAIT_S):
                assert await call.end() == b"end"
        assert await node.until_ended() is None


async def test_drain_of_a_node_waits_until_the_hub_has_what_it_finished() -> None:
    gate = trio.Event()
    handler = Counting(2, gate)
    async with cut_world(handler) as (_, proxy, node, peer):
        async with peer.call(b"", b"") as call:
            call.patient = True
            await call.head()
            proxy.silence()
            node.drain.set()
            gate.set()
            await until(lambda: handler.finished)
            await trio.sleep(0.1)
            assert not node.ended.is_set()
            proxy.cut()
            proxy.resume()
            with trio.fail_after(WAIT_S):
                assert await call.end() == b"end"
        assert await node.until_ended() is None


async def test_hub_drain_lets_a_cut_node_come_back_and_finish() -> None:
    gate = trio.Event()
    async with cut_world(Counting(2, gate)) as (hub, proxy, node, peer):
        async with peer.call(b"", b"") as call:
            call.patient = True
            await call.head()
            proxy.cut()
            hub.drain.set()
            gate.set()
            with trio.fail_after(WAIT_S):
                assert await call.end() == b"end"
        assert await node.until_ended() is None


# Who may resume: everything below is said by hand.


async def shake_hands(hub: HubWorld, resume: Resume = FRESH, key: Any = NODE, **options: Any) -> Any:
    """One handshake. Returns: how the hub closed, or the handshake and the open connection."""
    websocket = await options.pop("nursery").start(partial(_held_open, hub.port))
    role = options.pop("role", ParticipantRole.COMPUTE)
    handshake = NodeHandshake(key, DOMAIN, secrets.token_bytes(32), role, HUB.address, resume)
    with trio.fail_after(WAIT_S):
        proof = handshake.prove(await websocket.recv(), SystemClock().now_ms())
        await websocket.send(options.pop("proof", proof))
        try:
            handshake.check(await websocket.recv(), SystemClock().now_ms())
        except ConnectionClosed:
            return websocket.close_code
    return handshake, websocket, proof


async def _held_open(port: int, *, task_status: trio.TaskStatus[Any]) -> None:
    async with connect(f"ws://127.0.0.1:{port}", compression=None, proxy=None) as websocket:
        task_status.started(websocket)
        await trio.sleep_forever()


@asynccontextmanager
async def suspended_session() -> AsyncIterator[tuple[HubWorld, TunnelPeer, bytes, trio.Nursery]]:
    """A session of NODE whose connection is lost."""
    async with hub_world(QUICK) as hub, trio.open_nursery() as nursery:
        hub.authorized.add(OTHER.address)
        handshake, websocket, _ = await shake_hands(hub, nursery=nursery)
        peer = await hub.peer()
        await websocket.stream.aclose()
        await until(lambda: not peer.live)
        yield hub, peer, handshake.session, nursery
        nursery.cancel_scope.cancel()


async def test_resume_by_hand_works() -> None:
    async with suspended_session() as (hub, peer, name, nursery):
        handshake, _, _ = await shake_hands(hub, Resume(name, 1, 0), nursery=nursery)
        assert (handshake.session, handshake.received) == (name, 0)
        assert peer.live
        assert hub.history == ["joined"]


async def test_resume_by_another_key_that_knows_the_name_is_refused() -> None:
    async with suspended_session() as (hub, peer, name, nursery):
        assert await shake_hands(hub, Resume(name, 1, 0), OTHER, nursery=nursery) == 4415
        assert not peer.live


async def test_resume_of_another_session_of_the_same_key_is_refused() -> None:
    async with suspended_session() as (hub, peer, name, nursery):
        assert await shake_hands(hub, Resume(name[::-1], 1, 0), nursery=nursery) == 4415
        assert not peer.live


async def test_resume_in_another_role_is_refused() -> None:
    both = frozenset({ParticipantRole.COMPUTE, ParticipantRole.ROUTER})
    async with hub_world(QUICK, roles=both) as hub, trio.open_nursery() as nursery:
        handshake, _, _ = await shake_hands(hub, nursery=nursery)
        resume = Resume(handshake.session, 1, 0)
        assert await shake_hands(hub, resume, role=ParticipantRole.ROUTER, nursery=nursery) == 4415
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("epoch", [1, 2])
async def test_resume_of_an_old_epoch_is_refused(epoch: int) -> None:
    async with suspended_session() as (hub, peer, name, nursery):
        await shake_hands(hub, Resume(name, 2, 0), nursery=nursery)
        assert await shake_hands(hub, Resume(name, epoch, 0), nursery=nursery) == 4416
        assert peer.live


@pytest.mark.parametrize("received", [1, 2**62])
async def test_resume_of_what_was_never_sent_is_refused(received: int) -> None:
    async with suspended_session() as (hub, peer, name, nursery):
        assert await shake_hands(hub, Resume(name, 1, received), nursery=nursery) == 4416
        assert not peer.live
        await shake_hands(hub, Resume(name, 1, 0), nursery=nursery)
        assert peer.live


async def test_resume_with_a_recorded_proof_is_refused() -> None:
    async with suspended_session() as (hub, peer, name, nursery):
        _, websocket, proof = await shake_hands(hub, Resume(name, 1, 0), nursery=nursery)
        await websocket.stream.aclose()
        await until(lambda: not peer.live)
        assert await shake_hands(hub, Resume(name, 2, 0), proof=proof, nursery=nursery) == 4404
        assert not peer.live


async def test_resume_of_the_newer_connection_ends_the_older() -> None:
    async with suspended_session() as (hub, peer, name, nursery):
        _, older, _ = await shake_hands(hub, Resume(name, 1, 0), nursery=nursery)
        await shake_hands(hub, Resume(name, 2, 0), nursery=nursery)
        with trio.fail_after(WAIT_S):
            await older.wait_closed()
        assert peer.live
        assert hub.history == ["joined"]


async def test_fresh_session_of_the_same_key_ends_the_suspended_one() -> None:
    async with suspended_session() as (hub, peer, name, nursery):
        await shake_hands(hub, nursery=nursery)
        await hub.until(lambda: hub.history == ["joined", "left", "joined"])
        assert peer.closed.is_set()
        assert await shake_hands(hub, Resume(name, 1, 0), nursery=nursery) == 4415


async def test_node_that_acknowledges_nothing_is_cut() -> None:
    async with hub_world(TunnelLimits(write_stall_s=0.2)) as hub, trio.open_nursery() as nursery:
        _, websocket, _ = await shake_hands(hub, nursery=nursery)
        peer = await hub.peer()
        got = 0

        async def read() -> None:
            nonlocal got
            with suppress(ConnectionClosed):
                async for message in websocket:
                    got += len(message)

        nursery.start_soon(read)
        with trio.fail_after(WAIT_S):
            while peer.live:
                peer.post_control(bytes(200_000))
                await trio.sleep(0.005)
        assert KEPT_BYTES < got < KEPT_BYTES + 1_000_000
        nursery.cancel_scope.cancel()


# The callback form.


async def test_submit_answers_are_whole_and_told_once() -> None:
    async with cut_world() as (_, _, _, peer):
        ended: list[HubCall] = []
        for number in range(100):
            peer.submit(b"%d" % number, b"x" * number * 3000, ended.append, max_bytes=1 << 20).owner = number
        await until(lambda: len(ended) == 100)
        for call in ended:
            number = call.owner
            assert call.error is None
            assert (call.head, call.body(), call.end) == (b"head %d" % number, b"x" * number * 3000, b"end")


async def test_submit_stream_is_taken_as_the_reader_likes() -> None:
    handler = Counting(20_000)
    got = bytearray()
    ended: list[HubCall] = []
    async with cut_world(handler) as (_, _, _, peer):
        call = peer.submit(b"", b"", ended.append, on_data=lambda call: None)
        await until(lambda: sum(map(len, call.chunks)) > 10_000)
        await trio.sleep(0.1)
        assert sum(map(len, call.chunks)) <= WINDOW_BYTES
        assert not ended
        call.on_data = lambda call: got.extend(peer.take(call))
        got += peer.take(call)
        await until(lambda: ended)
        got += peer.take(call)
        assert bytes(got) == handler.text
        assert call.end == b"end"


async def test_submit_callback_that_fails_is_reported_and_harms_nobody() -> None:
    def fail(call: HubCall) -> None:
        raise ValueError

    async with cut_world() as (hub, _, _, peer):
        ended: list[HubCall] = []
        peer.submit(b"", b"", fail)
        peer.submit(b"", b"", ended.append)
        await until(lambda: ended)
        assert [type(exc) for exc in hub.errors] == [ValueError]
        assert peer.live


async def test_submit_dropped_is_told_to_nobody() -> None:
    gate = trio.Event()
    ended: list[HubCall] = []
    async with cut_world(Counting(1, gate)) as (_, _, node, peer):
        call = peer.submit(b"", b"", ended.append)
        peer.drop(call)
        await until(lambda: not peer.open_calls and not node.link.in_flight)
        assert not ended


async def test_submit_on_a_session_that_is_over_raises_and_open_calls_are_told() -> None:
    ended: list[str] = []
    async with cut_world(Counting(1, trio.Event())) as (_, _, node, peer):
        peer.submit(b"", b"", lambda call: ended.append(call.error.code if call.error else ""))
        node.scope.cancel()
        await until(lambda: ended)
        assert ended == ["EMC-1412"]
        with pytest.raises(RecoverableError, match="EMC-1412"):
            peer.submit(b"", b"", lambda call: None)


async def test_hub_handler_that_gives_a_reason_tells_the_node() -> None:
    async def on_peer(peer: TunnelPeer) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            raise RemoteProtocolError("EMC-1429", "not this hub")

    async with hub_world(on_peer=on_peer) as hub:
        async with node_world(hub) as node:
            fault = await node.until_ended()
        assert isinstance(fault, RemoteProtocolError)
        assert (fault.code, fault.detail) == ("EMC-1429", "not this hub")
        assert hub.errors == []
