"""Texts to vectors: tokenizer, batcher and session of one embedding model together.

Owns the running model. A node serves with it, a validator recomputes with the same class and
`REFERENCE`. Invariants: the loop is never blocked (tokenising and runs happen in threads behind
limiters; a short call is tokenised where it comes, in less time than going to a thread takes); vectors
come in the order of the texts, of length 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import trio

from emcd.errors import RecoverableError
from emcd.inference.batch_queue import BatchLimits
from emcd.inference.batcher import Batcher, EmbedRefusal, QueueLimits
from emcd.inference.manifest import EmbeddingManifest
from emcd.inference.minilm import ModelFiles
from emcd.inference.session import Vectors, open_session
from emcd.inference.tokenizer import Tokenizer

_INLINE_CHARS = 1000
"""A call of so few characters is tokenised in the loop: about 0.2 ms, and a thread costs 0.1 by itself."""

__all__ = ["REFERENCE", "EmbedRefusal", "EmbedResult", "Embedder", "EmbedderSettings"]


@dataclass(frozen=True)
class EmbedderSettings:
    """How a model is run.

    Args:
        threads: cores that one run uses.
        parallel_runs: runs at the same time; 2 runs of 1 thread do more than 1 run of 2, and
            answer a single long text later.
    """

    threads: int = 1
    parallel_runs: int = 1
    batch: BatchLimits = field(default_factory=BatchLimits)
    queue: QueueLimits = field(default_factory=QueueLimits)


REFERENCE = EmbedderSettings(threads=1, parallel_runs=1, batch=BatchLimits(texts=1))
"""The run that verdicts are measured against: one thread, one text at a time."""


@dataclass(frozen=True)
class EmbedResult:
    """`vectors`: float32 [n, dimension]; `token_counts`: after the cut, special tokens included."""

    vectors: Vectors
    token_counts: tuple[int, ...]


class Embedder:
    """One embedding model; `run` must be running in a nursery."""

    def __init__(
        self, files: ModelFiles, manifest: EmbeddingManifest, settings: EmbedderSettings | None = None
    ) -> None:
        self.manifest = manifest
        self._files = files
        self._settings = settings or EmbedderSettings()
        self._tokenizing = trio.CapacityLimiter(1)
        self._tokenizer: Tokenizer | None = None
        self._batcher: Batcher | None = None

    @property
    def is_open(self) -> bool:
        """Whether `embed` works now."""
        return self._batcher is not None

    @property
    def waiting_tokens(self) -> int:
        """Tokens that wait for a run."""
        return self._batcher.waiting_tokens if self._batcher else 0

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Open the model, then serve until cancelled.

        Raises: ConfigError EMC-1603 (tokenizer), EMC-1606 (graph).
        """
        settings = self._settings
        tokenizer = await trio.to_thread.run_sync(Tokenizer, self._files.tokenizer, self.manifest.max_tokens)
        session = await trio.to_thread.run_sync(open_session, self._files.onnx, settings.threads)
        self._tokenizer = tokenizer
        self._batcher = Batcher(session.run, settings.batch, settings.queue, settings.parallel_runs)
        try:
            task_status.started()
            await self._batcher.run()
        finally:
            self._batcher = None

    async def embed(self, texts: Sequence[str]) -> EmbedResult | EmbedRefusal:
        """Embed texts (at least one), each cut at the manifest's `max_tokens`.

        Raises: RecoverableError EMC-1605 when the run failed or the model is not open.
        Cancellation: as `Batcher.submit`.
        """
        batcher, tokenizer = self._batcher, self._tokenizer
        if batcher is None or tokenizer is None:
            raise RecoverableError("EMC-1605", f"{self.manifest.name} is not open")
        if sum(map(len, texts)) <= _INLINE_CHARS:
            token_ids = tokenizer.encode(texts)
        else:
            token_ids = await trio.to_thread.run_sync(tokenizer.encode, texts, limiter=self._tokenizing)
        outcome = await batcher.submit(token_ids)
        if isinstance(outcome, EmbedRefusal):
            return outcome
        return EmbedResult(outcome, tuple(map(len, token_ids)))
