"""What the way to the money added to the hub's tables after their first release."""

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
