"""What a corpus looks like, and what a node could know it by. Pure but for its time: a second for 20,000 leaves."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from emcd_validator.corpus import Leaf
from emcd_validator.corpus_build import count_words
from emcd_validator.language import guess_language
from emcd_validator.near_duplicate import NearDuplicates

RECOMMENDED_LEAVES = 20_000
_FEW_LEAVES = 200
"""With fewer, shares say nothing."""
_GENERATED_SHARE = 0.25
_DUPLICATE_SHARE = 0.02
_PATTERN_TEXTS = 6
_SENTENCE = re.compile(r"[.!?。！？]+\s+|\n+")
_WORD = re.compile(r"\w+")
_FEWEST_WORDS = 5
_FREQUENT_WORDS = 120
"""Function words: what is left of a sentence without its content."""


@dataclass(frozen=True)
class CorpusReport:
    """Counts and shares; `warnings` say what to do about them.

    Args:
        words: shortest, median, mean and longest text.
        generated: share of the leaves with a sentence whose skeleton of function words many others have.
        first_form: leaves without parameters of their own.
    """

    leaves: int
    texts: int
    words: tuple[int, int, float, int]
    languages: dict[str, float]
    turns: dict[int, float]
    inputs: dict[int, float]
    endpoints: dict[str, float]
    streams: float
    systems: float
    long: float
    greedy: float
    duplicates: int
    generated: float
    first_form: int
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def inspect_leaves(leaves: Sequence[Leaf]) -> CorpusReport:
    """Look at all leaves of a corpus, of which there is at least one."""
    texts = [text for leaf in leaves for text in leaf.texts]
    sizes = sorted(map(count_words, texts))
    calls = [leaf.call for leaf in leaves if leaf.call is not None]
    chats = [call for call in calls if call.endpoint == "chat"]
    seen = NearDuplicates()
    duplicates = sum(seen.add_all(leaf.texts) for leaf in leaves)
    facts: dict[str, Any] = {
        "leaves": len(leaves),
        "texts": len(texts),
        "words": (sizes[0], sizes[len(sizes) // 2], round(sum(sizes) / len(sizes), 1), sizes[-1]),
        "languages": _shares(guess_language(leaf.texts[0]) for leaf in leaves),
        "turns": _shares(call.turns for call in chats),
        "inputs": _shares(len(leaf.texts) if leaf.call is None else leaf.call.inputs for leaf in leaves),
        "endpoints": _shares(call.endpoint for call in calls),
        "streams": _share(call.stream for call in calls),
        "systems": _share(bool(call.system) for call in chats),
        "long": _share(call.is_long for call in calls),
        "greedy": _share(call.temperature_milli == 0 for call in calls),
        "duplicates": duplicates,
        "generated": _measure_patterns(leaves),
        "first_form": len(leaves) - len(calls),
    }
    return CorpusReport(**facts, warnings=tuple(_list_warnings(facts, sizes)))


def _list_warnings(facts: dict[str, Any], sizes: list[int]) -> list[str]:
    leaves = facts["leaves"]
    found = []
    if leaves < RECOMMENDED_LEAVES:
        found.append(f"{leaves} leaves; each is used once: {RECOMMENDED_LEAVES} or more are advised")
    if facts["generated"] > _GENERATED_SHARE:
        found.append(
            f"{facts['generated']:.0%} of the leaves look generated: a node learns the patterns and knows"
            " the probes by them; use text that people wrote"
        )
    if facts["duplicates"] > _DUPLICATE_SHARE * leaves:
        found.append(f"{facts['duplicates']} leaves are almost copies of others")
    if facts["first_form"]:
        found.append(
            f"{facts['first_form']} leaves have no parameters of their own (an older form): the default"
            " profile's are drawn"
        )
    if leaves >= _FEW_LEAVES:
        found += _list_uniform(facts, sizes)
    return found


def _list_uniform(facts: dict[str, Any], sizes: list[int]) -> list[str]:
    found = []
    tenth = len(sizes) // 10
    if sizes[-1 - tenth] < 4 * max(1, sizes[tenth]):
        found.append("the texts are all about as long: users' differ by a factor of ten and more")
    if max(facts["languages"].values()) > 0.97:
        found.append(f"all texts are of one kind ({max(facts['languages'], key=facts['languages'].get)})")
    if facts["endpoints"]:
        if not 0.02 < facts["streams"] < 0.98:
            found.append("all answers are asked for in the same way (streamed or not)")
        if not facts["long"]:
            found.append("no leaf is long enough to fill a context: there are no `first` probes")
    if facts["turns"] and max(facts["turns"]) == 1:
        found.append("no conversation has more than one turn")
    return found


def _measure_patterns(leaves: Sequence[Leaf]) -> float:
    """The share of leaves in which sentences repeat the skeleton of sentences in other leaves."""
    counts = Counter(word for leaf in leaves for text in leaf.texts for word in set(_list_words(text)))
    frequent = {word for word, count in counts.most_common(_FREQUENT_WORDS) if count > 1}
    skeletons = [{s for text in leaf.texts for s in _list_skeletons(text, frequent)} for leaf in leaves]
    held = Counter(skeleton for found in skeletons for skeleton in found)
    return _share(any(held[s] >= _PATTERN_TEXTS for s in found) for found in skeletons if found)


def _list_words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _list_skeletons(text: str, frequent: set[str]) -> list[tuple[str, ...]]:
    """Sentences with their content words struck out, of those that have enough of both."""
    found = []
    for sentence in _SENTENCE.split(text):
        words = _list_words(sentence)
        skeleton = tuple(word if word in frequent else "_" for word in words)
        content = skeleton.count("_")
        if len(words) >= _FEWEST_WORDS and content >= 2 and len(words) - content >= 3:
            found.append(skeleton)
    return found


def _shares(items: Any) -> dict[Any, float]:
    counts = Counter(items)
    whole = sum(counts.values())
    return {name: round(count / whole, 4) for name, count in counts.most_common()}


def _share(items: Any) -> float:
    rows = [bool(item) for item in items]
    return round(sum(rows) / len(rows), 4) if rows else 0.0
