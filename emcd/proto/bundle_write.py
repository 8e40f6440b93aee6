"""Writes a bundle frame by frame into a seekable file: what it is over is known only at the end.

The sections come in order; a section's count and size are filled in when it is closed, the header
when the round's result is known. Memory: one group, and 32 bytes for every frame written.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import BinaryIO

import msgspec

from emcd.errors import LocalProtocolError
from emcd.proto.address import address_from_bytes
from emcd.proto.bundle import BatchEntry, BundleHeader
from emcd.proto.bundle_batches import pack_batches
from emcd.proto.bundle_calls import (
    CallGroup,
    CallPlaces,
    Directory,
    pack_directory,
    pack_group,
    pack_places,
)
from emcd.proto.bundle_frame import (
    GROUP_BATCHES,
    GROUP_CALLS,
    MAGIC,
    MAX_BUNDLE_BYTES,
    MAX_FRAME_BYTES,
    MAX_ITEMS,
    SECTION_PREFIX_BYTES,
    Section,
    SectionHash,
    combine_hashes,
    frame,
)
from emcd.proto.bundle_item import encode_item, require_sorted
from emcd.proto.bundle_table import FirstUse
from emcd.types import Address, Hash


class BundleWriter:
    """One bundle, from the file's current position on."""

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self._began = out.tell()
        self._hashes: list[Hash] = []
        self._section_at = 0
        self._hash = SectionHash()
        out.write(MAGIC)

    def write_items(self, section: Section, items: Iterable[msgspec.Struct]) -> None:
        """A whole section of single records. Raises: LocalProtocolError EMC-1902, EMC-1904."""
        rows = tuple(items)
        require_sorted(section, rows)
        self.open_section(section)
        for item in rows:
            self.put(encode_item(section, item))
        self.close_section(len(rows))

    def open_section(self, section: Section) -> None:
        assert section == len(self._hashes), "sections come in order"
        self._section_at = self._out.tell()
        self._hash = SectionHash()
        self._out.write(bytes(SECTION_PREFIX_BYTES))

    def put(self, content: bytes) -> None:
        """One frame of the open section. Raises: LocalProtocolError EMC-1903."""
        if len(content) > MAX_FRAME_BYTES:
            section = Section(len(self._hashes)).label
            raise LocalProtocolError("EMC-1903", f"{section}: a record of {len(content)} bytes")
        self._out.write(frame(content))
        self._out.write(content)
        self._hash.add(content)

    def close_section(self, count: int) -> None:
        """Fill in count and size of the open section. Raises: LocalProtocolError EMC-1903."""
        section = Section(len(self._hashes))
        if count > MAX_ITEMS[section]:
            detail = f"{section.label}: {count} records, {MAX_ITEMS[section]} allowed"
            raise LocalProtocolError("EMC-1903", detail)
        end = self._out.tell()
        size = end - self._section_at - SECTION_PREFIX_BYTES
        self._out.seek(self._section_at)
        self._out.write(count.to_bytes(4, "big") + size.to_bytes(8, "big"))
        self._out.seek(end)
        self._hashes.append(self._hash.digest(count))

    def finish(self, header: BundleHeader) -> tuple[Hash, int]:
        """Write the header anew over the first one, which had the same size.

        Returns: bundle hash, size in bytes. Raises: LocalProtocolError EMC-1903.
        """
        end = self._out.tell()
        size = end - self._began
        if size > MAX_BUNDLE_BYTES:
            raise LocalProtocolError("EMC-1903", f"{size} bytes, {MAX_BUNDLE_BYTES} allowed")
        content = encode_item(Section.HEADER, header)
        self._out.seek(self._began + len(MAGIC) + SECTION_PREFIX_BYTES)
        self._out.write(frame(content) + content)
        self._out.seek(end)
        own = SectionHash()
        own.add(content)
        return combine_hashes([own.digest(1), *self._hashes[1:]]), size


class CallWriter:
    """The CALLS section: groups as they come, then the directory, then the places.

    `directory` says what the numbers of the groups given mean; those written are of first use.
    """

    def __init__(self, writer: BundleWriter) -> None:
        self._writer = writer
        self.count = 0
        self._nodes, self._routers, self._models = FirstUse(), FirstUse(), FirstUse()
        self._listed: tuple[list[bytes], list[bytes], list[bytes]] = ([], [], [])
        writer.open_section(Section.CALLS)

    def put(self, group: CallGroup) -> None:
        """The next group: 4096 calls, fewer only in the last."""
        assert 0 < len(group) <= GROUP_CALLS
        assert self.count % GROUP_CALLS == 0
        group.node = self._nodes.renumber(group.node)
        group.router = self._routers.renumber(group.router)
        group.model = self._models.renumber(group.model)
        self._writer.put(pack_group(group))
        self.count += len(group)

    def put_directory(self, directory: Directory) -> list[Address]:
        """After the last group. Returns: the nodes in their final order."""
        orders = (self._nodes.order, self._routers.order, self._models.order)
        known = (directory.nodes, directory.routers, directory.models)
        self._listed = tuple(
            [rows[i].tobytes() for i in order] for order, rows in zip(orders, known, strict=True)
        )  # type: ignore[assignment]
        if self.count:
            self._writer.put(pack_directory(*self._listed))
        return list(map(address_from_bytes, self._listed[0]))

    def put_places(self, places: CallPlaces) -> None:
        """Where the records of all calls stand; closes the section."""
        for start in range(0, self.count, GROUP_CALLS):
            part = slice(start, start + GROUP_CALLS)
            self._writer.put(
                pack_places(CallPlaces(places.forward[part], places.receipt[part], places.delivery[part]))
            )
        self._writer.close_section(self.count)


def write_batches(writer: BundleWriter, entries: Sequence[BatchEntry], signers: dict[Address, int]) -> None:
    """The BATCHES section; the entries have their shape. Raises: LocalProtocolError EMC-1902, EMC-1904."""
    require_sorted(Section.BATCHES, entries)
    writer.open_section(Section.BATCHES)
    for start in range(0, len(entries), GROUP_BATCHES):
        part = entries[start : start + GROUP_BATCHES]
        for entry in part:
            if entry.signer not in signers:
                raise LocalProtocolError("EMC-1902", f"batches: {entry.signer} is the node of no call")
        writer.put(pack_batches(part, signers))
    writer.close_section(len(entries))


def number_signers(hub: Address, nodes: Iterable[Address]) -> dict[Address, int]:
    """The numbers under which batches name who signed them."""
    return {**{node: number for number, node in enumerate(nodes, 1)}, hub: 0}
