"""The node's tables. `instance` is the node's address, so that receipts stay with their key."""

from __future__ import annotations

from emcd.ledger import Migration

MIGRATIONS = (
    Migration(
        1,
        "receipts, batches and the hub's proofs",
        """
        CREATE TABLE node_receipts (
            instance TEXT NOT NULL,
            call_id BLOB NOT NULL CHECK (length(call_id) = 16),
            forward_hash BLOB NOT NULL CHECK (length(forward_hash) = 32),
            receipt_hash BLOB NOT NULL CHECK (length(receipt_hash) = 32),
            forward BLOB NOT NULL,
            receipt BLOB NOT NULL,
            round INTEGER NOT NULL,
            batch_root BLOB CHECK (batch_root IS NULL OR length(batch_root) = 32),
            PRIMARY KEY (instance, call_id)
        ) STRICT, WITHOUT ROWID;
        CREATE INDEX node_receipts_by_round ON node_receipts (instance, round);
        CREATE INDEX node_receipts_by_hash ON node_receipts (instance, receipt_hash);
        CREATE INDEX node_receipts_unbatched ON node_receipts (instance) WHERE batch_root IS NULL;

        CREATE TABLE node_batches (
            instance TEXT NOT NULL,
            root BLOB NOT NULL CHECK (length(root) = 32),
            batch BLOB NOT NULL,
            record_hashes BLOB NOT NULL CHECK (length(record_hashes) % 32 = 0),
            round INTEGER NOT NULL,
            sent_at_ms INTEGER,
            PRIMARY KEY (instance, root)
        ) STRICT, WITHOUT ROWID;
        CREATE INDEX node_batches_by_round ON node_batches (instance, round);
        CREATE INDEX node_batches_by_sending ON node_batches (instance, sent_at_ms);

        CREATE TABLE node_proofs (
            instance TEXT NOT NULL,
            record_hash BLOB NOT NULL CHECK (length(record_hash) = 32),
            kind INTEGER NOT NULL,
            proof BLOB NOT NULL,
            round INTEGER NOT NULL,
            PRIMARY KEY (instance, record_hash)
        ) STRICT, WITHOUT ROWID;
        CREATE INDEX node_proofs_by_round ON node_proofs (instance, round);
        """,
    ),
)
