"""Sign-once: nobody who asks here first ever signs two outcomes of one thing.

The order is the whole point: `sign_once` commits which digest a signer gives for a slot, and only
after that commit is the signature made. A crash between the two signs the same digest again,
which is the same signature. Invariant: a row is never changed nor deleted.
"""

from __future__ import annotations

from enum import Enum
from sqlite3 import Connection

from emcd.ledger.migration import Migration
from emcd.types import Address


class SignOnce(Enum):
    """What the ledger says to signing a digest for a slot."""

    NEW = "new"
    """Recorded now: sign after the commit."""
    SAME = "same"
    """This very digest was recorded before: signing again is safe."""
    CONFLICT = "conflict"
    """Another digest stands there: never sign."""


CREATE = Migration(
    1,
    "sign once",
    """
    CREATE TABLE sign_once (
        signer TEXT NOT NULL,
        purpose TEXT NOT NULL,
        slot TEXT NOT NULL,
        digest BLOB NOT NULL CHECK (length(digest) = 32),
        recorded_at_ms INTEGER NOT NULL,
        PRIMARY KEY (signer, purpose, slot)
    ) STRICT, WITHOUT ROWID;
    CREATE TRIGGER sign_once_keeps_rows BEFORE DELETE ON sign_once
    BEGIN SELECT RAISE(ABORT, 'sign_once rows are never deleted'); END;
    CREATE TRIGGER sign_once_keeps_digests BEFORE UPDATE ON sign_once
    BEGIN SELECT RAISE(ABORT, 'sign_once rows are never changed'); END;
    """,
)

_INSERT = """
INSERT INTO sign_once (signer, purpose, slot, digest, recorded_at_ms)
VALUES (?, ?, ?, ?, CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER)) ON CONFLICT DO NOTHING
"""
_FIND = "SELECT digest FROM sign_once WHERE signer = ? AND purpose = ? AND slot = ?"


def sign_once(con: Connection, signer: Address, purpose: str, slot: str, digest: bytes) -> SignOnce:
    """Record which digest a signer gives for a slot of a purpose; run it through `Ledger.write`.

    Args:
        purpose: what is signed ("round_root", "receipt"); slot: of which thing ("1287", a call id).
        digest: the 32 bytes to be signed.

    Returns: NEW, SAME or CONFLICT.
    """
    if con.execute(_INSERT, (signer, purpose, slot, digest)).rowcount == 1:
        return SignOnce.NEW
    (recorded,) = con.execute(_FIND, (signer, purpose, slot)).fetchone()
    return SignOnce.SAME if recorded == digest else SignOnce.CONFLICT


def find_signed(con: Connection, signer: Address, purpose: str, slot: str) -> bytes | None:
    """The digest recorded for a slot, or None."""
    row = con.execute(_FIND, (signer, purpose, slot)).fetchone()
    return None if row is None else bytes(row[0])
