"""Takes the calls of a round as they come from a ledger: checks them, writes them, keeps what is needed.

Invariant: a call that no audit would accept is left out and named, whatever is wrong with its record.
Memory: 120 bytes a call (three record hashes and what goes into the sums).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice

import numpy as np
import numpy.typing as npt

from emcd.accounting.call_check import CallCheck
from emcd.accounting.call_rule import hash_call, require_call
from emcd.accounting.call_sum import CallSums
from emcd.accounting.record_index import RecordIndex
from emcd.accounting.tally import CallTally
from emcd.accounting.terms import RoundTerms
from emcd.errors import LocalProtocolError, ProtocolError
from emcd.proto.address import address_bytes
from emcd.proto.bundle import CallEntry
from emcd.proto.bundle_calls import CallGroup, CallPlaces, GroupHashes, Mask, hash_group
from emcd.proto.bundle_column import Rows
from emcd.proto.bundle_frame import GROUP_CALLS, MAX_ITEMS, Section
from emcd.proto.bundle_shape import require_shape
from emcd.proto.bundle_table import CallRow, CallTable, join_groups
from emcd.proto.bundle_write import CallWriter
from emcd.types import Address

Refuse = Callable[[bytes, ProtocolError], None]
"""Told the call id and what is wrong."""
_Part = tuple[CallGroup, GroupHashes]


class CallTake:
    """One pass over the calls; then the places of their records."""

    def __init__(self, terms: RoundTerms, writer: CallWriter, sums: CallSums, refuse: Refuse) -> None:
        self._terms = terms
        self._hub = address_bytes(terms.hub)
        self._check = CallCheck(terms)
        self._writer = writer
        self._sums = sums
        self._refuse = refuse
        self._table = CallTable()
        self._waiting: list[_Part] = []
        self._last_id = b""
        self._hashes = (bytearray(), bytearray(), bytearray())
        self._columns: tuple[bytearray, ...] = tuple(bytearray() for _ in range(3))
        self._probed: list[tuple[npt.NDArray[np.int64], CallGroup, GroupHashes]] = []
        self.nodes: list[Address] = []

    def take(self, rows: Iterable[CallRow], progress: Callable[[int, int], None] | None = None) -> None:
        """Take all calls, ascending by id. Raises: LocalProtocolError EMC-1904."""
        rest = iter(rows)
        while part := list(islice(rest, GROUP_CALLS)):
            unique = self._in_order(part)
            if unique:
                self._take_part(unique)
            self._write(whole_groups=True)
            if progress is not None:
                progress(self._writer.count, 0)
        self._write(whole_groups=False)
        self.nodes = self._writer.put_directory(self._table.directory)

    def index(self) -> RecordIndex:
        """The record hashes of all calls taken."""
        signer = {node: number for number, node in enumerate(self.nodes)}
        forward, receipt, delivery = (np.frombuffer(part, np.uint8).reshape(-1, 32) for part in self._hashes)
        return RecordIndex(forward, receipt, delivery, signer, np.frombuffer(self._columns[0], np.uint64))

    def settle(self, places: CallPlaces) -> CallTally:
        """Write where the records stand, and add up."""
        self._writer.put_places(places)
        nodes, vault_micro = (np.frombuffer(part, np.uint64) for part in self._columns[:2])
        may_count = np.frombuffer(self._columns[2], np.uint8)
        proven: Mask = (places.forward != 0) & (places.receipt != 0) & (places.delivery != 0)
        counts = proven & (may_count != 0)
        self._sums.add(nodes, vault_micro, counts)
        directory = self._table.directory
        for rows, group, hashes in self._probed:
            self._sums.keep_probed(group, range(len(group)), hashes, directory, proven[rows], counts[rows])
        return self._sums.finish(self.nodes)

    # ------------------------------------------------------------------ a part

    def _in_order(self, rows: list[CallRow]) -> list[CallRow]:
        """The rows whose id was not there before."""
        unique = []
        for row in rows:
            call_id = row[0].call_id
            if call_id <= self._last_id:
                if call_id != self._last_id:
                    raise LocalProtocolError("EMC-1904", "calls do not come in the order of their ids")
                continue
            self._last_id = call_id
            unique.append(row)
        return unique

    def _take_part(self, rows: list[CallRow]) -> None:
        try:
            group, stated = self._table.make_columns(rows)
        except (ValueError, OverflowError, TypeError, AttributeError):
            rows = [row for row in rows if self._has_shape(row)]
            if not rows:
                return
            group, stated = self._table.make_columns(rows)
        directory = self._table.directory
        hashes = hash_group(group, directory, self._hub)
        wrong = self._check.flag(group, directory)
        wrong |= (stated.forward != hashes.forward).any(axis=1) | (stated.receipt != hashes.receipt).any(
            axis=1
        )
        wrong |= (stated.delivery != hashes.forward).any(axis=1)
        if {row[0].hub for row in rows} != {self._terms.hub}:
            wrong |= [row[0].hub != self._terms.hub for row in rows]
        for number in np.flatnonzero(wrong).tolist():
            wrong[number] = self._is_refused(rows[number])
        keep = np.flatnonzero(~wrong)
        if len(keep) == len(group):
            self._waiting.append((group, hashes))
        elif len(keep):
            self._waiting.append((group.take(keep), _take_hashes(hashes, keep)))

    def _has_shape(self, row: CallRow) -> bool:
        try:
            require_shape(CallEntry(*row, None, None, None))
        except ProtocolError as exc:
            self._refuse(row[0].call_id, exc)
            return False
        return True

    def _is_refused(self, row: CallRow) -> bool:
        try:
            require_call(self._terms, *row, hash_call(*row))
        except ProtocolError as exc:
            self._refuse(row[0].call_id, exc)
            return True
        return False

    # ------------------------------------------------------------------ a group

    def _write(self, *, whole_groups: bool) -> None:
        """Write what waits: groups that are full, or everything."""
        while sum(len(group) for group, _ in self._waiting) >= (GROUP_CALLS if whole_groups else 1):
            if len(self._waiting) == 1 and len(self._waiting[0][0]) <= GROUP_CALLS:
                self._put(*self._waiting.pop())
                continue
            group = join_groups([part for part, _ in self._waiting])
            hashes = GroupHashes(*(
                np.concatenate([getattr(part, name) for _, part in self._waiting])
                for name in ("forward", "receipt", "delivery")
            ))  # fmt: skip
            first, rest = np.arange(min(GROUP_CALLS, len(group))), np.arange(GROUP_CALLS, len(group))
            self._waiting = [(group.take(rest), _take_hashes(hashes, rest))] if len(rest) else []
            self._put(group.take(first), _take_hashes(hashes, first))

    def _put(self, group: CallGroup, hashes: GroupHashes) -> None:
        if self._writer.count + len(group) > MAX_ITEMS[Section.CALLS]:
            raise LocalProtocolError("EMC-1903", f"more than {MAX_ITEMS[Section.CALLS]} calls")
        position = self._writer.count
        named = self._sums.find_probed(group)
        if len(named):
            self._probed.append((position + named, group.take(named), _take_hashes(hashes, named)))
        may_count = self._check.may_count(group)
        self._writer.put(group)
        flags = may_count.astype(np.uint8)
        columns = (group.node.tobytes(), group.vault_micro.tobytes(), flags.tobytes())
        for store, values in zip(self._columns, columns, strict=True):
            store.extend(values)
        for store, rows in zip(self._hashes, (hashes.forward, hashes.receipt, hashes.delivery), strict=True):
            store.extend(rows.tobytes())


def _take_hashes(hashes: GroupHashes, rows: npt.NDArray[np.int64]) -> GroupHashes:
    parts: list[Rows] = [hashes.forward[rows], hashes.receipt[rows], hashes.delivery[rows]]
    return GroupHashes(*parts)
