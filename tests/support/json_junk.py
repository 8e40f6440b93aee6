"""Spoiling JSON values at one place, for whoever has to take what others send."""

from __future__ import annotations

import copy
from typing import Any


def list_places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every value within a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at] * bool(at) + [place for key, item in inner for place in list_places(item, (*at, key))]


def spoil(value: Any, place: tuple[Any, ...], junk: Any) -> Any:
    """A copy with something else at one place."""
    spoilt = copy.deepcopy(value)
    inner = spoilt
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = junk
    return spoilt
