"""A bundle that is whole in memory, written: for small ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import BinaryIO

import numpy as np

from emcd.errors import LocalProtocolError
from emcd.proto.address import address_bytes
from emcd.proto.bundle import BatchEntry, Bundle, CallEntry, RecordRef
from emcd.proto.bundle_calls import CallPlaces, hash_group
from emcd.proto.bundle_column import U64
from emcd.proto.bundle_frame import GROUP_CALLS, Section
from emcd.proto.bundle_item import require_own_shape, require_sorted
from emcd.proto.bundle_table import CallTable
from emcd.proto.bundle_write import BundleWriter, CallWriter, number_signers, write_batches
from emcd.types import Address


def write_bundle(bundle: Bundle, out: BinaryIO) -> None:
    """Raises: LocalProtocolError EMC-1902, EMC-1904."""
    writer = BundleWriter(out)
    for section in Section:
        if section is Section.CALLS:
            nodes = _write_calls(writer, bundle)
        elif section is Section.BATCHES:
            for entry in bundle.batches:
                require_own_shape(section, entry)
            write_batches(writer, bundle.batches, number_signers(bundle.header.hub, nodes))
        else:
            value = getattr(bundle, section.label)
            writer.write_items(section, (value,) if section is Section.HEADER else value)
    writer.finish(bundle.header)


def _write_calls(writer: BundleWriter, bundle: Bundle) -> list[Address]:
    require_sorted(Section.CALLS, bundle.calls)
    table, calls = CallTable(), CallWriter(writer)
    for start in range(0, len(bundle.calls), GROUP_CALLS):
        part = bundle.calls[start : start + GROUP_CALLS]
        for entry in part:
            require_own_shape(Section.CALLS, entry)
        group, stated = table.make_columns([(e.forward, e.receipt, e.delivery) for e in part])
        hashes = hash_group(group, table.directory, address_bytes(bundle.header.hub))
        follows = (
            [entry.forward.hub == bundle.header.hub for entry in part]
            & (stated.forward == hashes.forward).all(axis=1)
            & (stated.receipt == hashes.receipt).all(axis=1)
            & (stated.delivery == hashes.forward).all(axis=1)
        )
        if not follows.all():
            index = start + int(np.flatnonzero(~follows)[0])
            detail = "its records name another hub, forward or receipt than their own"
            raise LocalProtocolError("EMC-1902", f"calls[{index}]: {detail}")
        calls.put(group)
    nodes = calls.put_directory(table.directory)
    calls.put_places(_places(bundle.calls, bundle.batches))
    return nodes


def _places(calls: Sequence[CallEntry], batches: Sequence[BatchEntry]) -> CallPlaces:
    offsets = [0]
    for batch in batches:
        offsets.append(offsets[-1] + batch.count)

    def place(ref: RecordRef | None) -> int:
        if ref is None:
            return 0
        if ref.batch >= len(batches) or ref.leaf >= batches[ref.batch].count:
            raise LocalProtocolError("EMC-1902", f"calls: batch {ref.batch} has no leaf {ref.leaf}")
        return offsets[ref.batch] + ref.leaf + 1

    def column(refs: list[RecordRef | None]) -> U64:
        return np.array(list(map(place, refs)), np.uint64)

    return CallPlaces(
        column([call.forward_ref for call in calls]),
        column([call.receipt_ref for call in calls]),
        column([call.delivery_ref for call in calls]),
    )
