"""The nodes that are here now: their tunnels, their last status, their calls in flight.

Owns nothing that must survive: a restart finds the nodes again as they reconnect. Invariants: one
entry an address, the newest tunnel; a node is a candidate only with a tunnel and a status within
the online window; in-flight counts are the hub's own. Only the loop's thread touches it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import trio

from emcd.proto.messages import NodeStatus
from emcd.proto.openai import Endpoint
from emcd.types import Address
from emcd_hub.nodes.link import NodeLink
from emcd_hub.nodes.status import ModelInfo

_Key = tuple[Endpoint, str]


@dataclass(slots=True, eq=False)
class NodeEntry:
    """One connected node."""

    address: Address
    link: NodeLink
    status: NodeStatus | None = None
    seen_at_ms: int = 0
    sequence: int = 0
    models: Mapping[str, ModelInfo] = field(default_factory=dict)
    manifests: Mapping[bytes, ModelInfo] = field(default_factory=dict)
    in_flight: int = 0
    last_used: int = 0
    connected: bool = True

    @property
    def free(self) -> int:
        """Calls it may take now."""
        return self.status.capacity - self.in_flight if self.status is not None else 0


class NodeBoard:
    """All nodes with a live tunnel."""

    def __init__(self, online_window_ms: int) -> None:
        self.window_ms = online_window_ms
        """How old a status may be; it changes with the network's parameters."""
        self._entries: dict[Address, NodeEntry] = {}
        self._serving: dict[_Key, list[NodeEntry]] = {}
        self._last_seen_ms: dict[_Key, int] = {}
        self._waiting: dict[_Key, trio.lowlevel.ParkingLot] = {}
        self._promised: dict[_Key, int] = {}
        self._uses = 0

    def join(self, link: NodeLink) -> NodeEntry:
        """Take a new tunnel; the node's older one is no longer used."""
        old = self._entries.get(link.address)
        if old is not None:
            self.leave(old)
        entry = self._entries[link.address] = NodeEntry(link.address, link)
        return entry

    def leave(self, entry: NodeEntry) -> None:
        """Forget a tunnel; its calls end by themselves."""
        entry.connected = False
        self._set_models(entry, {})
        if self._entries.get(entry.address) is entry:
            del self._entries[entry.address]

    def apply_status(
        self, entry: NodeEntry, status: NodeStatus, models: Iterable[ModelInfo], now_ms: int
    ) -> None:
        """Take a checked status. Of two models of one name the first counts."""
        entry.status, entry.seen_at_ms, entry.sequence = status, now_ms, status.sequence
        by_name: dict[str, ModelInfo] = {}
        for info in models:
            by_name.setdefault(info.name, info)
        for key in _keys(by_name):
            self._last_seen_ms[key] = now_ms
        if by_name != entry.models:
            self._set_models(entry, by_name)
        self._wake(entry, entry.free)

    def expire(self, now_ms: int) -> list[NodeEntry]:
        """Take nodes whose status is too old out of routing. Returns: those that went now."""
        gone = [e for e in self._entries.values() if e.models and e.seen_at_ms < now_ms - self.window_ms]
        for entry in gone:
            self._set_models(entry, {})
        for key, seen in list(self._last_seen_ms.items()):
            if seen < now_ms - self.window_ms and not self._serving.get(key):
                del self._last_seen_ms[key]
        return gone

    def candidates(self, endpoint: Endpoint, model: str) -> list[NodeEntry]:
        """The nodes that serve a model; not to be changed by the caller."""
        return self._serving.get((endpoint, model), _NOBODY)

    def knows_model(self, endpoint: Endpoint, model: str) -> bool:
        """Whether anybody served it within the online window."""
        return (endpoint, model) in self._last_seen_ms

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
        for entry in self._entries.values():
            for name, info in entry.models.items():
                found.setdefault(name, {})[info.model_hash] = info
        return {name: list(infos.values()) for name, infos in sorted(found.items())}

    def is_online(self, entry: NodeEntry, now_ms: int) -> bool:
        return entry.status is not None and entry.seen_at_ms >= now_ms - self.window_ms

    def take(self, entry: NodeEntry) -> None:
        """A call goes to the node."""
        self._uses += 1
        entry.in_flight += 1
        entry.last_used = self._uses

    def give_back(self, entry: NodeEntry) -> None:
        """A call at the node is over; somebody who waits for room is woken."""
        entry.in_flight -= 1
        if self._waiting:
            self._wake(entry, 1)

    def must_queue(self, endpoint: Endpoint, model: str) -> bool:
        """Whether others wait for room already: a newcomer stands behind them."""
        key = (endpoint, model)
        return key in self._waiting or self._promised.get(key, 0) > 0

    async def wait_room(self, endpoint: Endpoint, model: str) -> None:
        """Wait in line until a node of the model has room, or comes. Who then leaves must `pass_on`."""
        key = (endpoint, model)
        lot = self._waiting.setdefault(key, trio.lowlevel.ParkingLot())
        try:
            await lot.park()
            self._promised[key] -= 1
        finally:
            if not lot:
                self._waiting.pop(key, None)
            if not self._promised.get(key):
                self._promised.pop(key, None)

    def pass_on(self, endpoint: Endpoint, model: str) -> None:
        """Wake the next in line: the one that was woken could not use the room."""
        self._unpark((endpoint, model), 1)

    def count_waiting(self) -> int:
        return sum(len(lot) for lot in self._waiting.values())

    def _wake(self, entry: NodeEntry, room: int) -> None:
        if room <= 0 or not self._waiting:
            return
        for key in _keys(entry.models):
            self._unpark(key, room)

    def _unpark(self, key: _Key, room: int) -> None:
        lot = self._waiting.get(key)
        if lot is not None:
            woken = len(lot.unpark(count=room))
            self._promised[key] = self._promised.get(key, 0) + woken

    def _set_models(self, entry: NodeEntry, models: Mapping[str, ModelInfo]) -> None:
        for key in _keys(entry.models):
            left = [item for item in self._serving[key] if item is not entry]
            if left:
                self._serving[key] = left
            else:
                del self._serving[key]
        entry.models = models
        for key in _keys(models):
            self._serving.setdefault(key, []).append(entry)


_NOBODY: list[NodeEntry] = []


def _keys(models: Mapping[str, ModelInfo]) -> list[_Key]:
    return [(endpoint, name) for name, info in models.items() for endpoint in info.endpoints]
