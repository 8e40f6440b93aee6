"""The hub's tables, in the order of their release. A released migration is never edited.

A call settles its account by a trigger: there is no call without its charge. Rows of hub_calls,
hub_batches, hub_movements and hub_bundles are written once and never changed; calls and batches go
when their round is archived, what they cost stays in hub_usage. A call's proofs are not stored with
it: a batch holds the hashes of its records, and whoever wants a proof looks there. There is one hub a
daemon, so no table names an instance.
"""

from __future__ import annotations

from emcd.ledger import Migration
from emcd_hub.billing.schema import KEY_LIMITS, PAYOUTS
from emcd_hub.counts.count_row import TOKEN_COUNTS
from emcd_hub.nodes.schema import MODEL_SLOTS
from emcd_hub.records.once_row import ONCE
from emcd_hub.records.withheld import EVIDENCE
from emcd_hub.rounds.schema import ARCHIVE, LISTED

_BILLING = Migration(
    1,
    "accounts, keys, credits",
    """
    CREATE TABLE hub_accounts (
        account_id TEXT PRIMARY KEY,
        name TEXT NOT NULL UNIQUE,
        vault_account BLOB NOT NULL UNIQUE CHECK (length(vault_account) = 32),
        granted_micro INTEGER NOT NULL CHECK (granted_micro >= 0),
        vault_micro INTEGER NOT NULL CHECK (vault_micro >= 0),
        created_at_ms INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE hub_api_keys (
        key_id TEXT PRIMARY KEY,
        account_id TEXT NOT NULL REFERENCES hub_accounts,
        key_hash BLOB NOT NULL UNIQUE CHECK (length(key_hash) = 32),
        shown TEXT NOT NULL,
        label TEXT NOT NULL,
        created_at_ms INTEGER NOT NULL,
        revoked_at_ms INTEGER
    ) STRICT;
    CREATE TABLE hub_movements (
        movement_id INTEGER PRIMARY KEY,
        account_id TEXT NOT NULL REFERENCES hub_accounts,
        kind TEXT NOT NULL CHECK (kind IN ('grant', 'deposit')),
        idempotency_key TEXT NOT NULL UNIQUE,
        granted_micro INTEGER NOT NULL,
        vault_micro INTEGER NOT NULL,
        note TEXT NOT NULL,
        at_ms INTEGER NOT NULL
    ) STRICT;
    CREATE INDEX hub_movements_by_account ON hub_movements (account_id, movement_id);
    CREATE TABLE hub_usage (
        account_id TEXT NOT NULL REFERENCES hub_accounts,
        round INTEGER NOT NULL,
        calls INTEGER NOT NULL,
        granted_micro INTEGER NOT NULL,
        vault_micro INTEGER NOT NULL,
        PRIMARY KEY (account_id, round)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE hub_deposits (
        deposit_index INTEGER PRIMARY KEY,
        vault_account BLOB NOT NULL CHECK (length(vault_account) = 32),
        account_id TEXT REFERENCES hub_accounts,
        amount_wei BLOB NOT NULL CHECK (length(amount_wei) = 32),
        credits_micro INTEGER NOT NULL CHECK (credits_micro > 0),
        block INTEGER NOT NULL,
        tx_hash BLOB NOT NULL CHECK (length(tx_hash) = 32),
        round INTEGER NOT NULL,
        at_ms INTEGER NOT NULL
    ) STRICT;
    CREATE INDEX hub_deposits_by_round ON hub_deposits (round);
    """,
)

_RECORDS = Migration(
    2,
    "calls and signed batches",
    """
    CREATE TABLE hub_calls (
        call_seq INTEGER PRIMARY KEY,
        call_id BLOB NOT NULL UNIQUE CHECK (length(call_id) = 16),
        account_id TEXT NOT NULL REFERENCES hub_accounts,
        node TEXT NOT NULL,
        model TEXT NOT NULL,
        round INTEGER NOT NULL,
        status INTEGER NOT NULL,
        forward BLOB NOT NULL,
        receipt BLOB,
        delivery BLOB NOT NULL,
        granted_micro INTEGER NOT NULL CHECK (granted_micro >= 0),
        vault_micro INTEGER NOT NULL CHECK (vault_micro >= 0),
        fault TEXT NOT NULL,
        finished_at_ms INTEGER NOT NULL
    ) STRICT;
    CREATE INDEX hub_calls_by_time ON hub_calls (finished_at_ms);
    CREATE TRIGGER hub_calls_settle AFTER INSERT ON hub_calls
    BEGIN
        UPDATE hub_accounts
        SET granted_micro = granted_micro - NEW.granted_micro, vault_micro = vault_micro - NEW.vault_micro
        WHERE account_id = NEW.account_id;
        INSERT INTO hub_usage VALUES (NEW.account_id, NEW.round, 1, NEW.granted_micro, NEW.vault_micro)
        ON CONFLICT (account_id, round) DO UPDATE SET calls = calls + 1,
            granted_micro = granted_micro + excluded.granted_micro,
            vault_micro = vault_micro + excluded.vault_micro;
    END;
    CREATE TRIGGER hub_calls_keep_rows BEFORE DELETE ON hub_calls
    BEGIN SELECT RAISE(ABORT, 'hub_calls rows are never deleted'); END;
    CREATE TRIGGER hub_calls_keep_values BEFORE UPDATE ON hub_calls
    BEGIN SELECT RAISE(ABORT, 'hub_calls rows are never changed'); END;
    CREATE TABLE hub_batches (
        batch_id INTEGER PRIMARY KEY,
        signer TEXT NOT NULL,
        kind INTEGER NOT NULL,
        root BLOB NOT NULL CHECK (length(root) = 32),
        batch BLOB NOT NULL,
        signature BLOB NOT NULL CHECK (length(signature) = 65),
        record_hashes BLOB NOT NULL CHECK (length(record_hashes) % 32 = 0),
        received_at_ms INTEGER NOT NULL,
        UNIQUE (signer, kind, root)
    ) STRICT;
    CREATE INDEX hub_batches_by_signer ON hub_batches (signer, kind, received_at_ms);
    CREATE INDEX hub_batches_by_time ON hub_batches (received_at_ms);
    CREATE TABLE hub_late_records (
        record_hash BLOB PRIMARY KEY CHECK (length(record_hash) = 32),
        batch_id INTEGER NOT NULL REFERENCES hub_batches
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE hub_statuses (
        round INTEGER NOT NULL,
        node TEXT NOT NULL,
        entry BLOB NOT NULL,
        PRIMARY KEY (round, node)
    ) STRICT, WITHOUT ROWID;
    """,
)

_ROUNDS = Migration(
    3,
    "rounds, bundles, rewards",
    """
    CREATE TABLE hub_rounds (
        round INTEGER PRIMARY KEY,
        snapshot_block INTEGER NOT NULL,
        snapshot_block_hash BLOB NOT NULL CHECK (length(snapshot_block_hash) = 32),
        participants BLOB NOT NULL,
        validators BLOB NOT NULL,
        endpoints BLOB NOT NULL,
        beacon_block INTEGER NOT NULL,
        beacon_block_hash BLOB NOT NULL CHECK (length(beacon_block_hash) = 32)
    ) STRICT;
    CREATE TABLE hub_evidence (
        round INTEGER NOT NULL,
        kind TEXT NOT NULL CHECK (kind IN ('commitment', 'reveal', 'vote', 'attestation', 'refusal')),
        key BLOB NOT NULL,
        entry BLOB NOT NULL,
        PRIMARY KEY (round, kind, key)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE hub_bundles (
        round INTEGER PRIMARY KEY,
        bundle_hash BLOB NOT NULL CHECK (length(bundle_hash) = 32),
        previous_round INTEGER NOT NULL,
        root BLOB NOT NULL CHECK (length(root) = 32),
        issue_wei BLOB NOT NULL CHECK (length(issue_wei) = 32),
        cumulative_wei BLOB NOT NULL CHECK (length(cumulative_wei) = 32),
        totals_after BLOB NOT NULL,
        conducts_after BLOB NOT NULL,
        calls INTEGER NOT NULL,
        data BLOB NOT NULL,
        closed_at_ms INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE hub_seals (
        round INTEGER PRIMARY KEY REFERENCES hub_bundles,
        seal BLOB NOT NULL CHECK (length(seal) = 65)
    ) STRICT;
    CREATE TABLE hub_carried_calls (
        call_seq INTEGER PRIMARY KEY REFERENCES hub_calls,
        round INTEGER NOT NULL,
        reason TEXT NOT NULL
    ) STRICT;
    CREATE TABLE hub_results (
        round INTEGER NOT NULL REFERENCES hub_bundles,
        node TEXT NOT NULL,
        wallet TEXT NOT NULL,
        role INTEGER NOT NULL,
        entry BLOB NOT NULL,
        reward_wei BLOB NOT NULL CHECK (length(reward_wei) = 32),
        PRIMARY KEY (round, node)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX hub_results_by_wallet ON hub_results (wallet, round);
    CREATE TABLE hub_publications (
        round INTEGER NOT NULL,
        block INTEGER NOT NULL,
        bundle_hash BLOB NOT NULL CHECK (length(bundle_hash) = 32),
        root BLOB NOT NULL CHECK (length(root) = 32),
        cumulative_wei BLOB NOT NULL CHECK (length(cumulative_wei) = 32),
        active_at_s INTEGER NOT NULL,
        tx_hash BLOB NOT NULL CHECK (length(tx_hash) = 32),
        void_block INTEGER,
        PRIMARY KEY (round, block)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE hub_claims (
        wallet TEXT NOT NULL,
        round INTEGER NOT NULL,
        block INTEGER NOT NULL,
        log_index INTEGER NOT NULL,
        recipient TEXT NOT NULL,
        amount_wei BLOB NOT NULL CHECK (length(amount_wei) = 32),
        cumulative_wei BLOB NOT NULL CHECK (length(cumulative_wei) = 32),
        tx_hash BLOB NOT NULL CHECK (length(tx_hash) = 32),
        PRIMARY KEY (block, log_index)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX hub_claims_by_wallet ON hub_claims (wallet);
    CREATE TABLE hub_extractions (
        wallet TEXT NOT NULL,
        nonce BLOB NOT NULL CHECK (length(nonce) = 32),
        extraction BLOB NOT NULL,
        signature BLOB NOT NULL CHECK (length(signature) = 65),
        state TEXT NOT NULL CHECK (state IN ('requested', 'claimed', 'refused')),
        reason TEXT NOT NULL,
        requested_at_ms INTEGER NOT NULL,
        final_block INTEGER,
        PRIMARY KEY (wallet, nonce)
    ) STRICT, WITHOUT ROWID;
    """,
)

MIGRATIONS = (
    _BILLING,
    _RECORDS,
    _ROUNDS,
    PAYOUTS,
    ARCHIVE,
    LISTED,
    KEY_LIMITS,
    MODEL_SLOTS,
    ONCE,
    EVIDENCE,
    TOKEN_COUNTS,
)
