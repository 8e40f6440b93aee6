"""The nodes whose tunnels this router holds: from their first status to their end.

Invariants: a node is held for the hub that its own status names, and only while that hub admits it;
who has not been admitted yet takes no place of those who have, and who says nothing goes first; how
much a node may say is bounded as at a hub, so that no node makes its router a nuisance; who is sent
away is told why, and one that moves on finishes its calls first.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

import structlog
import trio

from emcd.errors import ProtocolError, RecoverableError, RemoteProtocolError
from emcd.net.allowance import Allowance
from emcd.net.tunnel import TunnelPeer
from emcd.proto.control import NoticeMessage, StatusMessage, decode_control, encode
from emcd.proto.tunnel import CONTROL_BYTES
from emcd.types import Address
from emcd_router.held_node import HeldNode
from emcd_router.metrics import REFUSED
from emcd_router.room import NodeRoom
from emcd_router.upstream import LEAVING, Upstream

FIRST_STATUS_S = 2.0
MAX_WAITING = 256
"""Nodes that no hub has admitted yet. Anybody with a key may knock, so they are counted apart."""
TAKEN_S = 10.0
MESSAGES_PER_S = 50.0
MESSAGE_BURST = 200.0
RELAY_BYTES = CONTROL_BYTES - 1024
"""What fits into a control message together with the node's address."""
FLUSH_S = 2.0
FULL = "EMC-1409"
OTHER_HUB = "EMC-1429"
_MOVED = "EMC-1410"


@dataclass(frozen=True)
class NodeLimits:
    """See `RouterConfig`."""

    max_nodes: int
    line_length: int
    line_timeout_s: float
    drain_s: float
    most_calls: int
    """Of one node at the same time, and below the bytes of their bodies."""
    most_bytes: int


class NodeDesk:
    """Serves the control side of every node's tunnel."""

    def __init__(self, limits: NodeLimits, log: structlog.stdlib.BoundLogger) -> None:
        self._limits = limits
        self._log = log
        self._nodes: dict[Address, HeldNode] = {}
        self._waiting: dict[HeldNode, None] = {}
        self._taken: set[HeldNode] = set()
        self._upstreams: Mapping[Address, Upstream] = {}
        self._leaving = False

    def attach(self, upstreams: Mapping[Address, Upstream]) -> None:
        """The hubs, by address; before the first tunnel."""
        self._upstreams = upstreams

    def list_of(self, hub: Address) -> list[HeldNode]:
        return [node for node in self._nodes.values() if node.hub == hub]

    def find(self, node: Address, hub: Address) -> HeldNode | None:
        """The node, if it is held for that hub."""
        found = self._nodes.get(node)
        return found if found is not None and found.hub == hub else None

    def __len__(self) -> int:
        return len(self._nodes)

    async def serve(self, peer: TunnelPeer) -> None:
        """Live with a node's tunnel until it ends.

        Raises: RemoteProtocolError EMC-14xx, which tells the node why it is sent away.
        Cancellation: the node is gone.
        """
        limits = self._limits
        try:
            if self._leaving or self._is_full:
                raise RemoteProtocolError(FULL, "the router is full or leaving", 503)
            self._make_room()
            node = HeldNode(
                peer,
                NodeRoom(
                    limits.line_length,
                    limits.line_timeout_s,
                    most_calls=limits.most_calls,
                    most_bytes=limits.most_bytes,
                ),
            )
            self._nodes[peer.address] = node
            self._waiting[node] = None
            try:
                await self._live(node)
            finally:
                self._waiting.pop(node, None)
                self._taken.discard(node)
                if self._nodes.get(peer.address) is node:
                    del self._nodes[peer.address]
                self._tell_gone(node, "EMC-1412", "the node is gone")
        except RemoteProtocolError as exc:
            REFUSED.labels(exc.code).inc()
            self._log.info("router.node_refused", node=peer.address, code=exc.code, detail=exc.detail)
            if exc.code.startswith("EMC-14"):
                raise
            raise RemoteProtocolError(FULL, f"{exc.code}: {exc.detail}", 503) from exc  # elsewhere it may do

    @property
    def _is_full(self) -> bool:
        return len(self._taken) >= self._limits.max_nodes

    def _make_room(self) -> None:
        """Send away the oldest that has said nothing yet, where too many are not admitted.

        Raises: RemoteProtocolError EMC-1409 when all of them wait for their hub.
        """
        if len(self._waiting) < MAX_WAITING:
            return
        oldest = next((node for node in self._waiting if not node.has_spoken), None)
        if oldest is None:
            raise RemoteProtocolError(FULL, "too many nodes wait to be admitted", 503)
        del self._waiting[oldest]
        oldest.end(FULL, "others wait")

    async def leave(self, grace_s: float) -> None:
        """Take no more nodes; tell hubs and nodes that this router is going."""
        self._leaving = True
        for node in self._nodes.values():
            self._tell_gone(node, LEAVING, "the router is leaving")
            node.post(encode(NoticeMessage(LEAVING, "this router is leaving: connect to another")))
        await trio.sleep(grace_s)

    # ------------------------------------------------------------------ one node

    async def _live(self, node: HeldNode) -> None:
        raw = await self._read_first(node)
        node.has_spoken = True
        upstream = self._upstreams[node.hub]  # type: ignore[index]
        node.peer.on_live = lambda live: upstream.tell_live(node, live)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._write, node)
            nursery.start_soon(self._relay, node, upstream, raw)
            await node.wait_ended()
            if node.code == _MOVED:  # it is reached in another way: what it does here goes on
                with trio.move_on_after(self._limits.drain_s):
                    await node.room.wait_idle()
            nursery.cancel_scope.cancel()
        with trio.move_on_after(FLUSH_S), suppress(RecoverableError):
            await node.flush()
        raise RemoteProtocolError(node.code, node.detail)

    async def _read_first(self, node: HeldNode) -> bytes:
        """The node's first message, a status that names one of our hubs.

        Raises: RemoteProtocolError EMC-2307 (no such status), EMC-1429 (not our hub), EMC-1409 (the hub is away).
        """
        node.opening.deadline = trio.current_time() + FIRST_STATUS_S
        with node.opening:
            raw = await anext(node.peer.controls(), None)
            message = None if raw is None else decode_control(raw)
            if raw is None or not isinstance(message, StatusMessage) or message.status.node != node.address:
                raise RemoteProtocolError("EMC-2307", "the first message is not its status")
            hub = message.status.hub
            upstream = self._upstreams.get(hub)
            if upstream is None:
                raise RemoteProtocolError(OTHER_HUB, f"this router does not join hub {hub}")
            if not upstream.is_up:
                raise RemoteProtocolError(FULL, f"this router has no connection to hub {hub}", 503)
            node.hub = hub
            return raw
        if node.code:
            raise RemoteProtocolError(node.code, node.detail, 503)
        raise RemoteProtocolError("EMC-2307", f"no status within {FIRST_STATUS_S} s")

    async def _relay(self, node: HeldNode, upstream: Upstream, first: bytes) -> None:
        """Bring what the node says, within its allowance; its status first, to each session of the hub."""
        allowance = Allowance(MESSAGES_PER_S, MESSAGE_BURST, trio.current_time())
        controls = node.peer.controls()
        raw: bytes | None = first
        while raw is not None:
            if wait_s := allowance.take(trio.current_time()):
                await trio.sleep(wait_s)
            status = self._find_status(raw)
            if status is not None:
                node.room.set_capacity(status.status.capacity)
            if len(raw) > RELAY_BYTES:
                node.post(encode(NoticeMessage("EMC-2308", f"a message of {len(raw)} bytes")))
            elif node.brought:
                await upstream.relay(node, raw)
            elif status is not None and upstream.has_session:
                await self._bring(node, upstream, raw)
            raw = await anext(controls, None)

    async def _bring(self, node: HeldNode, upstream: Upstream, status: bytes) -> None:
        """Show the node to the hub, and wait for its word."""
        await upstream.bring(node, status)
        with trio.move_on_after(TAKEN_S) as scope:
            await node.wait_taken()
        if scope.cancelled_caught:
            node.end(FULL, "the hub gave no answer")
        elif node.is_taken and node in self._waiting:
            if self._is_full:
                node.end(FULL, "the router is full")
            del self._waiting[node]
            self._taken.add(node)

    @staticmethod
    def _find_status(raw: bytes) -> StatusMessage | None:
        """The message, if it is a status; what is no message at all is the hub's to judge."""
        try:
            message = decode_control(raw)
        except ProtocolError:
            return None
        return message if isinstance(message, StatusMessage) else None

    async def _write(self, node: HeldNode) -> None:
        with suppress(RecoverableError):  # lost: the tunnel's end is under way
            await node.write()

    def _tell_gone(self, node: HeldNode, code: str, detail: str) -> None:
        upstream = self._upstreams.get(node.hub) if node.hub is not None else None
        if upstream is not None:
            upstream.tell_gone(node, code, detail)
