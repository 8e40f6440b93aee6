"""Generating leaves for a validator that has no texts of its own: weak, and good for a devnet.

Generated text mixes sentence patterns with a vocabulary that is drawn anew for every corpus. The
patterns are public: a node learns to recognise it (tests/integration/test_probe_classifier.py measures how well).
Entropy comes in as an argument.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random

from emcd_validator.call_shape import draw_is_long, pick
from emcd_validator.corpus import Leaf
from emcd_validator.corpus_build import below_of, make_leaf
from emcd_validator.profile import DEFAULT, Profile

_ONSETS = (
    "b br c ch cl d dr f fl g gl gr h j k kr l m n p pl pr qu r s sch sk sl sp st str t th tr v w z".split()  # noqa: SIM905
)
_VOWELS = "a e i o u ai au ea ei ie oa oo ou é ö ü".split()  # noqa: SIM905
_CODAS = ["", "", "", "l", "n", "r", "s", "t", "m", "nd", "ng", "rt", "st", "x", "ck", "ss"]
_ENDINGS = ["", "", "", "a", "e", "er", "en", "ion", "o", "ung", "ing", "al", "ine", "ia", "os", "ment"]

_PATTERNS = (
    "The {0} was {1} before the {2} came to {N}.",
    "How do I {0} a {1} when the {2} is {3}?",
    "{N} wrote {d} letters about {0} and {1}.",
    "Please summarise: {0} {1}, {2} {3}, and the {4} of {N}.",
    "After {d} days the {0} {1} reported {p} % less {2}.",
    "Error {d}: {0}.{1} returned {2} instead of {3}",
    "def {0}_{1}({2}): return {2} * {d}",
    "Our {0} needs a {1}; the old one broke near {N} in {y}.",
    "I never liked {0}, but {1} with {2} is fine.",
    "{N} {0} {1} - review of the {y} {2}",
    "Der {0} aus {N} hat {d} {1} und keinen {2}.",
    "Warum ist das {0} so {1}, wenn {N} schon {2} hat?",
    "Bitte schicken Sie {d} {0} an {N}, {1} {2}.",
    "Le {0} de {N} est plus {1} que la {2}.",
    "Pourquoi {0} n'a-t-il pas {1} la {2} en {y} ?",
    "El {0} de {N} tiene {d} {1} y una {2}.",
    "¿Dónde está la {0} que {N} compró en {y}?",
    "Il {0} di {N} non è {1}, ma {2}.",
    "O {0} em {N} custa {d} euros, com {1} e {2}.",
    "Het {0} van {N} is {1} en {2}.",
    "{0}, {1}, {2}, {3}, {4}, {5}",
    "Re: {0} {1} ({y}-{d}) {N}",
    "SELECT {0}, {1} FROM {2} WHERE {3} > {d};",
    "Question {d}. Which {0} did {N} {1} in {y}, and what became of the {2}?",
    "{N}: {0}! {1}? {2}...",
    "Steps: 1. {0} the {1}. 2. {2} until {3}. 3. Ask {N}.",
    "{N} 于 {y} 年在 {0} 发现了 {d} 个 {1}。",
    "{N} は {y} 年に {0} と {1} を作った。",
    "В {y} году {N} {0} {1} и {2}.",
    "\"{0} {1}\", said {N}, \"is only a {2} without {3}.\"",
)  # fmt: skip
_COMMON = [
    "water",
    "house",
    "market",
    "engine",
    "river",
    "paper",
    "garden",
    "winter",
    "school",
    "letter",
    "number",
    "kitchen",
    "doctor",
    "window",
    "music",
    "contract",
    "network",
    "planet",
    "history",
    "bridge",
    "teacher",
    "machine",
    "price",
    "summer",
    "forest",
    "report",
    "battery",
    "village",
    "light",
    "signal",
]


def generate_leaves(count: int, random: Random, profile: Profile = DEFAULT) -> Iterator[Leaf]:
    """Generate leaves over a vocabulary drawn for them alone."""
    words = _draw_vocabulary(random)
    below = below_of(random)
    for _ in range(count):
        is_long = draw_is_long(profile, below)
        turns, inputs = pick("turns", profile.turns, below), pick("inputs", profile.inputs, below)
        texts = [_draw_long(random, words)] if is_long else []
        texts = texts or [_draw_text(random, words) for _ in range(max(turns, inputs))]
        leaf = make_leaf(texts, turns, inputs, profile, below, random, is_long=is_long)
        assert leaf is not None
        yield leaf


def _draw_vocabulary(random: Random) -> list[str]:
    private = {_draw_word(random) for _ in range(1_200)}
    return sorted(private) + random.sample(_COMMON, k=len(_COMMON) // 2) * 8


def _draw_word(random: Random) -> str:
    stem = "".join(
        random.choice(_ONSETS) + random.choice(_VOWELS) + random.choice(_CODAS)
        for _ in range(random.choice((1, 2, 2, 3)))
    )
    return stem + random.choice(_ENDINGS)


def _draw_text(random: Random, words: Sequence[str]) -> str:
    sentences = (
        random.choice((1, 1, 1, 2, 2, 3, 4, 6, 9)) if random.random() < 0.95 else random.randint(10, 25)
    )
    return " ".join(_draw_sentence(random, words) for _ in range(sentences))


def _draw_long(random: Random, words: Sequence[str]) -> str:
    return " ".join(_draw_sentence(random, words) for _ in range(random.randint(80, 200)))


def _draw_sentence(random: Random, words: Sequence[str]) -> str:
    return random.choice(_PATTERNS).format(
        *random.choices(words, k=6),
        N=random.choice(words).capitalize(),
        d=random.randint(2, 9_999),
        p=random.randint(1, 99),
        y=random.randint(1700, 2060),
    )
