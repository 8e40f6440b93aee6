"""By which rules calls are given to nodes: the operator's choice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Strategy = Literal["least_loaded", "speed"]


@dataclass(frozen=True)
class RoutingRules:
    """See `HubConfig` for what each is."""

    strategy: Strategy = "least_loaded"
    by_model: Mapping[str, Strategy] = field(default_factory=dict)
    affinity: bool = True
    queue_timeout_s: float = 10.0

    def strategy_of(self, model: str) -> Strategy:
        return self.by_model.get(model, self.strategy) if self.by_model else self.strategy
