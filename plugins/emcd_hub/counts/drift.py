"""How far a node's tokens are from what can be counted. Pure.

The tokens of a prompt follow from the request and the manifest: more of them than that were never read. A
text can be spelled by other tokens than its tokenizer would choose, and a model that draws them does so now
and then: there a node is noticed by its sums, and by ids that don't spell the text at all. None of it
convicts: it is shown, with the calls it was seen in, and a validator's own run of such a call decides.
"""

from __future__ import annotations

from typing import Final

from emcd_hub.counts.count_row import CountRow, DriftRow

OVER_BPS: Final = 2_500
"""Tokens of an answer beyond the hub's own count that are still thought to be the model's choice."""
OVER_TOKENS: Final = 4
ENOUGH_CALLS: Final = 16
SYSTEMATIC_SHARE: Final = 4
"""A part of the calls that is no accident any more: one in so many."""


def is_prompt_over(row: CountRow) -> bool:
    """Whether more was read, by the node's word, than the request holds."""
    return row.counted_prompt is not None and row.claimed_prompt > row.counted_prompt


def is_answer_over(row: CountRow) -> bool:
    """Whether more was written, by the node's word, than the answer holds."""
    if row.named is not None and row.claimed > row.named:
        return True
    if row.counted is None:
        return False
    return row.claimed > row.counted + max(OVER_TOKENS, row.counted * OVER_BPS // 10_000)


def add_count(sums: DriftRow, row: CountRow) -> DriftRow:
    """The sums with one call more."""
    both = row.counted_prompt is not None and row.counted is not None
    return sums._replace(
        calls=sums.calls + 1,
        odd=sums.odd + (row.why == "odd"),
        compared=sums.compared + both,
        claimed_prompt=sums.claimed_prompt + (row.claimed_prompt if both else 0),
        counted_prompt=sums.counted_prompt + ((row.counted_prompt or 0) if both else 0),
        claimed=sums.claimed + (row.claimed if both else 0),
        counted=sums.counted + ((row.counted or 0) if both else 0),
        prompts_over=sums.prompts_over + is_prompt_over(row),
        answers_over=sums.answers_over + is_answer_over(row),
        unspelled=sums.unspelled + (row.spelled is False),
        at_ms=max(sums.at_ms, row.at_ms),
    )


def drift_bps(claimed: int, counted: int) -> int | None:
    """How much more was claimed than counted; None where nothing was counted."""
    return (claimed - counted) * 10_000 // counted if counted else None


def is_systematic(sums: DriftRow) -> bool:
    """Whether a node claims too much as a habit."""
    if sums.calls < ENOUGH_CALLS:
        return False
    worst = max(sums.prompts_over, sums.answers_over, sums.unspelled)
    return worst * SYSTEMATIC_SHARE >= sums.calls
