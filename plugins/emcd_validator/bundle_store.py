"""The bundles a validator looks at, as files: fetched, audited, and gone when it has decided.

Owns a folder of its own. What is CPU-bound is a module-level function, so that it runs in a thread
for a small bundle and in a process of its own for a large one. Invariant: a file here is unchecked
until its hash was computed from it.
"""

from __future__ import annotations

import shutil
from collections.abc import Container
from dataclasses import dataclass, replace
from pathlib import Path

import trio

from emcd.accounting.audit import AuditOutcome, audit_bundle
from emcd.accounting.expectation import Expectation
from emcd.bundle_file import Progress, open_bundle, run_somewhere, size_of
from emcd.errors import RemoteProtocolError
from emcd.ledger import open_reader
from emcd.proto.bundle import BundleHeader
from emcd.proto.bundle_codec import (
    BundleReader,
    Section,
    compute_bundle_hash,
    iter_section,
    read_call_ids,
    read_header,
)
from emcd.types import Address, Hash
from emcd_validator.bundle_check import BundleFacts, Content, read_facts
from emcd_validator.queries.settled_calls import iter_settled_calls


@dataclass(frozen=True)
class SettledCalls:
    """Where the calls stand that earlier bundles settled; read where the audit runs."""

    ledger: Path
    instance: Address
    first_round: int
    last_round: int


class BundleStore:
    """The folder of one validator."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def prepare(self) -> None:
        """Make the folder empty: what a crash left is fetched anew."""
        await trio.to_thread.run_sync(self._empty)

    def path(self, round_index: int) -> Path:
        return self._folder / f"{round_index}.emcb"

    def drop(self, round_index: int) -> None:
        """The round is decided: its bundle is not looked at any more."""
        self.path(round_index).unlink(missing_ok=True)

    def _empty(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)


async def compute_hash(path: Path) -> Hash:
    """The bundle hash of a file. Raises: RemoteProtocolError EMC-1901, 1903; OSError."""
    return await run_somewhere(hash_file, path, size_bytes=size_of(path))


async def audit(path: Path, expected: Expectation, settled: SettledCalls | None) -> AuditOutcome:
    """Audit a file. Raises: RecoverableError EMC-1034; OSError."""
    return await run_somewhere(audit_settled, path, expected, settled, size_bytes=size_of(path))


async def load_facts(path: Path, wanted: frozenset[bytes], vault_micro: int) -> BundleFacts:
    """What a witness looks at, of a bundle that passed its audit."""
    return await run_somewhere(read_facts_of, path, wanted, vault_micro, size_bytes=size_of(path))


async def load_header(path: Path) -> BundleHeader:
    """Raises: RemoteProtocolError EMC-1901, 1903."""
    return await trio.to_thread.run_sync(_read_header, path)


async def find_last_deposit(path: Path) -> int:
    """The largest index of a purchase in the bundle; -1 for none."""
    return await trio.to_thread.run_sync(_read_last_deposit, path)


async def list_suspended(path: Path) -> dict[Address, int]:
    """Until which round the snapshot's participants are suspended, those that are."""
    return await trio.to_thread.run_sync(_read_suspended, path)


def hash_file(path: Path) -> Hash:
    with open_bundle(path) as data:
        return compute_bundle_hash(data)


def audit_settled(
    path: Path, expected: Expectation, settled: SettledCalls | None, progress: Progress | None = None
) -> AuditOutcome:
    """`audit_bundle` of a file, against the calls that a ledger says were settled before."""
    with open_bundle(path) as data:
        if settled is not None:
            expected = replace(expected, settled_call_ids=_read_settled(data, settled))
        return audit_bundle(data, expected, progress)


def read_facts_of(path: Path, wanted: frozenset[bytes], vault_micro: int) -> BundleFacts:
    with open_bundle(path) as data:
        return read_facts(data, wanted, vault_micro)


def _read_settled(data: Content, settled: SettledCalls) -> Container[bytes]:
    """The settled ids that can matter for these bytes; none for bytes that the audit will refuse."""
    from emcd.accounting.call_index import CallIdIndex  # brings numpy, for which no start shall wait

    try:
        asked = read_call_ids(BundleReader(data))
    except RemoteProtocolError:
        asked = b""
    con = open_reader(settled.ledger)
    try:
        found = iter_settled_calls(con, settled.instance, settled.first_round, settled.last_round, asked)
        return CallIdIndex(list(found))
    finally:
        con.close()


def _read_header(path: Path) -> BundleHeader:
    with open_bundle(path) as data:
        return read_header(data)


def _read_last_deposit(path: Path) -> int:
    with open_bundle(path) as data:
        return max((entry.index for entry in iter_section(data, Section.DEPOSITS)), default=-1)


def _read_suspended(path: Path) -> dict[Address, int]:
    with open_bundle(path) as data:
        return {
            entry.node: entry.suspended_until_round
            for entry in iter_section(data, Section.PARTICIPANTS)
            if entry.suspended_until_round
        }
