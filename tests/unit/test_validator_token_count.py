"""Prompts are measured with the model's own tokenizer."""

from __future__ import annotations

from pathlib import Path
from random import Random

import msgspec
import pytest

from emcd.errors import ConfigError
from emcd.inference.minilm import MINILM_NAME
from emcd.inference.text_tokenizer import TextTokenizer
from emcd.proto.hashing import keccak
from emcd.testing import make_key
from emcd_validator.corpus import Leaf
from emcd_validator.corpus_text import generate_leaves
from emcd_validator.model import JudgedModel, find_judged
from emcd_validator.plan import Draws, Slot
from emcd_validator.token_count import request_variants, token_count_of
from tests.support.decoder_model import ToyDecoder
from tests.support.decoder_model import toy_decoder as toy_decoder  # noqa: PLC0414 (a fixture)
from tests.support.text_world import write_toy_folder

NODE = make_key("node").address


@pytest.fixture
def model(tmp_path: Path, toy_decoder: ToyDecoder) -> JudgedModel:
    folder = write_toy_folder(tmp_path, toy_decoder)
    return find_judged(folder.manifest.name, tmp_path)


def test_count_is_the_tokenizers(model: JudgedModel, toy_decoder: ToyDecoder) -> None:
    text = "How long is this text, in tokens?\n\n  And this?"
    tokenizer = TextTokenizer(toy_decoder.tokenizer)
    assert token_count_of(model)(text) == len(tokenizer.encode(text, specials=False)) > 1


def test_count_of_an_embedding_model_needs_no_tokenizer(tmp_path: Path) -> None:
    assert token_count_of(find_judged(MINILM_NAME, tmp_path))("abc") == 3


def test_count_without_a_tokenizer_file_is_an_error(model: JudgedModel, tmp_path: Path) -> None:
    elsewhere = msgspec.structs.replace(model.manifest, name="not-here")
    with pytest.raises(ConfigError, match="EMC-1652"):
        token_count_of(JudgedModel(elsewhere, model.model_hash, tmp_path))


def test_prompts_of_generated_leaves_fit_the_context(model: JudgedModel, toy_decoder: ToyDecoder) -> None:
    tokenizer = TextTokenizer(toy_decoder.tokenizer)
    long = Leaf(bytes(16), ("a text without an end " * 2_000,), True, "")
    for number, leaf in enumerate([*generate_leaves(60, Random(2)), long]):
        draws = Draws(keccak(b"%d" % number), keccak(b"beacon"))
        for request in request_variants(draws, Slot(NODE, 0), leaf, model):
            table = msgspec.json.decode(request.body)
            texts = [m["content"] for m in table.get("messages", ())] or [table["prompt"]]
            used = sum(len(tokenizer.encode(text, specials=False)) for text in texts)
            limit = table.get("max_tokens", table.get("max_completion_tokens", 1))
            assert used + limit < model.manifest.context_tokens  # type: ignore[union-attr]
