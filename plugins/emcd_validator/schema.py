"""The validator's tables. A released step is never edited: add a new one.

`instance` is the address of the validator's first key, whatever key it signs with now: several
validators may share a daemon and its ledger. `validator_keys` are all keys it ever had.
`validator_items` holds every signed statement of a round, own and peers', in the form in which the
bundle carries it; an own one without a signature is a draft that was recorded and not yet signed.
`validator_strikes` are the nodes that bundles signed here convict: offences once a root is active.
"""

from __future__ import annotations

from emcd.ledger import Migration
from emcd_validator.judge_schema import VERDICTS
from emcd_validator.key_schema import KEY_USES
from emcd_validator.watch_schema import WATCH

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

_OFFENCES = """
CREATE TABLE validator_strikes (
    instance TEXT NOT NULL,
    round INTEGER NOT NULL,
    node TEXT NOT NULL,
    kind INTEGER NOT NULL,
    bundle_hash BLOB NOT NULL CHECK (length(bundle_hash) = 32),
    PRIMARY KEY (instance, round, node)
) STRICT, WITHOUT ROWID;

CREATE TABLE validator_offences (
    instance TEXT NOT NULL,
    evidence_hash BLOB NOT NULL CHECK (length(evidence_hash) = 32),
    kind INTEGER NOT NULL,
    offender TEXT NOT NULL,
    round INTEGER NOT NULL,
    proof BLOB NOT NULL,
    state TEXT NOT NULL DEFAULT 'open' CHECK (state IN ('open', 'slashed', 'no stake')),
    found_at_ms INTEGER NOT NULL,
    PRIMARY KEY (instance, evidence_hash)
) STRICT;
CREATE INDEX validator_offences_round ON validator_offences (instance, round);

CREATE TABLE validator_slashes (
    instance TEXT NOT NULL,
    epoch INTEGER NOT NULL,
    evidence_hash BLOB NOT NULL CHECK (length(evidence_hash) = 32),
    node TEXT NOT NULL,
    bps INTEGER NOT NULL,
    signature BLOB,
    PRIMARY KEY (instance, epoch, evidence_hash)
) STRICT, WITHOUT ROWID;
"""

_SETTLED_IDS = """
CREATE TABLE validator_settled_ids (
    instance TEXT NOT NULL,
    round INTEGER NOT NULL,
    first_call BLOB NOT NULL,
    last_call BLOB NOT NULL,
    call_ids BLOB NOT NULL CHECK (length(call_ids) % 16 = 0),
    PRIMARY KEY (instance, round, first_call)
) STRICT;
INSERT INTO validator_settled_ids
    SELECT instance, round, call_id, call_id, call_id FROM validator_settled_calls;
DROP TABLE validator_settled_calls;
"""

_KEYS = """
CREATE TABLE validator_keys (
    address TEXT PRIMARY KEY,
    instance TEXT NOT NULL
) STRICT, WITHOUT ROWID;
"""

MIGRATIONS = (
    Migration(1, "rounds and probes", _ROUNDS),
    Migration(2, "signed statements", _ITEMS),
    Migration(3, "bundles", _BUNDLES),
    Migration(4, "offences and orders to slash", _OFFENCES),
    Migration(5, "settled calls in pieces", _SETTLED_IDS),
    Migration(6, "a validator's keys", _KEYS),
    Migration(7, "verdicts and drifts", VERDICTS),
    Migration(8, "results, tasks and challenges", WATCH),
    Migration(9, "uses of API keys", KEY_USES),
)
