"""Which models were served of late: what tells "not now" from "never heard of". Pure.

Invariant: a node can make the hub remember a bounded number of names, whatever it claims to serve.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from emcd.proto.openai import Endpoint
from emcd.types import Address
from emcd_hub.nodes.status import MAX_MODELS, ModelInfo

NAMES_PER_NODE = 2 * MAX_MODELS
"""What it serves, and as many that it served before."""


@dataclass(slots=True)
class _Seen:
    at_ms: int
    endpoints: frozenset[Endpoint]
    node: Address


class KnownModels:
    """Names and when they were last served, the longest unserved first; each name is one node's account."""

    def __init__(self) -> None:
        self._seen: dict[str, _Seen] = {}
        self._names: dict[Address, dict[str, None]] = {}

    def __len__(self) -> int:
        return len(self._seen)

    def note(self, node: Address, models: Iterable[ModelInfo], now_ms: int) -> None:
        """A node serves these now."""
        for info in models:
            self._drop(info.name)
            self._seen[info.name] = _Seen(now_ms, info.endpoints, node)
            self._names.setdefault(node, {})[info.name] = None
        names = self._names.get(node, {})
        while len(names) > NAMES_PER_NODE:
            self._drop(next(iter(names)))

    def knows(self, endpoint: Endpoint, model: str) -> bool:
        seen = self._seen.get(model)
        return seen is not None and endpoint in seen.endpoints

    def forget(self, before_ms: int) -> None:
        """Drop what was last served before."""
        while self._seen:
            name, seen = next(iter(self._seen.items()))
            if seen.at_ms >= before_ms:
                return
            self._drop(name)

    def _drop(self, name: str) -> None:
        seen = self._seen.pop(name, None)
        if seen is not None:
            names = self._names[seen.node]
            del names[name]
            if not names:
                del self._names[seen.node]
