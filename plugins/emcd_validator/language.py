"""Guessing what a text is written in: enough to compare shares, for nothing else. Pure."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping

CODE = "code"
UNKNOWN = "other"

_FREQUENT: Mapping[str, frozenset[str]] = {
    name: frozenset(words.split())
    for name, words in {
        "en": "the of and to in is that it was for are with be this have from not or by as an you which can",
        "de": "der die und das ist nicht ein eine zu den mit von sich auf für dem im auch es wird sind aber",
        "fr": "le la les et des une est que dans pour pas sur qui au avec ce il sont par plus nous cette",
        "es": "el los las que una es por con para del se no su más como pero lo este está son",
        "it": "il che di una per non con del della sono gli è si ma anche nel come questo più",
        "pt": "o os que uma para com não do da em é por mais como se dos na mas foi são",
        "nl": "de het een van en is dat niet op te voor met zijn aan er maar ook bij dit wordt",
        "pl": "i w na nie się z do jest to że jak o ale po co tak za przez od dla",
    }.items()
}
_SCRIPTS = (
    ("ja", re.compile(r"[\u3040-\u30ff]")),
    ("ko", re.compile(r"[\uac00-\ud7af]")),
    ("zh", re.compile(r"[\u4e00-\u9fff]")),
    ("ru", re.compile(r"[\u0400-\u04ff]")),
    ("ar", re.compile(r"[\u0600-\u06ff]")),
    ("hi", re.compile(r"[\u0900-\u097f]")),
    ("el", re.compile(r"[\u0370-\u03ff]")),
)
_LETTERS = re.compile(r"[^\W\d_]")
_WORDS = re.compile(r"[^\W\d_]+")
_CODE_LINE = re.compile(
    r"^\s*(?:def |class |import |from \w+ import|return\b|if .*[:{]$|for .*[:{]$|else\b|@\w|#include|"
    r"public |private |static |const |let |var |func |fn |package |SELECT |INSERT |</?\w+[^>]*>|[})\]];?$)|"
    r"[;{]\s*$|\w+\([^)]*\)[;:]?\s*$|^\s*[\w.\[\]\"']+ [-+*|]?= "
)
_LOOK_CHARS = 4_000
_SCRIPT_SHARE = 0.2
_CODE_SHARE = 0.35


def guess_language(text: str) -> str:
    """Two letters, "code", or "other"."""
    text = text[:_LOOK_CHARS]
    lines = [line for line in text.splitlines() if line.strip()]
    if len(lines) > 1 and sum(bool(_CODE_LINE.search(line)) for line in lines) >= _CODE_SHARE * len(lines):
        return CODE
    letters = len(_LETTERS.findall(text))
    for name, script in _SCRIPTS:
        if letters and len(script.findall(text)) >= _SCRIPT_SHARE * letters:
            return name
    found: Counter[str] = Counter()
    for word in _WORDS.findall(text.lower()):
        for name, frequent in _FREQUENT.items():
            found[name] += word in frequent
    best = found.most_common(1)
    return best[0][0] if best and best[0][1] else UNKNOWN
