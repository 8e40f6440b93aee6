"""The validator's own runs of a model: the one verdicts are measured against, and another one.

The other run differs in threads and batching, and is opened only when an answer would not pass:
how far both lie apart says how fragile the input is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import trio

from emcd.errors import RecoverableError
from emcd.inference.batch_queue import BatchLimits
from emcd.inference.embedder import REFERENCE, Embedder, EmbedderSettings, EmbedRefusal, EmbedResult
from emcd.inference.minilm import ModelFiles, ensure_minilm
from emcd_validator.judge import ReferenceRun, Vectors
from emcd_validator.model import JudgedModel


@dataclass(frozen=True)
class ReferenceSettings:
    """Where model files are, and how many threads the reference run uses."""

    models_dir: Path
    threads: int = 1


class Reference:
    """The reference runs of one model; `run` must be running in a nursery."""

    def __init__(self, model: JudgedModel, settings: ReferenceSettings) -> None:
        self._model = model
        self._settings = settings
        self._files: ModelFiles | None = None
        self._embedder: Embedder | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Open the model, then serve until cancelled. Raises: ConfigError EMC-16xx."""
        self._files = await trio.to_thread.run_sync(ensure_minilm, self._settings.models_dir)
        settings = EmbedderSettings(
            self._settings.threads, REFERENCE.parallel_runs, REFERENCE.batch, REFERENCE.queue
        )
        self._embedder = Embedder(self._files, self._model.manifest, settings)
        await self._embedder.run(task_status=task_status)

    async def compute(self, texts: Sequence[str]) -> ReferenceRun:
        """The reference vectors and token count. Raises: RecoverableError EMC-1605, EMC-1811."""
        if self._embedder is None:
            raise RecoverableError("EMC-1811", f"{self._model.name} is not open")
        result = _require_result(await self._embedder.embed(texts))
        return ReferenceRun(_as_tuples(result), sum(result.token_counts), self._model.numeric_class)

    async def compute_again(self, texts: Sequence[str]) -> Vectors:
        """The same texts with another thread count, in one batch. Raises: as `compute`."""
        if self._files is None:
            raise RecoverableError("EMC-1811", f"{self._model.name} is not open")
        other = EmbedderSettings(
            threads=self._settings.threads + 1, batch=BatchLimits(padding_tokens=512, tokens=1 << 16)
        )
        embedder = Embedder(self._files, self._model.manifest, other)
        async with trio.open_nursery() as nursery:
            await nursery.start(embedder.run)
            result = _require_result(await embedder.embed(texts))
            nursery.cancel_scope.cancel()
        return _as_tuples(result)


def _require_result(outcome: EmbedResult | EmbedRefusal) -> EmbedResult:
    if isinstance(outcome, EmbedRefusal):
        raise RecoverableError("EMC-1811", outcome.value)
    return outcome


def _as_tuples(result: EmbedResult) -> Vectors:
    return tuple(tuple(row) for row in result.vectors.tolist())
