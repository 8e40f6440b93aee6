"""How long the hub keeps what. Pure.

A round may be archived when nothing can be done with its calls any more: no later bundle may carry
them, and no bundle that could is still to be closed. Its calls then stand in its bundle alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import msgspec

from emcd.proto.params import NetworkParams

CLOSE_ROUNDS = 2
"""A round closes when the round after it is over."""


@dataclass(frozen=True)
class Retention:
    """What the operator wants; `bundles_rounds` 0: all bundles, for ever."""

    calls_ms: int = 30 * 86_400_000
    results_ms: int = 90 * 86_400_000
    bundles_rounds: int = 0


def longest(versions: Iterable[NetworkParams]) -> NetworkParams:
    """The parameters that keep calls longest: a round goes by one version, those around it by others."""
    known = list(versions)
    return msgspec.structs.replace(
        known[0],
        carry_rounds=max(params.carry_rounds for params in known),
        void_after_rounds=max(params.void_after_rounds for params in known),
        challenge_delay_rounds=max(params.challenge_delay_rounds for params in known),
    )


def open_round(clock_round: int, last_closed: int) -> int:
    """The round to reckon with: while closing is behind the clock, calls wait for bundles still to come."""
    return min(clock_round, last_closed + CLOSE_ROUNDS)


def is_archivable(index: int, current: int, params: NetworkParams, *, is_paid: bool) -> bool:
    """Whether nothing but a receipt will ever be asked of the calls in a round's bundle.

    A call goes into a bundle of at most `carry_rounds` after its own round. A round that an active root
    pays stands for ever; one that nobody pays came to nothing when `void_after_rounds` and the challenge
    of whatever was published last are over, and its calls may have gone into a bundle after it, for
    which the same holds.

    Args:
        current: the open round, as `open_round` reckons.
        is_paid: an active root covers the round.
    """
    age = current - index - CLOSE_ROUNDS - params.carry_rounds
    return age > (0 if is_paid else params.void_after_rounds + params.challenge_delay_rounds)
