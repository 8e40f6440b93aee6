"""Verdicts counted: rates with their bounds, how far the statistics lay, rounds until a node is suspended."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from statistics import median
from typing import Any, Final

from emcd.accounting.suspension import Conduct, Strike, advance_conduct
from emcd.proto.messages import Verdict
from emcd.proto.params import NetworkParams
from emcd.types import Address
from emcd_validator.judge import Judgement

Z_95: Final = 1.959964
POOL: Final = 4
NODE: Final = Address("0x" + "01" * 20)
MOST_ROUNDS: Final = 400


def share_bounds(hits: int, of: int) -> tuple[float, float]:
    """The 95 % interval of a share. Source: Wilson (1927)."""
    if of == 0:
        return 0.0, 1.0
    share, square = hits / of, Z_95**2
    middle = (share + square / (2 * of)) / (1 + square / of)
    reach = Z_95 * math.sqrt(share * (1 - share) / of + square / (4 * of * of)) / (1 + square / of)
    return max(0.0, middle - reach), min(1.0, middle + reach)


def show_share(hits: int, of: int) -> dict[str, float]:
    low, high = share_bounds(hits, of)
    return {
        "rate": round(hits / of, 4) if of else math.nan,
        "low": round(low, 5),
        "high": round(high, 5),
        "n": of,
    }


class Tally:
    """The judgements of one row, in the order in which they came.

    Args: `threshold`: what their statistic is 1 for: a text's is a share of its threshold already.
    """

    def __init__(self, threshold: float = 1.0) -> None:
        self._threshold = threshold
        self.judgements: list[Judgement] = []
        self.changed: list[bool] = []

    def add(self, judgement: Judgement, *, changed: bool = True) -> None:
        """Args: `changed`: whether the answer differs from the honest one at all."""
        self.judgements.append(judgement)
        self.changed.append(changed)

    @property
    def verdicts(self) -> list[Verdict]:
        return [judgement.verdict for judgement in self.judgements]

    def show(self) -> dict[str, Any]:
        """Rates over all answers, over those that differ, and over groups of four."""
        strikes = [verdict.is_strike for verdict in self.verdicts]
        groups = [strikes[start : start + POOL] for start in range(0, len(strikes) - POOL + 1, POOL)]
        differing = [struck for struck, changed in zip(strikes, self.changed, strict=True) if changed]
        shares = sorted(judgement.statistic_e12 / 1e12 / self._threshold for judgement in self.judgements)
        return {
            "caught": show_share(sum(strikes), len(strikes)),
            "caught_of_changed": show_share(sum(differing), len(differing)),
            "caught_within_4": show_share(sum(map(any, groups)), len(groups)),
            "verdicts": dict(Counter(verdict.name for verdict in self.verdicts)),
            "thresholds": {"least": shares[0], "median": median(shares), "most": shares[-1]},
        }


def simulate_rounds(
    verdicts: Sequence[Verdict], cheated: float, params: NetworkParams, *, nodes: int = 2000
) -> dict[str, Any]:
    """Rounds until a node that cheats on a share of its calls is suspended, by the network's own rule.

    Args: `verdicts`: of probes that met a cheated call, to draw from.
    """
    draw = random.Random(4)
    taken = [_rounds_of_one(draw, verdicts, cheated, params) for _ in range(nodes)]
    known = sorted(taken)
    power = sum(verdict.is_strike for verdict in verdicts) / len(verdicts)
    gross = sum(verdict is Verdict.GROSS for verdict in verdicts) / len(verdicts)
    return {
        "cheated": cheated,
        "median": known[len(known) // 2],
        "p95": known[int(len(known) * 0.95)],
        "within": {
            str(rounds): {
                **show_share(sum(count <= rounds for count in taken), nodes),
                "formula": round(formula(cheated * power, cheated * gross, rounds, params), 4),
            }
            for rounds in (1, 12, 84)
        },
    }


def formula(strike: float, gross: float, rounds: int, params: NetworkParams) -> float:
    """VERIFICATION 4: one GROSS convicts, or two strikes (in a window, which is taken as all rounds up to 12).

    Args: `strike`, `gross`: chances of one probe.
    """
    probes = params.probes_per_node * rounds
    none, light = (1 - strike) ** probes, strike - gross
    if rounds <= params.strike_window_rounds:
        return 1 - none - probes * light * (1 - strike) ** (probes - 1)
    if light <= strike * 1e-9:
        return 1 - none
    window = formula(strike, gross, params.strike_window_rounds, params)
    return 1 - (1 - window) ** (rounds / params.strike_window_rounds)


def _rounds_of_one(
    draw: random.Random, verdicts: Sequence[Verdict], cheated: float, params: NetworkParams
) -> int:
    conducts: dict[Address, Conduct] = {}
    for index in range(MOST_ROUNDS):
        found = list(_draw_strikes(draw, verdicts, cheated, params))
        conducts = advance_conduct(conducts, index, found, params)
        if NODE in conducts and conducts[NODE].suspended_until_round > index:
            return index + 1
    return MOST_ROUNDS + 1


def _draw_strikes(
    draw: random.Random, verdicts: Sequence[Verdict], cheated: float, params: NetworkParams
) -> Iterable[Strike]:
    for slot in range(params.probes_per_node):
        verdict = draw.choice(verdicts) if draw.random() < cheated else Verdict.PASS
        if verdict.is_strike:
            yield Strike(NODE, bytes([slot]) * 16, verdict)
