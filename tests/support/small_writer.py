"""A smaller model of emcd-tiny-1's vocabulary, trained on the same text: the close impostor of VERIFICATION 3.

A quarter of the weights, half the steps. It is made once a machine beside the tiny model (some 20 s) and
kept under a name that says what it was made from.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from emcd.inference.decoder_graph import build_decoder
from emcd.inference.manifest import TOKENIZER_FILE
from emcd.inference.training.bpe import END_OF_TEXT_ID
from emcd.inference.training.corpus import read_corpus
from emcd.inference.training.recipe import TINY_SHAPE
from emcd.inference.training.trainer import Plan, Stage, train

SMALL_SHAPE = replace(TINY_SHAPE, layers=2, hidden=64, ffn=176)
SMALL_PLAN = Plan((Stage(400, 8, 128),), peak_rate=4e-3, seed=7)


def ensure_small(tiny_folder: Path) -> Path:
    """The small model's graph. Args: `tiny_folder` has the tokenizer that both share."""
    tokenizer = tiny_folder / TOKENIZER_FILE
    made_from = sha256(tokenizer.read_bytes() + repr((SMALL_SHAPE, SMALL_PLAN)).encode()).hexdigest()[:16]
    target = tiny_folder.parent / f"small-{made_from}.onnx"
    if not target.exists():
        words = Tokenizer.from_file(str(tokenizer))
        encodings = words.encode_batch_fast(list(read_corpus().learned))
        tokens = np.array([token for one in encodings for token in (*one.ids, END_OF_TEXT_ID)], np.int64)
        tensors = train(tokens, SMALL_SHAPE, SMALL_PLAN, lambda _: None)
        with tempfile.NamedTemporaryFile(dir=target.parent, delete=False) as part:
            part.write(build_decoder(tensors, SMALL_SHAPE).SerializeToString())
        Path(part.name).replace(target)
    return target
