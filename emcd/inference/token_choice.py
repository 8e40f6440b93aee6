"""Logits to tokens: candidates, the sampler `emcd-gumbel-v1`, and the log-probabilities to report.

Owns the choice of a whole batch's next tokens in numpy. Which candidate wins is said by
`emcd.accounting.gumbel`: here its sums are done for all rows together, and where two candidates are so
near that the order of a sum could matter, it is asked itself. Invariants: the candidates are the 64
largest logits, on a tie the lower id first; log-probabilities are of the raw logits, whatever temperature,
top-p and top-k are; a row's choice depends on that row only. Blocks: call it in a thread.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from emcd.accounting.gumbel import CANDIDATES, LAST_UNIT, allowed_count, choose, hash_tokens
from emcd.errors import RecoverableError
from emcd.inference.decoder_session import Logits

MAX_TOP_LOGPROBS: Final = 20
LEAST_LOGPROB: Final = -9999.0
"""Reported for a token that can't come at all: JSON has no infinity."""
_BLOCKS = 512
_CLOSE = 1e-9
"""Scores that differ by less are left to the sampler: fp64 is exact to about 1e-15 of them."""


@dataclass(frozen=True)
class Sampling:
    """How tokens are to be chosen and told.

    Args:
        temperature: 0 takes the likeliest.
        top_p: 1 is off. top_k: 0 or less is off; beyond 64 it is 64.
        seed: 64 bits, signed or not; it decides every token.
        top_logprobs: how many of the likeliest are told beside the chosen one.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    top_logprobs: int = 0


class Choice(NamedTuple):
    """A token, its log-probability, and the likeliest with theirs, best first."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


class _Best(NamedTuple):
    """The candidates of every row, best first: int64 and float64 [rows, at most 64]."""

    ids: NDArray[np.int64]
    logits: NDArray[np.float64]

    def list_row(self, row: int) -> list[tuple[int, float]]:
        return list(zip(self.ids[row].tolist(), self.logits[row].tolist(), strict=True))


def choose_tokens(logits: Logits, asked: Sequence[tuple[Sampling, int]]) -> list[Choice]:
    """The next token of every row.

    Args:
        logits: float32 [rows, vocab]; asked: each row's sampling, and the number of its output token.
    Raises: RecoverableError EMC-1651 when a row holds no number: `find_broken_rows` says which.
    """
    largest = logits.max(axis=1)
    if not np.isfinite(largest).all():
        raise RecoverableError("EMC-1651", "the model gives logits that are no numbers")
    totals = np.log(np.exp(logits - largest[:, None]).sum(axis=1, dtype=np.float64)) + largest
    best = _find_best(logits)
    logprobs = np.round(np.maximum(best.logits - totals[:, None], LEAST_LOGPROB), 6)
    choices = []
    for row, place in enumerate(_draw(logits, best, asked)):
        count = asked[row][0].top_logprobs
        top = zip(best.ids[row, :count].tolist(), logprobs[row, :count].tolist(), strict=True)
        choices.append(Choice(int(best.ids[row, place]), float(logprobs[row, place]), tuple(top)))
    return choices


def find_broken_rows(logits: Logits) -> list[int]:
    """The rows that nothing can be chosen from: a number among theirs is none."""
    broken: list[int] = np.flatnonzero(~np.isfinite(logits.max(axis=1))).tolist()
    return broken


def list_candidates(row: Logits) -> list[tuple[int, float]]:
    """The best 64 of one row as (id, logit): logit descending, then id ascending."""
    return _find_best(row[None]).list_row(0)


def compute_log_total(row: Logits, temperature: float) -> float:
    """logsumexp(logits / temperature) over the vocabulary, in fp64; of the logits themselves at 0."""
    scaled = row.astype(np.float64) / (temperature or 1.0)
    largest = float(scaled.max())
    return largest + math.log(float(np.exp(scaled - largest).sum()))


def _find_floors(logits: Logits) -> NDArray[np.float32]:
    """Per row a number that at least 64 logits reach and few others: sorting all of them is dear.

    It is the 64th largest of the maxima of blocks, since each block has one that reaches its own.
    """
    rows, vocab = logits.shape
    depth = vocab // _BLOCKS
    if depth < 2:
        if vocab <= CANDIDATES:
            return np.full(rows, -np.inf, np.float32)
        return np.partition(logits, -CANDIDATES, axis=1)[:, -CANDIDATES]
    maxima = logits[:, : depth * _BLOCKS].reshape(rows, depth, _BLOCKS).max(axis=1)
    return np.partition(maxima, -CANDIDATES, axis=1)[:, -CANDIDATES]


def _find_best(logits: Logits) -> _Best:
    rows, vocab = logits.shape
    near, ids = np.nonzero(logits >= _find_floors(logits)[:, None])
    values = logits[near, ids]
    order = np.lexsort((-values, near))  # it is stable: of equals the lower id comes first
    starts = np.searchsorted(near, np.arange(rows))
    picked = order[starts[:, None] + np.arange(min(CANDIDATES, vocab))]
    return _Best(ids[picked], values[picked].astype(np.float64))


def _draw(logits: Logits, best: _Best, asked: Sequence[tuple[Sampling, int]]) -> list[int]:
    """Which candidate wins in every row."""
    places = [0] * len(asked)
    drawn = [row for row, (sampling, _) in enumerate(asked) if sampling.temperature > 0]
    if not drawn:
        return places
    counts = [_count_allowed(logits[row], best, row, asked[row][0]) for row in drawn]
    scores = _score(best, asked, drawn, counts)
    lines = np.arange(len(drawn))
    winners = scores.argmax(axis=1)
    highest = scores[lines, winners]
    scores[lines, winners] = -np.inf
    is_clear = highest - scores.max(axis=1) > _CLOSE
    for row, winner, clear in zip(drawn, winners.tolist(), is_clear.tolist(), strict=True):
        places[row] = winner if clear else _ask_sampler(logits[row], best, row, *asked[row])
    return places


def _count_allowed(row_logits: Logits, best: _Best, row: int, sampling: Sampling) -> int:
    """How many of a row's candidates may be drawn."""
    if sampling.top_p >= 1 and sampling.top_k <= 0:
        return int(best.ids.shape[1])
    return allowed_count(
        best.list_row(row),
        log_total=compute_log_total(row_logits, sampling.temperature) if sampling.top_p < 1 else 0.0,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
    )


def _score(
    best: _Best, asked: Sequence[tuple[Sampling, int]], drawn: Sequence[int], counts: Sequence[int]
) -> NDArray[np.float64]:
    """Logit / temperature with its noise, of the drawn rows.

    A candidate that is not allowed has the least noise there is, and no higher logit: it can't win.
    """
    width = max(counts)
    words = []
    for row, count in zip(drawn, counts, strict=True):
        sampling, number = asked[row]
        words += hash_tokens(sampling.seed, number, best.ids[row, :count].tolist())
        words += [bytes(8)] * (width - count)
    units = (np.frombuffer(b"".join(words), "<u8").reshape(-1, width) + 0.5) / 2.0**64
    noise = -np.log(-np.log(np.minimum(units, LAST_UNIT)))
    temperatures = np.array([asked[row][0].temperature for row in drawn])
    scores: NDArray[np.float64] = best.logits[drawn, :width] / temperatures[:, None] + noise
    return scores


def _ask_sampler(row_logits: Logits, best: _Best, row: int, sampling: Sampling, number: int) -> int:
    """The same by the sampler itself."""
    token = choose(
        best.list_row(row),
        log_total=compute_log_total(row_logits, sampling.temperature),
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        seed=sampling.seed,
        t=number,
    )
    return [found for found, _ in best.list_row(row)].index(token)
