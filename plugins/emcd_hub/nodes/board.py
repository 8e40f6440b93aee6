"""The nodes that are here now: their tunnels, their last status, their calls in flight, their room.

Owns nothing that must survive: a restart finds the nodes again as they reconnect. Invariants: one
entry an address, the newest tunnel; a node is a candidate only with a tunnel and a status within
the online window; in-flight counts are the hub's own; while a call waits that could use a node's
room, nobody else gets it. Only the loop's thread touches it.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Mapping

from emcd.line import Line
from emcd.proto.messages import NodeStatus
from emcd.proto.openai import Endpoint
from emcd.scheduling.breaker import BreakerState
from emcd.types import ZERO_ADDRESS, Address
from emcd_hub.nodes.entry import NodeEntry, NodeRecord
from emcd_hub.nodes.known_models import KnownModels
from emcd_hub.nodes.lane import Lane, LaneKey
from emcd_hub.nodes.link import NodeLink
from emcd_hub.nodes.status import ModelInfo

__all__ = ["NodeBoard", "NodeEntry"]

MAX_WAITING = 1024
MODELS_PART = 4
"""The calls of one model are at most this part of the line: one busy model does not refuse all others."""


class NodeBoard:
    """All nodes with a live tunnel."""

    def __init__(self, online_window_ms: int, max_waiting: int = MAX_WAITING) -> None:
        self.window_ms = online_window_ms
        """How old a status may be; it changes with the network's parameters."""
        self.line: Line[NodeEntry] = Line(max_waiting, -(-max_waiting // MODELS_PART))
        """Calls that wait for room: at any node of a lane, or at nodes they name."""
        self.half_open: set[NodeEntry] = set()
        """Nodes whose breaker is half open."""
        self._broken: set[NodeEntry] = set()
        self._entries: dict[Address, NodeEntry] = {}
        self._records: dict[Address, NodeRecord] = {}
        self._lanes: dict[LaneKey, Lane] = {}
        self._known = KnownModels()
        self._suspended: frozenset[Address] = frozenset()
        self._delisted: frozenset[bytes] = frozenset()
        self._uses = 0

    def join(self, link: NodeLink, router: Address = ZERO_ADDRESS) -> NodeEntry:
        """Take a new tunnel; the node's older one is no longer used."""
        old = self._entries.get(link.address)
        if old is not None:
            self.leave(old)
        record = self._records.setdefault(link.address, NodeRecord())
        record.left_at_ms = None
        entry = self._entries[link.address] = NodeEntry(link.address, link, router, record=record)
        entry.suspended = entry.address in self._suspended
        self._sort(entry)
        return entry

    def leave(self, entry: NodeEntry) -> None:
        """Forget a tunnel; its calls end by themselves."""
        entry.connected = False
        entry.offered = ()
        self._set_models(entry, {})
        entry.restate()
        self.half_open.discard(entry)
        self._broken.discard(entry)
        if self._entries.get(entry.address) is entry:
            del self._entries[entry.address]
            entry.record.left_at_ms = entry.seen_at_ms

    def set_live(self, entry: NodeEntry, live: bool) -> None:
        """The node's link was lost, or stands again."""
        entry.live = live
        self.restate(entry)

    def apply_status(
        self, entry: NodeEntry, status: NodeStatus, models: Iterable[ModelInfo], now_ms: int
    ) -> None:
        """Take a checked status. Of two models of one name the first counts."""
        entry.status, entry.seen_at_ms, entry.sequence = status, now_ms, status.sequence
        entry.capacity = status.capacity
        entry.offered = tuple(models)
        by_name = self._choose(entry)
        self._known.note(entry.address, by_name.values(), now_ms)
        if by_name != entry.models:
            self._set_models(entry, by_name)
        self.restate(entry)

    def _choose(self, entry: NodeEntry) -> dict[str, ModelInfo]:
        """What a node may sell of what it offers."""
        by_name: dict[str, ModelInfo] = {}
        for info in entry.offered:
            if info.model_hash not in self._delisted:
                by_name.setdefault(info.name, info)
        return by_name

    def delist(self, manifests: frozenset[bytes]) -> None:
        """These manifests, and no others, are sold by nobody."""
        if manifests == self._delisted:
            return
        self._delisted = manifests
        for entry in self._entries.values():
            if entry.offered:
                self._set_models(entry, self._choose(entry))
                self.restate(entry)

    def list_delisted(self) -> dict[str, list[ModelInfo]]:
        """The models that nodes offer and may not sell, by name, each manifest once."""
        found: dict[str, dict[bytes, ModelInfo]] = {}
        for entry in self._entries.values() if self._delisted else ():
            for info in entry.offered:
                if info.model_hash in self._delisted:
                    found.setdefault(info.name, {})[info.model_hash] = info
        return {name: list(infos.values()) for name, infos in found.items()}

    def expire(self, now_ms: int) -> list[NodeEntry]:
        """Take nodes whose status is too old out of routing. Returns: those that went now."""
        oldest = now_ms - self.window_ms
        gone = [e for e in self._entries.values() if e.offered and e.seen_at_ms < oldest]
        for entry in gone:
            entry.offered = ()
            self._set_models(entry, {})
        self._known.forget(oldest)
        for address, record in list(self._records.items()):
            if record.left_at_ms is not None and record.left_at_ms < oldest:
                del self._records[address]
        return gone

    def suspend(self, nodes: Collection[Address]) -> None:
        """These nodes, and no others, get only calls that name them."""
        if nodes == self._suspended:
            return
        self._suspended = frozenset(nodes)
        for entry in self._entries.values():
            if entry.suspended != (entry.address in self._suspended):
                entry.suspended = not entry.suspended
                self.restate(entry)

    def restate(self, entry: NodeEntry) -> None:
        """The node's state changed in any way: sort it in, and give away what room it has.

        What is known of a node outlives its tunnels: the newest counts, whichever the news came by.
        """
        current = self._entries.get(entry.address)
        if current is not None:
            self._sort(current)
            current.restate()
            self._offer(current)

    def reopen(self, now: float) -> None:
        """Try the broken nodes whose pause is over. `now`: seconds of the breakers' clock."""
        for entry in list(self._broken):
            if entry.record.breaker.poll(now):
                self.restate(entry)

    def candidates(self, endpoint: Endpoint, model: str) -> list[NodeEntry]:
        """The nodes that serve a model; not to be changed by the caller."""
        lane = self._lanes.get((endpoint, model))
        return _NOBODY if lane is None else lane.nodes

    def find_lane(self, endpoint: Endpoint, model: str) -> Lane | None:
        """The nodes that serve a model; None where there is none."""
        return self._lanes.get((endpoint, model))

    def wants_evidence(self, endpoint: Endpoint, model: str) -> bool:
        """Whether calls of a model ask for what a judge needs. May be asked from any thread."""
        lane = self._lanes.get((endpoint, model))
        return lane is not None and lane.is_checked

    def knows_model(self, endpoint: Endpoint, model: str) -> bool:
        """Whether anybody served it within the online window."""
        return self._known.knows(endpoint, model)

    @property
    def is_empty(self) -> bool:
        """Whether no node is connected, with or without a status."""
        return not self._entries

    def find(self, address: Address) -> NodeEntry | None:
        return self._entries.get(address)

    def list_entries(self) -> list[NodeEntry]:
        return list(self._entries.values())

    def list_models(self) -> dict[str, list[ModelInfo]]:
        """The models being served, by name, each manifest once."""
        found: dict[str, dict[bytes, ModelInfo]] = {}
        for lane in self._lanes.values():
            found.setdefault(lane.key[1], {}).update(lane.variants)
        return {name: list(infos.values()) for name, infos in sorted(found.items())}

    def count_serving(self) -> dict[tuple[str, bytes], int]:
        """How many nodes serve each model by each manifest."""
        counts: dict[tuple[str, bytes], int] = {}
        for entry in self._entries.values():
            for name, info in entry.models.items():
                counts[name, info.model_hash] = counts.get((name, info.model_hash), 0) + 1
        return counts

    def list_names(self) -> set[str]:
        """The names of the models being served."""
        return {name for _, name in self._lanes}

    def is_online(self, entry: NodeEntry, now_ms: int) -> bool:
        return entry.status is not None and entry.seen_at_ms >= now_ms - self.window_ms

    def count_breakers(self) -> dict[BreakerState, int]:
        """The nodes that are here, by the state of their breakers."""
        broken, tried = len(self._broken), len(self.half_open)
        closed = len(self._entries) - broken - tried
        return {BreakerState.CLOSED: closed, BreakerState.OPEN: broken, BreakerState.HALF_OPEN: tried}

    def take(self, entry: NodeEntry) -> None:
        """A call goes to the node."""
        self._uses += 1
        entry.in_flight += 1
        entry.last_used = self._uses
        if entry.is_well:
            entry.room -= 1
        else:
            entry.on_trial = entry.breaker is BreakerState.HALF_OPEN
            entry.restate()

    def give_back(self, entry: NodeEntry) -> None:
        """A call at the node is over; who waits for room gets it."""
        entry.in_flight -= 1
        if entry.is_well:
            entry.room += 1
        else:
            entry.on_trial = False
            entry.restate()
        if self.line.waiting:
            self._offer(entry)

    def _offer(self, entry: NodeEntry) -> None:
        """Hand the node's room to those who wait for it: any call, or one that names the node."""
        while self.line.waiting and entry.spare > 0:
            keys: list[Hashable] = [entry.address]
            if entry.room > 0:
                keys += [lane.key for lane in entry.lanes]
            if not self.line.offer(keys, entry, self.take):
                return

    def _sort(self, entry: NodeEntry) -> None:
        self.half_open.discard(entry)
        self._broken.discard(entry)
        if entry.breaker is BreakerState.HALF_OPEN:
            self.half_open.add(entry)
        elif entry.breaker is BreakerState.OPEN:
            self._broken.add(entry)

    def _set_models(self, entry: NodeEntry, models: Mapping[str, ModelInfo]) -> None:
        for lane in entry.lanes:
            lane.leave(entry, entry.models[lane.key[1]])
            if not lane.nodes:
                del self._lanes[lane.key]
        entry.models = models
        entry.lanes = []
        for name, info in models.items():
            for endpoint in info.endpoints:
                key = (endpoint, name)
                found = self._lanes.get(key)
                if found is None:
                    found = self._lanes[key] = Lane(key)
                found.join(entry, info)
                entry.lanes.append(found)


_NOBODY: list[NodeEntry] = []
