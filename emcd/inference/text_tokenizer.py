"""Text to tokens and back for models that write: exact bytes, whatever the tokenizer file is made of.

Owns one loaded tokenizer.json. Invariants: every token has bytes of its own, and a text is the bytes of
its tokens one after the other, decoded as UTF-8 with the replacement character for what is none: so the
text of an answer follows from its tokens alone, piece by piece as well as at once. Special tokens are no
part of the text. Nothing is cut or padded. Blocks, for about a second a megabyte: call it in a thread,
and bound the text before.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from tokenizers import Tokenizer as _Tokenizer

from emcd.errors import ConfigError

SLICE_CHARS: Final = 1 << 16
_SHORT_CHARS = 1 << 12
_BYTE_FALLBACK = re.compile(r"<0x([0-9A-F]{2})>")
_METASPACE = "\u2581"
_NAMED_BYTES = re.compile(r"bytes:((?:\\x[0-9a-f]{2})+)")


class TooManyTokens(ValueError):
    """A text has surely more tokens than are wanted of it."""


class TextTokenizer:
    """A tokenizer.json; safe to use from several threads.

    Attributes:
        longest_bytes: of any token: a text of more bytes than that times n has more than n tokens.
    """

    def __init__(self, path: Path) -> None:
        """Raises: ConfigError EMC-1652 when the file is no tokenizer."""
        try:
            self._inner = _Tokenizer.from_file(str(path))
            self._inner.no_padding()
            self._inner.no_truncation()
            facts = json.loads(path.read_bytes())
        except Exception as exc:  # the library raises bare Exception
            raise ConfigError("EMC-1652", f"{path}: {exc}") from exc
        added = self._inner.get_added_tokens_decoder()
        self._special = frozenset(token for token, facts in added.items() if facts.special)
        vocabulary: dict[str, int] = self._inner.get_vocab(with_added_tokens=True)
        self.vocab_tokens = 1 + max(vocabulary.values(), default=-1)
        self._bytes = [b""] * self.vocab_tokens
        spell = _choose_spelling(facts.get("decoder"))
        for name, token in vocabulary.items():
            self._bytes[token] = name.encode() if token in added else spell(name)
        self.longest_bytes = max(map(len, self._bytes), default=1)

    def encode(self, text: str, *, specials: bool, most: int | None = None) -> list[int]:
        """Token ids; with `specials` those that the file puts around every text, too.

        Raises: TooManyTokens when a long text has surely more than `most`, without reading it all.
        """
        if most is not None and len(text) > SLICE_CHARS:
            self._require_few(text, most)
        return self._encode(text, specials=specials)

    def _encode(self, text: str, *, specials: bool) -> list[int]:
        """A longer text as a batch, which lets Python's other threads run meanwhile."""
        if len(text) > _SHORT_CHARS:
            (found,) = self._inner.encode_batch([text], add_special_tokens=specials)
        else:
            found = self._inner.encode(text, add_special_tokens=specials)
        ids: list[int] = found.ids
        return ids

    def _require_few(self, text: str, most: int) -> None:
        """Count slices; a cut may break a token, which then is at most `longest_bytes` of them."""
        count = 0
        for start in range(0, len(text), SLICE_CHARS):
            part = text[start : start + SLICE_CHARS]
            count += len(self._encode(part, specials=False)) - self.longest_bytes
            if count > most:
                raise TooManyTokens

    def decode(self, ids: Sequence[int]) -> str:
        """The text of tokens, without special ones."""
        return b"".join(map(self.text_bytes, ids)).decode("utf-8", "replace")

    def is_special(self, token: int) -> bool:
        return token in self._special

    def token_bytes(self, token: int) -> bytes:
        """A token's bytes; of a special one its name, of a number beyond the vocabulary none."""
        return self._bytes[token] if 0 <= token < self.vocab_tokens else b""

    def text_bytes(self, token: int) -> bytes:
        """What a token adds to the text: nothing if it is special."""
        return b"" if token in self._special else self.token_bytes(token)

    def token_text(self, token: int) -> str:
        """A token by itself, as chat log-probabilities show it."""
        return self.token_bytes(token).decode("utf-8", "replace")

    def token_name(self, token: int) -> str:
        """A token as completions' log-probabilities show it.

        Returns: its text; `bytes:\\xe2\\x82` where it is no whole one; `token_id:7` where it has no bytes.
        """
        data = self.token_bytes(token)
        if not data:
            return f"token_id:{token}"
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)

    def find_tokens(self, data: bytes) -> tuple[int, ...]:
        """Every token of exactly these bytes: more than one where a vocabulary has doubles."""
        return self._by_bytes.get(data, ())

    def find_named(self, name: str) -> tuple[int, ...]:
        """Every token that `token_name` shows so."""
        as_text = self.find_tokens(name.encode("utf-8", "surrogatepass"))
        match = _NAMED_BYTES.fullmatch(name)
        if match is None:
            return as_text
        return as_text + self.find_tokens(bytes.fromhex(match[1].replace("\\x", "")))

    def name_of(self, token: int | None) -> str:
        """What the file calls a token, for chat templates; "" for none."""
        return "" if token is None else self._inner.id_to_token(token) or ""

    @cached_property
    def _by_bytes(self) -> dict[bytes, tuple[int, ...]]:
        found: dict[bytes, tuple[int, ...]] = {}
        for token, data in enumerate(self._bytes):
            found[data] = (*found.get(data, ()), token)
        return found


class TextAssembler:
    """Text that grows token by token; the bytes of a character that is not whole yet are kept back."""

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, token: int) -> str:
        """What is certain of the text since the last time."""
        return self._decoder.decode(self._tokenizer.text_bytes(token))

    def finish(self) -> str:
        """What is left: a character that never became whole."""
        return self._decoder.decode(b"", True)

    @property
    def is_between(self) -> bool:
        """Whether no byte is kept back."""
        return not self._decoder.getstate()[0]


def _choose_spelling(decoder: Any) -> Callable[[str], bytes]:
    """How a vocabulary writes bytes: as GPT-2 does, as SentencePiece does, or plainly."""
    kinds = set(_list_kinds(decoder))
    if "ByteLevel" in kinds:
        return _spell_byte_level
    if kinds & {"ByteFallback", "Metaspace"} or (isinstance(decoder, dict) and _METASPACE in str(decoder)):
        return _spell_pieces
    return str.encode


def _list_kinds(decoder: Any) -> list[str]:
    if not isinstance(decoder, dict):
        return []
    inner = decoder.get("decoders") or []
    return [str(decoder.get("type")), *(kind for item in inner for kind in _list_kinds(item))]


def _make_byte_alphabet() -> dict[str, int]:
    """The characters by which GPT-2's vocabulary writes bytes. Source: openai/gpt-2, bytes_to_unicode."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + n): byte for n, byte in enumerate(others)}


_BYTE_OF = _make_byte_alphabet()


def _spell_byte_level(name: str) -> bytes:
    try:
        return bytes(_BYTE_OF[char] for char in name)
    except KeyError:
        return name.encode()


def _spell_pieces(name: str) -> bytes:
    match = _BYTE_FALLBACK.fullmatch(name)
    return bytes([int(match[1], 16)]) if match else name.replace(_METASPACE, " ").encode()
