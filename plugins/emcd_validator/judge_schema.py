"""The tables of what was judged: every verdict with its numbers, and how each node drifts.

A statistic does not fit SQLite's integers: it is kept as 8 bytes, big-endian, which sort as it does.
`state` of a drift are its running sums as JSON, advanced in the transaction that keeps the verdict.
"""

from __future__ import annotations

VERDICTS = """
CREATE TABLE validator_verdicts (
    instance TEXT NOT NULL,
    round INTEGER NOT NULL,
    part TEXT NOT NULL CHECK (part IN ('probe', 'vote', 'recheck', 'task')),
    node TEXT NOT NULL,
    call_id BLOB NOT NULL,
    slot INTEGER NOT NULL,
    model_hash BLOB NOT NULL,
    kind TEXT NOT NULL,
    verdict INTEGER NOT NULL,
    statistic BLOB NOT NULL CHECK (length(statistic) = 8),
    reason TEXT NOT NULL,
    blame TEXT NOT NULL,
    numbers TEXT NOT NULL,
    judged_at_ms INTEGER NOT NULL,
    PRIMARY KEY (instance, round, part, node, call_id, slot)
) STRICT, WITHOUT ROWID;
CREATE INDEX validator_verdicts_call ON validator_verdicts (instance, call_id);

CREATE TABLE validator_drifts (
    instance TEXT NOT NULL,
    node TEXT NOT NULL,
    model_hash BLOB NOT NULL,
    state TEXT NOT NULL,
    is_drifting INTEGER NOT NULL,
    is_suspect INTEGER NOT NULL,
    round INTEGER NOT NULL,
    PRIMARY KEY (instance, node, model_hash)
) STRICT, WITHOUT ROWID;
"""
