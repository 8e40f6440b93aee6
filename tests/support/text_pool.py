"""Text and code that is installed wherever the tests run, as documents of many topics.

The standard library and what the lock installs: sources, and their docstrings as prose. A topic is a
module or a package; topics are dealt to two sides that share none.
"""

from __future__ import annotations

import ast
import os
import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random

PACKAGES = ("hypothesis", "trio", "web3", "rich", "click", "pygments", "jinja2", "aiohttp", "anyio", "urllib3",
            "setuptools", "Crypto", "websockets", "cryptography", "eth", "_pytest", "sqlite_utils", "structlog",
            "packaging", "numpy", "onnx", "h11", "asks", "msgspec", "attr", "pluggy", "markdown_it", "tabulate",
            "yaml", "requests", "certifi", "idna", "eth_abi", "eth_account", "eth_utils", "rlp", "toolz")  # fmt: skip
_SKIPPED = {"test", "tests", "idlelib", "lib2to3", "site-packages", "__pycache__", "turtledemo", "encodings",
            "pydoc_data", "_vendor", "vendored"}  # fmt: skip
_MOST_FILES = 6
"""Of one topic: the openai client alone has thousands that are alike."""
_FEWEST_BYTES = 6_000
"""A document that is used up soon leaves a corpus to the others; users copy from it again and again."""
_MOST_BYTES = 120_000


@dataclass(frozen=True)
class Text:
    """One document; `is_code` for a source, else its docstrings."""

    topic: str
    is_code: bool
    text: str


@cache
def list_topics() -> dict[str, tuple[Path, ...]]:
    """The files of every topic, in an order that does not depend on the machine."""
    found: dict[str, list[Path]] = {}
    library = Path(os.__file__).parent
    roots = [("std", library), *((name, _site() / name) for name in PACKAGES)]
    for name, root in roots:
        for path in sorted(root.rglob("*.py")):
            parts = path.relative_to(root).parts
            if not _SKIPPED & set(parts) and _FEWEST_BYTES <= path.stat().st_size <= _MOST_BYTES:
                found.setdefault(f"{name} {parts[0].removesuffix('.py')}", []).append(path)
    return {topic: tuple(paths) for topic, paths in sorted(found.items())}


def deal_topics(seed: int, topics: int) -> tuple[tuple[Text, ...], tuple[Text, ...]]:
    """The documents of so many topics, on two sides that share none.

    Topics with about as much prose and code are dealt to different sides: an operator takes texts of the kind
    that users send.
    """
    draw = Random(seed)
    names = list(list_topics())
    draw.shuffle(names)
    chosen = sorted((name for name in names[:topics] if _read_topic(name)), key=_measure)
    sides: tuple[list[Text], list[Text]] = ([], [])
    for pair in zip(chosen[::2], chosen[1::2], strict=False):
        for side, topic in zip(sides, draw.sample(pair, 2), strict=True):
            side.extend(_read_topic(topic))
    return tuple(sides[0]), tuple(sides[1])


def _measure(topic: str) -> tuple[float, int]:
    """How much of a topic is prose, and how much there is of it."""
    texts = _read_topic(topic)
    return round(sum(not text.is_code for text in texts) / len(texts), 1), sum(len(t.text) for t in texts)


def _site() -> Path:
    import numpy

    return Path(numpy.__file__).parent.parent


@cache
def _read_topic(topic: str) -> tuple[Text, ...]:
    chosen = list(list_topics()[topic])
    Random(topic).shuffle(chosen)
    texts = []
    for path in sorted(chosen[:_MOST_FILES]):
        source = path.read_text("utf-8", errors="replace")
        texts.append(Text(topic, True, source))
        prose = _list_docstrings(source)
        if len(prose) >= _FEWEST_BYTES:
            texts.append(Text(topic, False, prose))
    return tuple(texts)


def _list_docstrings(source: str) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            tree = ast.parse(source)
        except SyntaxError:
            return ""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [node for node in ast.walk(tree) if isinstance(node, kinds)]
    return "\n\n".join(text for node in nodes if (text := ast.get_docstring(node)))
