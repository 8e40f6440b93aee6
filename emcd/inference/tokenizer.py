"""Text to token ids, cut where the manifest says.

Owns one loaded tokenizer. The model's `tokenizer.json` cuts and pads at 128 while its other files
say 256: both settings are replaced by the manifest's, and nothing is padded here (a batch pads to
its own longest text). Blocks, for about a second a megabyte: call it in
a thread, and bound the text before.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer as _Tokenizer

from emcd.errors import ConfigError


class Tokenizer:
    """A tokenizer.json with the manifest's truncation; safe to use from several threads."""

    def __init__(self, path: Path, max_tokens: int) -> None:
        """Raises: ConfigError EMC-1603 when the file is no tokenizer."""
        try:
            self._inner = _Tokenizer.from_file(str(path))
        except Exception as exc:  # the library raises bare Exception
            raise ConfigError("EMC-1603", f"{path}: {exc}") from exc
        self._inner.no_padding()
        self._inner.enable_truncation(max_tokens)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of every text, special tokens included."""
        return [encoding.ids for encoding in self._inner.encode_batch_fast(list(texts))]
