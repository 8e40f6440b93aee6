"""The settler's tables. What is on its way to the chain is the outbox's, in the core's tables."""

from __future__ import annotations

from emcd.ledger import Migration

MIGRATIONS = (
    Migration(
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
    ),
)
