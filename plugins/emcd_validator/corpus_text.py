"""Making leaves: from an operator's own texts, or generated for a validator that has none.

Generated text mixes sentence patterns with a vocabulary that is drawn anew for every corpus. The
patterns are public, so such a corpus is weaker than one of real text: a node could learn to
recognise it. Entropy comes in as an argument.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from random import Random

from emcd_validator.corpus import MAX_TEXT_CHARS, MAX_TEXTS, NONCE_BYTES, Encoding, Leaf

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


def generate_leaves(count: int, random: Random) -> Iterator[Leaf]:
    """Generate leaves over a vocabulary drawn for them alone."""
    words = _draw_vocabulary(random)
    for _ in range(count):
        yield _compose(random, [_draw_text(random, words) for _ in range(_draw_text_count(random))])


def leaves_of_texts(documents: Iterable[str], random: Random) -> Iterator[Leaf]:
    """Cut documents into passages of mixed length, each used in one leaf."""
    passages = [passage for document in documents for passage in _cut(document, random)]
    random.shuffle(passages)
    while passages:
        count = min(_draw_text_count(random), len(passages))
        yield _compose(random, [passages.pop() for _ in range(count)])


def _compose(random: Random, texts: Sequence[str]) -> Leaf:
    encodings: tuple[Encoding, ...] = ("base64", "base64", "base64", "float", "")
    return Leaf(
        nonce=random.randbytes(NONCE_BYTES),
        texts=tuple(texts),
        as_list=len(texts) > 1 or random.random() < 0.4,
        encoding=random.choice(encodings),
    )


def _draw_text_count(random: Random) -> int:
    return 1 if random.random() < 0.7 else random.randint(2, MAX_TEXTS // 2)


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
    return " ".join(_draw_sentence(random, words) for _ in range(sentences))[:MAX_TEXT_CHARS]


def _draw_sentence(random: Random, words: Sequence[str]) -> str:
    return random.choice(_PATTERNS).format(
        *random.choices(words, k=6),
        N=random.choice(words).capitalize(),
        d=random.randint(2, 9_999),
        p=random.randint(1, 99),
        y=random.randint(1700, 2060),
    )


def _cut(document: str, random: Random) -> Iterator[str]:
    sentences = [part.strip() for part in re.split(r"(?<=[.!?。])\s+|\n\s*\n", document) if part.strip()]
    position = 0
    while position < len(sentences):
        length = random.choice((1, 1, 2, 3, 5, 8, 13))
        passage = " ".join(" ".join(sentences[position : position + length]).split())
        position += length
        if len(passage) > 8:
            yield passage[:MAX_TEXT_CHARS]
