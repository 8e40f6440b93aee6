"""Versions of engines, and the ranges of them that manifests promise. Pure.

A version is what an engine says; the numbers that it begins with are compared, and nothing after them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Final

from emcd.errors import ConfigError

_COMPARISON = re.compile(r"\s*(==|!=|<=|>=|<|>)\s*([0-9][0-9A-Za-z.+_-]*)\s*")
_RELEASE = re.compile(r"[a-z]?(\d+(?:\.\d+)*)")


def find_range_fault(versions: str) -> str:
    """Why this is no range of versions; "" when it is one. An empty range holds every version."""
    try:
        _read_range(versions)
    except ConfigError as exc:
        return exc.detail
    return ""


def is_in_range(version: str, versions: str) -> bool:
    """Whether a version is within `>=1.20,<2` or the like. A version that can't be read is in no range."""
    comparisons = _read_range(versions)
    if not comparisons:
        return True
    own = _read_version(version)
    return own is not None and all(_COMPARE[sign](*_padded(own, other)) for sign, other in comparisons)


_COMPARE: Final[Mapping[str, Callable[[tuple[int, ...], tuple[int, ...]], bool]]] = {
    "==": lambda own, other: own == other,
    "!=": lambda own, other: own != other,
    "<=": lambda own, other: own <= other,
    ">=": lambda own, other: own >= other,
    "<": lambda own, other: own < other,
    ">": lambda own, other: own > other,
}


def _read_range(versions: str) -> list[tuple[str, tuple[int, ...]]]:
    comparisons = []
    for part in versions.split(",") if versions.strip() else []:
        match = _COMPARISON.fullmatch(part)
        number = _read_version(match[2]) if match else None
        if match is None or number is None:
            raise ConfigError("EMC-1641", f"{part.strip()[:40]!r} is no comparison such as >=1.20")
        comparisons.append((match[1], number))
    return comparisons


def _read_version(version: str) -> tuple[int, ...] | None:
    """The numbers a version begins with: 0.10.2 of `0.10.2rc1+cu128`, 6500 of `b6500-8ff2060`."""
    match = _RELEASE.match(version.strip().lower())
    return tuple(map(int, match[1].split("."))) if match else None


def _padded(first: tuple[int, ...], second: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    size = max(len(first), len(second))
    return first + (0,) * (size - len(first)), second + (0,) * (size - len(second))
