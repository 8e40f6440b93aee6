"""A node's tunnel from its first status to its end: what the node says, and what it is told.

Invariants: a node's fault costs the node, never the hub: it is answered with a numbered notice,
and a node that goes on is disconnected; what is sent to a node waits in a bounded queue, so that
one that does not read stalls nobody; a node has one tunnel, its own or through a router, and the
newer ends the older.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

import msgspec
import structlog
import trio

from emcd.bus import Bus
from emcd.clock import Clock
from emcd.errors import ProtocolError, RecoverableError, RemoteProtocolError
from emcd.events import NODES, NodeMoved
from emcd.ledger import Connection, Ledger
from emcd.proto.address import hex_hash
from emcd.proto.bundle import StatusEntry
from emcd.proto.control import BatchMessage, Control, NoticeMessage, StatusMessage, decode_control, encode
from emcd.proto.eip712 import Domain
from emcd.proto.params import ModelStanding, NetworkParams
from emcd.types import ZERO_ADDRESS, Address
from emcd_hub.in_force import InForce
from emcd_hub.metrics import NODES_ONLINE, count_node_fault
from emcd_hub.nodes.board import NodeBoard, NodeEntry
from emcd_hub.nodes.link import NodeLink
from emcd_hub.nodes.newest import NewestStatus
from emcd_hub.nodes.pace import ModelPace
from emcd_hub.nodes.status import ModelInfo, require_models, require_status
from emcd_hub.records.receipt_desk import ReceiptDesk

OUTBOX = 256
"""Messages that wait for a node: a minute of proofs; what comes on top is dropped."""
MAX_FAULTS = 20
FAULT_REFILL_S = 10.0
MESSAGES_PER_S = 50.0
MESSAGE_BURST = 200.0
SEND_TIMEOUT_S = 15.0
PACE_MS = 15_000
"""A model change of a node every so often, until `expire` has looked up the status interval."""
FIRST_STATUS_S = 5.0
NOT_ADMITTED = "EMC-1407"
REPLACED = "EMC-1410"
FAULTS = "EMC-1730"

_encode = msgspec.msgpack.Encoder().encode


@dataclass(eq=False, slots=True)
class _Served:
    """A tunnel that is being served; `code` says why the hub ends it, `told` of which models it was told that
    they are delisted.
    """

    outbox: trio.MemorySendChannel[bytes]
    entry: NodeEntry
    since: float
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    code: str = ""
    told: frozenset[bytes] = frozenset()

    def end(self, code: str) -> None:
        self.code = self.code or code
        self.scope.cancel()


class NodeGate:
    """Serves the control side of every node's tunnel."""

    def __init__(
        self,
        *,
        hub: Address,
        domain: Domain,
        in_force: InForce,
        manifests: Mapping[str, frozenset[bytes]],
        board: NodeBoard,
        desk: ReceiptDesk,
        ledger: Ledger,
        clock: Clock,
        bus: Bus,
        log: structlog.stdlib.BoundLogger,
    ) -> None:
        """`manifests`: for a model name that stands there, the only manifest hashes it is served by."""
        self._hub = hub
        self._domain = domain
        self._in_force = in_force
        self._manifests = manifests
        self._board = board
        self._desk = desk
        self._ledger = ledger
        self._clock = clock
        self._bus = bus
        self._log = log
        self._served: dict[Address, _Served] = {}
        self._persisted: tuple[int, set[Address]] = (-1, set())
        self._pace = ModelPace(PACE_MS)
        self.newest = NewestStatus()
        self._delisted: tuple[NetworkParams | None, frozenset[bytes]] = (None, frozenset())

    async def serve(self, link: NodeLink, router: Address = ZERO_ADDRESS) -> str:
        """Live with a tunnel until it ends; an older one of the node is ended first.

        Returns: why the hub ended it: EMC-1407 not admitted any more, EMC-1410 a newer tunnel, EMC-1730
            faults; "" when the node did.
        Cancellation: the node is gone.
        """
        self._end(link.address, REPLACED)
        entry = self._board.join(link, router)
        link.on_live = partial(self._board.set_live, entry)
        if not link.live:
            self._board.set_live(entry, False)
        send, receive = trio.open_memory_channel[bytes](OUTBOX)
        served = self._served[link.address] = _Served(send, entry, trio.current_time())
        log = self._log.bind(node=link.address, router=router)
        log.info("node connected")
        try:
            with served.scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._send, link, receive)
                    await self._listen(entry, served, log)
                    nursery.cancel_scope.cancel()
        finally:
            self._board.leave(entry)
            if self._served.get(link.address) is served:
                del self._served[link.address]
                self._changed(entry.address, online=False)
            log.info("node disconnected", code=served.code)
        return served.code

    async def notify(self, node: Address, message: bytes) -> None:
        """Queue a message for a node; dropped when it is away or does not read."""
        served = self._served.get(node)
        if served is not None:
            try:
                served.outbox.send_nowait(message)
            except (trio.WouldBlock, trio.BrokenResourceError):
                count_node_fault("outbox")

    def dismiss(self, node: Address) -> None:
        """Close a node's tunnel: it is not admitted any more."""
        if node in self._served:
            self._log.warning("node dismissed", node=node)
            self._end(node, NOT_ADMITTED)

    def has_just_come(self, node: Address) -> bool:
        """Whether the node has a tunnel of its own, so new that its status is still under way."""
        served = self._served.get(node)
        return (
            served is not None
            and served.entry.router == ZERO_ADDRESS
            and served.entry.status is None
            and trio.current_time() - served.since < FIRST_STATUS_S
        )

    def _end(self, node: Address, code: str) -> None:
        served = self._served.get(node)
        if served is not None:
            served.end(code)

    def expire(self) -> None:
        """Take nodes out whose status is too old. Called about once a second."""
        now_ms = self._clock.now_ms()
        params = self._in_force.params(now_ms)
        self._board.window_ms = params.online_window_ms
        self._board.delist(self._list_delisted(params))
        self._pace.every_ms = params.status_interval_ms // 4
        self._pace.forget(now_ms)
        self.newest.forget(now_ms)
        for entry in self._board.expire(now_ms):
            self._changed(entry.address, online=False)
        NODES_ONLINE.set(sum(self._board.is_online(entry, now_ms) for entry in self._board.list_entries()))

    async def _send(self, link: NodeLink, receive: trio.MemoryReceiveChannel[bytes]) -> None:
        async for message in receive:
            with trio.move_on_after(SEND_TIMEOUT_S):
                try:
                    await link.send_control(message)
                except RecoverableError:
                    return

    async def _listen(self, entry: NodeEntry, served: _Served, log: structlog.stdlib.BoundLogger) -> None:
        allowance = MESSAGE_BURST
        faults = 0.0
        last = trio.current_time()
        async for raw in entry.link.controls():
            now = trio.current_time()
            allowance = min(MESSAGE_BURST, allowance + (now - last) * MESSAGES_PER_S) - 1
            faults = max(0.0, faults - (now - last) / FAULT_REFILL_S)
            last = now
            if allowance < 0:
                await trio.sleep(-allowance / MESSAGES_PER_S)
            try:
                await self._handle(entry, decode_control(raw))
            except ProtocolError as exc:
                faults += 1
                count_node_fault(exc.code)
                log.warning("node fault", code=exc.code, detail=exc.detail[:200])
                await self.notify(entry.address, encode(NoticeMessage(exc.code, exc.detail[:400])))
                if faults > MAX_FAULTS:
                    log.error("node disconnected for its faults")
                    served.code = served.code or FAULTS
                    return

    async def _handle(self, entry: NodeEntry, message: Control) -> None:
        if isinstance(message, StatusMessage):
            await self._take_status(entry, message)
        elif isinstance(message, BatchMessage):
            await self._desk.take(entry.address, message)
        else:
            raise RemoteProtocolError("EMC-1727", f"a node does not send {type(message).__name__}")

    async def _take_status(self, entry: NodeEntry, message: StatusMessage) -> None:
        now_ms = self._clock.now_ms()
        status = require_status(
            message,
            domain=self._domain,
            hub=self._hub,
            node=entry.address,
            now_ms=now_ms,
            last_sequence=entry.sequence,
        )
        models = entry.manifests = require_models(message, entry.manifests)
        self.newest.note(entry.address, status.sequence, now_ms)
        fresh = not self._board.is_online(entry, now_ms)
        served = [info for info in models.values() if self._is_served(info)]
        delisted = self._list_delisted(self._in_force.params(now_ms))
        others = any(i.name not in entry.models and i.model_hash not in delisted for i in served)
        if others and not self._pace.take(entry.address, now_ms):
            raise RemoteProtocolError("EMC-1729", "other models too soon")
        self._board.delist(delisted)
        self._board.apply_status(entry, status, served, now_ms)
        if delisted:
            await self._tell_delisted(entry, delisted)
        await self._persist(now_ms, StatusEntry(status, message.signature))
        if fresh:
            self._changed(entry.address, online=True)
        if len(served) < len(models):
            raise RemoteProtocolError(
                "EMC-1728", "a model's manifest is not the one that this hub serves by that name"
            )

    def _list_delisted(self, params: NetworkParams) -> frozenset[bytes]:
        if params is not self._delisted[0]:
            rows = (name for name, standing in params.models if standing == ModelStanding.DELISTED)
            self._delisted = (params, frozenset(bytes.fromhex(name[2:]) for name in rows))
        return self._delisted[1]

    async def _tell_delisted(self, entry: NodeEntry, delisted: frozenset[bytes]) -> None:
        """Say once a connection which of a node's models may not be sold: no fault of the node's."""
        served = self._served.get(entry.address)
        if served is None:
            return
        for info in entry.offered:
            if info.model_hash in delisted - served.told:
                served.told |= {info.model_hash}
                detail = f"{info.name[:80]} {hex_hash(info.model_hash)} was delisted: it is sold by nobody"
                await self.notify(entry.address, encode(NoticeMessage("EMC-1794", detail)))

    def _is_served(self, info: ModelInfo) -> bool:
        allowed = self._manifests.get(info.name)
        return allowed is None or info.model_hash in allowed

    async def _persist(self, now_ms: int, entry: StatusEntry) -> None:
        """Keep a node's first status of the round: it is the evidence that the node was online."""
        index = self._in_force.params(now_ms).round_at(now_ms)
        node = entry.status.node
        if self._persisted[0] != index:
            self._persisted = (index, set())
        if index < 0 or node in self._persisted[1]:
            return
        row = (index, node, _encode(entry))

        def store(con: Connection) -> None:
            con.execute("INSERT INTO hub_statuses VALUES (?, ?, ?) ON CONFLICT DO NOTHING", row)

        await self._ledger.write(store)
        if self._persisted[0] == index:
            self._persisted[1].add(node)

    def _changed(self, node: Address, *, online: bool) -> None:
        self._bus.publish(NODES, NodeMoved(node, online))
