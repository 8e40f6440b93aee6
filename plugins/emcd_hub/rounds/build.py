"""Builds the bundle of a round as a file: in a thread of the hub, or in a process of its own.

Reads one snapshot of the ledger and writes one file; the ledger is written by whoever asked.
Invariant: nothing of a round is held whole but numbers; a file that is finished is whole and
synced, and counts for nothing until the ledger names it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from emcd.accounting.round_close import ClosedRound, RoundFacts, close_round
from emcd.ledger import Connection, LedgerFile, open_reader
from emcd.proto.bundle_codec import BundleReader, read_call_ids
from emcd_hub.rounds.bundle_folder import BundleFolder
from emcd_hub.rounds.bundle_row import find_bundle_file
from emcd_hub.rounds.old_bundle import is_old, list_old_call_ids
from emcd_hub.rounds.settle_input import SettleInput

READER_CACHE_KB = 16_384
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class CloseOrder:
    """What a round is closed with beside the ledger; `abandoned` rounds came to nothing."""

    facts: RoundFacts
    abandoned: tuple[int, ...]
    root: Path


@dataclass(frozen=True)
class Built:
    """A finished bundle, the calls that wait for a later one (call_seq, round, reason), the purchases it lists."""

    closed: ClosedRound
    file: LedgerFile
    waiting: tuple[tuple[int, int, str], ...]
    deposits: tuple[int, ...] = ()


def build_bundle(con: Connection, order: CloseOrder, progress: Progress | None = None) -> Built:
    """Build it from the snapshot of a connection. Blocking, CPU-bound.

    Raises: ProtocolError when the facts themselves are wrong; OSError (disk).
    """
    facts, folder = order.facts, BundleFolder(order.root)
    abandoned = [(index, _iter_call_ids(con, folder, index)) for index in order.abandoned]
    found = SettleInput(con, facts.hub, facts.round, facts.params, abandoned)
    report = None if progress is None else lambda done, _: progress(done, found.count)
    with folder.writing(facts.round) as (out, path):
        closed = close_round(facts, found.evidence(), out, signatures_checked=True, progress=report)
        out.flush()
        file = folder.finish(path, facts.round, closed.bundle_hash)
    return Built(closed, file, tuple(found.waiting), tuple(entry.index for entry in found.deposits))


def build_from_file(ledger: Path, order: CloseOrder, progress: Progress | None = None) -> Built:
    """The same from the ledger's file, beside the daemon that writes it."""
    con = open_reader(ledger)
    try:
        con.execute(f"PRAGMA cache_size = -{READER_CACHE_KB}")
        con.execute("BEGIN")
        return build_bundle(con, order, progress)
    finally:
        con.close()


def _iter_call_ids(con: Connection, folder: BundleFolder, index: int) -> Iterator[bytes]:
    """The ids of a bundle's calls, joined. Raises: RecoverableError EMC-1755."""
    file = find_bundle_file(con, index)
    if file is None:
        return
    with folder.opened(file) as data:
        yield list_old_call_ids(data) if is_old(data) else read_call_ids(BundleReader(data))
