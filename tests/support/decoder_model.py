"""Small text models for tests: one with random weights, made in milliseconds, and the trained one.

The trained one takes a minute to make, once a machine: its folder is named after what it is made from,
and `ensure_tiny` checks what it finds there.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from emcd.inference import training
from emcd.inference.decoder_graph import DecoderShape, build_decoder, random_tensors
from emcd.inference.training.bpe import CHAT_TEMPLATE, train_bpe
from emcd.inference.training.tiny import ensure_tiny
from emcd.inference.weights import Tensors

TOY_TEXT = "the quick brown fox jumps over the lazy dog; pack my box with five dozen liquor jugs. " * 4
TOY = DecoderShape(layers=2, hidden=32, heads=4, kv_heads=2, ffn=64, vocab=320, context=128)


@dataclass(frozen=True)
class ToyDecoder:
    """A folder with model.onnx, tokenizer.json and chat_template.jinja, and what they were made of."""

    folder: Path
    tensors: Tensors
    shape: DecoderShape

    @property
    def onnx(self) -> Path:
        return self.folder / "model.onnx"

    @property
    def tokenizer(self) -> Path:
        return self.folder / "tokenizer.json"


def make_toy(folder: Path, shape: DecoderShape = TOY, seed: int = 1, *, spread: float = 3.0) -> ToyDecoder:
    """Write a random decoder. `spread` widens the weights, so that its logits differ enough to choose by."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: value if value.ndim == 1 else value * spread
        for name, value in random_tensors(shape, seed).items()
    }
    tokenizer: Tokenizer = train_bpe([TOY_TEXT], shape.vocab)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    (folder / "model.onnx").write_bytes(build_decoder(tensors, shape).SerializeToString())
    return ToyDecoder(folder, tensors, shape)


def shared_tiny_dir() -> Path:
    """The models_dir in which the trained model is kept: another one for every change of what makes it."""
    recipe = hashlib.sha256(f"{sys.version}|{np.__version__}".encode())
    package = Path(training.__path__[0])
    for name in ("bpe", "corpus", "net", "optimiser", "recipe", "trainer", "../decoder_graph"):
        recipe.update((package / f"{name}.py").read_bytes())
    return Path(tempfile.gettempdir()) / f"emcd-test-tiny-{os.getuid()}-{recipe.hexdigest()[:16]}"


@pytest.fixture(scope="session")
def toy_decoder(tmp_path_factory: pytest.TempPathFactory) -> ToyDecoder:
    return make_toy(tmp_path_factory.mktemp("toy-decoder"))


@pytest.fixture(scope="session")
def tiny_folder() -> Path:
    return ensure_tiny(shared_tiny_dir(), lambda _: None)
