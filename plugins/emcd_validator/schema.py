"""The validator's tables. A released step is never edited: add a new one.

`instance` is the validator's own address: several may share a daemon and its ledger.
`validator_items` holds every signed statement of a round, own and peers', in the form in which the
bundle carries it; an own one without a signature is a draft that was recorded and not yet signed.
"""

from __future__ import annotations

from emcd.ledger import Migration

_ROUNDS = """
CREATE TABLE validator_rounds (
    instance TEXT NOT NULL,
    round INTEGER NOT NULL,
    seed BLOB NOT NULL CHECK (length(seed) = 32),
    salt BLOB NOT NULL CHECK (length(salt) = 32),
    corpus_root BLOB NOT NULL CHECK (length(corpus_root) = 32),
    leaf_count INTEGER NOT NULL,
    beacon_hash BLOB CHECK (length(beacon_hash) = 32),
    PRIMARY KEY (instance, round)
) STRICT, WITHOUT ROWID;

CREATE TABLE validator_leaves (
    instance TEXT NOT NULL,
    leaf_hash BLOB NOT NULL CHECK (length(leaf_hash) = 32),
    round INTEGER NOT NULL,
    PRIMARY KEY (instance, leaf_hash)
) STRICT, WITHOUT ROWID;

CREATE TABLE validator_probes (
    instance TEXT NOT NULL,
    round INTEGER NOT NULL,
    node TEXT NOT NULL,
    slot INTEGER NOT NULL,
    due_at_ms INTEGER NOT NULL,
    leaf_index INTEGER,
    leaf_count INTEGER NOT NULL,
    leaf BLOB NOT NULL,
    leaf_path BLOB NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('planned', 'sent', 'answered', 'judged', 'lost')),
    model TEXT NOT NULL DEFAULT '',
    request_body BLOB NOT NULL DEFAULT x'',
    status INTEGER NOT NULL DEFAULT 0,
    content_type TEXT NOT NULL DEFAULT '',
    response_body BLOB NOT NULL DEFAULT x'',
    call_id BLOB NOT NULL DEFAULT x'',
    receipt BLOB NOT NULL DEFAULT x'',
    result BLOB,
    reason TEXT NOT NULL DEFAULT '',
    PRIMARY KEY (instance, round, node, slot)
) STRICT;
CREATE INDEX validator_probes_call ON validator_probes (instance, call_id);
"""

_ITEMS = """
CREATE TABLE validator_items (
    instance TEXT NOT NULL,
    round INTEGER NOT NULL,
    kind TEXT NOT NULL CHECK (kind IN ('commitment', 'reveal', 'vote', 'round_root')),
    author TEXT NOT NULL,
    key BLOB NOT NULL,
    data BLOB NOT NULL,
    signature BLOB,
    held_at_ms INTEGER NOT NULL,
    PRIMARY KEY (instance, round, kind, author, key)
) STRICT;

CREATE TABLE validator_conflicts (
    instance TEXT NOT NULL,
    round INTEGER NOT NULL,
    kind TEXT NOT NULL,
    author TEXT NOT NULL,
    digest BLOB NOT NULL,
    data BLOB NOT NULL,
    signature BLOB NOT NULL,
    held_at_ms INTEGER NOT NULL,
    PRIMARY KEY (instance, round, kind, author, digest)
) STRICT;

CREATE TABLE validator_omissions (
    instance TEXT NOT NULL,
    call_id BLOB NOT NULL,
    round INTEGER NOT NULL,
    node TEXT NOT NULL,
    receipt BLOB NOT NULL,
    filed_at_ms INTEGER NOT NULL,
    PRIMARY KEY (instance, call_id)
) STRICT;
"""

_BUNDLES = """
CREATE TABLE validator_bundles (
    instance TEXT NOT NULL,
    round INTEGER NOT NULL,
    bundle_hash BLOB NOT NULL CHECK (length(bundle_hash) = 32),
    seal BLOB NOT NULL,
    code TEXT NOT NULL DEFAULT '',
    reason TEXT NOT NULL DEFAULT '',
    fetched_at_ms INTEGER NOT NULL,
    PRIMARY KEY (instance, round, bundle_hash)
) STRICT;

CREATE TABLE validator_settled (
    instance TEXT NOT NULL,
    round INTEGER NOT NULL,
    bundle_hash BLOB NOT NULL CHECK (length(bundle_hash) = 32),
    root BLOB NOT NULL CHECK (length(root) = 32),
    previous_round INTEGER NOT NULL,
    totals BLOB NOT NULL,
    conduct BLOB NOT NULL,
    vault_used_micro INTEGER NOT NULL,
    is_signed INTEGER NOT NULL,
    PRIMARY KEY (instance, round)
) STRICT;

CREATE TABLE validator_settled_calls (
    instance TEXT NOT NULL,
    call_id BLOB NOT NULL,
    round INTEGER NOT NULL,
    PRIMARY KEY (instance, call_id)
) STRICT, WITHOUT ROWID;
CREATE TABLE validator_settled_deposits (
    instance TEXT NOT NULL,
    deposit_index INTEGER NOT NULL,
    round INTEGER NOT NULL,
    PRIMARY KEY (instance, deposit_index)
) STRICT, WITHOUT ROWID;
CREATE INDEX validator_settled_calls_round ON validator_settled_calls (instance, round);
"""

MIGRATIONS = (
    Migration(1, "rounds and probes", _ROUNDS),
    Migration(2, "signed statements", _ITEMS),
    Migration(3, "bundles", _BUNDLES),
)
