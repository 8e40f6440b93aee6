"""One router at two hubs: each has its own nodes, and a hub that comes back is told of them anew."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import msgspec
import pytest
import trio

from emcd.errors import RecoverableError
from emcd.keys import SigningKey
from emcd.ledger import open_ledger
from emcd.net.tunnel import IncomingCall, TunnelPeer, serve_tunnels
from emcd.proto.control import (
    NoticeMessage,
    RelayGone,
    RelayLive,
    RelayMessage,
    RelayTaken,
    RoutedMeta,
    RouterControl,
    RouterStatusMessage,
    StatusMessage,
    decode_control,
    decode_router_control,
    encode,
)
from emcd.proto.signing import require_signer
from emcd.role import HealthState
from emcd.testing import make_key
from emcd.types import Address, ParticipantRole
from emcd_router.config import HubRef
from tests.support.hub_world import DOMAIN, node_key
from tests.support.router_world import ROUTER_KEYS, RoutedStub, RunningRouter, start_router

HUBS = [make_key(f"hub {number}") for number in range(2)]
ROUTER = ROUTER_KEYS[0]


@dataclass
class ScriptedHub:
    """A hub's end of routers' tunnels; it takes every node, unless a test says otherwise."""

    key: SigningKey
    port: int = 0
    admits: bool = True
    peer: TunnelPeer | None = None
    heard: list[RouterControl] = field(default_factory=list)
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)

    @property
    def ref(self) -> HubRef:
        return HubRef(f"ws://127.0.0.1:{self.port}", self.key.address)

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        with self.scope:
            async with trio.open_nursery() as nursery:
                serve = partial(
                    serve_tunnels, host="127.0.0.1", port=self.port, key=self.key, domain=DOMAIN,
                    on_peer=self._serve, authorize=_anybody, roles=frozenset((ParticipantRole.ROUTER,)),
                )  # fmt: skip
                self.port = await nursery.start(serve)
                task_status.started()

    async def _serve(self, peer: TunnelPeer) -> None:
        self.peer = peer
        known: set[Address] = set()
        try:
            async for raw in peer.controls():
                message = decode_router_control(raw)
                self.heard.append(message)
                if isinstance(message, RelayMessage) and message.node not in known and self.admits:
                    known.add(message.node)
                    await peer.send_control(encode(RelayTaken(message.node, message.number)))
        finally:
            self.peer = None

    def nodes(self) -> set[Address]:
        return {message.node for message in self.heard if isinstance(message, RelayMessage)}

    def number_of(self, node: Address) -> int:
        """Of the node's session at the router."""
        return next(m.number for m in self.heard if isinstance(m, RelayMessage) and m.node == node)

    def count(self, kind: type, node: Address) -> int:
        """How many messages of a kind the node has sent."""
        relayed = [m.payload for m in self.heard if isinstance(m, RelayMessage) and m.node == node]
        return sum(isinstance(decode_control(payload), kind) for payload in relayed)

    async def call(self, node: Address, meta: bytes = b"meta", body: bytes = b"body") -> bytes:
        """The answer's body."""
        assert self.peer is not None
        async with self.peer.call(encode(RoutedMeta(node, meta)), body) as call:
            return (await call.whole(1 << 20))[1]


async def _anybody(_: Address, __: ParticipantRole) -> bool:
    return True


@dataclass
class EchoNode(RoutedStub):
    """Answers with its address, the call's meta and its body, once `held` is set."""

    held: trio.Event = field(default_factory=trio.Event)

    async def on_call(self, call: IncomingCall) -> None:
        await self.held.wait()
        await call.start(b"head")
        await call.send(self.key.address.encode() + call.meta + call.body)
        await call.finish(b"end")


def make_node(number: int, hub: SigningKey, router: RunningRouter) -> EchoNode:
    made = EchoNode(
        node_key(number), router=router.address,
        edit_status=lambda status: msgspec.structs.replace(status, hub=hub.address),
    )  # fmt: skip
    made.held.set()
    return made


async def until(condition: object, timeout_s: float = 10) -> None:
    with trio.fail_after(timeout_s):
        while not condition():  # type: ignore[operator]
            await trio.sleep(0.01)


@dataclass
class Town:
    nursery: trio.Nursery
    hubs: list[ScriptedHub]
    router: RunningRouter

    async def add(self, number: int, hub: int) -> EchoNode:
        node = make_node(number, self.hubs[hub].key, self.router)
        self.nursery.start_soon(node.run, self.router.role.port)
        await until(lambda: node.key.address in self.hubs[hub].nodes())
        return node


@asynccontextmanager
async def town(folder: Path, **settings: object) -> AsyncIterator[Town]:
    async with AsyncExitStack() as stack:
        ledger = await stack.enter_async_context(open_ledger(folder / "ledger.db", {}))
        nursery = await stack.enter_async_context(trio.open_nursery())
        hubs = [ScriptedHub(key) for key in HUBS]
        for hub in hubs:
            await nursery.start(hub.run)
        router = await start_router(nursery, ledger, ROUTER, *(hub.ref for hub in hubs), **settings)
        await until(lambda: all(hub.peer for hub in hubs))
        yield Town(nursery, hubs, router)
        nursery.cancel_scope.cancel()


async def test_each_hub_sees_and_reaches_its_own_nodes_only(tmp_path: Path) -> None:
    async with town(tmp_path) as made:
        nodes = [await made.add(number, number) for number in range(2)]

        for hub, node, other in zip(made.hubs, nodes, reversed(nodes), strict=True):
            assert hub.nodes() == {node.key.address}
            assert await hub.call(node.key.address) == node.key.address.encode() + b"metabody"
            with pytest.raises(RecoverableError, match="EMC-2303"):
                await hub.call(other.key.address)


async def test_router_reports_to_each_hub_signed_for_it_alone(tmp_path: Path) -> None:
    async with town(tmp_path, region="eu-west") as made:
        await made.add(0, 0)
        for hub, nodes in zip(made.hubs, (1, 0), strict=True):
            await until(
                lambda hub=hub, nodes=nodes: any(
                    isinstance(m, RouterStatusMessage) and m.status.nodes == nodes for m in hub.heard
                )
            )
            for message in hub.heard:
                if isinstance(message, RouterStatusMessage):
                    require_signer(DOMAIN, message.status, message.signature, ROUTER.address)
                    assert message.status.hub == hub.key.address
                    assert message.status.region == "eu-west"


async def test_hub_that_comes_back_is_shown_its_nodes_and_the_other_notices_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("emcd_router.nodes.TAKEN_S", 0.2)
    async with town(tmp_path) as made:
        nodes = [await made.add(number, number) for number in range(2)]
        address = nodes[0].key.address
        made.hubs[0].scope.cancel()
        await until(lambda: made.router.role.health().state is HealthState.DEGRADED)
        await nodes[0].send_status()  # nobody is there to take it, and nobody is waited for
        await trio.sleep(0.4)
        again = ScriptedHub(HUBS[0], port=made.hubs[0].port)
        await made.nursery.start(again.run)
        await until(lambda: address in again.nodes())

        assert again.count(StatusMessage, address) >= 1
        assert decode_control(next(m.payload for m in again.heard if isinstance(m, RelayMessage)))
        assert await again.call(address) == address.encode() + b"metabody"
        assert await made.hubs[1].call(nodes[1].key.address)
        assert nodes[0].link is not None
        assert not nodes[0].link.closed.is_set()


async def test_node_that_the_hub_dismisses_is_sent_away(tmp_path: Path) -> None:
    async with town(tmp_path) as made:
        node = await made.add(0, 0)
        assert made.hubs[0].peer is not None
        number = made.hubs[0].number_of(node.key.address)
        gone = RelayGone(node.key.address, "EMC-1407", "not any more", number)
        late = RelayGone(node.key.address, "EMC-1407", "an older session's", number - 1)
        await made.hubs[0].peer.send_control(encode(late))
        await made.hubs[1].peer.send_control(encode(gone))  # type: ignore[union-attr]
        assert await made.hubs[0].call(node.key.address)  # another hub's word is nothing to it
        await made.hubs[0].peer.send_control(encode(gone))

        await until(lambda: node.fault)
        assert node.fault is not None
        assert node.fault.code == "EMC-1407"


async def test_node_that_the_hub_does_not_answer_for_is_sent_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("emcd_router.nodes.TAKEN_S", 0.2)
    async with town(tmp_path) as made:
        made.hubs[0].admits = False
        node = await made.add(0, 0)

        await until(lambda: node.fault)
        assert node.fault is not None
        assert node.fault.code == "EMC-1409"


async def test_what_a_hub_says_to_a_node_arrives_and_nonsense_does_no_harm(tmp_path: Path) -> None:
    async with town(tmp_path) as made:
        node = await made.add(0, 0)
        peer = made.hubs[0].peer
        assert peer is not None
        address = node.key.address
        for nonsense in (b"garbage", encode(RelayLive(address, False))):
            await peer.send_control(nonsense)
        await peer.send_control(encode(RelayTaken(node_key(9).address)))
        hear = encode(NoticeMessage("EMC-1728", "hear"))
        number = made.hubs[0].number_of(address)
        await peer.send_control(
            encode(RelayMessage(address, encode(NoticeMessage("EMC-1729", "")), number - 1))
        )
        await peer.send_control(encode(RelayMessage(address, hear, number)))

        await until(lambda: [notice.code for notice in node.notices] == ["EMC-1728"])
        assert await made.hubs[0].call(address)


async def test_message_of_a_node_that_is_too_large_to_relay_is_refused_to_it(tmp_path: Path) -> None:
    async with town(tmp_path) as made:
        node = await made.add(0, 0)
        assert node.link is not None
        await node.link.send_control(bytes(256 * 1024))

        await until(lambda: [notice.code for notice in node.notices] == ["EMC-2308"])
        assert await made.hubs[0].call(node.key.address)


async def test_meta_that_is_none_is_refused_and_costs_the_call_only(tmp_path: Path) -> None:
    async with town(tmp_path) as made:
        node = await made.add(0, 0)
        peer = made.hubs[0].peer
        assert peer is not None
        with pytest.raises(RecoverableError, match="EMC-1498"):
            async with peer.call(b"garbage", b"body") as call:
                await call.whole(1 << 20)
        assert await made.hubs[0].call(node.key.address)


async def test_calls_beyond_a_nodes_capacity_wait_and_then_are_refused(tmp_path: Path) -> None:
    async with town(tmp_path, line_length=1, line_timeout_s=0.3) as made:
        node = await made.add(0, 0)
        address = node.key.address
        codes: list[str] = []
        node.held = trio.Event()
        await node.send_status(capacity=2)
        await until(lambda: made.hubs[0].count(StatusMessage, address) >= 2)

        async def call() -> None:
            try:
                await made.hubs[0].call(address)
                codes.append("ok")
            except RecoverableError as exc:
                codes.append(exc.code)

        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(call)
            await until(lambda: len(codes) == 2)
            assert sorted(codes) == ["EMC-2301", "EMC-2302"]
            node.held.set()
        assert sorted(codes) == ["EMC-2301", "EMC-2302", "ok", "ok"]
