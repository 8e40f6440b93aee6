"""What emcd-tiny-1 is made by: text, tokenizer, sizes, course of the training; run in a child process.

Owns the recipe and its run from nothing to model.onnx and tokenizer.json. Invariants: another recipe has
another name; no randomness but from fixed seeds. The run wants one BLAS thread a process
(`CHILD_ENVIRONMENT`), since it brings two threads of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from tokenizers import Tokenizer

from emcd.errors import ConfigError
from emcd.inference.decoder_graph import DecoderShape, build_decoder
from emcd.inference.manifest import CHAT_TEMPLATE_FILE, GRAPH_FILE, TOKENIZER_FILE
from emcd.inference.training.bpe import CHAT_TEMPLATE, END_OF_TEXT_ID, train_bpe
from emcd.inference.training.corpus import read_corpus
from emcd.inference.training.trainer import (
    Plan,
    Progress,
    Stage,
    Tokens,
    compute_held_out,
    compute_unigram,
    train,
)

TINY_NAME: Final = "emcd-tiny-1"
TINY_SHAPE: Final = DecoderShape(layers=4, hidden=128, heads=4, kv_heads=2, ffn=352, vocab=2048, context=512)
TINY_PLAN: Final = Plan((Stage(820, 8, 128), Stage(80, 2, 512)), peak_rate=3e-3, seed=20260501)
CHILD_ENVIRONMENT: Final = dict.fromkeys(
    ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS"), "1"
)
_HELD_OUT_TOKENS = 20_000
_HELD_OUT_PLACES = 256

Report = Callable[[str], None]


@dataclass(frozen=True)
class TrainingReport:
    """How well the trained model predicts texts that it never saw, in nats per token.

    Args:
        unigram: of the same texts, when only the frequencies of tokens are known.
    """

    parameters: int
    tokens: int
    held_out: float
    unigram: float


def run_recipe(folder: Path, progress: Report) -> TrainingReport:
    """Train the tiny model and write its files; about a minute on two cores.

    Raises: ConfigError EMC-1640 (this Python has no sources), EMC-1604 (can't write).
    """
    progress("reading the standard library's documentation")
    corpus = read_corpus()
    progress(f"learning a vocabulary of {TINY_SHAPE.vocab} tokens from {len(corpus.learned)} texts")
    tokenizer = train_bpe(corpus.learned, TINY_SHAPE.vocab)
    learned, held_out = (_encode(tokenizer, texts) for texts in (corpus.learned, corpus.held_out))

    def report(now: Progress) -> None:
        progress(f"training: step {now.step} of {now.steps}, {now.loss:.2f} nats a token")

    tensors = train(learned, TINY_SHAPE, TINY_PLAN, report)
    seen = held_out[: _HELD_OUT_TOKENS + 1]
    result = TrainingReport(
        parameters=sum(value.size for value in tensors.values()),
        tokens=TINY_PLAN.tokens,
        held_out=compute_held_out(tensors, TINY_SHAPE, seen, _HELD_OUT_PLACES),
        unigram=compute_unigram(learned, seen, TINY_SHAPE.vocab),
    )
    try:
        (folder / GRAPH_FILE).write_bytes(build_decoder(tensors, TINY_SHAPE).SerializeToString())
        (folder / TOKENIZER_FILE).write_text(tokenizer.to_str(), "utf-8")
        (folder / CHAT_TEMPLATE_FILE).write_text(CHAT_TEMPLATE, "utf-8")
    except OSError as exc:
        raise ConfigError("EMC-1604", f"{folder}: {exc}") from exc
    return result


def _encode(tokenizer: Tokenizer, texts: tuple[str, ...]) -> Tokens:
    """All texts one after another, each with its end."""
    encodings = tokenizer.encode_batch_fast(list(texts))
    return np.array([token for one in encodings for token in (*one.ids, END_OF_TEXT_ID)], np.int64)
