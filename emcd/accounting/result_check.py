"""Compares the results that a bundle states with those recomputed from its evidence."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from emcd.accounting.consequence import Unequal, tell_result
from emcd.accounting.round_result import RoundResult
from emcd.proto.bundle import ResultEntry
from emcd.types import Address

CODE = "EMC-1930"


def require_result(
    result: RoundResult, stated: Iterable[ResultEntry], wallets: Mapping[Address, Address]
) -> None:
    """Raises: Unequal EMC-1930 at the first entry that differs, is missing or too many."""
    wanted = {entry.node: entry for entry in result.results}
    for entry in stated:
        own = wanted.pop(entry.node, None)
        effect = tell_result(entry, own, wallets.get(entry.node)) if own != entry else ""
        if own is None:
            raise Unequal(CODE, "it took no part in the round", effect)
        if own != entry:
            raise Unequal(CODE, _describe(own, entry), effect)
    if wanted:
        node, own = next(iter(wanted.items()))
        raise Unequal(CODE, f"the result of {node} is missing", tell_result(None, own, wallets.get(node)))


def _describe(own: ResultEntry, stated: ResultEntry) -> str:
    name = next(f for f in own.__struct_fields__ if getattr(own, f) != getattr(stated, f))
    found, recomputed = getattr(stated, name), getattr(own, name)
    if isinstance(found, bytes):
        found, recomputed = int.from_bytes(found, "big"), int.from_bytes(recomputed, "big")
    return f"{name} is {found!r}, recomputed {recomputed!r}"
