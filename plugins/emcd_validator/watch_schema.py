"""The tables of how validators watch each other and nodes: results, tasks, challenges.

`validator_items` is made anew, since its rows may now be results and verdicts on tasks too.
`validator_tasks` are those that this validator gave: what it asked, of whom, and what came.
`validator_challenges` are receipts that somebody wants to see opened; the request is not kept, and the
answer stands there for who shows the request again, and for nobody else.
"""

from __future__ import annotations

WATCH = """
CREATE TABLE validator_items_of_8 (
    instance TEXT NOT NULL,
    round INTEGER NOT NULL,
    kind TEXT NOT NULL
        CHECK (kind IN ('commitment', 'results', 'reveal', 'vote', 'task_result', 'round_root')),
    author TEXT NOT NULL,
    key BLOB NOT NULL,
    data BLOB NOT NULL,
    signature BLOB,
    held_at_ms INTEGER NOT NULL,
    PRIMARY KEY (instance, round, kind, author, key)
) STRICT;
INSERT INTO validator_items_of_8 SELECT * FROM validator_items;
DROP TABLE validator_items;
ALTER TABLE validator_items_of_8 RENAME TO validator_items;

CREATE TABLE validator_tasks (
    instance TEXT NOT NULL,
    round INTEGER NOT NULL,
    receiver TEXT NOT NULL,
    task_hash BLOB NOT NULL CHECK (length(task_hash) = 32),
    transcript BLOB NOT NULL,
    is_decoy INTEGER NOT NULL,
    given_at_ms INTEGER NOT NULL,
    verdict INTEGER,
    PRIMARY KEY (instance, round, receiver, task_hash)
) STRICT;

CREATE TABLE validator_challenges (
    instance TEXT NOT NULL,
    call_id BLOB NOT NULL CHECK (length(call_id) = 16),
    round INTEGER NOT NULL,
    node TEXT NOT NULL,
    response_hash BLOB NOT NULL CHECK (length(response_hash) = 32),
    knowledge BLOB NOT NULL CHECK (length(knowledge) = 32),
    signature BLOB NOT NULL,
    validator TEXT NOT NULL,
    expires_at_ms INTEGER NOT NULL,
    response BLOB,
    opened_at_ms INTEGER,
    PRIMARY KEY (instance, call_id)
) STRICT;
CREATE INDEX validator_challenges_node ON validator_challenges (instance, node, expires_at_ms);
"""
