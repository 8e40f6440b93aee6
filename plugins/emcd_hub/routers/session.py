"""One router's tunnel at the hub: the nodes that it brings, what they say, its own heartbeats.

Invariants: reading never waits for a node, a ledger or the chain, so that one node costs its router
nothing; a node joins only by its own status, newer than all before, and only when the registry has
it; what a router may send is bounded, in messages, in bytes and in nodes; a router that says
nothing for `SILENT_TICKS` seconds is gone, and so are its nodes.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator

import structlog
import trio

from emcd.clock import Clock
from emcd.errors import EmcdError, ProtocolError, RecoverableError, RemoteProtocolError
from emcd.net.allowance import Allowance
from emcd.proto.address import parse_address
from emcd.proto.control import (
    NoticeMessage,
    RelayGone,
    RelayLive,
    RelayMessage,
    RelayTaken,
    RouterControl,
    RouterStatusMessage,
    StatusMessage,
    decode_control,
    decode_router_control,
    encode,
)
from emcd.proto.eip712 import Domain
from emcd.proto.messages import RouterStatus
from emcd.types import Address, ParticipantRole
from emcd_hub.metrics import count_node_fault
from emcd_hub.nodes.gate import FAULT_REFILL_S, MAX_FAULTS, NodeGate
from emcd_hub.nodes.status import require_status
from emcd_hub.routers.link import QueueRoom, RoutedLink, RouterPeer
from emcd_hub.routers.status import require_router_status

Authorize = Callable[[Address, ParticipantRole], Awaitable[bool]]

SILENT_TICKS = 8
"""A router reports every two seconds. Ticks are counted, not time: a hub that stood still heard nobody."""
TICK_S = 1.0
OUTBOX = 4096
"""Short messages about nodes; a router that does not read them is dismissed."""
OUTBOX_BYTES = 1024 * 1024
CHECKPOINT_EACH = 32
"""Messages that are handled before the other tasks have their turn."""
STATUSES_PER_S = 1.0
STATUS_BURST = 4.0
"""A router reports every two seconds; what is more is not looked at."""
SEND_TIMEOUT_S = 10.0
MESSAGES_PER_S = 50.0
"""For each node that has joined, beyond which the router is made to wait; an honest router holds its nodes to as much."""
BURST = 1000.0
FIRST_STATUS_S = 10.0
SILENT = "EMC-1735"
HANDLER_FAILED = "EMC-1427"


class RouterSession:
    """Lives as long as the tunnel."""

    def __init__(
        self,
        peer: RouterPeer,
        *,
        hub: Address,
        domain: Domain,
        gate: NodeGate,
        authorize: Authorize,
        max_nodes: int,
        clock: Clock,
        log: structlog.stdlib.BoundLogger,
    ) -> None:
        self.address = peer.address
        self.since_ms = clock.now_ms()
        self.status: RouterStatus | None = None
        self.status_at_ms = 0
        self.links: dict[Address, RoutedLink] = {}
        self.code = ""
        """Why the hub ends it."""
        self._peer = peer
        self._hub = hub
        self._domain = domain
        self._gate = gate
        self._authorize = authorize
        self._max_nodes = max_nodes
        self._clock = clock
        self._log = log.bind(router=peer.address)
        self._silent_ticks = 0
        self._scope = trio.CancelScope()
        self._send_news, self._news = trio.open_memory_channel[bytes](OUTBOX)
        self._news_bytes = 0
        self._joined = 0
        self._statuses = Allowance(STATUSES_PER_S, STATUS_BURST, trio.current_time())
        self._room = QueueRoom()

    async def run(self) -> None:
        """Serve the router until it is lost or ended. Cancellation: its nodes are gone."""
        self._peer.on_live = self._tell_live
        self._log.info("router connected")
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._tell)
                    nursery.start_soon(self._watch)
                    await self._listen(nursery)
                    nursery.cancel_scope.cancel()
        finally:
            self._log.info("router disconnected", code=self.code)

    def end(self, code: str) -> None:
        """End the tunnel for a reason."""
        self.code = self.code or code
        self._scope.cancel()

    # ------------------------------------------------------------------ what the router says

    async def _listen(self, nursery: trio.Nursery) -> None:
        allowance = Allowance(MESSAGES_PER_S, BURST, trio.current_time())
        faults = Allowance(1 / FAULT_REFILL_S, MAX_FAULTS, trio.current_time())
        handled = 0
        async for raw in self._peer.controls():
            self._silent_ticks = 0
            handled += 1
            allowance.per_s = MESSAGES_PER_S * (1 + self._joined)
            if wait_s := allowance.take(trio.current_time()):
                await trio.sleep(wait_s)
            elif handled % CHECKPOINT_EACH == 0:
                await trio.lowlevel.checkpoint()
            try:
                self._handle(decode_router_control(raw), nursery)
            except ProtocolError as exc:
                count_node_fault(exc.code)
                self._log.warning("router fault", code=exc.code, detail=exc.detail[:200])
                self._post(NoticeMessage(exc.code, exc.detail[:400]))
                if faults.take(trio.current_time()):
                    self.end("EMC-1730")

    def _handle(self, message: RouterControl, nursery: trio.Nursery) -> None:
        if isinstance(message, RelayMessage):
            self._relay(message, nursery)
        elif isinstance(message, RelayGone):
            link = self._find(message)
            if link is not None:
                del self.links[link.address]
                link.close()
        elif isinstance(message, RelayLive):
            link = self._find(message)
            if link is not None:
                link.set_live(message.live)
        elif isinstance(message, RouterStatusMessage):
            if not self._statuses.take(trio.current_time()):
                self._take_status(message)
        else:
            raise RemoteProtocolError("EMC-1727", f"a router does not send {type(message).__name__}")

    def _find(self, message: RelayGone | RelayLive) -> RoutedLink | None:
        """The node's link, if the message is about the session that it stands for, and not about an older."""
        link = self.links.get(message.node)
        return link if link is not None and link.number == message.number else None

    def _take_status(self, message: RouterStatusMessage) -> None:
        self.status = require_router_status(
            message,
            domain=self._domain,
            hub=self._hub,
            router=self.address,
            now_ms=self._clock.now_ms(),
            last_sequence=0 if self.status is None else self.status.sequence,
        )
        self.status_at_ms = self._clock.now_ms()

    def _relay(self, message: RelayMessage, nursery: trio.Nursery) -> None:
        """Hand a node's message to the node's own task; the first one of a session starts it."""
        link = self.links.get(message.node)
        if link is not None and message.number != link.number:
            if message.number < link.number:
                return
            del self.links[link.address]
            link.close()
            link = None
        if link is None:
            node = parse_address(message.node)
            if len(self.links) >= self._max_nodes:
                detail = f"{self._max_nodes} nodes"
                self._post(RelayGone(node, "EMC-1733", detail, message.number))
                return
            link = self.links[node] = RoutedLink(self._peer, node, self._room, message.number)
            nursery.start_soon(self._serve, link)
        if not link.put(message.payload):
            count_node_fault("EMC-1732")
            self._drop(link, "EMC-1732", "its messages pile up")

    def _drop(self, link: RoutedLink, code: str, detail: str) -> None:
        """The node is not wanted here any more, unless it is gone already."""
        link.close()
        if self.links.get(link.address) is link:
            del self.links[link.address]
            self._post(RelayGone(link.address, code, detail, link.number))

    # ------------------------------------------------------------------ the nodes

    async def _serve(self, link: RoutedLink) -> None:
        """A node's life behind this router; what goes wrong with it is its own end, and nobody else's."""
        try:
            raw = await self._require_wanted(link)
            if not link.closed.is_set():
                await self._serve_joined(link, raw)
        except Exception as exc:  # noqa: BLE001 -- one node's fault is not its neighbours'
            code, detail = self._judge(link, exc)
            count_node_fault(code)
            self._drop(link, code, detail)
        finally:
            link.discard()

    async def _serve_joined(self, link: RoutedLink, first: bytes) -> None:
        link.join(first)
        self._post(RelayTaken(link.address, link.number))
        self._joined += 1
        try:
            code = await self._gate.serve(link, self.address)
        finally:
            self._joined -= 1
        self._drop(link, code, "ended by the hub")

    def _judge(self, link: RoutedLink, exc: Exception) -> tuple[str, str]:
        """Returns: the code that stands for what was let out, and its detail."""
        faults = list(_leaves(exc))
        if all(isinstance(fault, EmcdError) for fault in faults):
            fault = faults[0]
            assert isinstance(fault, EmcdError)
            return fault.code, fault.detail[:400]
        self._log.error("node handler failed", node=link.address, exc_info=exc)
        return HANDLER_FAILED, "internal error"

    async def _require_wanted(self, link: RoutedLink) -> bytes:
        """Wait for the node's first status and judge it. Returns: that status, as it came.

        Raises: RemoteProtocolError EMC-1407 (registry), EMC-1731 (not newer), and what is wrong with it.
        """
        with trio.move_on_after(FIRST_STATUS_S):
            raw = await anext(link, None)
            message = None if raw is None else decode_control(raw)
            if raw is None or not isinstance(message, StatusMessage):
                raise RemoteProtocolError("EMC-1731", "it does not begin with a status")
            if not await self._authorize(link.address, ParticipantRole.COMPUTE):
                raise RemoteProtocolError("EMC-1407", f"{link.address} is not authorized", 403)
            self._require_newest(link.address, message)
            return raw
        raise RecoverableError("EMC-1731", "no answer of the chain in time")

    def _require_newest(self, node: Address, message: StatusMessage) -> None:
        """Nothing may wait between this and the node's joining."""
        now_ms = self._clock.now_ms()
        status = require_status(
            message, domain=self._domain, hub=self._hub, node=node, now_ms=now_ms, last_sequence=0
        )
        newest = self._gate.newest
        if not newest.is_newer(node, status.sequence):
            raise RemoteProtocolError("EMC-1731", f"sequence {status.sequence} is not the newest")
        if self._gate.has_just_come(node):
            raise RemoteProtocolError("EMC-1731", "the node has just connected in another way")
        newest.note(node, status.sequence, now_ms)

    # ------------------------------------------------------------------ the hub's side

    def _tell_live(self, _: bool) -> None:
        """The router's link was lost, or is there again: so are its nodes'."""
        for link in self.links.values():
            link.tell_live()

    def _post(self, message: RouterControl) -> None:
        """Queue a message to the router."""
        raw = encode(message)
        if self._news_bytes + len(raw) > OUTBOX_BYTES:
            self.end("EMC-1730")
            return
        try:
            self._send_news.send_nowait(raw)
        except trio.WouldBlock:
            self.end("EMC-1730")
        else:
            self._news_bytes += len(raw)

    async def _tell(self) -> None:
        async for message in self._news:
            self._news_bytes -= len(message)
            with trio.move_on_after(SEND_TIMEOUT_S) as scope:
                try:
                    await self._peer.send_control(message)
                except RecoverableError:
                    return
            if scope.cancelled_caught:
                self.end("EMC-1730")

    async def _watch(self) -> None:
        while True:
            await trio.sleep(TICK_S)
            self._silent_ticks += 1
            if self._silent_ticks > SILENT_TICKS:
                self._log.warning("router is silent")
                self.end(SILENT)


def _leaves(exc: BaseException) -> Iterator[BaseException]:
    """What a group is made of, however deep."""
    if isinstance(exc, BaseExceptionGroup):
        for part in exc.exceptions:
            yield from _leaves(part)
    else:
        yield exc
