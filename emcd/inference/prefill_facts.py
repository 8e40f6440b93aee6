"""What a judge reads from its own logits: log-probabilities, the best candidates, how much was to be drawn.

Numbers leave this module as plain Python floats, for the statistics are pure functions of such. Sums are
in fp64. Invariant: memory beyond the logits given is bounded by a block of rows.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from emcd.accounting.gumbel import CANDIDATES

Logits = NDArray[np.float32]
_BLOCK_NUMBERS = 1 << 20
"""Of logits that are looked at together: 8 MB of fp64, or one row."""
_MOST_SURPRISING = 50.0
"""Of a token that could not be drawn at all, in nats."""


@dataclass(frozen=True)
class Drawing:
    """How tokens are drawn; `is_free` when by a foreign sampler, so that the chance itself is asked for."""

    temperature: float
    top_p: float = 1.0
    top_k: int = 0
    is_free: bool = False


class Chance(NamedTuple):
    """Of one drawn token: its surprisal, the mean of it (entropy) and its variance."""

    surprisal: float
    entropy: float
    variance: float


class TokenFacts(NamedTuple):
    """One position under the judge's own model. Fields as `accounting.token_check.Position` has them."""

    own: dict[int, float]
    chosen_logit: float
    candidates: list[tuple[int, float]]
    log_total: float
    chance: Chance | None


def list_facts(
    parts: Iterable[Logits],
    wanted: Sequence[Collection[int]],
    chosen: Sequence[int],
    drawing: Drawing,
) -> list[TokenFacts]:
    """The facts of every output token.

    Args:
        parts: float32 [n, vocab] each, one row for every token of `chosen` (rows beyond are passed over).
        wanted: ids, all below the vocabulary's length, whose log-probabilities are compared.
    """
    facts: list[TokenFacts] = []
    for part in parts:
        rows = max(1, _BLOCK_NUMBERS // part.shape[1])
        for start in range(0, len(part), rows):
            done = len(facts)
            block = part[start : start + rows][: len(chosen) - done]
            end = done + len(block)
            facts += _read_block(block, wanted[done:end], chosen[done:end], drawing)
    return facts


def _read_block(
    block: Logits, wanted: Sequence[Collection[int]], chosen: Sequence[int], drawing: Drawing
) -> list[TokenFacts]:
    if not len(block):
        return []
    totals = log_sums(block)
    scaled = totals if drawing.temperature in (0, 1) else log_sums(block, drawing.temperature)
    is_drawn = drawing.is_free and drawing.temperature > 0
    return [
        TokenFacts(
            {item: float(row[item]) - total for item in {*ids, token}},
            float(row[token]),
            candidates,
            scaled_total,
            compute_chance(row, token, drawing) if is_drawn else None,
        )
        for row, ids, token, total, scaled_total, candidates in zip(
            block, wanted, chosen, totals, scaled, list_candidates(block), strict=True
        )
    ]


def log_sums(block: Logits, temperature: float = 1.0) -> list[float]:
    """log(sum(exp(logit / temperature))) over the vocabulary, of every row."""
    values = block.astype(np.float64)
    if temperature != 1:
        values /= temperature
    highest = values.max(axis=1)
    values -= highest[:, None]
    np.exp(values, out=values)
    sums: list[float] = (highest + np.log(values.sum(axis=1))).tolist()
    return sums


def log_sum(row: Logits, temperature: float = 1.0) -> float:
    """The same of one row."""
    return log_sums(row[None], temperature)[0]


def read_logprobs(row: Logits, tokens: Iterable[int]) -> dict[int, float]:
    """Natural log-probabilities of some tokens, without a temperature."""
    total = log_sum(row)
    return {token: float(row[token]) - total for token in tokens}


def read_candidates(row: Logits, count: int = CANDIDATES) -> list[tuple[int, float]]:
    """The largest logits with their ids, largest first, of equal ones the lower id first."""
    return list_candidates(row[None], count)[0]


def list_candidates(block: Logits, count: int = CANDIDATES) -> list[list[tuple[int, float]]]:
    """The same of every row."""
    most = min(count, block.shape[1])
    place = block.shape[1] - most
    least = np.partition(block, place, axis=1)[:, place]
    rows, ids = np.nonzero(block >= least[:, None])
    logits = block[rows, ids]
    order = np.lexsort((ids, -logits, rows))
    ids, logits = ids[order], logits[order]
    ends = np.cumsum(np.bincount(rows, minlength=len(block)))
    starts = [0, *ends[:-1].tolist()]
    return [
        list(zip(ids[at : at + most].tolist(), logits[at : at + most].tolist(), strict=True)) for at in starts
    ]


def compute_chance(row: Logits, chosen: int, drawing: Drawing) -> Chance:
    """How surprising a token is among those that the request lets be drawn."""
    values = row.astype(np.float64) / drawing.temperature
    order = np.argsort(-values, kind="stable")
    probabilities = np.exp(values - values.max())
    probabilities /= probabilities.sum()
    kept = _count_allowed(probabilities[order], drawing)
    allowed = order[:kept]
    shares = probabilities[allowed] / probabilities[allowed].sum()
    surprisals = -np.log(np.maximum(shares, np.exp(-_MOST_SURPRISING)))
    entropy = float((shares * surprisals).sum())
    variance = float((shares * (surprisals - entropy) ** 2).sum())
    place = np.flatnonzero(allowed == chosen)
    surprisal = float(surprisals[place[0]]) if len(place) else _MOST_SURPRISING
    return Chance(surprisal, entropy, variance)


def _count_allowed(descending: NDArray[np.float64], drawing: Drawing) -> int:
    count = len(descending) if drawing.top_k <= 0 else min(drawing.top_k, len(descending))
    if not 0 < drawing.top_p < 1:
        return count
    reached = int(np.searchsorted(np.cumsum(descending[:count]), drawing.top_p))
    return min(count, reached + 1)
