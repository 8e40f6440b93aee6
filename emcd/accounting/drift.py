"""Slow drifts below the thresholds: what no single answer shows, many of one node do.

One-sided CUSUM (Page 1954) of a statistic as a share of its threshold: S = max(0, S + share - reference),
an alarm above `ALARM`. A threshold is twice the largest honest value (VERIFICATION 5.3), so an honest
`d` does not add to its sum; an honest `m` is zero almost always and adds from a lower share on. A share is
cut at 1, for above it the answer fails by itself: no alarm comes from fewer than 6 answers, and a mean
of three quarters of tau is seen after 16. The average run length between false alarms for stated
distributions is computed in the tests.

What foreign samplers draw is pooled over 16 answers: |z| > 5 was not once honest in 1,400 (VERIFICATION
3). It convicts nobody: the node gets greedy probes, which can.
Invariants: pure, state in and state out; neither alarm strikes anybody.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

D_REFERENCE = 0.5
M_REFERENCE = 0.3
ALARM = 4.0
POOL_ANSWERS = 16
SUSPECT_Z = 5.0


@dataclass(frozen=True)
class Drift:
    """What is remembered of one node and model.

    Attributes:
        d, m: the CUSUM sums, in shares of the thresholds; answers: how many were counted.
        pool_sum, pool_variance, pool_answers: surprise of free samplers that is not judged yet.
        z: of the last full pool.
    """

    d: float = 0.0
    m: float = 0.0
    answers: int = 0
    pool_sum: float = 0.0
    pool_variance: float = 0.0
    pool_answers: int = 0
    z: float = 0.0

    @property
    def is_drifting(self) -> bool:
        """Whether its answers lie too near the threshold for too long."""
        return max(self.d, self.m) > ALARM

    @property
    def is_suspect(self) -> bool:
        """Whether its sampler draws what it should not: it gets greedy probes."""
        return abs(self.z) > SUSPECT_Z


def advance_drift(before: Drift, *, d_share: float, m_share: float | None = None) -> Drift:
    """The state after one more judged answer.

    Args: statistics as shares of their thresholds; `m_share` None where tokens are not judged.
    """
    return replace(
        before,
        d=_advance(before.d, d_share, D_REFERENCE),
        m=before.m if m_share is None else _advance(before.m, m_share, M_REFERENCE),
        answers=before.answers + 1,
    )


def advance_pool(before: Drift, z_sum: float, z_variance: float) -> Drift:
    """The state after one more answer of a free sampler; a full pool is judged and emptied."""
    total, variance = before.pool_sum + z_sum, before.pool_variance + z_variance
    if before.pool_answers + 1 < POOL_ANSWERS:
        return replace(before, pool_sum=total, pool_variance=variance, pool_answers=before.pool_answers + 1)
    z = total / math.sqrt(variance) if variance > 0 else 0.0
    return replace(before, pool_sum=0.0, pool_variance=0.0, pool_answers=0, z=z)


def _advance(total: float, share: float, reference: float) -> float:
    return max(0.0, total + min(1.0, share) - reference)
