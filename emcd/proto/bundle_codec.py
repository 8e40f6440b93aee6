"""The canonical bytes of a bundle, read and written.

Frames and hash: `bundle_frame.py`. A frame holds one record as its msgpack array (`bundle_item.py`);
in CALLS 4096 calls as columns, then, behind all groups, the directory of their addresses and
manifests, then for each group where its records stand in the batches (`bundle_calls.py`); in BATCHES
256 batches as columns (`bundle_batches.py`). Only the last group is smaller.

Invariant: one content has one byte sequence; whatever decodes encodes to the same bytes again.
Whoever only imports this pays for no numpy: it comes with the first call or batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO
from typing import TYPE_CHECKING, Any

from emcd.proto.bundle import Bundle, BundleHeader, CallEntry
from emcd.proto.bundle_frame import (
    MAGIC,
    MAX_BUNDLE_BYTES,
    MAX_FRAME_BYTES,
    BundleFault,
    Section,
    Source,
)
from emcd.proto.bundle_item import RecordReader, describe_key, sort_key
from emcd.types import Address, Hash

if TYPE_CHECKING:
    from emcd.proto.bundle_groups import GroupReader

__all__ = [
    "MAGIC", "MAX_BUNDLE_BYTES", "MAX_FRAME_BYTES", "BundleFault", "BundleReader", "Section", "Source",
    "compute_bundle_hash", "decode_bundle", "describe_key", "encode_bundle", "find_call", "iter_calls",
    "iter_section", "read_batch_leaves", "read_call_ids", "read_header", "sort_key",
]  # fmt: skip


class BundleReader:
    """A bundle's bytes, opened: frames are checked and decoded when they are asked for."""

    def __init__(self, data: Source) -> None:
        """Raises: BundleFault EMC-1901 (damaged), EMC-1903 (too large)."""
        self._records = RecordReader(data)
        self._header: BundleHeader | None = None
        self._groups: GroupReader | None = None

    @property
    def counts(self) -> list[int]:
        """How many records each section has."""
        return self._records.counts

    @property
    def header(self) -> BundleHeader:
        """Raises: BundleFault EMC-1901, EMC-1902."""
        if self._header is None:
            self._header = next(self._records.records(Section.HEADER))
        return self._header

    @property
    def groups(self) -> GroupReader:
        """Calls and batches as columns. Raises: BundleFault EMC-1901, EMC-1902."""
        if self._groups is None:
            from emcd.proto.bundle_groups import GroupReader

            self._groups = GroupReader(self._records, self.header.hub)
        return self._groups

    def bundle_hash(self) -> Hash:
        """The hash that hub and validators sign. Raises: BundleFault EMC-1901."""
        return self._records.bundle_hash()

    def items(self, section: Section) -> Iterator[Any]:
        """The section's structs in order.

        Raises: BundleFault EMC-1901, EMC-1902 (not canonical), EMC-1904 (not strictly sorted),
        EMC-1912 (a call's record stands in no batch of the bundle).
        """
        if section is Section.CALLS:
            return self.groups.iter_entries()
        if section is Section.BATCHES:
            return self.groups.iter_batches()
        return self._records.records(section)


def encode_bundle(bundle: Bundle) -> bytes:
    """The canonical bytes.

    Raises: LocalProtocolError EMC-1902 (a field holds what it may not, or what does not follow from
    the others), EMC-1904 (not sorted).
    """
    from emcd.proto.bundle_whole import write_bundle

    out = BytesIO()
    write_bundle(bundle, out)
    return out.getvalue()


def decode_bundle(data: Source) -> Bundle:
    """Decode a whole bundle into memory; `BundleReader` streams.

    Raises: BundleFault EMC-1901 (damaged), 1902 (not canonical), 1903 (too large), 1904 (not sorted).
    """
    reader = BundleReader(data)
    header, *rest = (tuple(reader.items(section)) for section in Section)
    return Bundle(header[0], *rest)


def compute_bundle_hash(data: Source) -> Hash:
    """The bundle hash of framed bytes. Raises: BundleFault EMC-1901, EMC-1903."""
    return BundleReader(data).bundle_hash()


def read_header(data: Source) -> BundleHeader:
    """The header alone. Raises: BundleFault EMC-1901 to EMC-1903."""
    return BundleReader(data).header


def iter_section(data: Source, section: Section) -> Iterator[Any]:
    """The structs of one section. Raises: BundleFault as `decode_bundle`, while it iterates."""
    return BundleReader(data).items(section)


def find_call(reader: BundleReader, call_id: bytes) -> tuple[int, CallEntry] | None:
    """A call and its position among the bundle's calls. Raises: BundleFault."""
    return reader.groups.find(call_id)


def iter_calls(
    reader: BundleReader, node: Address | None = None, router: Address | None = None
) -> Iterator[CallEntry]:
    """The calls in order: all, or those of a node, or through a router. Raises: BundleFault."""
    return reader.groups.iter_entries(node, router)


def read_call_ids(reader: BundleReader) -> bytes:
    """All call ids, ascending, 16 bytes each, joined. Raises: BundleFault."""
    return reader.groups.read_call_ids()


def read_batch_leaves(reader: BundleReader, batch: int) -> list[bytes]:
    """The record hashes of a batch in order, drawn from its calls and its other records.

    Most of the bundle is read for it: a batch's calls stand anywhere. Raises: BundleFault; IndexError
    when there is no such batch.
    """
    return reader.groups.read_batch_leaves(batch)
