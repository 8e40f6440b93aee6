"""The frames of a bundle's bytes: sections, their records, checksums, and the hash over them.

Layout, numbers big-endian: MAGIC, then the sections of `Section` in order, each a u32 count, the u64
size of what follows in bytes, and frames: a u32 length, the u32 CRC-32 of the content, the content.
A frame holds one record, except in CALLS and BATCHES, whose frames are groups (`bundle_codec.py`).
section hash = keccak(u32 count || keccak(content of frame 0) || ...); bundle hash = keccak(MAGIC ||
section hash 0 || ... || section hash 11).

The checksum is not security, the hash is: it says which frame a damaged byte is in. Knows frames,
not what is in them; a source is anything that gives slices of bytes, a file mapped into memory too.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntEnum
from typing import Protocol
from zlib import crc32

import sha3

from emcd.errors import RemoteProtocolError
from emcd.proto.hashing import keccak
from emcd.types import Hash

MAGIC = b"EMCDBDL3"
MAX_BUNDLE_BYTES = 1 << 30
MAX_FRAME_BYTES = 16 << 20
GROUP_CALLS = 4096
GROUP_BATCHES = 256
PREFIX_BYTES = 8
SECTION_PREFIX_BYTES = 12


class Section(IntEnum):
    """The sections in the order of the wire."""

    HEADER = 0
    PARTICIPANTS = 1
    VALIDATORS = 2
    TOTALS = 3
    CALLS = 4
    BATCHES = 5
    STATUSES = 6
    COMMITMENTS = 7
    REVEALS = 8
    VOTES = 9
    DEPOSITS = 10
    RESULTS = 11

    @property
    def label(self) -> str:
        return self.name.lower()


MAX_ITEMS = (1, 1 << 17, 256, 1 << 22, 1 << 22, 1 << 22, 1 << 17, 256, 256, 1 << 20, 1 << 20, 1 << 18)


class BundleFault(RemoteProtocolError):
    """A fault in a bundle's bytes, with the place: section, index and key of the record."""

    def __init__(self, code: str, section: Section, index: int, record: str, detail: str) -> None:
        self.section = section
        self.index = index
        self.record = record
        self.reason = detail
        where = f"{section.label}[{index}]" + (f" {record}" if record else "")
        super().__init__(code, f"{where}: {detail}")


class Source(Protocol):
    """Bytes by slices: bytes, a memory map, a file that is compressed at rest."""

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice, /) -> bytes: ...


def frame(content: bytes) -> bytes:
    """The bytes before a frame's content."""
    return len(content).to_bytes(4, "big") + crc32(content).to_bytes(4, "big")


def count_groups(section: Section, count: int) -> int:
    """How many groups so many records make; a section without groups has them one by one."""
    size = {Section.CALLS: GROUP_CALLS, Section.BATCHES: GROUP_BATCHES}.get(section, 1)
    return -(-count // size)


def count_frames(section: Section, count: int) -> int:
    """How many frames a section of so many records has; calls: groups, directory, places."""
    groups = count_groups(section, count)
    return 2 * groups + bool(groups) if section is Section.CALLS else groups


class SectionHash:
    """The hash of a section, frame by frame; the count may be known last."""

    def __init__(self) -> None:
        self._frames: list[bytes] = []

    def add(self, content: bytes) -> None:
        self._frames.append(keccak(content))

    def digest(self, count: int) -> Hash:
        state = sha3.keccak_256(count.to_bytes(4, "big"))
        for item in self._frames:
            state.update(item)
        return Hash(state.digest())


def combine_hashes(sections: list[Hash]) -> Hash:
    """The bundle hash of the section hashes in order."""
    return keccak(MAGIC + b"".join(sections))


class FrameReader:
    """A bundle's sections by their sizes; a frame is checked when it is read."""

    def __init__(self, data: Source) -> None:
        """Raises: BundleFault EMC-1901 (damaged), EMC-1903 (too large)."""
        self._data = data
        self._starts: list[int] = []
        self._ends: list[int] = []
        self._offsets: dict[Section, list[int]] = {}
        self.counts: list[int] = []
        if len(data) > MAX_BUNDLE_BYTES:
            raise BundleFault(
                "EMC-1903", Section.HEADER, 0, "", f"{len(data)} bytes are more than a bundle has"
            )
        _require_magic(bytes(data[0 : len(MAGIC)]))
        offset = len(MAGIC)
        for section in Section:
            offset = self._open_section(section, offset)
        if offset != len(data):
            raise BundleFault(
                "EMC-1901", Section.RESULTS, self.counts[-1], "end", f"{len(data) - offset} bytes too many"
            )

    def _open_section(self, section: Section, offset: int) -> int:
        prefix = bytes(self._data[offset : offset + SECTION_PREFIX_BYTES])
        if len(prefix) < SECTION_PREFIX_BYTES:
            raise BundleFault("EMC-1901", section, 0, "count", "the bundle ends here")
        count, size = int.from_bytes(prefix[:4], "big"), int.from_bytes(prefix[4:], "big")
        if count > MAX_ITEMS[section] or (section is Section.HEADER and count != 1):
            raise BundleFault(
                "EMC-1903", section, 0, "count", f"{count} records, {MAX_ITEMS[section]} allowed"
            )
        start = offset + SECTION_PREFIX_BYTES
        if start + size > len(self._data):
            raise BundleFault("EMC-1901", section, 0, "size", "the section is longer than the bundle")
        if size < PREFIX_BYTES * count_frames(section, count):
            raise BundleFault("EMC-1901", section, 0, "size", f"{count} records don't fit into {size} bytes")
        self.counts.append(count)
        self._starts.append(start)
        self._ends.append(start + size)
        return start + size

    def frames(self, section: Section, first: int = 0) -> Iterator[tuple[int, bytes, bool]]:
        """(number, content, is it whole) of the frames from one on.

        Raises: BundleFault EMC-1901 on a frame that leaves its section.
        """
        total = count_frames(section, self.counts[section])
        offset = self._starts[section] if not first else self._offset_of(section, first)
        prefix = bytes(self._data[offset : offset + PREFIX_BYTES])
        for number in range(first, total):
            start = offset + PREFIX_BYTES
            end = self._end_of(section, number, start, prefix)
            block = bytes(self._data[start : end + PREFIX_BYTES])
            content = block[: end - start]
            yield number, content, crc32(content) == int.from_bytes(prefix[4:8], "big")
            offset, prefix = end, block[end - start :]
        if offset != self._ends[section]:
            raise BundleFault(
                "EMC-1901", section, self.counts[section], "end", "bytes that belong to no record"
            )

    def read_frame(self, section: Section, number: int) -> tuple[bytes, bool]:
        """One frame: content, and is it whole. Raises: BundleFault EMC-1901."""
        offset = self._offset_of(section, number)
        prefix = bytes(self._data[offset : offset + PREFIX_BYTES])
        start = offset + PREFIX_BYTES
        content = bytes(self._data[start : self._end_of(section, number, start, prefix)])
        return content, crc32(content) == int.from_bytes(prefix[4:8], "big")

    def _end_of(self, section: Section, number: int, start: int, prefix: bytes) -> int:
        end = start + int.from_bytes(prefix[:4], "big")
        if len(prefix) < PREFIX_BYTES or start > self._ends[section] or end > self._ends[section]:
            detail = "the record is longer than the rest of its section"
        elif end - start > MAX_FRAME_BYTES:
            detail = f"{end - start} bytes are more than a record has"
        else:
            return end
        raise BundleFault("EMC-1901", section, first_record(section, number, self.counts), "length", detail)

    def _offset_of(self, section: Section, number: int) -> int:
        """Where a frame begins; the way there is remembered."""
        known = self._offsets.setdefault(section, [self._starts[section]])
        while len(known) <= number:
            start = known[-1] + PREFIX_BYTES
            prefix = bytes(self._data[known[-1] : start])
            known.append(self._end_of(section, len(known) - 1, start, prefix))
        return known[number]


def first_record(section: Section, number: int, counts: list[int]) -> int:
    """The index of the first record that a frame is about."""
    if section is Section.BATCHES:
        return number * GROUP_BATCHES
    if section is not Section.CALLS:
        return number
    groups = count_groups(section, counts[section])
    if number == groups:
        return 0
    return (number if number < groups else number - groups - 1) * GROUP_CALLS


def _require_magic(found: bytes) -> None:
    if found == MAGIC:
        return
    detail = "these are not the bytes of a bundle"
    if found[:-1] == MAGIC[:-1] and found[-1:].isdigit():
        detail = f"this is a bundle of format {found[-1:].decode()}, this program reads {MAGIC[-1:].decode()}"
    raise BundleFault("EMC-1901", Section.HEADER, 0, "magic", detail)
