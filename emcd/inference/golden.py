"""Golden vectors: 16 known answers of a model, which whoever serves or judges it must reproduce.

Owns the one question "does this model give its golden vectors here?" for every kind, and the golden
vectors of embedders. Invariants: the file is named by its sha256 in the manifest, so nobody can move
the marks; it is made by one run and checked by another within the manifest's own thresholds.
Everything here blocks: call it in a thread.
"""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from emcd.accounting.verdict import STATISTIC_SCALE, max_statistic_e12
from emcd.errors import ConfigError
from emcd.inference.golden_file import EmbeddingGolden, GoldenCheck, read_golden, write_golden
from emcd.inference.golden_text import GOLDEN_TEXTS
from emcd.inference.golden_tokens import check_text_golden
from emcd.inference.manifest import GRAPH_FILE, TOKENIZER_FILE, EmbeddingManifest, model_hash
from emcd.inference.minilm import (
    MINILM_MANIFEST,
    MINILM_NAME,
    ModelFiles,
    ensure_minilm,
    read_minilm_golden,
)
from emcd.inference.model_folder import ModelFolder, load_model_folder
from emcd.inference.session import Vectors, open_session
from emcd.inference.tokenizer import Tokenizer

_Key = tuple[bytes, Path, int]
_passed: dict[_Key, GoldenCheck] = {}
_lock = threading.RLock()


def check_model(models_dir: Path, name: str, *, threads: int = 1) -> GoldenCheck:
    """Does the model of this name have its files, and give its golden vectors here?

    What passed is remembered for the life of the process: roles of one daemon run it once. A folder's
    files are hashed every time.

    Raises: ConfigError EMC-1601 to 1604, 1606, 1630 to 1632, 1650, 1652; RecoverableError EMC-1605, 1651.
    """
    if name != MINILM_NAME:
        return check_golden(load_model_folder(models_dir, name), threads=threads)
    files = ensure_minilm(models_dir)
    return _once(
        (model_hash(MINILM_MANIFEST), files.onnx, threads),
        lambda: check_embedding_golden(MINILM_MANIFEST, files, read_minilm_golden(), threads=threads),
    )


def check_golden(folder: ModelFolder, *, threads: int = 1) -> GoldenCheck:
    """The golden vectors of a folder whose files were checked. Raises: as `check_model`."""
    return _once((folder.model_hash, folder.path, threads), lambda: _check_folder(folder, threads))


def require_golden(folder: ModelFolder, *, threads: int = 1) -> None:
    """Raises: ConfigError EMC-1634 when it does not give its golden vectors; others as `check_model`."""
    check = check_golden(folder, threads=threads)
    if not check.ok:
        raise ConfigError("EMC-1634", f"{folder.manifest.name}: {check.detail}")


def require_model(models_dir: Path, name: str, *, threads: int = 1) -> None:
    """Raises: ConfigError EMC-1634 when it does not give its golden vectors; others as `check_model`."""
    check = check_model(models_dir, name, threads=threads)
    if not check.ok:
        raise ConfigError("EMC-1634", f"{name}: {check.detail}")


def embedder_files(folder: ModelFolder) -> ModelFiles:
    """What an embedder opens of a folder. Raises: KeyError when its manifest names no such files."""
    return ModelFiles(folder.file(GRAPH_FILE), folder.file(TOKENIZER_FILE))


def make_embedding_golden(files: ModelFiles, max_tokens: int) -> bytes:
    """The golden vectors of an embedder. Raises: ConfigError EMC-1603, EMC-1606; RecoverableError EMC-1605."""
    vectors = _embed(files, max_tokens, GOLDEN_TEXTS, threads=1)
    rows = tuple(base64.b64encode(row.astype("<f4").tobytes()).decode() for row in vectors)
    return write_golden(EmbeddingGolden(GOLDEN_TEXTS, rows))


def check_embedding_golden(
    manifest: EmbeddingManifest, files: ModelFiles, data: bytes, *, threads: int = 1
) -> GoldenCheck:
    """Embed the golden texts and compare.

    Raises: ConfigError EMC-1603, EMC-1606, EMC-1630 (no golden vectors of this model);
        RecoverableError EMC-1605.
    """
    golden = read_golden(manifest.name, data, EmbeddingGolden)
    try:
        expected = [np.frombuffer(base64.b64decode(row, validate=True), "<f4") for row in golden.vectors]
    except ValueError as exc:
        raise ConfigError("EMC-1630", f"{manifest.name}: {exc}") from exc
    if len(expected) != len(golden.texts) or {row.shape for row in expected} != {(manifest.dimension,)}:
        raise ConfigError("EMC-1630", f"{manifest.name}: not {manifest.dimension} numbers a text")
    vectors = _embed(files, manifest.max_tokens, golden.texts, threads=threads)
    statistic = max_statistic_e12([row.tolist() for row in expected], vectors.tolist())
    found, allowed = statistic / STATISTIC_SCALE, manifest.tau_e12 / STATISTIC_SCALE
    return GoldenCheck(
        ok=statistic <= manifest.tau_e12,
        detail=f"{len(expected)} golden vectors: relative L2 at most {found:.1e}, allowed {allowed:.1e}",
        worst_e12=statistic * STATISTIC_SCALE // manifest.tau_e12,
        cases=len(expected),
    )


def _check_folder(folder: ModelFolder, threads: int) -> GoldenCheck:
    manifest, data = folder.manifest, folder.read_golden()
    if isinstance(manifest, EmbeddingManifest):
        return check_embedding_golden(manifest, embedder_files(folder), data, threads=threads)
    return check_text_golden(manifest, folder.file(GRAPH_FILE), data, threads=threads)


def _once(key: _Key, run: Callable[[], GoldenCheck]) -> GoldenCheck:
    with _lock:
        check = _passed.get(key)
        if check is None:
            check = run()
            if check.ok:
                _passed[key] = check
        return check


def _embed(files: ModelFiles, max_tokens: int, texts: Sequence[str], threads: int) -> Vectors:
    session = open_session(files.onnx, threads)
    return np.concatenate(
        [session.run([ids]) for ids in Tokenizer(files.tokenizer, max_tokens).encode(texts)]
    )
