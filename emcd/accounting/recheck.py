"""Who has to judge again which answer that its prober called no strike.

A strike is judged by everybody; a PASS, a TEMPLATE or an ERROR by its prober alone, who may be lazy,
bought or the node's own. So each answer of these is drawn by some other validator with the chance
`recheck_bps`: weighted by power, from that validator's committed seed, so that nobody else knows before
it reveals, and nobody chooses.
Source: VERIFICATION 4, "Lazy or bought validators".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from emcd.money import BPS
from emcd.proto.bundle import RevealEntry
from emcd.proto.hashing import keccak
from emcd.proto.params import NetworkParams
from emcd.types import Address

_TAG = keccak(b"emcd:recheck")


def is_recheck(
    seed: bytes,
    call_id: bytes,
    validator: Address,
    prober: Address,
    powers: Mapping[Address, int],
    params: NetworkParams,
) -> bool:
    """Whether the validator has to judge the call that the prober called no strike.

    Args: `seed` the validator's own of the round; `powers` the epoch's frozen set. The chances of all
    validators but the prober add up to `recheck_bps`.
    """
    others = sum(powers.values()) - powers.get(prober, 0)
    power = powers.get(validator, 0)
    if validator == prober or others <= 0 or power <= 0:
        return False
    ticket = int.from_bytes(keccak(_TAG + seed + call_id), "big") % (BPS * others)
    return ticket < params.recheck_bps * power


def draw_rechecks(
    reveals: Iterable[RevealEntry],
    listed: Mapping[bytes, Address],
    powers: Mapping[Address, int],
    params: NetworkParams,
) -> frozenset[tuple[Address, bytes]]:
    """Validator and call of every re-check that the revealed seeds draw.

    Args: `listed` the prober by the id of every answered call that was called no strike.
    """
    seeds = [(entry.reveal.validator, entry.reveal.seed) for entry in reveals]
    return frozenset(
        (validator, call_id)
        for validator, seed in seeds
        for call_id, prober in listed.items()
        if is_recheck(seed, call_id, validator, prober, powers, params)
    )
