"""What is told of each model: how fast it is, how often it fails, how long it was there.

Times to the first token and tokens a second are sketches of the newest few thousand calls since the
hub's start; calls, faults and uptime are those of the last 24 hours, in quarters of an hour that the
ledger keeps (`stats_row`): what this hub did not watch, a restart of its own included, counts as
down. Numbers of finished calls only, and of no account. Bounded: `MAX_KEPT` models, and what nobody
serves and nobody has called in a day is forgotten.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from emcd.scheduling.daybook import DayBook, SlotRow
from emcd.scheduling.sketch import QuantileSketch
from emcd_hub.nodes.board import NodeBoard

MAX_KEPT = 4096


@dataclass(frozen=True)
class ModelNumbers:
    """A model as the last day was; None: not known. Times in ms."""

    first_token_p50_ms: float | None
    first_token_p95_ms: float | None
    tokens_per_s_p50: float | None
    calls: int
    faults: int
    uptime: float
    since_ms: int


class _Model:
    __slots__ = ("calls", "day", "faults", "first", "rate")

    def __init__(self, day: DayBook) -> None:
        self.day = day
        self.first = QuantileSketch()
        self.rate = QuantileSketch()
        self.calls = 0
        self.faults = 0


class ModelBook:
    """The models of one hub."""

    def __init__(self, now_ms: int, kept: Mapping[str, Iterable[SlotRow]] | None = None) -> None:
        self._models = {name: _Model(DayBook(now_ms, rows)) for name, rows in (kept or {}).items()}
        self._now_ms = now_ms

    def count_ok(self, model: str, seconds: float, first_s: float | None, tokens: int) -> None:
        """A call was done; see `Scheduler.report_ok`."""
        found = self._models.get(model)
        if found is None:
            return
        found.calls += 1
        if first_s is not None:
            found.first.add(first_s)
            seconds -= first_s
            tokens -= 1
        if tokens > 0 and seconds > 0:
            found.rate.add(tokens / seconds)

    def count_fault(self, model: str) -> None:
        """A node failed a call of the model."""
        found = self._models.get(model)
        if found is not None:
            found.calls += 1
            found.faults += 1

    def look(self, board: NodeBoard, now_ms: int) -> None:
        """Once a second or so: who is up, and what was counted since."""
        self._now_ms = now_ms
        served = board.list_names()
        for name in served - self._models.keys():
            if len(self._models) < MAX_KEPT or self._drop_one(served):
                self._models[name] = _Model(DayBook(now_ms))
        for name, model in list(self._models.items()):
            model.day.look(now_ms, is_up=name in served)
            model.day.count(now_ms, model.calls, model.faults)
            model.calls = model.faults = 0
            if name not in served and model.day.is_empty(now_ms):
                del self._models[name]

    def _drop_one(self, served: set[str]) -> bool:
        """Forget a model that nobody serves, such as nobody has called first. Returns: whether there was one."""
        away = [name for name in self._models if name not in served]
        if away:
            del self._models[min(away, key=lambda name: self._models[name].day.calls)]
        return bool(away)

    def numbers(self, model: str) -> ModelNumbers | None:
        """What is known of a model; None for one that was never seen."""
        found = self._models.get(model)
        if found is None:
            return None
        day, now_ms = found.day, self._now_ms
        return ModelNumbers(
            _ms(found.first.quantile(0.5)),
            _ms(found.first.quantile(0.95)),
            found.rate.quantile(0.5),
            day.calls,
            day.faults,
            day.uptime(now_ms),
            day.since_ms(now_ms),
        )

    def list_names(self) -> list[str]:
        """The models seen in the last day."""
        return sorted(self._models)

    def take_changes(self) -> list[tuple[str, SlotRow]]:
        """What is to be kept anew since the last time."""
        return [(name, row) for name, model in self._models.items() for row in model.day.take_changes()]


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1000
