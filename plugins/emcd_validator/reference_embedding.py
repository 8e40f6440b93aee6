"""Own runs of an embedding model: the one verdicts are measured against, and others for the spread.

The first is batched, for it is the cost of every probe. The others run one text at a time, with another
thread count and without the graph's optimisations, and where the declared class is lower than fp32
with the weights rounded to it. Everything here blocks: call it in a thread.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from emcd.errors import RecoverableError
from emcd.inference.manifest import GRAPH_FILE, TOKENIZER_FILE, EmbeddingManifest
from emcd.inference.minilm import MINILM_NAME, ModelFiles, ensure_minilm
from emcd.inference.rounded_graph import rounded_graph
from emcd.inference.session import EmbeddingSession, open_session
from emcd.inference.tokenizer import Tokenizer
from emcd_validator.judge_embedding import ReferenceRun, Vectors
from emcd_validator.model import JudgedModel

BATCH_TOKENS = 512
"""Of a padded batch: on one thread 4,096 took twice the CPU, since activations leave the cache."""


class EmbeddingReference:
    """One open model."""

    def __init__(self, model: JudgedModel, threads: int) -> None:
        """Raises: ConfigError EMC-16xx."""
        manifest = model.manifest
        if not isinstance(manifest, EmbeddingManifest):
            raise RecoverableError("EMC-1811", f"{model.name} makes no vectors")
        self._model, self._threads = model, threads
        self._files = _find_files(model)
        self._tokenizer = Tokenizer(self._files.tokenizer, manifest.max_tokens)
        self._session = open_session(self._files.onnx, threads)

    def compute(self, texts: Sequence[str]) -> ReferenceRun:
        """The reference vectors and token count. Raises: RecoverableError EMC-1605."""
        token_ids = self._tokenizer.encode(texts)
        rows: list[tuple[float, ...]] = [()] * len(token_ids)
        for batch in _batches(token_ids):
            vectors = self._session.run([token_ids[place] for place in batch])
            for place, row in zip(batch, vectors.tolist(), strict=True):
                rows[place] = tuple(row)
        return ReferenceRun(tuple(rows), sum(map(len, token_ids)), self._model.numeric_class)

    def compute_again(self, texts: Sequence[str]) -> list[Vectors]:
        """The same texts in other ways. Raises: RecoverableError EMC-1605, ConfigError EMC-1606."""
        token_ids = self._tokenizer.encode(texts)
        other = EmbeddingSession(self._files.onnx, self._threads + 1, optimization="off")
        runs = [_run_singly(other, token_ids)]
        with rounded_graph(self._files.onnx, self._model.numeric_class) as rounded:
            if rounded is not None:
                runs.append(_run_singly(EmbeddingSession(rounded, self._threads), token_ids))
        return runs


def _find_files(model: JudgedModel) -> ModelFiles:
    if model.name == MINILM_NAME:
        return ensure_minilm(model.models_dir)
    folder: Path = model.folder
    return ModelFiles(folder / GRAPH_FILE, folder / TOKENIZER_FILE)


def _run_singly(session: EmbeddingSession, token_ids: Sequence[Sequence[int]]) -> Vectors:
    return tuple(tuple(session.run([ids])[0].tolist()) for ids in token_ids)


def _batches(token_ids: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """Places of texts that are run together: like lengths, each batch within `BATCH_TOKENS`."""
    batch: list[int] = []
    for place in sorted(range(len(token_ids)), key=lambda index: len(token_ids[index])):
        if batch and (len(batch) + 1) * len(token_ids[place]) > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch
