"""How soon hidden probes find a node that cheats on a part of its calls. Source: VERIFICATION 4.

One probe catches with the chance q = f b (1 - i) (1 - c): f is the cheated share of the calls, b the power
of a probe against this cheat, i the chance that the node recognises a probe, c the share of the stake that
is in league with it among the probers.
"""

from __future__ import annotations

import math


def catch_chance(f: float, b: float = 0.99, i: float = 0.0, c: float = 0.0) -> float:
    """q, the chance of one probe. Raises: ValueError when an argument is no share."""
    if not all(0 <= share <= 1 for share in (f, b, i, c)):
        raise ValueError("f, b, i and c are shares between 0 and 1")
    return f * b * (1 - i) * (1 - c)


def probability_caught(
    f: float, b: float, i: float, c: float, m: int, rounds: int, *, strikes: int = 1
) -> float:
    """The chance of at least `strikes` caught probes of `m` a round within so many rounds."""
    q, probes = catch_chance(f, b, i, c), m * rounds
    fewer = (math.comb(probes, n) * q**n * (1 - q) ** (probes - n) for n in range(min(strikes, probes + 1)))
    return max(0.0, 1 - math.fsum(fewer))


def probability_caught_unpinned(f: float, b: float, i: float, c: float, m: float, rounds: int) -> float:
    """The same for one strike when the hub routes probes as it likes: their number is Poisson of mean `m`."""
    return -math.expm1(-m * rounds * catch_chance(f, b, i, c))


def probes_needed(p: float, f: float, b: float, i: float, c: float, rounds: int) -> int:
    """Probes a round for the chance `p` of one strike within so many rounds.

    Raises: ValueError when no number of probes is enough.
    """
    q = catch_chance(f, b, i, c)
    if not 0 < p < 1 or q <= 0 or rounds < 1:
        raise ValueError(f"chance {p} with {q} a probe in {rounds} rounds can't be reached")
    if q == 1:
        return 1
    return math.ceil(math.log1p(-p) / (rounds * math.log1p(-q)))
