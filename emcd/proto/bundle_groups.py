"""Calls and batches of a bundle, read group by group, in order or one by one.

Memory: one group, the directory, and 8 bytes a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from emcd.errors import RemoteProtocolError
from emcd.proto.address import address_bytes, address_from_bytes
from emcd.proto.bundle import BatchEntry, CallEntry, RecordRef
from emcd.proto.bundle_batches import batch_key, unpack_batches
from emcd.proto.bundle_calls import (
    CallGroup,
    CallPlaces,
    Directory,
    UseOrder,
    hash_group,
    require_known,
    unpack_directory,
    unpack_group,
    unpack_places,
)
from emcd.proto.bundle_column import U64, as_strings, rows_of
from emcd.proto.bundle_frame import (
    GROUP_BATCHES,
    GROUP_CALLS,
    MAX_ITEMS,
    BundleFault,
    Section,
    count_groups,
)
from emcd.proto.bundle_item import RecordReader, describe_key, name_calls
from emcd.proto.bundle_table import iter_records
from emcd.proto.records import RecordKind
from emcd.types import Address

T = TypeVar("T")
_KIND_OF_PLACE = {
    RecordKind.FORWARD: "forward",
    RecordKind.RECEIPT: "receipt",
    RecordKind.DELIVERY: "delivery",
}


class GroupReader:
    """The groups of one bundle."""

    def __init__(self, records: RecordReader, hub: Address) -> None:
        self._records = records
        self._hub = hub
        self.calls = records.counts[Section.CALLS]
        self.batches = records.counts[Section.BATCHES]
        self._groups = count_groups(Section.CALLS, self.calls)

    @cached_property
    def directory(self) -> Directory:
        """What the numbers of node, router and model mean. Raises: BundleFault EMC-1901 to EMC-1903."""
        if not self._groups:
            return Directory(rows_of([], 20), rows_of([], 20), rows_of([], 32))
        content = self._records.content(Section.CALLS, self._groups)
        known = _placed(Section.CALLS, 0, "directory", lambda: unpack_directory(content))
        if len(known.nodes) > MAX_ITEMS[Section.RESULTS]:
            detail = f"{len(known.nodes)} nodes, {MAX_ITEMS[Section.RESULTS]} have a result"
            raise BundleFault("EMC-1903", Section.CALLS, 0, "directory", detail)
        return known

    @cached_property
    def signers(self) -> list[Address]:
        """Who may have signed a batch, by the number of the batch's column: the hub, then the nodes."""
        return [self._hub, *(address_from_bytes(row.tobytes()) for row in self.directory.nodes)]

    @cached_property
    def offsets(self) -> npt.NDArray[np.int64]:
        """How many leaves stand before each batch, and in all. Raises: BundleFault."""
        counts = [entry.count for entry in self.iter_batches()]
        return np.concatenate((np.zeros(1, np.int64), np.cumsum(np.array(counts, np.int64))))

    # ------------------------------------------------------------------ in order

    def iter_groups(self) -> Iterator[tuple[int, CallGroup, CallPlaces]]:
        """(index of the first call, calls, places) of all groups, everything about them checked.

        Raises: BundleFault EMC-1901, EMC-1902, EMC-1904.
        """
        order = UseOrder(self.directory)
        last = b""
        groups = self._records.contents(Section.CALLS)
        places = self._records.contents(Section.CALLS, self._groups + 1 if self._groups else 0)
        for number in range(self._groups):
            group = self._unpack(number, next(groups))
            first = number * GROUP_CALLS
            last = self._require_ascending(first, group, last)
            _placed(Section.CALLS, first, _name(group), lambda: order.add(group))  # noqa: B023
            yield first, group, self._unpack_places(number, next(places), group)
        for _ in places:
            pass  # reading to the end finds bytes that belong to no group
        _placed(Section.CALLS, self.calls, "directory", order.require_end)

    def iter_entries(self, node: Address | None = None, router: Address | None = None) -> Iterator[CallEntry]:
        """The calls in order; of one node, or through one router. Raises: BundleFault."""
        for first, group, places in self.iter_groups():
            chosen = self._rows_of(group, node, router)
            yield from self._entries(first, group, places, chosen)

    def iter_batches(self) -> Iterator[BatchEntry]:
        """Raises: BundleFault EMC-1901, EMC-1902, EMC-1904."""
        last: tuple[int, bytes, int, bytes] | None = None
        for number, content in enumerate(self._records.contents(Section.BATCHES)):
            for row, entry in enumerate(self._unpack_batches(number, content)):
                key = batch_key(entry)
                if last is not None and key <= last:
                    name = describe_key(Section.BATCHES, entry)
                    index = number * GROUP_BATCHES + row
                    raise BundleFault("EMC-1904", Section.BATCHES, index, name, "not sorted by its key")
                last = key
                yield entry

    # ------------------------------------------------------------------ one by one

    def find(self, call_id: bytes) -> tuple[int, CallEntry] | None:
        """Raises: BundleFault."""
        low, high = 0, self._groups
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if call_id < self._first_id(middle) else (middle, high)
        if not self._groups:
            return None
        group = self._unpack(low, self._records.content(Section.CALLS, low))
        rows = np.flatnonzero((group.call_id == np.frombuffer(call_id, np.uint8)).all(axis=1))
        if not len(rows):
            return None
        content = self._records.content(Section.CALLS, self._groups + 1 + low)
        places, first = self._unpack_places(low, content, group), low * GROUP_CALLS
        return first + int(rows[0]), next(self._entries(first, group, places, rows))

    def read_call_ids(self) -> bytes:
        """Raises: BundleFault."""
        parts, last = [], b""
        for number in range(self._groups):
            count = self._size_of(number)
            content = self._records.content(Section.CALLS, number)
            group = self._unpack(number, content)
            last = self._require_ascending(number * GROUP_CALLS, group, last)
            parts.append(content[: 16 * count])
        return b"".join(parts)

    def read_batch_leaves(self, batch: int) -> list[bytes]:
        """Raises: BundleFault; IndexError."""
        if not 0 <= batch < self.batches:
            raise IndexError(f"the bundle has no batch {batch}")
        number, row = divmod(batch, GROUP_BATCHES)
        entry = self._unpack_batches(number, self._records.content(Section.BATCHES, number))[row]
        start, end = int(self.offsets[batch]), int(self.offsets[batch + 1])
        leaves: dict[int, bytes] = dict(entry.others)
        name = _KIND_OF_PLACE.get(RecordKind(entry.kind)) if entry.kind in _KIND_OF_PLACE else None
        for group_number in range(self._groups) if name else ():
            content = self._records.content(Section.CALLS, self._groups + 1 + group_number)
            places = _placed(
                Section.CALLS,
                group_number * GROUP_CALLS,
                "",
                lambda: unpack_places(content, self._size_of(group_number)),  # noqa: B023
            )
            column: U64 = getattr(places, str(name))
            rows = np.flatnonzero((column > start) & (column <= end))
            if len(rows):
                own = self._unpack(group_number, self._records.content(Section.CALLS, group_number))
                hashes = hash_group(own.take(rows), self.directory, address_bytes(self._hub))
                for leaf, record_hash in zip(
                    (column[rows] - np.uint64(start + 1)).tolist(), getattr(hashes, str(name)), strict=True
                ):
                    leaves[leaf] = record_hash.tobytes()
        if sorted(leaves) != list(range(entry.count)):
            place = describe_key(Section.BATCHES, entry)
            raise BundleFault("EMC-1910", Section.BATCHES, batch, place, "not all of its leaves are there")
        return [leaves[leaf] for leaf in range(entry.count)]

    # ------------------------------------------------------------------ inside

    def _size_of(self, number: int) -> int:
        return min(GROUP_CALLS, self.calls - number * GROUP_CALLS)

    def _first_id(self, number: int) -> bytes:
        return self._records.content(Section.CALLS, number)[:16]

    def _unpack(self, number: int, content: bytes) -> CallGroup:
        count = self._size_of(number)
        name = name_calls(content[:16], content[16 * count - 16 : 16 * count])

        def unpack() -> CallGroup:
            group = unpack_group(content, count)
            require_known(group, self.directory)
            return group

        return _placed(Section.CALLS, number * GROUP_CALLS, name, unpack)

    def _unpack_places(self, number: int, content: bytes, group: CallGroup) -> CallPlaces:
        return _placed(
            Section.CALLS, number * GROUP_CALLS, _name(group), lambda: unpack_places(content, len(group))
        )

    def _unpack_batches(self, number: int, content: bytes) -> list[BatchEntry]:
        first = number * GROUP_BATCHES
        count = min(GROUP_BATCHES, self.batches - first)
        return _placed(Section.BATCHES, first, "", lambda: unpack_batches(content, count, self.signers))

    def _require_ascending(self, first: int, group: CallGroup, last: bytes) -> bytes:
        ids = as_strings(group.call_id)
        wrong = np.flatnonzero(ids[1:] <= ids[:-1]) + 1
        if last and group.call_id[0].tobytes() <= last:
            wrong = np.zeros(1, np.int64)
        if len(wrong):
            row = int(wrong[0])
            name = name_calls(group.call_id[row].tobytes(), group.call_id[row].tobytes())
            raise BundleFault("EMC-1904", Section.CALLS, first + row, name, "not sorted by its key")
        return bytes(group.call_id[-1])

    def _rows_of(
        self, group: CallGroup, node: Address | None, router: Address | None
    ) -> npt.NDArray[np.int64]:
        mask = np.ones(len(group), np.bool_)
        for wanted, known, column in (
            (node, self.directory.nodes, group.node),
            (router, self.directory.routers, group.router),
        ):
            if wanted is not None:
                numbers = np.flatnonzero(
                    (known == np.frombuffer(address_bytes(wanted), np.uint8)).all(axis=1)
                )
                mask &= np.isin(column, numbers.astype(np.uint64))
        return np.flatnonzero(mask)

    def _entries(
        self, first: int, group: CallGroup, places: CallPlaces, rows: npt.NDArray[np.int64]
    ) -> Iterator[CallEntry]:
        if not len(rows):
            return
        part = group.take(rows)
        hashes = hash_group(part, self.directory, address_bytes(self._hub))
        columns = [
            self._refs(first, rows, group, c[rows]) for c in (places.forward, places.receipt, places.delivery)
        ]
        records = iter_records(part, hashes, self.directory, self._hub)
        for record, *refs in zip(records, *columns, strict=True):
            yield CallEntry(*record, *refs)

    def _refs(
        self, first: int, rows: npt.NDArray[np.int64], group: CallGroup, column: U64
    ) -> list[RecordRef | None]:
        slots = column.astype(np.int64) - 1
        batches = np.searchsorted(self.offsets, slots, side="right") - 1
        lost = np.flatnonzero(batches >= self.batches)
        if len(lost):
            row = int(rows[lost[0]])
            name = name_calls(group.call_id[row].tobytes(), group.call_id[row].tobytes())
            detail = f"it refers to leaf {int(slots[lost[0]])}, the batches have {int(self.offsets[-1])}"
            raise BundleFault("EMC-1912", Section.CALLS, first + row, name, detail)
        leaves = slots - self.offsets[np.maximum(batches, 0)]
        return [
            None if slot < 0 else RecordRef(batch, leaf)
            for slot, batch, leaf in zip(slots.tolist(), batches.tolist(), leaves.tolist(), strict=True)
        ]


def _name(group: CallGroup) -> str:
    return name_calls(group.call_id[0].tobytes(), group.call_id[-1].tobytes())


def _placed(section: Section, index: int, record: str, work: Callable[[], T]) -> T:
    """Name the place of what is wrong with a frame's content."""
    try:
        return work()
    except BundleFault:
        raise
    except RemoteProtocolError as exc:
        raise BundleFault(exc.code, section, index, record, exc.detail) from exc
