"""The trained model: made once, whole or not at all, better than frequencies, and it ends its answers."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from emcd.errors import RecoverableError
from emcd.inference.decoder_graph import read_tensors
from emcd.inference.decoder_session import open_decoder
from emcd.inference.golden import check_golden
from emcd.inference.model_folder import load_model_folder
from emcd.inference.text_tokenizer import TextTokenizer
from emcd.inference.training import tiny
from emcd.inference.training.corpus import read_corpus
from emcd.inference.training.recipe import TINY_NAME, TINY_SHAPE, TrainingReport
from emcd.inference.training.tiny import ensure_tiny
from tests.support.decoder_model import make_toy, tiny_folder

__all__ = ["tiny_folder"]
TURN = "<|im_start|>assistant\n"
REPORT = TrainingReport(parameters=1, tokens=2, held_out=3.0, unigram=6.0)


def test_tiny_folder_is_a_model_that_passes_its_golden_vectors(tiny_folder: Path) -> None:
    folder = load_model_folder(tiny_folder.parent, TINY_NAME)
    assert check_golden(folder).ok
    assert folder.manifest.name == TINY_NAME
    assert sum(value.size for value in read_tensors(tiny_folder / "model.onnx").values()) > 1_000_000


def test_tiny_predicts_held_out_text_far_better_than_frequencies(tiny_folder: Path) -> None:
    session, words = open_decoder(tiny_folder / "model.onnx"), TextTokenizer(tiny_folder / "tokenizer.json")
    corpus = read_corpus()
    counts = np.ones(TINY_SHAPE.vocab)
    for text in corpus.learned[::10]:
        np.add.at(counts, words.encode(text, specials=False), 1)
    unigram = np.log(counts / counts.sum())
    own, plain = [], []
    for text in corpus.held_out[:60]:
        ids = words.encode(text, specials=False)[: TINY_SHAPE.context]
        logits = session.prefill(ids).astype(np.float64)[:-1]
        totals = np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1)) + logits.max(1)
        own += list(totals - logits[np.arange(len(logits)), ids[1:]])
        plain += list(-unigram[ids[1:]])
    assert np.mean(own) < np.mean(plain) - 1.5


def test_tiny_answers_what_it_learned_by_heart_and_stops(tiny_folder: Path) -> None:
    """Of every tenth question: the answer depends on it, is often the right one, and ends."""
    session, words = open_decoder(tiny_folder / "model.onnx"), TextTokenizer(tiny_folder / "tokenizer.json")
    known = sorted(text for text, copies in Counter(read_corpus().learned).items() if copies > 1)[::10]
    answers, right, ended = set(), 0, 0
    for text in known:
        question, _, expected = text.partition(TURN)
        ids = words.encode(question + TURN, specials=False)
        start = len(ids)
        while len(ids) < start + 80 and (len(ids) == start or ids[-1] not in (0, 2)):
            ids.append(int(session.prefill(ids, len(ids) - 1)[0].argmax()))
        answer = words.decode(ids[start:])
        answers.add(answer[:40])
        right += expected.removesuffix("<|im_end|>")[:20] == answer[:20]
        ended += ids[-1] == 2
    assert len(known) > 40
    assert len(answers) > len(known) / 4
    assert right > len(known) / 5
    assert ended > len(known) * 0.9


def stand_in(calls: list[Path]) -> object:
    """The training, done in no time: a random net of the right shape."""

    async def train(folder: Path, say: object) -> TrainingReport:
        calls.append(folder)
        make_toy(folder, TINY_SHAPE)
        return REPORT

    return train


def test_ensure_tiny_trains_once_and_again_when_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Path] = []
    said: list[str] = []
    monkeypatch.setattr(tiny, "_train", stand_in(calls))
    path = ensure_tiny(tmp_path, said.append)
    first = (path / "manifest.json").read_bytes()
    assert ensure_tiny(tmp_path, said.append) == path
    assert len(calls) == 1
    assert any("3.00 nats" in line for line in said)
    (path / "model.onnx").write_bytes(b"damaged")
    ensure_tiny(tmp_path, said.append)
    assert len(calls) == 2
    assert (path / "manifest.json").read_bytes() == first
    shutil.rmtree(path)
    ensure_tiny(tmp_path, said.append)
    assert len(calls) == 3


def test_ensure_tiny_that_is_killed_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def killed(folder: Path, say: object) -> TrainingReport:
        (folder / "model.onnx").write_bytes(b"half")
        raise RecoverableError("EMC-1034", "killed")

    monkeypatch.setattr(tiny, "_train", killed)
    with pytest.raises(RecoverableError):
        ensure_tiny(tmp_path, lambda _: None)
    assert [path.name for path in tmp_path.iterdir() if not path.name.endswith(".lock")] == []


@pytest.mark.deep
def test_ensure_tiny_really_trains_the_same_bytes_again(tmp_path: Path, tiny_folder: Path) -> None:
    said: list[str] = []
    path = ensure_tiny(tmp_path, said.append)
    assert any("step" in line for line in said)
    assert (path / "manifest.json").read_bytes() == (tiny_folder / "manifest.json").read_bytes()
