"""Archived rounds on disk, and what leaves the ledger with them. SQL and nothing else."""

from __future__ import annotations

from dataclasses import dataclass

from emcd.ledger import Connection, delete_file, insert_file
from emcd_hub.rounds.archive import Archived
from emcd_hub.rounds.bundle_row import BundleFile, find_bundle_file

STATEMENTS_KEPT = ("attestation", "refusal")
"""Small, and in no bundle."""


@dataclass(frozen=True)
class ArchiveState:
    """How far the archive is: `round` is the last one in it, `emptied` whether its calls are gone."""

    round: int
    emptied: bool


def find_archive_state(con: Connection) -> ArchiveState:
    row = con.execute("SELECT round, emptied FROM hub_archived_rounds ORDER BY round DESC LIMIT 1").fetchone()
    return ArchiveState(-1, True) if row is None else ArchiveState(row[0], bool(row[1]))


def find_next_closed(con: Connection, after: int) -> int | None:
    """The oldest closed round after another."""
    found = con.execute("SELECT min(round) FROM hub_bundles WHERE round > ?", (after,)).fetchone()[0]
    return None if found is None else int(found)


def find_last_closed(con: Connection) -> int:
    """The newest closed round; -1 for none."""
    return int(con.execute("SELECT coalesce(max(round), -1) FROM hub_bundles").fetchone()[0])


def insert_archived(con: Connection, file: BundleFile, archived: Archived, now_ms: int) -> None:
    """A round is archived from now on: its calls may be deleted, its bundle is the packed one."""
    con.execute(
        "INSERT INTO hub_archived_rounds VALUES (?, ?, 0, ?) ON CONFLICT DO NOTHING",
        (file.round, archived.calls, now_ms),
    )
    insert_file(con, archived.packed)
    insert_file(con, archived.owners)
    delete_file(con, file.path)
    con.execute(
        "UPDATE hub_bundle_files SET path = ?, packed = 1, owners_path = ?, first_call = ?, last_call = ?"
        " WHERE round = ?",
        (archived.packed.path, archived.owners.path, archived.first_call, archived.last_call, file.round),
    )


def insert_lost(con: Connection, index: int, now_ms: int) -> None:
    """A closed round without a bundle file is passed over: its calls stay."""
    con.execute("INSERT INTO hub_archived_rounds VALUES (?, 0, 1, ?) ON CONFLICT DO NOTHING", (index, now_ms))


def set_emptied(con: Connection, index: int) -> None:
    """The calls of a round are gone; with them what the bundle holds too, of this round and before it."""
    con.execute("UPDATE hub_archived_rounds SET emptied = 1 WHERE round = ?", (index,))
    con.execute("DELETE FROM hub_statuses WHERE round <= ?", (index,))
    con.execute("DELETE FROM hub_rounds WHERE round <= ?", (index,))
    places = ",".join("?" * len(STATEMENTS_KEPT))
    con.execute(
        f"DELETE FROM hub_evidence WHERE round <= ? AND kind NOT IN ({places})", (index, *STATEMENTS_KEPT)
    )


def drop_totals(con: Connection, below: int) -> None:
    """No round will ever build on one below this again: its totals stand in its bundle."""
    con.execute(
        "UPDATE hub_bundles SET totals_after = x'90' WHERE round < ? AND totals_after <> x'90'", (below,)
    )


def delete_results(con: Connection, below: int, limit: int) -> int:
    """Let results of old rounds go. Returns: how many went."""
    return con.execute(
        "DELETE FROM hub_results WHERE (round, node) IN"
        " (SELECT round, node FROM hub_results WHERE round < ? ORDER BY round LIMIT ?)",
        (below, limit),
    ).rowcount


def delete_statements(con: Connection, below: int) -> None:
    """Let the signatures and refusals of old rounds go; what the chain took of them it has."""
    con.execute("DELETE FROM hub_evidence WHERE round < ?", (below,))


def take_owners(con: Connection, below: int) -> list[str]:
    """Forget whose calls those of archived rounds below this were. Returns: files to remove."""
    rows = con.execute(
        "SELECT owners_path FROM hub_bundle_files WHERE round < ? AND owners_path IS NOT NULL", (below,)
    ).fetchall()
    con.execute(
        "UPDATE hub_bundle_files SET owners_path = NULL WHERE round < ? AND owners_path IS NOT NULL", (below,)
    )
    return _forget(con, [row[0] for row in rows])


def take_bundles(con: Connection, below: int) -> list[str]:
    """Let the bundles of archived rounds below this go. Returns: files to remove."""
    rows = con.execute(
        "SELECT path FROM hub_bundle_files WHERE round < ? AND owners_path IS NULL AND packed = 1", (below,)
    ).fetchall()
    con.execute(
        "DELETE FROM hub_bundle_files WHERE round < ? AND owners_path IS NULL AND packed = 1", (below,)
    )
    return _forget(con, [row[0] for row in rows])


def list_archived_with(con: Connection, call_id: bytes) -> list[BundleFile]:
    """Archived bundles in which a call may stand and whose owners are known, newest first."""
    rows = con.execute(
        "SELECT round FROM hub_bundle_files WHERE owners_path IS NOT NULL"
        " AND first_call <= ? AND last_call >= ? ORDER BY round DESC",
        (call_id, call_id),
    ).fetchall()
    return [file for row in rows if (file := find_bundle_file(con, row[0])) is not None]


def _forget(con: Connection, paths: list[str]) -> list[str]:
    for path in paths:
        delete_file(con, path)
    return paths
