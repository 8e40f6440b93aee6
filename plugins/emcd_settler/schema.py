"""The settler's tables. What is on its way to the chain is the outbox's, in the core's tables."""

from __future__ import annotations

from emcd.ledger import Migration

_FIRST = Migration(
    1,
    "rounds, attestations, extractions",
    """
        CREATE TABLE settler_rounds (
            instance TEXT NOT NULL,
            round INTEGER NOT NULL CHECK (round >= 0),
            state TEXT NOT NULL CHECK (state IN ('collecting', 'quorum', 'submitted', 'confirmed', 'void')),
            attempt INTEGER NOT NULL DEFAULT 0,
            is_active INTEGER NOT NULL DEFAULT 0 CHECK (is_active IN (0, 1)),
            reason TEXT NOT NULL DEFAULT '',
            tx_hash BLOB CHECK (length(tx_hash) = 32),
            changed_at_ms INTEGER NOT NULL,
            PRIMARY KEY (instance, round)
        ) STRICT, WITHOUT ROWID;
        CREATE TABLE settler_attestations (
            instance TEXT NOT NULL,
            round INTEGER NOT NULL CHECK (round >= 0),
            validator TEXT NOT NULL,
            bundle_hash BLOB NOT NULL CHECK (length(bundle_hash) = 32),
            root BLOB NOT NULL CHECK (length(root) = 32),
            cumulative_wei BLOB NOT NULL CHECK (length(cumulative_wei) = 32),
            signature BLOB NOT NULL CHECK (length(signature) = 65),
            is_used INTEGER NOT NULL DEFAULT 0 CHECK (is_used IN (0, 1)),
            PRIMARY KEY (instance, round, validator, bundle_hash, root, cumulative_wei)
        ) STRICT, WITHOUT ROWID;
        CREATE TABLE settler_extractions (
            instance TEXT NOT NULL,
            wallet TEXT NOT NULL,
            nonce BLOB NOT NULL CHECK (length(nonce) = 32),
            recipient TEXT NOT NULL,
            through_round INTEGER NOT NULL CHECK (through_round >= 0),
            submit INTEGER NOT NULL CHECK (submit IN (0, 1)),
            deadline BLOB NOT NULL CHECK (length(deadline) = 32),
            signature BLOB NOT NULL CHECK (length(signature) = 65),
            state TEXT NOT NULL
                CHECK (state IN ('requested', 'synchronised', 'submitted', 'claimed', 'refused')),
            attempt INTEGER NOT NULL DEFAULT 0,
            cumulative_wei BLOB CHECK (length(cumulative_wei) = 32),
            proof BLOB CHECK (length(proof) % 32 = 0),
            reason TEXT NOT NULL DEFAULT '',
            tx_hash BLOB CHECK (length(tx_hash) = 32),
            changed_at_ms INTEGER NOT NULL,
            PRIMARY KEY (instance, wallet, nonce)
        ) STRICT, WITHOUT ROWID;
        CREATE INDEX settler_extractions_by_state ON settler_extractions (instance, state);
        """,
)

_STATES = Migration(
    2,
    "extraction states as hub and command line have them, reports to the hub",
    """
    CREATE TABLE settler_requests (
        instance TEXT NOT NULL,
        wallet TEXT NOT NULL,
        nonce BLOB NOT NULL CHECK (length(nonce) = 32),
        recipient TEXT NOT NULL,
        through_round INTEGER NOT NULL CHECK (through_round >= 0),
        submit INTEGER NOT NULL CHECK (submit IN (0, 1)),
        deadline BLOB NOT NULL CHECK (length(deadline) = 32),
        signature BLOB NOT NULL CHECK (length(signature) = 65),
        state TEXT NOT NULL
            CHECK (state IN ('requested', 'synchronised', 'submitted', 'claimed', 'refused', 'expired')),
        attempt INTEGER NOT NULL DEFAULT 0,
        cumulative_wei BLOB CHECK (length(cumulative_wei) = 32),
        proof BLOB CHECK (length(proof) % 32 = 0),
        reason TEXT NOT NULL DEFAULT '',
        tx_hash BLOB CHECK (length(tx_hash) = 32),
        changed_at_ms INTEGER NOT NULL,
        reported TEXT NOT NULL DEFAULT '',
        PRIMARY KEY (instance, wallet, nonce)
    ) STRICT, WITHOUT ROWID;
    INSERT INTO settler_requests (instance, wallet, nonce, recipient, through_round, submit, deadline,
        signature, state, attempt, cumulative_wei, proof, reason, tx_hash, changed_at_ms)
    SELECT instance, wallet, nonce, recipient, through_round, submit, deadline,
        signature, state, attempt, cumulative_wei, proof, reason, tx_hash, changed_at_ms
    FROM settler_extractions;
    DROP TABLE settler_extractions;
    ALTER TABLE settler_requests RENAME TO settler_extractions;
    CREATE INDEX settler_extractions_by_state ON settler_extractions (instance, state);
    """,
)

_SLASHES = Migration(
    3,
    "orders to slash",
    """
    CREATE TABLE settler_slashes (
        instance TEXT NOT NULL,
        evidence_hash BLOB NOT NULL CHECK (length(evidence_hash) = 32),
        node TEXT NOT NULL,
        bps INTEGER NOT NULL,
        epoch INTEGER NOT NULL CHECK (epoch >= 0),
        signatures BLOB NOT NULL,
        state TEXT NOT NULL CHECK (state IN ('chosen', 'submitted', 'again', 'confirmed', 'ended')),
        attempt INTEGER NOT NULL DEFAULT 0,
        reason TEXT NOT NULL DEFAULT '',
        tx_hash BLOB CHECK (length(tx_hash) = 32),
        changed_at_ms INTEGER NOT NULL,
        PRIMARY KEY (instance, evidence_hash)
    ) STRICT, WITHOUT ROWID;
    """,
)

_HUBS = Migration(
    4,
    "which hub listed an extraction request",
    """
    ALTER TABLE settler_extractions ADD COLUMN hub TEXT NOT NULL DEFAULT '';
    """,
)

MIGRATIONS = (_FIRST, _STATES, _SLASHES, _HUBS)
