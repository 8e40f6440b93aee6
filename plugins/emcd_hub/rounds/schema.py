"""What keeping bundles as files, letting old calls go, and their repairs added to the hub's tables."""

from __future__ import annotations

from emcd.ledger import Migration

ARCHIVE = Migration(
    5,
    "bundles as files, calls of archived rounds may go",
    """
    CREATE TABLE hub_bundle_files (
        round INTEGER PRIMARY KEY REFERENCES hub_bundles,
        path TEXT NOT NULL,
        size_bytes INTEGER NOT NULL CHECK (size_bytes >= 0),
        packed INTEGER NOT NULL CHECK (packed IN (0, 1)),
        owners_path TEXT,
        first_call BLOB,
        last_call BLOB
    ) STRICT;
    CREATE INDEX hub_bundle_files_owned ON hub_bundle_files (round) WHERE owners_path IS NOT NULL;
    CREATE TABLE hub_archived_rounds (
        round INTEGER PRIMARY KEY,
        calls INTEGER NOT NULL,
        emptied INTEGER NOT NULL CHECK (emptied IN (0, 1)),
        archived_at_ms INTEGER NOT NULL
    ) STRICT;
    DROP TRIGGER hub_calls_keep_rows;
    CREATE TRIGGER hub_calls_keep_rows BEFORE DELETE ON hub_calls
    WHEN OLD.round > coalesce((SELECT max(round) FROM hub_archived_rounds), -1)
    BEGIN SELECT RAISE(ABORT, 'only calls of archived rounds are deleted'); END;
    CREATE INDEX hub_late_records_by_batch ON hub_late_records (batch_id);
    """,
)

LISTED = Migration(
    6,
    "late records by signer's batch, purchases that a bundle lists",
    """
    CREATE TABLE hub_late_records_new (
        record_hash BLOB NOT NULL CHECK (length(record_hash) = 32),
        batch_id INTEGER NOT NULL REFERENCES hub_batches,
        PRIMARY KEY (record_hash, batch_id)
    ) STRICT, WITHOUT ROWID;
    INSERT INTO hub_late_records_new SELECT record_hash, batch_id FROM hub_late_records;
    DROP TABLE hub_late_records;
    ALTER TABLE hub_late_records_new RENAME TO hub_late_records;
    CREATE INDEX hub_late_records_by_batch ON hub_late_records (batch_id);
    ALTER TABLE hub_deposits ADD COLUMN is_listed INTEGER NOT NULL DEFAULT 0 CHECK (is_listed IN (0, 1));
    UPDATE hub_deposits SET is_listed = 1 WHERE account_id IS NOT NULL AND EXISTS (
        SELECT 1 FROM hub_bundles WHERE hub_bundles.round = hub_deposits.round
        AND (undone_at_ms IS NULL OR undone_at_ms >= closed_at_ms)
    );
    """,
)
