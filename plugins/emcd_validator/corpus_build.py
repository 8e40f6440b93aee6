"""Making a corpus of an operator's own texts: passages as users copy them, each used once.

The lengths, turns, inputs and parameters are drawn from the traffic profile. Leaves are taken from the
documents in turn, so that no topic has more of them than it must: a node that learned the topics of the
probes revealed so far finds the coming ones by them. Texts that are almost one are used once. Entropy
comes in as an argument. Blocking.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from random import Random

from emcd_validator.call_shape import draw_is_long, draw_shape, pick
from emcd_validator.corpus import MAX_LEAF_BYTES, MAX_TEXT_CHARS, NONCE_BYTES, Encoding, Leaf, find_fault
from emcd_validator.corpus_source import Document
from emcd_validator.language import guess_language
from emcd_validator.near_duplicate import NearDuplicates
from emcd_validator.profile import UNSET, Profile

_SENTENCE = re.compile(r"(?<=[.!?。！？])\s+")
_LEAF_ROOM = MAX_LEAF_BYTES - 6_000
"""For texts, in UTF-8; the rest is for a system prompt and the fields."""
MOST_TOO_LONG = 3
"""A paragraph that is so many times as long as wanted is cut all the same."""
LARGE_REST = 400
"""Words of a paragraph that has no end."""
_WORD_CHARS = 6
"""A word with its blank, where a language writes no blanks."""


def build_leaves(
    documents: Iterable[Document],
    profile: Profile,
    random: Random,
    tell: Callable[[int], None] = lambda count: None,
) -> Iterator[Leaf]:
    """The leaves that the documents give, until they are used up.

    Args: `tell` is called with the number of documents that are used up since it was called last.
    """
    seen = NearDuplicates()
    below = below_of(random)
    waiting = deque(_Source(document, random) for document in documents)
    random.shuffle(waiting)
    while waiting:
        source = waiting.popleft()
        leaf = _take_leaf(source, waiting, profile, below, random)
        if leaf is None:
            tell(1)
            continue
        waiting.append(source)
        if not find_fault(leaf) and not seen.add_all(leaf.texts):
            yield leaf


def limit_languages(leaves: list[Leaf], shares: Mapping[str, float]) -> list[Leaf]:
    """As many of the leaves as have the languages in these shares; others are left out."""
    if not shares:
        return leaves
    named = [(guess_language(leaf.texts[0]), leaf) for leaf in leaves]
    have = Counter(name for name, _ in named)
    whole = sum(shares.values())
    total = min((have[name] * whole / share for name, share in shares.items() if share), default=0.0)
    left = {name: round(total * share / whole) for name, share in shares.items()}
    kept = []
    for name, leaf in named:
        if left.get(name, 0) > 0:
            left[name] -= 1
            kept.append(leaf)
    return kept


def below_of(random: Random) -> Callable[[str, int], int]:
    """A draw for `draw_shape` from a random generator."""

    def below(label: str, bound: int) -> int:
        return random.randrange(bound)

    return below


class _Source:
    """What is left of a document. It is begun anywhere: how files begin is no secret."""

    def __init__(self, document: Document, random: Random) -> None:
        self.turns = deque(document.turns)
        self.units = deque(document.units)
        if document.units:
            self.units.rotate(-random.randrange(len(document.units)))
        self.is_code = document.is_code
        self._random = random

    def take(self, words: int, *, is_whole: bool) -> str:
        """A passage of about so many words; "" when nothing is left.

        It begins where a paragraph begins. What is left of a paragraph is not used, unless it is large.

        Args: `is_whole`: up to the end of a paragraph, as people copy, where that is not far too long;
        else the passage ends with a line or a sentence, as programs cut.
        """
        taken: list[str] = []
        missing = words
        while self.units and (missing > 0 or not taken):
            unit = self.units.popleft()
            size = count_words(unit)
            if is_whole and taken and size > missing * MOST_TOO_LONG:
                self.units.appendleft(unit)
                break
            if size > (missing * MOST_TOO_LONG if is_whole else missing):
                unit, rest = split_text(unit, missing, is_code=self.is_code)
                size = count_words(unit)
                if count_words(rest) > LARGE_REST:
                    self.units.appendleft(rest)
            taken.append(unit)
            missing -= size
        return "\n\n".join(taken)[:MAX_TEXT_CHARS].rstrip()


def _take_leaf(
    source: _Source,
    others: deque[_Source],
    profile: Profile,
    below: Callable[[str, int], int],
    random: Random,
) -> Leaf | None:
    """The next leaf of a source; None when nothing is left of it."""
    is_long = draw_is_long(profile, below)
    turns, inputs = pick("turns", profile.turns, below), pick("inputs", profile.inputs, below)
    if source.turns:
        count = min(turns, len(source.turns))
        texts = [source.turns.popleft() for _ in range(count - (count + 1) % 2)]
        if len(source.turns) % 2:
            source.turns.popleft()
        is_long = False
    elif is_long:
        texts = [source.take(random.randint(*profile.long_words), is_whole=random.random() < profile.whole)]
    else:
        texts = [_take_text(source, profile, below, random) for _ in range(max(turns, inputs))]
        given = [text for text in texts if text]
        missing = inputs - len(given) if given else 0
        texts = given + [
            _take_text(other, profile, below, random) for other in islice(others, max(0, missing))
        ]
        turns = min(turns, max(1, len(given)))
    return make_leaf(_fit(texts), turns, inputs, profile, below, random, is_long=is_long)


def _take_text(source: _Source, profile: Profile, below: Callable[[str, int], int], random: Random) -> str:
    first, last = pick("words", [((a, b), share) for a, b, share in profile.words], below)
    return source.take(random.randint(first, last), is_whole=random.random() < profile.whole)


def make_leaf(
    texts: list[str],
    turns: int,
    inputs: int,
    profile: Profile,
    below: Callable[[str, int], int],
    random: Random,
    *,
    is_long: bool,
) -> Leaf | None:
    """A leaf of these texts, with what else is drawn; None without texts."""
    if not texts:
        return None
    count = len(texts)
    turns = min(turns, count)
    if inputs > count:
        inputs = max((size for size, _ in profile.inputs if size <= count), default=count)
    encoding = pick("encoding", profile.encodings, below)
    encodings: dict[str, Encoding] = {"base64": "base64", "float": "float", UNSET: ""}
    return Leaf(
        nonce=random.randbytes(NONCE_BYTES),
        texts=tuple(texts),
        as_list=inputs > 1 or random.random() < 0.4,
        encoding=encodings[encoding],
        call=draw_shape(profile, below, turns - (turns + 1) % 2, inputs, is_long=is_long),
    )


def _fit(texts: list[str]) -> list[str]:
    """The first texts that a leaf has room for, without empty ones; of a first one that is too long its beginning."""
    kept: list[str] = []
    room = _LEAF_ROOM
    for text in texts:
        data = text.encode("utf-8", "replace")
        if not text.strip():
            continue
        if len(data) > room and kept:
            break
        kept.append(data[:room].decode("utf-8", "ignore").rstrip())
        room -= len(data)
    return kept


def count_words(text: str) -> int:
    """Words, or for a language without blanks what would be as long."""
    return max(len(text.split()), len(text) // (4 * _WORD_CHARS))


def split_text(text: str, words: int, *, is_code: bool) -> tuple[str, str]:
    """A beginning of about so many words that ends with a line or a sentence, and the rest."""
    breaks = [match.end() for match in (re.finditer("\n", text) if is_code else _SENTENCE.finditer(text))]
    place = bisect_left(breaks, words, key=lambda end: count_words(text[:end]))
    if place == len(breaks):
        return text, ""
    return text[: breaks[place]].rstrip(), text[breaks[place] :].lstrip("\n")
