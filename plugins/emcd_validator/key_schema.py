"""The table of which API key asked which probe: how much a key was used, and whose receipts it can fetch."""

from __future__ import annotations

KEY_USES = """
CREATE TABLE validator_key_uses (
    instance TEXT NOT NULL,
    round INTEGER NOT NULL,
    node TEXT NOT NULL,
    slot INTEGER NOT NULL,
    key_hash BLOB NOT NULL CHECK (length(key_hash) = 32),
    used_at_ms INTEGER NOT NULL,
    PRIMARY KEY (instance, round, node, slot)
) STRICT, WITHOUT ROWID;
CREATE INDEX validator_key_uses_key ON validator_key_uses (instance, key_hash);
"""
