"""The corpus at run time: loaded or generated at start, topped up when it runs low.

Only a generated corpus is topped up; an operator's own is reported when it runs low. All of it
blocks: call it in a thread.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from pathlib import Path
from random import Random

from emcd.errors import ConfigError
from emcd_validator.corpus import Corpus, decode_leaf, load_corpus, write_corpus
from emcd_validator.corpus_text import generate_leaves
from emcd_validator.profile import DEFAULT, Profile

LOW_SHARE = 4
"""A corpus of which less than one in four leaves is left, for even rounds or for odd ones, runs low."""


@dataclass(frozen=True)
class CorpusStore:
    """One corpus file. `is_generated`: nobody gave one, so it may be written anew."""

    path: Path
    leaves: int
    is_generated: bool
    profile: Profile = DEFAULT

    def ensure(self) -> Corpus:
        """Load the corpus, generating it first where that is our business. Raises: ConfigError EMC-1804."""
        if self.is_generated and not self.path.exists():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_corpus(self.path, generate_leaves(self.leaves, _random(), self.profile))
        return load_corpus(self.path)

    def top_up(self, corpus: Corpus, used: frozenset[bytes]) -> Corpus:
        """Replace the used leaves of a generated corpus by new ones. Raises: ConfigError EMC-1804."""
        kept = [data for data, hashed in zip(corpus.leaves, corpus.hashes, strict=True) if hashed not in used]
        fresh = generate_leaves(max(0, self.leaves - len(kept)), _random(), self.profile)
        partial = self.path.with_name(self.path.name + ".new")
        try:
            partial.unlink(missing_ok=True)
            write_corpus(partial, [*map(decode_leaf, kept), *fresh])
            partial.replace(self.path)
        except OSError as exc:
            raise ConfigError("EMC-1804", f"{self.path}: {exc.strerror}") from exc
        return load_corpus(self.path)


def is_low(corpus: Corpus, used: frozenset[bytes]) -> bool:
    """Whether even or odd rounds have less than a quarter of their share of the leaves left."""
    left = [0, 0]
    for hashed in corpus.hashes:
        left[hashed[-1] % 2] += hashed not in used
    return min(left) * 2 * LOW_SHARE < len(corpus.hashes)


def _random() -> Random:
    return Random(secrets.randbits(256))  # noqa: S311 (its seed is the system's)
