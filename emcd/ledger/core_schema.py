"""The ledger's own tables, component "core"; the order of the list is the order of release."""

from __future__ import annotations

from emcd.ledger.files import CREATE as LEDGER_FILES
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

CHAIN_PARAMETERS = Migration(
    4,
    "chain parameters",
    """
    CREATE TABLE chain_parameters (
        contract TEXT NOT NULL,
        number INTEGER NOT NULL CHECK (number > 0),
        from_epoch INTEGER NOT NULL,
        block INTEGER NOT NULL,
        rules_hash BLOB NOT NULL CHECK (length(rules_hash) = 32),
        document_hash BLOB NOT NULL CHECK (length(document_hash) = 32),
        document BLOB NOT NULL,
        PRIMARY KEY (contract, number)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE chain_parameters_read (
        contract TEXT PRIMARY KEY,
        known_through_epoch INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    """,
)

CHAIN_SPENDING = Migration(
    5,
    "chain spending",
    """
    ALTER TABLE chain_outbox ADD COLUMN fee_wei BLOB CHECK (length(fee_wei) = 32);
    CREATE INDEX chain_outbox_settled ON chain_outbox (sender, block)
        WHERE state IN ('confirmed', 'failed', 'replaced') AND nonce IS NOT NULL;
    CREATE INDEX chain_attempts_signed ON chain_attempts (signed_at_ms);
    """,
)

MIGRATIONS = (SIGN_ONCE, CHAIN_OUTBOX, LEDGER_FILES, CHAIN_PARAMETERS, CHAIN_SPENDING)
