"""The real model: built once, exact, batched as single, and what the quantised one looks like."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import trio

from emcd.errors import ConfigError, RecoverableError
from emcd.inference import minilm
from emcd.inference.embedder import REFERENCE, Embedder, EmbedderSettings, EmbedRefusal
from emcd.inference.minilm import MINILM_MANIFEST, ModelFiles, ensure_minilm
from emcd.inference.session import EmbeddingSession, Vectors, open_session
from tests.support.inference_model import fp32_files, int8_files, shared_models_dir

__all__ = ["fp32_files", "int8_files"]

TEXTS = [
    "That is a happy person",
    "That is a happy dog",
    "That is a very happy person",
    "Today is a sunny day",
    "",
    "Größe, 東京, emoji 🙂 and\ttabs\n",
    "word " * 40,
    "a longer text about provers, verifiers and the stake between them. " * 8,
    "the text that is cut " * 400,
]


async def _embed(embedder: Embedder, texts: list[str]) -> tuple[Vectors, tuple[int, ...]]:
    outcome = await embedder.embed(texts)
    assert not isinstance(outcome, EmbedRefusal)
    return outcome.vectors, outcome.token_counts


def _relative_l2(vectors: Vectors, reference: Vectors) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    return np.asarray(np.linalg.norm(vectors - reference, axis=1) / np.linalg.norm(reference, axis=1))


async def test_embed_known_sentences_give_the_published_similarities(
    fp32_files: ModelFiles, nursery: trio.Nursery
) -> None:
    embedder = Embedder(fp32_files, MINILM_MANIFEST)
    await nursery.start(embedder.run)
    vectors, counts = await _embed(embedder, TEXTS)
    assert vectors.dtype == np.float32
    assert vectors.shape == (len(TEXTS), 384)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    # The model card's example.
    np.testing.assert_allclose(vectors[1:4] @ vectors[0], [0.695, 0.943, 0.257], atol=6e-4)
    assert counts[0] == 7
    assert counts[4] == 2
    assert counts[-1] == MINILM_MANIFEST.max_tokens


async def test_embed_batched_equals_reference(fp32_files: ModelFiles, nursery: trio.Nursery) -> None:
    reference = Embedder(fp32_files, MINILM_MANIFEST, REFERENCE)
    batched = Embedder(fp32_files, MINILM_MANIFEST, EmbedderSettings(threads=2, parallel_runs=2))
    await nursery.start(reference.run)
    await nursery.start(batched.run)
    texts = TEXTS * 3
    expected, expected_counts = await _embed(reference, texts)
    together, counts = await _embed(batched, texts)
    assert counts == expected_counts
    assert _relative_l2(together, expected).max() < 1e-6
    results: dict[int, Vectors] = {}

    async def embed_one(index: int) -> None:
        results[index] = (await _embed(batched, [texts[index]]))[0][0]

    async with trio.open_nursery() as callers:
        for index in range(len(texts)):
            callers.start_soon(embed_one, index)
    concurrent = np.stack([results[index] for index in range(len(texts))])
    assert _relative_l2(concurrent, expected).max() < 1e-6


async def test_embed_int8_is_gross_against_the_reference(
    fp32_files: ModelFiles, int8_files: ModelFiles, nursery: trio.Nursery
) -> None:
    reference = Embedder(fp32_files, MINILM_MANIFEST, REFERENCE)
    cheat = Embedder(int8_files, MINILM_MANIFEST)
    await nursery.start(reference.run)
    await nursery.start(cheat.run)
    expected, _ = await _embed(reference, TEXTS)
    vectors, _ = await _embed(cheat, TEXTS)
    assert _relative_l2(vectors, expected).min() >= 1e-2  # GROSS starts at 1e-3


async def test_embed_not_running_is_recoverable(fp32_files: ModelFiles) -> None:
    with pytest.raises(RecoverableError) as caught:
        await Embedder(fp32_files, MINILM_MANIFEST).embed(["x"])
    assert caught.value.code == "EMC-1605"


async def test_run_damaged_graph_refused(fp32_files: ModelFiles, tmp_path: Path) -> None:
    graph = tmp_path / "bad.onnx"
    graph.write_bytes(b"no graph")
    with pytest.raises(ConfigError) as caught:
        await Embedder(ModelFiles(graph, fp32_files.tokenizer), MINILM_MANIFEST).run()
    assert caught.value.code == "EMC-1606"


async def test_run_damaged_tokenizer_refused(fp32_files: ModelFiles, tmp_path: Path) -> None:
    tokenizer = tmp_path / "tokenizer.json"
    tokenizer.write_text("{}")
    with pytest.raises(ConfigError) as caught:
        await Embedder(ModelFiles(fp32_files.onnx, tokenizer), MINILM_MANIFEST).run()
    assert caught.value.code == "EMC-1603"


def test_session_run_beyond_the_graph_is_recoverable(fp32_files: ModelFiles) -> None:
    session = open_session(fp32_files.onnx, 1)
    with pytest.raises(RecoverableError) as caught:
        session.run([[1] * 600])  # 512 positions
    assert caught.value.code == "EMC-1605"
    assert session.run([[101, 102]]).shape == (1, 384)


def test_open_session_same_file_is_shared_while_held(fp32_files: ModelFiles) -> None:
    first = open_session(fp32_files.onnx, 1)
    assert open_session(fp32_files.onnx, 1) is first
    assert open_session(fp32_files.onnx, 2) is not first
    with pytest.raises(ConfigError) as caught:
        open_session(fp32_files.onnx.with_name("none.onnx"), 1)
    assert caught.value.code == "EMC-1606"


def test_ensure_minilm_damaged_file_is_built_anew(fp32_files: ModelFiles, tmp_path: Path) -> None:
    for path in (fp32_files.onnx, fp32_files.onnx.with_suffix(".json")):
        shutil.copy(path, tmp_path / path.name)
    copy = tmp_path / fp32_files.onnx.name
    before = copy.stat().st_ino
    assert ensure_minilm(tmp_path).onnx.stat().st_ino == before
    with copy.open("r+b") as file:
        file.seek(1_000_000)
        file.write(b"\xff")
    ensure_minilm(tmp_path)
    assert copy.stat().st_ino != before
    assert copy.read_bytes() == fp32_files.onnx.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == [copy.with_suffix(".json").name, copy.name]


def test_ensure_minilm_other_weights_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "package"
    source.mkdir()
    for name in MINILM_MANIFEST.files:
        (source / name).write_bytes(b"not the model")
    monkeypatch.setattr(minilm, "find_model_dir", lambda: source)
    with pytest.raises(ConfigError) as caught:
        ensure_minilm(tmp_path / "models")
    assert caught.value.code == "EMC-1602"
    assert not (tmp_path / "models").exists()


def test_ensure_minilm_unwritable_directory_is_told(tmp_path: Path) -> None:
    (tmp_path / "models").write_text("a file stands in the way")
    with pytest.raises(ConfigError) as caught:
        ensure_minilm(tmp_path / "models")
    assert caught.value.code == "EMC-1604"


def test_embedding_session_pads_to_the_longest_only(fp32_files: ModelFiles) -> None:
    session = EmbeddingSession(shared_models_dir() / fp32_files.onnx.name, 1)
    alone, padded = session.run([[101, 7592, 102]]), session.run([[101, 7592, 102], [101, *[2088] * 50, 102]])
    assert _relative_l2(padded[:1], alone).max() < 1e-6
