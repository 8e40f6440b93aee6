"""Signed batches on disk, and where in them a record stands. SQL and nothing else.

Batches are found by signer, kind and the time they came. One that came long after its records
were made has them indexed one by one (hub_late_records), so that every search is bounded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import msgspec

from emcd.ledger import Connection, Row
from emcd.proto.records import RecordBatch, RecordKind
from emcd.types import Address

HASH_BYTES = 32
LATE_AFTER_MS = 60_000
_LOOK_BEFORE_MS = 1_000


class StoredBatch(NamedTuple):
    """A batch with the hashes of all its records, in order."""

    batch: RecordBatch
    signature: bytes
    record_hashes: tuple[bytes, ...]
    received_at_ms: int


_decode = msgspec.msgpack.Decoder(RecordBatch).decode
_encode = msgspec.msgpack.Encoder().encode
_COLUMNS = "batch_id, batch, signature, record_hashes, received_at_ms"


def insert_batches(con: Connection, batches: Sequence[StoredBatch]) -> None:
    """Store batches; one that is here already stays as it is."""
    con.executemany(
        "INSERT INTO hub_batches VALUES (NULL, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
        [
            (
                item.batch.signer,
                item.batch.kind,
                item.batch.root,
                _encode(item.batch),
                item.signature,
                b"".join(item.record_hashes),
                item.received_at_ms,
            )
            for item in batches
        ],
    )


def insert_late_batch(con: Connection, item: StoredBatch) -> None:
    """Store a batch that came late, with an index of its records."""
    insert_batches(con, [item])
    key = (item.batch.signer, item.batch.kind, item.batch.root)
    (batch_id,) = con.execute(
        "SELECT batch_id FROM hub_batches WHERE signer = ? AND kind = ? AND root = ?", key
    ).fetchone()
    con.executemany(
        "INSERT INTO hub_late_records VALUES (?, ?) ON CONFLICT DO NOTHING",
        [(record_hash, batch_id) for record_hash in item.record_hashes],
    )


def find_batch(
    con: Connection, signer: Address, kind: RecordKind, record_hash: bytes, made_at_ms: int
) -> tuple[StoredBatch, int] | None:
    """The batch in which a record stands, and at which leaf.

    Args:
        made_at_ms: when the record was made, by the hub's clock.
    """
    row = con.execute(
        f"SELECT {_COLUMNS} FROM hub_batches WHERE signer = ? AND kind = ?"
        " AND received_at_ms BETWEEN ? AND ? AND instr(record_hashes, ?) > 0 ORDER BY received_at_ms",
        (signer, kind, made_at_ms - _LOOK_BEFORE_MS, made_at_ms + LATE_AFTER_MS * 2, record_hash),
    ).fetchall()
    row += con.execute(
        f"SELECT {_COLUMNS} FROM hub_batches WHERE batch_id ="
        " (SELECT batch_id FROM hub_late_records WHERE record_hash = ?) AND signer = ? AND kind = ?",
        (record_hash, signer, kind),
    ).fetchall()
    for stored in map(_stored, row):
        if record_hash in stored.record_hashes:
            return stored, stored.record_hashes.index(record_hash)
    return None


def iter_batches(con: Connection, since_ms: int) -> Iterator[StoredBatch]:
    """Every batch that came at or after a time."""
    rows = con.execute(f"SELECT {_COLUMNS} FROM hub_batches WHERE received_at_ms >= ?", (since_ms,))
    for row in rows:
        yield _stored(row)


def find_last_signed_ms(con: Connection, signer: Address) -> int | None:
    """When the newest batch of a signer came."""
    row = con.execute("SELECT max(received_at_ms) FROM hub_batches WHERE signer = ?", (signer,)).fetchone()
    return None if row[0] is None else int(row[0])


def _stored(row: Row) -> StoredBatch:
    hashes = bytes(row["record_hashes"])
    return StoredBatch(
        _decode(row["batch"]),
        bytes(row["signature"]),
        tuple(hashes[i : i + HASH_BYTES] for i in range(0, len(hashes), HASH_BYTES)),
        row["received_at_ms"],
    )
