"""Signed batches on disk, and where in them a record stands. SQL and nothing else.

Batches are found by signer, kind and the time they came. One that came long after its records
were made has them indexed one by one (hub_late_records), so that every search is bounded.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import msgspec

from emcd.ledger import Connection, Row
from emcd.proto.records import RecordBatch, RecordKind
from emcd.types import Address

HASH_BYTES = 32
LATE_AFTER_MS = 60_000
LOOK_BEFORE_MS = 1_000


class StoredBatch(NamedTuple):
    """A batch with the hashes of all its records, in order."""

    batch: RecordBatch
    signature: bytes
    record_hashes: tuple[bytes, ...]
    received_at_ms: int


class JoinedBatch(NamedTuple):
    """A batch as it is read in masses: the hashes of its records joined, 32 bytes each."""

    batch: RecordBatch
    signature: bytes
    record_hashes: bytes


_decode = msgspec.msgpack.Decoder(RecordBatch).decode
_encode = msgspec.msgpack.Encoder().encode
_COLUMNS = "batch_id, batch, signature, record_hashes, received_at_ms"
_JOINED = "batch_id, batch, signature, record_hashes"
_CHUNK = 1024


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


def has_batch(con: Connection, signer: Address, kind: RecordKind, root: bytes) -> bool:
    """Whether a signer's batch with this root is here."""
    sql = "SELECT 1 FROM hub_batches WHERE signer = ? AND kind = ? AND root = ?"
    return con.execute(sql, (signer, kind, root)).fetchone() is not None


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
        (signer, kind, made_at_ms - LOOK_BEFORE_MS, made_at_ms + LATE_AFTER_MS * 2, record_hash),
    ).fetchall()
    row += con.execute(
        f"SELECT {_COLUMNS} FROM hub_batches WHERE batch_id IN"
        " (SELECT batch_id FROM hub_late_records WHERE record_hash = ?) AND signer = ? AND kind = ?",
        (record_hash, signer, kind),
    ).fetchall()
    for stored in map(_stored, row):
        if record_hash in stored.record_hashes:
            return stored, stored.record_hashes.index(record_hash)
    return None


def find_batch_id(
    con: Connection, signer: Address, kind: RecordKind, record_hash: bytes, made_at_ms: int
) -> int | None:
    """The largest batch in which a record stands, by its row. Args as `find_batch`."""
    place = (signer, kind)
    window = (made_at_ms - LOOK_BEFORE_MS, made_at_ms + LATE_AFTER_MS * 2)
    rows = con.execute(
        "SELECT batch_id, record_hashes FROM hub_batches WHERE signer = ? AND kind = ?"
        " AND received_at_ms BETWEEN ? AND ? AND instr(record_hashes, ?) > 0",
        (*place, *window, record_hash),
    ).fetchall()
    rows += con.execute(
        "SELECT batch_id, record_hashes FROM hub_batches WHERE batch_id IN"
        " (SELECT batch_id FROM hub_late_records WHERE record_hash = ?) AND signer = ? AND kind = ?",
        (record_hash, *place),
    ).fetchall()
    found = [(-len(row[1]), row[0]) for row in rows if _has(bytes(row[1]), record_hash)]
    return min(found)[1] if found else None


def iter_hub_batches(
    con: Connection, hub: Address, kinds: Sequence[RecordKind], since_ms: int, until_ms: int
) -> Iterator[tuple[int, JoinedBatch]]:
    """The hub's batches of a time, and those it signed later than it should have."""
    places = ",".join("?" * len(kinds))
    rows = con.execute(
        f"SELECT {_JOINED} FROM hub_batches WHERE received_at_ms BETWEEN ? AND ?"
        f" AND signer = ? AND kind IN ({places})",
        (since_ms, until_ms, hub, *kinds),
    )
    for row in rows:
        yield row[0], _joined(row)
    rows = con.execute(
        f"SELECT {_JOINED} FROM hub_batches WHERE received_at_ms > ? AND signer = ? AND kind IN ({places})"
        " AND batch_id IN (SELECT batch_id FROM hub_late_records)",
        (until_ms, hub, *kinds),
    )
    for row in rows:
        yield row[0], _joined(row)


def iter_receipt_hashes(
    con: Connection, since_ms: int, until_ms: int = 2**62
) -> Iterator[tuple[int, Address, bytes]]:
    """Row, signer and joined record hashes of every batch of receipts that came between two times."""
    cursor = con.cursor()
    cursor.row_factory = None
    times = (since_ms, until_ms)
    first = cursor.execute(
        "SELECT min(batch_id) FROM hub_batches WHERE received_at_ms BETWEEN ? AND ?", times
    ).fetchone()[0]
    # by number from the first on: a million look-ups by way of the index take five times as long
    yield from cursor.execute(
        "SELECT batch_id, signer, record_hashes FROM hub_batches NOT INDEXED"
        " WHERE batch_id >= ? AND received_at_ms BETWEEN ? AND ? AND kind = ?",
        (first, *times, RecordKind.RECEIPT),
    )


def iter_batches_by_id(con: Connection, batch_ids: Sequence[int]) -> Iterator[JoinedBatch]:
    """These batches, in their order."""
    for start in range(0, len(batch_ids), _CHUNK):
        part = json.dumps(batch_ids[start : start + _CHUNK])
        rows = con.execute(
            f"SELECT {_JOINED} FROM json_each(?) AS asked CROSS JOIN hub_batches ON batch_id = asked.value",
            (part,),
        )
        for row in rows:
            yield _joined(row)


def is_late_record(con: Connection, signer: Address, record_hash: bytes) -> bool:
    """Whether a record stands in a batch of its signer's that came late."""
    sql = "SELECT 1 FROM hub_late_records JOIN hub_batches USING (batch_id) WHERE record_hash = ? AND signer = ?"
    return con.execute(sql, (record_hash, signer)).fetchone() is not None


def delete_batches(con: Connection, before_ms: int, limit: int) -> int:
    """Let batches go that came before a time, the oldest first. Returns: how many went."""
    rows = con.execute(
        "SELECT batch_id FROM hub_batches WHERE received_at_ms < ? ORDER BY received_at_ms LIMIT ?",
        (before_ms, limit),
    ).fetchall()
    part = json.dumps([row[0] for row in rows])
    for table in ("hub_late_records", "hub_batches"):
        con.execute(f"DELETE FROM {table} WHERE batch_id IN (SELECT value FROM json_each(?))", (part,))
    return len(rows)


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


def _joined(row: Row) -> JoinedBatch:
    return JoinedBatch(_decode(row[1]), row[2], row[3])


def _has(hashes: bytes, record_hash: bytes) -> bool:
    """Whether a hash is one of the joined ones, and not only across two of them."""
    place = hashes.find(record_hash)
    while place >= 0 and place % HASH_BYTES:
        place = hashes.find(record_hash, place + 1)
    return place >= 0
