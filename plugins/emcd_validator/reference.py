"""The validator's own runs of its models: opened when first needed, one at a time, closed when idle.

Owns the limiter and the clock of idleness. A reference model takes as much memory as the node's, so
that several are held at once only where they are used at once; verdicts are in no hurry, and never take
more than one thread's work from the rest of the daemon.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

import trio

from emcd_validator.model import JudgedModel
from emcd_validator.reference_embedding import EmbeddingReference
from emcd_validator.reference_text import TextReference

T = TypeVar("T")
R = TypeVar("R", EmbeddingReference, TextReference)

IDLE_S = 120.0


@dataclass(frozen=True)
class ReferenceSettings:
    """How many threads the reference run uses, and after how long an idle model is closed."""

    threads: int = 1
    idle_s: float = IDLE_S


class Runner(Generic[R]):
    """The reference of one model; every use is in a thread, behind the limiter that all share."""

    def __init__(self, open_reference: Callable[[], R], limiter: trio.CapacityLimiter) -> None:
        self._open: Callable[[], R] = open_reference
        self._limiter = limiter
        self._reference: R | None = None
        self._used_at = 0.0

    async def run(self, work: Callable[[R], T]) -> T:
        """Do something with the open reference.

        Raises: ConfigError EMC-16xx when it can't be opened; what `work` raises.
        Cancellation: waits for the thread, so that no two runs ever share the limiter's place.
        """
        done = await trio.to_thread.run_sync(lambda: work(self._require()), limiter=self._limiter)
        self._used_at = trio.current_time()
        return done

    async def close_idle(self, idle_s: float) -> None:
        """Give the memory back when it has not been used for so long."""
        if self._reference is not None and trio.current_time() - self._used_at > idle_s:
            await trio.to_thread.run_sync(self._close, limiter=self._limiter)

    def _require(self) -> R:
        if self._reference is None:
            self._reference = self._open()
        return self._reference

    def _close(self) -> None:
        self._reference = None


AnyRunner = Runner[EmbeddingReference] | Runner[TextReference]


def make_runners(models: Mapping[str, JudgedModel], settings: ReferenceSettings) -> dict[str, AnyRunner]:
    """One runner a model, sharing one limiter."""
    limiter = trio.CapacityLimiter(1)
    return {name: _make_runner(model, settings, limiter) for name, model in models.items()}


def _make_runner(model: JudgedModel, settings: ReferenceSettings, limiter: trio.CapacityLimiter) -> AnyRunner:
    if model.is_text:
        return Runner(lambda: TextReference(model, settings.threads), limiter)
    return Runner(lambda: EmbeddingReference(model, settings.threads), limiter)
