"""One node as the board has it, and what is remembered of it beyond a tunnel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from emcd.proto.messages import NodeStatus
from emcd.scheduling.breaker import Breaker, BreakerState
from emcd.scheduling.speed import Speed
from emcd.types import ZERO_ADDRESS, Address
from emcd_hub.nodes.lane import Lane
from emcd_hub.nodes.link import NodeLink
from emcd_hub.nodes.status import MAX_MODELS, ModelInfo


@dataclass(slots=True, eq=False)
class NodeRecord:
    """What a node that comes back is still known for."""

    breaker: Breaker = field(default_factory=Breaker)
    speeds: dict[str, Speed] = field(default_factory=dict)
    """By model; only of such as it serves or served last."""
    left_at_ms: int | None = None

    def speed(self, model: str) -> Speed:
        """Its speed with a model, to be measured on."""
        found = self.speeds.get(model)
        if found is None:
            while len(self.speeds) >= MAX_MODELS:
                del self.speeds[next(iter(self.speeds))]
            found = self.speeds[model] = Speed()
        return found


@dataclass(slots=True, eq=False)
class NodeEntry:
    """One connected node."""

    address: Address
    link: NodeLink
    router: Address = ZERO_ADDRESS
    """Through whom it is reached; zero: it holds a tunnel to the hub itself."""
    status: NodeStatus | None = None
    seen_at_ms: int = 0
    sequence: int = 0
    models: Mapping[str, ModelInfo] = field(default_factory=dict)
    offered: tuple[ModelInfo, ...] = ()
    """What it would serve; `models` are those of them that may be sold."""
    manifests: Mapping[bytes, ModelInfo] = field(default_factory=dict)
    lanes: list[Lane] = field(default_factory=list)
    record: NodeRecord = field(default_factory=NodeRecord)
    capacity: int = 0
    in_flight: int = 0
    room: int = 0
    """Calls of users it may take now; kept by the board."""
    last_used: int = 0
    connected: bool = True
    live: bool = True
    """Whether its link stands; a lost one may be resumed."""
    suspended: bool = False
    """Convicted: it gets only calls that name it."""
    is_well: bool = True
    """Neither suspended, nor out of reach, nor with a breaker that is not closed."""
    on_trial: bool = False
    """Its breaker is half open and a call is being tried."""

    @property
    def free(self) -> int:
        """Calls it says it can take now."""
        return self.capacity - self.in_flight

    @property
    def spare(self) -> int:
        """Calls that name it, which it may take now: none while it is broken, then one for a trial."""
        if not (self.live and self.connected):
            return 0
        state = self.record.breaker.state
        if state is BreakerState.CLOSED:
            return self.capacity - self.in_flight
        if state is BreakerState.OPEN or self.on_trial:
            return 0
        return min(1, self.capacity - self.in_flight)

    @property
    def breaker(self) -> BreakerState:
        return self.record.breaker.state

    def restate(self) -> None:
        """Bring `room` up to date after anything but a call taken or given back changed."""
        state = self.record.breaker.state
        able = self.live and self.connected and not self.suspended
        self.is_well = able and state is BreakerState.CLOSED
        if self.is_well:
            self.room = self.capacity - self.in_flight
        elif able and state is BreakerState.HALF_OPEN and not self.on_trial:
            self.room = min(1, self.capacity - self.in_flight)
        else:
            self.room = 0
