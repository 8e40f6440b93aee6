"""A round's view on disk. SQL and nothing else."""

from __future__ import annotations

import msgspec

from emcd.ledger import Connection, Row
from emcd.proto.bundle import SnapshotEntry, ValidatorPower
from emcd.types import Address
from emcd_hub.rounds.view import RoundView

_encode = msgspec.msgpack.Encoder().encode
_participants = msgspec.msgpack.Decoder(tuple[SnapshotEntry, ...]).decode
_validators = msgspec.msgpack.Decoder(tuple[ValidatorPower, ...]).decode
_endpoints = msgspec.msgpack.Decoder(dict[Address, str]).decode


def upsert_view(con: Connection, view: RoundView) -> None:
    """Keep a view; one that was read anew replaces the older."""
    con.execute(
        "INSERT OR REPLACE INTO hub_rounds VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            view.round,
            view.snapshot_block,
            view.snapshot_hash,
            _encode(view.participants),
            _encode(view.validators),
            _encode(dict(view.endpoints)),
            view.beacon_block,
            view.beacon_hash,
        ),
    )


def find_view(con: Connection, index: int) -> RoundView | None:
    row = con.execute("SELECT * FROM hub_rounds WHERE round = ?", (index,)).fetchone()
    return None if row is None else _view(row)


def find_first_view(con: Connection) -> int | None:
    """The oldest round that this hub ever saw."""
    found = con.execute("SELECT min(round) FROM hub_rounds").fetchone()[0]
    return None if found is None else int(found)


def _view(row: Row) -> RoundView:
    return RoundView(
        round=row["round"],
        snapshot_block=row["snapshot_block"],
        snapshot_hash=row["snapshot_block_hash"],
        beacon_block=row["beacon_block"],
        beacon_hash=row["beacon_block_hash"],
        participants=_participants(row["participants"]),
        validators=_validators(row["validators"]),
        endpoints=_endpoints(row["endpoints"]),
    )
