"""Counting a text's tokens as a model does: what cuts a prompt to the model's context.

A model's tokenizer is opened once and kept; a few at a time. Blocks: call it in a thread, or for a text
or two.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from emcd.inference.manifest import TOKENIZER_FILE
from emcd.inference.text_tokenizer import TextTokenizer
from emcd_validator.corpus import Leaf
from emcd_validator.model import JudgedModel
from emcd_validator.plan import Draws, Slot
from emcd_validator.probe_request import ProbeRequest, TokenCount, list_requests

MAX_OPEN = 8


def token_count_of(model: JudgedModel) -> TokenCount:
    """What counts the tokens of a text. Raises: ConfigError EMC-1652 when the tokenizer can't be read."""
    if not model.is_text:
        return len
    tokenizer = _open(model.folder / TOKENIZER_FILE)

    def count(text: str) -> int:
        return len(tokenizer.encode(text, specials=False))

    return count


def request_variants(draws: Draws, slot: Slot, leaf: Leaf, model: JudgedModel) -> tuple[ProbeRequest, ...]:
    """The requests that a slot with this leaf may be: one of them is what a peer sent.

    Raises: ConfigError EMC-1652.
    """
    return list_requests(draws, slot, leaf, model.manifest, token_count_of(model))


@lru_cache(maxsize=MAX_OPEN)
def _open(path: Path) -> TextTokenizer:
    return TextTokenizer(path)
