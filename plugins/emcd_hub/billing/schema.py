"""What the way to the money, and limits of keys, added to the hub's tables after their first release."""

from __future__ import annotations

from emcd.ledger import Migration

PAYOUTS = Migration(
    4,
    "payouts with times and transactions, undone purchases",
    """
    ALTER TABLE hub_publications ADD COLUMN at_s INTEGER;
    ALTER TABLE hub_publications ADD COLUMN publisher TEXT;
    ALTER TABLE hub_claims ADD COLUMN at_s INTEGER;
    ALTER TABLE hub_extractions ADD COLUMN deadline_s INTEGER;
    ALTER TABLE hub_extractions ADD COLUMN final_tx BLOB CHECK (length(final_tx) = 32);
    ALTER TABLE hub_extractions ADD COLUMN ended_at_ms INTEGER;
    ALTER TABLE hub_extractions ADD COLUMN submitted_tx BLOB CHECK (length(submitted_tx) = 32);
    ALTER TABLE hub_extractions ADD COLUMN submitted_at_ms INTEGER;
    ALTER TABLE hub_extractions ADD COLUMN submitted_by TEXT;
    ALTER TABLE hub_extractions ADD COLUMN note TEXT NOT NULL DEFAULT '';
    ALTER TABLE hub_extractions ADD COLUMN note_at_ms INTEGER;
    ALTER TABLE hub_extractions ADD COLUMN note_by TEXT;
    ALTER TABLE hub_extractions ADD COLUMN back_from TEXT;
    ALTER TABLE hub_extractions ADD COLUMN back_why TEXT
        CHECK (back_why IN ('veto', 'reorganisation', 'claim_failed'));
    ALTER TABLE hub_extractions ADD COLUMN back_at_ms INTEGER;
    CREATE INDEX hub_extractions_by_wallet ON hub_extractions (wallet, requested_at_ms DESC, nonce DESC);
    CREATE INDEX hub_extractions_open ON hub_extractions (requested_at_ms) WHERE state = 'requested';
    ALTER TABLE hub_accounts ADD COLUMN undone_micro INTEGER NOT NULL DEFAULT 0 CHECK (undone_micro >= 0);
    ALTER TABLE hub_deposits ADD COLUMN payer TEXT;
    ALTER TABLE hub_deposits ADD COLUMN undone_at_ms INTEGER;
    CREATE INDEX hub_deposits_held ON hub_deposits (deposit_index) WHERE account_id IS NULL;
    """,
)

KEY_LIMITS = Migration(
    7,
    "limits of keys, and what each key used by the hour",
    """
    ALTER TABLE hub_api_keys ADD COLUMN models TEXT NOT NULL DEFAULT '[]';
    ALTER TABLE hub_api_keys ADD COLUMN expires_at_ms INTEGER;
    ALTER TABLE hub_api_keys ADD COLUMN requests_per_minute INTEGER CHECK (requests_per_minute > 0);
    ALTER TABLE hub_api_keys ADD COLUMN tokens_per_minute INTEGER CHECK (tokens_per_minute > 0);
    ALTER TABLE hub_api_keys ADD COLUMN parallel_calls INTEGER CHECK (parallel_calls > 0);
    ALTER TABLE hub_api_keys ADD COLUMN budget_micro INTEGER CHECK (budget_micro >= 0);
    ALTER TABLE hub_api_keys ADD COLUMN period TEXT NOT NULL DEFAULT 'none'
        CHECK (period IN ('none', 'hour', 'day', 'week', 'month'));
    ALTER TABLE hub_calls ADD COLUMN key_id TEXT;
    CREATE TABLE hub_key_usage (
        key_id TEXT NOT NULL REFERENCES hub_api_keys,
        hour INTEGER NOT NULL,
        calls INTEGER NOT NULL,
        granted_micro INTEGER NOT NULL,
        vault_micro INTEGER NOT NULL,
        last_at_ms INTEGER NOT NULL,
        PRIMARY KEY (key_id, hour)
    ) STRICT, WITHOUT ROWID;
    """,
)
