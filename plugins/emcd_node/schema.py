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
    Migration(
        2,
        "deliveries, checked rounds and consolidated batches",
        """
        CREATE TABLE node_deliveries (
            instance TEXT NOT NULL,
            forward_hash BLOB NOT NULL CHECK (length(forward_hash) = 32),
            delivery_hash BLOB NOT NULL CHECK (length(delivery_hash) = 32),
            call_id BLOB CHECK (call_id IS NULL OR length(call_id) = 16),
            delivery BLOB NOT NULL,
            round INTEGER NOT NULL,
            vault_micro INTEGER NOT NULL,
            state TEXT NOT NULL
                CHECK (state IN ('expected', 'missing', 'filed', 'carried', 'lost', 'unpaid')),
            filed_with INTEGER NOT NULL DEFAULT 0,
            carried_in INTEGER,
            PRIMARY KEY (instance, forward_hash)
        ) STRICT, WITHOUT ROWID;
        CREATE INDEX node_deliveries_by_state ON node_deliveries (instance, state, round);
        CREATE INDEX node_deliveries_by_call ON node_deliveries (instance, call_id);

        CREATE TABLE node_checked_rounds (
            instance TEXT NOT NULL,
            round INTEGER NOT NULL,
            bundle_hash BLOB CHECK (bundle_hash IS NULL OR length(bundle_hash) = 32),
            previous_round INTEGER,
            PRIMARY KEY (instance, round)
        ) STRICT, WITHOUT ROWID;

        CREATE TABLE node_consolidated_rounds (
            instance TEXT NOT NULL,
            round INTEGER NOT NULL,
            PRIMARY KEY (instance, round)
        ) STRICT, WITHOUT ROWID;
        """,
    ),
)
