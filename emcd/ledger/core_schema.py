"""The ledger's own tables, component "core"; the order of the list is the order of release."""

from __future__ import annotations

from emcd.ledger.migration import Migration
from emcd.ledger.sign_once import CREATE as SIGN_ONCE

CHAIN_OUTBOX = Migration(
    2,
    "chain outbox",
    """
    CREATE TABLE chain_outbox (
        id INTEGER PRIMARY KEY,
        sender TEXT NOT NULL,
        key TEXT NOT NULL,
        to_address TEXT NOT NULL,
        data BLOB NOT NULL,
        value_wei BLOB NOT NULL CHECK (length(value_wei) = 32),
        label TEXT NOT NULL,
        gas INTEGER NOT NULL,
        state TEXT NOT NULL
            CHECK (state IN ('intent', 'ready', 'mined', 'confirmed', 'failed', 'replaced')),
        nonce INTEGER,
        tx_hash BLOB CHECK (length(tx_hash) = 32),
        block INTEGER,
        block_hash BLOB CHECK (length(block_hash) = 32),
        gas_used INTEGER NOT NULL DEFAULT 0,
        error_name TEXT NOT NULL DEFAULT '',
        detail TEXT NOT NULL DEFAULT '',
        created_at_ms INTEGER NOT NULL,
        updated_at_ms INTEGER NOT NULL,
        UNIQUE (sender, key),
        UNIQUE (sender, nonce)
    ) STRICT;
    CREATE INDEX chain_outbox_open ON chain_outbox (sender, id)
        WHERE state NOT IN ('confirmed', 'failed', 'replaced');
    CREATE TABLE chain_attempts (
        id INTEGER PRIMARY KEY,
        tx_hash BLOB NOT NULL UNIQUE CHECK (length(tx_hash) = 32),
        outbox_id INTEGER NOT NULL REFERENCES chain_outbox (id),
        raw BLOB NOT NULL,
        max_fee_wei BLOB NOT NULL CHECK (length(max_fee_wei) = 32),
        tip_wei BLOB NOT NULL CHECK (length(tip_wei) = 32),
        signed_at_ms INTEGER NOT NULL
    ) STRICT;
    CREATE INDEX chain_attempts_of ON chain_attempts (outbox_id, id);
    CREATE TABLE chain_cursors (
        name TEXT NOT NULL,
        number INTEGER NOT NULL,
        block_hash BLOB NOT NULL CHECK (length(block_hash) = 32),
        PRIMARY KEY (name, number)
    ) STRICT, WITHOUT ROWID;
    """,
)

MIGRATIONS = (SIGN_ONCE, CHAIN_OUTBOX)
