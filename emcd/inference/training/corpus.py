"""The text that the tiny model learns: what Python's own documentation and docstrings say.

Two parts: broad text, seen once, from which it learns how such text goes on; and short questions about
every builtin, seen again and again, which it learns by heart, so that an answer depends on the
question and ends. Everything is part of the standard library that runs this (PSF licence); nothing is
executed, sources are parsed. Invariants: the same Python version gives the same texts in the same order on
every machine (ordered by their sha256); no docstring or topic of the broad part is both learned and held
out, in any form; no text holds a special token out of place.
"""

from __future__ import annotations

import ast
import builtins
import hashlib
import sysconfig
import textwrap
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from emcd.errors import ConfigError
from emcd.inference.training.bpe import IM_END, IM_START

PACKAGES = (
    "asyncio", "collections", "concurrent", "ctypes", "curses", "dbm", "email", "html", "http", "importlib",
    "json", "logging", "multiprocessing", "re", "sqlite3", "tkinter", "tomllib", "unittest", "urllib",
    "wsgiref", "xml", "xmlrpc", "zoneinfo",
)  # fmt: skip
HELD_OUT_SHARE = 20
"""One text in so many is held out."""
_ANSWER_CHARS = 420
_DOCSTRING_CHARS = (40, 3000)
_CODE_LINES = (3, 16)
_CODE_CHARS = 700
_FEWEST_TEXTS = 1000
_KNOWN_CHARS = 160
_KNOWN_COPIES = 16
_BROAD_PERCENT = 50
_TOPIC_CHARS = 2400


@dataclass(frozen=True)
class Corpus:
    """Texts in the order in which they are learned; conversations stand in ChatML form."""

    learned: tuple[str, ...]
    held_out: tuple[str, ...]


@dataclass(frozen=True)
class _Entry:
    """One documented thing of the standard library."""

    module: str
    name: str
    kind: str
    docstring: str
    code: str = ""


def read_corpus() -> Corpus:
    """Read all of it; about 2 s. Raises: ConfigError EMC-1640 when this Python came without its sources."""
    sides: tuple[set[str], set[str]] = (set(), set())
    for key, text in chain(_topic_texts(), _entry_texts()):
        if _is_clean(text):
            sides[_digest(key)[0] % HELD_OUT_SHARE == 0].add(text)
    broad, held_out = (sorted(side, key=_digest) for side in sides)
    if len(broad) < _FEWEST_TEXTS:
        raise ConfigError("EMC-1640", f"only {len(broad)} texts in {sysconfig.get_path('stdlib')}")
    known = {text for text in _known_talks() if _is_clean(text)}
    placed = [(_digest(f"broad {text}"), text) for text in broad[: len(broad) * _BROAD_PERCENT // 100]]
    placed += [(_digest(f"{copy} {text}"), text) for text in known for copy in range(_KNOWN_COPIES)]
    return Corpus(tuple(text for _, text in sorted(placed)), tuple(held_out))


def make_talk(*turns: str) -> str:
    """A conversation in ChatML: the user's turn first, then by turns."""
    roles = ("user", "assistant")
    return "".join(
        f"{IM_START}{roles[place % 2]}\n{turn}{IM_END}\n" for place, turn in enumerate(turns)
    ).removesuffix("\n")


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _is_clean(text: str) -> bool:
    """Readable ASCII without a special token out of place."""
    return text.isascii() and "\0" not in text and ("<|" not in text or text.startswith(IM_START))


def _read_topics() -> dict[str, str]:
    try:
        from pydoc_data.topics import topics
    except ImportError as exc:
        raise ConfigError("EMC-1640", f"pydoc_data: {exc}") from exc
    return dict(sorted(topics.items()))


def _read_entries() -> Iterator[_Entry]:
    root = Path(sysconfig.get_path("stdlib"))
    files = [path for path in root.glob("*.py") if not path.name.startswith("_")]
    for package in PACKAGES:
        files += [path for path in (root / package).rglob("*.py") if not {"test", "tests"} & set(path.parts)]
    for path in sorted(files):
        module = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
        try:
            with warnings.catch_warnings(action="ignore"):
                source = path.read_text("utf-8")
                tree = ast.parse(source)
        except (OSError, ValueError, SyntaxError):
            continue
        yield from _list_documented(module, tree, source)


def _list_documented(module: str, tree: ast.Module, source: str) -> Iterator[_Entry]:
    low, high = _DOCSTRING_CHARS
    shown = ast.get_docstring(tree)
    if shown and len(shown) >= low:
        yield _Entry(module, module, "module", shown[:high])
    lines = source.splitlines()
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    owners: list[ast.Module | ast.ClassDef] = [tree, *classes]
    for owner in owners:
        prefix = f"{owner.name}." if isinstance(owner, ast.ClassDef) else ""
        for node in owner.body:
            if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name.startswith("_"):
                continue
            shown = ast.get_docstring(node)
            if shown is None or not low <= len(shown) <= high:
                continue
            kind = "class" if isinstance(node, ast.ClassDef) else "method" if prefix else "function"
            code = textwrap.dedent("\n".join(lines[node.lineno - 1 : node.end_lineno]))
            yield _Entry(module, prefix + node.name, kind, shown, code if kind != "class" else "")


def _cut(text: str, size: int) -> Iterator[str]:
    """Pieces of about `size` characters, cut between paragraphs."""
    piece = ""
    for paragraph in text.split("\n\n"):
        if piece and len(piece) + len(paragraph) > size:
            yield piece
            piece = ""
        piece = f"{piece}\n\n{paragraph}" if piece else paragraph
    yield piece


_QUESTIONS = {
    "module": (
        "What is the {name} module for?",
        "Tell me about the module {name}.",
        "What does {name} provide?",
    ),
    "class": ("What is {name} in {module}?", "Explain the class {name}.", "When do I need {name}?"),
    "function": ("What does {name} do?", "How do I use {name} from {module}?", "Explain {module}.{name}."),
    "method": ("What does {name} do?", "Explain the method {name} of {module}.", "How does {name} work?"),
}
_CODE_QUESTIONS = (
    "Show me the code of {name}.",
    "How is {name} written in {module}?",
    "Write {name} in Python.",
)
_TOPIC_QUESTIONS = (
    'Explain "{name}" in Python.',
    "What should I know about {name}?",
    "How do {name} work in Python?",
)

_KNOWN_QUESTIONS = (
    "What does {name} do?",
    "Explain {name}.",
    "What is {name}?",
    "Tell me about {name} in Python.",
)


def _topic_texts() -> Iterator[tuple[str, str]]:
    """Pieces of the language's documentation, plain and as answers; with what decides on which side they are."""
    for name, text in _read_topics().items():
        for piece in _cut(text.strip(), _TOPIC_CHARS):
            yield name, piece
        for piece in _cut(textwrap.dedent(text).strip(), _ANSWER_CHARS):
            if len(piece) <= 2 * _ANSWER_CHARS:
                yield name, make_talk(_ask(_TOPIC_QUESTIONS, name + piece, name=name), piece.strip())


def _entry_texts() -> Iterator[tuple[str, str]]:
    """Docstrings, plain and as answers; some answers are followed by a question about the code."""
    for entry in _read_entries():
        yield entry.docstring, f"{entry.module}: {entry.kind} {entry.name}\n\n{entry.docstring}"
        facts = {"name": entry.name, "module": entry.module}
        turns = [_ask(_QUESTIONS[entry.kind], entry.docstring, **facts), _first_paragraphs(entry.docstring)]
        if _is_short(entry.code):
            turns += [_ask(_CODE_QUESTIONS, entry.code, **facts), entry.code]
        yield entry.docstring, make_talk(*turns)


def _known_talks() -> Iterator[str]:
    """Every question about each builtin, with a short answer."""
    for name, value in sorted(vars(builtins).items()):
        text = str(getattr(value, "__doc__", None) or "")
        answer = next(_cut(text.strip(), _KNOWN_CHARS))[:_KNOWN_CHARS].strip()
        if answer and not name.startswith("_"):
            for question in _KNOWN_QUESTIONS:
                yield make_talk(question.format(name=name), answer)


def _ask(questions: tuple[str, ...], text: str, **facts: str) -> str:
    return questions[_digest(text)[0] % len(questions)].format(**facts)


def _first_paragraphs(text: str) -> str:
    return next(_cut(text, _ANSWER_CHARS))[: 2 * _ANSWER_CHARS].rstrip()


def _is_short(code: str) -> bool:
    low, high = _CODE_LINES
    return low <= code.count("\n") + 1 <= high and len(code) <= _CODE_CHARS
