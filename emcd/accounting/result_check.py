"""Compares the results that a bundle states with those recomputed from its evidence."""

from __future__ import annotations

from collections.abc import Iterable

from emcd.accounting.round_result import RoundResult
from emcd.errors import RemoteProtocolError
from emcd.proto.bundle import ResultEntry

CODE = "EMC-1930"


def require_result(result: RoundResult, stated: Iterable[ResultEntry]) -> None:
    """Raises: RemoteProtocolError EMC-1930 at the first entry that differs, is missing or too many."""
    wanted = {entry.node: entry for entry in result.results}
    for entry in stated:
        own = wanted.pop(entry.node, None)
        if own is None:
            raise RemoteProtocolError(CODE, "it took no part in the round")
        if own != entry:
            raise RemoteProtocolError(CODE, _describe(own, entry))
    if wanted:
        raise RemoteProtocolError(CODE, f"the result of {next(iter(wanted))} is missing")


def _describe(own: ResultEntry, stated: ResultEntry) -> str:
    name = next(f for f in own.__struct_fields__ if getattr(own, f) != getattr(stated, f))
    found, recomputed = getattr(stated, name), getattr(own, name)
    if isinstance(found, bytes):
        found, recomputed = int.from_bytes(found, "big"), int.from_bytes(recomputed, "big")
    return f"{name} is {found!r}, recomputed {recomputed!r}"
