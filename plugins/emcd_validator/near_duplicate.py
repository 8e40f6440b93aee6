"""Texts that say almost the same: a sketch of each text's word sequences, compared by their smallest hashes.

Two probes with almost one text are a mark: no two users write the same. Blocking, some microseconds a word.
"""

from __future__ import annotations

import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable

_WORDS = re.compile(r"\w+")
_SHINGLE = 4
_SKETCH = 8
_SAME = 4
"""Of the sketch: about half of the text's word sequences."""
_MOST_ALIKE = 64
"""A sequence that so many texts have is a phrase of the language, and says nothing."""


class NearDuplicates:
    """The texts seen so far."""

    def __init__(self) -> None:
        self._whole: set[int] = set()
        self._holders: defaultdict[int, list[int]] = defaultdict(list)
        self._count = 0

    def add(self, text: str) -> bool:
        """Remember a text. Returns: whether one like it was there before; it is not remembered then."""
        words = _WORDS.findall(text.lower())
        whole = hash(tuple(words))
        if whole in self._whole:
            return True
        sketch = _sketch(words)
        shared = Counter(holder for item in sketch for holder in self._holders.get(item, ()))
        if shared and shared.most_common(1)[0][1] >= min(_SAME, len(sketch)):
            return True
        self._whole.add(whole)
        for item in sketch:
            if len(self._holders[item]) < _MOST_ALIKE:
                self._holders[item].append(self._count)
        self._count += 1
        return False

    def add_all(self, texts: Iterable[str]) -> bool:
        """Remember several. Returns: whether one of them was there before."""
        known = [self.add(text) for text in texts]
        return any(known)


def _sketch(words: list[str]) -> list[int]:
    """The smallest hashes of the word sequences; none of a text that is too short for them."""
    if len(words) < 2 * _SHINGLE:
        return []
    hashes = {
        zlib.crc32(" ".join(words[i : i + _SHINGLE]).encode()) for i in range(len(words) - _SHINGLE + 1)
    }
    return sorted(hashes)[:_SKETCH]
