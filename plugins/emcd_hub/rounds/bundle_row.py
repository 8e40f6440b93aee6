"""Closed rounds on disk: where the bundle is, what follows from it, results, seal. SQL and nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import msgspec

from emcd.accounting.round_close import ClosedRound
from emcd.accounting.suspension import Conduct
from emcd.ledger import Connection, LedgerFile, Row, insert_file
from emcd.money import decode_wei, encode_wei
from emcd.proto.bundle import ResultEntry, SnapshotEntry, Total
from emcd.types import ZERO_ADDRESS, ZERO_HASH, Address

_FACTS = (
    "SELECT b.round, b.bundle_hash, b.previous_round, b.root, b.issue_wei, b.cumulative_wei, b.calls,"
    " b.closed_at_ms, s.seal FROM hub_bundles b LEFT JOIN hub_seals s USING (round)"
)
_encode = msgspec.msgpack.Encoder().encode
_totals = msgspec.msgpack.Decoder(tuple[Total, ...]).decode
_conducts = msgspec.msgpack.Decoder(dict[Address, Conduct]).decode
_result = msgspec.msgpack.Decoder(ResultEntry).decode


@dataclass(frozen=True)
class BundleFacts:
    """A closed round without its bytes; `seal` is None between closing and sealing."""

    round: int
    bundle_hash: bytes
    previous_round: int
    root: bytes
    issue_wei: int
    cumulative_wei: int
    calls: int
    closed_at_ms: int
    seal: bytes | None


@dataclass(frozen=True)
class BundleFile:
    """Where a round's bundle is: `path` from the ledger's folder, `size_bytes` of the canonical bytes.

    `owners_path` is the list of whose calls they were, once the round is archived, while it is kept.
    """

    round: int
    path: str
    size_bytes: int
    packed: bool
    owners_path: str | None


@dataclass(frozen=True)
class ResultRow:
    """What a participant got in a round."""

    round: int
    node: Address
    wallet: Address
    role: int
    entry: ResultEntry
    reward_wei: int


@dataclass(frozen=True)
class Base:
    """What a round builds on."""

    round: int = -1
    bundle_hash: bytes = ZERO_HASH
    totals: tuple[Total, ...] = ()
    conducts: dict[Address, Conduct] | None = None

    @property
    def totals_wei(self) -> dict[Address, int]:
        return {item.wallet: decode_wei(item.cumulative_wei) for item in self.totals}


def insert_bundle(
    con: Connection,
    closed: ClosedRound,
    seats: Mapping[Address, SnapshotEntry],
    file: LedgerFile,
    conducts: dict[Address, Conduct],
    closed_at_ms: int,
) -> None:
    """Keep a closed round: its file, which is finished, its results, what the next round builds on."""
    header = closed.header
    con.execute(
        "INSERT INTO hub_bundles VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, x'', ?)",
        (
            header.round,
            closed.bundle_hash,
            header.previous_round,
            closed.result.root,
            encode_wei(closed.result.issue_wei),
            encode_wei(closed.result.cumulative_wei),
            _encode(closed.result.totals_after),
            _encode(conducts),
            closed.calls,
            closed_at_ms,
        ),
    )
    insert_bundle_file(con, header.round, file, closed.size_bytes)
    con.executemany(
        "INSERT INTO hub_results VALUES (?, ?, ?, ?, ?, ?)",
        [_result_values(header.round, seats.get(item.node), item) for item in closed.result.results],
    )


def insert_bundle_file(con: Connection, index: int, file: LedgerFile, size_bytes: int) -> None:
    """Say where a round's bundle is."""
    insert_file(con, file)
    con.execute(
        "INSERT INTO hub_bundle_files VALUES (?, ?, ?, 0, NULL, NULL, NULL)", (index, file.path, size_bytes)
    )


def find_bundle_file(con: Connection, index: int) -> BundleFile | None:
    row = con.execute("SELECT * FROM hub_bundle_files WHERE round = ?", (index,)).fetchone()
    return None if row is None else BundleFile(row[0], row[1], row[2], bool(row[3]), row[4])


def list_old_data(con: Connection) -> list[tuple[int, bytes, bytes]]:
    """(round, bundle hash, compressed bytes) of bundles that stand in the ledger itself, as they once did."""
    rows = con.execute("SELECT round, bundle_hash, data FROM hub_bundles WHERE length(data) > 0")
    return [(row[0], bytes(row[1]), bytes(row[2])) for row in rows]


def move_old_data(con: Connection, index: int, file: LedgerFile, size_bytes: int) -> None:
    """A bundle of the ledger is a file now."""
    insert_bundle_file(con, index, file, size_bytes)
    con.execute("UPDATE hub_bundles SET data = x'' WHERE round = ?", (index,))


def _result_values(index: int, seat: SnapshotEntry | None, item: ResultEntry) -> tuple[object, ...]:
    wallet, role = (seat.wallet, seat.role) if seat else (ZERO_ADDRESS, 1)
    return index, item.node, wallet, role, _encode(item), item.reward_wei


def insert_seal(con: Connection, index: int, seal: bytes) -> None:
    con.execute("INSERT INTO hub_seals VALUES (?, ?) ON CONFLICT DO NOTHING", (index, seal))


def find_facts(con: Connection, index: int) -> BundleFacts | None:
    row = con.execute(f"{_FACTS} WHERE b.round = ?", (index,)).fetchone()
    return None if row is None else _facts(row)


def list_facts(con: Connection, limit: int, below: int | None = None) -> list[BundleFacts]:
    """The newest closed rounds, newest first."""
    rows = con.execute(
        f"{_FACTS} WHERE b.round < ? ORDER BY b.round DESC LIMIT ?",
        (2**62 if below is None else below, limit),
    )
    return [_facts(row) for row in rows]


def list_unsealed(con: Connection) -> list[BundleFacts]:
    """Rounds that were closed and not sealed: the process ended between the two."""
    return [_facts(row) for row in con.execute(f"{_FACTS} WHERE s.seal IS NULL ORDER BY b.round")]


def find_base(con: Connection, index: int) -> Base | None:
    """What follows from the bundle of a round."""
    row = con.execute(
        "SELECT bundle_hash, totals_after, conducts_after FROM hub_bundles WHERE round = ?", (index,)
    ).fetchone()
    if row is None:
        return None
    return Base(index, bytes(row[0]), _totals(row[1]), _conducts(row[2]))


def find_newest_round(con: Connection) -> int | None:
    """The newest round that this hub closed."""
    row = con.execute("SELECT max(round) FROM hub_bundles").fetchone()
    return None if row[0] is None else int(row[0])


def find_conducts(con: Connection, index: int) -> dict[Address, Conduct]:
    """The conduct of nodes after a closed round; only of such as have a strike or a suspension."""
    row = con.execute("SELECT conducts_after FROM hub_bundles WHERE round = ?", (index,)).fetchone()
    return {} if row is None else _conducts(row[0])


def list_results(con: Connection, index: int) -> list[ResultRow]:
    rows = con.execute("SELECT * FROM hub_results WHERE round = ? ORDER BY node", (index,))
    return [_result_row(row) for row in rows]


def list_wallet_results(con: Connection, wallet: Address, limit: int) -> list[ResultRow]:
    """A wallet's results, newest round first."""
    rows = con.execute(
        "SELECT * FROM hub_results WHERE wallet = ? ORDER BY round DESC, node LIMIT ?", (wallet, limit)
    )
    return [_result_row(row) for row in rows]


def replace_carried(con: Connection, carried: Iterable[tuple[int, int, str]]) -> None:
    """Set which calls of closed rounds wait for a later bundle: (call_seq, round, reason)."""
    con.execute("DELETE FROM hub_carried_calls")
    con.executemany("INSERT INTO hub_carried_calls VALUES (?, ?, ?)", carried)


def _facts(row: Row) -> BundleFacts:
    return BundleFacts(
        row["round"],
        bytes(row["bundle_hash"]),
        row["previous_round"],
        bytes(row["root"]),
        decode_wei(row["issue_wei"]),
        decode_wei(row["cumulative_wei"]),
        row["calls"],
        row["closed_at_ms"],
        None if row["seal"] is None else bytes(row["seal"]),
    )


def _result_row(row: Row) -> ResultRow:
    return ResultRow(
        row["round"],
        row["node"],
        row["wallet"],
        row["role"],
        _result(row["entry"]),
        decode_wei(row["reward_wei"]),
    )
