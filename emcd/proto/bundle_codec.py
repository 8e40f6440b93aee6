"""The canonical bytes of a bundle, and their hash.

Layout, numbers big-endian: MAGIC, then the sections of `Bundle` in order, each a u32 count and
that many items; an item is a u32 length, the u32 CRC-32 of its content, and its content, the
msgpack array of the struct. The header is a section of one item. The bundle hash is
keccak(MAGIC || keccak(section 0) || ... || keccak(section 11)), a section's count included.

The checksum is not security, the hash is: it says which record a damaged byte is in. Invariant:
one content has one byte sequence; whatever decodes encodes to the same bytes again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import IntEnum
from itertools import pairwise
from typing import Any
from zlib import crc32

import msgspec

from emcd.errors import LocalProtocolError, RemoteProtocolError
from emcd.proto.address import address_bytes, address_from_bytes, hex_hash
from emcd.proto.bundle import (
    BatchEntry,
    Bundle,
    BundleHeader,
    CallEntry,
    CommitmentEntry,
    DepositEntry,
    ResultEntry,
    RevealEntry,
    SnapshotEntry,
    StatusEntry,
    Total,
    ValidatorPower,
    VoteEntry,
)
from emcd.proto.bundle_shape import require_shape
from emcd.proto.hashing import keccak
from emcd.types import Hash

MAGIC = b"EMCDBDL1"
MAX_BUNDLE_BYTES = 1 << 30
MAX_ITEM_BYTES = 4 << 20
_PREFIX_BYTES = 8


class Section(IntEnum):
    """The sections in the order of the wire."""

    HEADER = 0
    PARTICIPANTS = 1
    VALIDATORS = 2
    TOTALS = 3
    BATCHES = 4
    CALLS = 5
    STATUSES = 6
    COMMITMENTS = 7
    REVEALS = 8
    VOTES = 9
    DEPOSITS = 10
    RESULTS = 11

    @property
    def label(self) -> str:
        return self.name.lower()


_KINDS: tuple[type[msgspec.Struct], ...] = (
    BundleHeader, SnapshotEntry, ValidatorPower, Total, BatchEntry, CallEntry,
    StatusEntry, CommitmentEntry, RevealEntry, VoteEntry, DepositEntry, ResultEntry,
)  # fmt: skip
_KEYS: tuple[Callable[[Any], tuple[Any, ...]], ...] = (
    lambda item: (item.round,),
    lambda item: (address_bytes(item.node),),
    lambda item: (address_bytes(item.node),),
    lambda item: (address_bytes(item.wallet),),
    lambda item: (address_bytes(item.batch.signer), item.batch.kind, item.batch.root),
    lambda item: (item.forward.call_id,),
    lambda item: (address_bytes(item.status.node),),
    lambda item: (address_bytes(item.commitment.validator),),
    lambda item: (address_bytes(item.reveal.validator),),
    lambda item: (item.vote.call_id, address_bytes(item.vote.validator)),
    lambda item: (item.index,),
    lambda item: (address_bytes(item.node),),
)
_MAX_ITEMS = (1, 1 << 17, 256, 1 << 22, 1 << 22, 1 << 22, 1 << 17, 256, 256, 1 << 17, 1 << 20, 1 << 18)
_encoder = msgspec.msgpack.Encoder()
_decoders: tuple[msgspec.msgpack.Decoder[Any], ...] = tuple(msgspec.msgpack.Decoder(kind) for kind in _KINDS)


class BundleFault(RemoteProtocolError):
    """A fault in a bundle's bytes, with the place: section, index and key of the record."""

    def __init__(self, code: str, section: Section, index: int, record: str, detail: str) -> None:
        self.section = section
        self.index = index
        self.record = record
        self.reason = detail
        where = f"{section.label}[{index}]" + (f" {record}" if record else "")
        super().__init__(code, f"{where}: {detail}")


class BundleReader:
    """A bundle's bytes, opened: every frame and checksum is right; items decode on demand."""

    def __init__(self, data: bytes) -> None:
        """Raises: BundleFault EMC-1901 (damaged), EMC-1903 (too large)."""
        if len(data) > MAX_BUNDLE_BYTES:
            raise BundleFault(
                "EMC-1903", Section.HEADER, 0, "", f"{len(data)} bytes are more than a bundle has"
            )
        if data[: len(MAGIC)] != MAGIC:
            raise BundleFault("EMC-1901", Section.HEADER, 0, "magic", "these are not the bytes of a bundle")
        self._view = memoryview(data)
        self._starts: list[int] = []
        self.counts: list[int] = []
        offset = len(MAGIC)
        for section in Section:
            self._starts.append(offset)
            offset = self._skip_section(section, offset)
        self._starts.append(offset)
        if offset != len(data):
            raise BundleFault(
                "EMC-1901", Section.RESULTS, self.counts[-1], "end", f"{len(data) - offset} bytes too many"
            )

    def _skip_section(self, section: Section, offset: int) -> int:
        view = self._view
        if offset + 4 > len(view):
            raise BundleFault("EMC-1901", section, 0, "count", "the bundle ends here")
        count = int.from_bytes(view[offset : offset + 4], "big")
        if count > _MAX_ITEMS[section] or (section is Section.HEADER and count != 1):
            raise BundleFault(
                "EMC-1903", section, 0, "count", f"{count} records, {_MAX_ITEMS[section]} allowed"
            )
        self.counts.append(count)
        offset += 4
        for index in range(count):
            start = offset + _PREFIX_BYTES
            end = start + int.from_bytes(view[offset : offset + 4], "big")
            if end > len(view) or start > len(view) or end - start > MAX_ITEM_BYTES:
                raise BundleFault(
                    "EMC-1901",
                    section,
                    index,
                    "length",
                    "the record is longer than the rest of the bundle",
                )
            if crc32(view[start:end]) != int.from_bytes(view[offset + 4 : start], "big"):
                name = _guess_key(section, bytes(view[start:end]))
                raise BundleFault("EMC-1901", section, index, name, "the record's bytes are damaged")
            offset = end
        return offset

    def bundle_hash(self) -> Hash:
        """The hash that hub and validators sign."""
        parts = [keccak(bytes(self._view[self._starts[s] : self._starts[s + 1]])) for s in Section]
        return keccak(MAGIC + b"".join(parts))

    def items(self, section: Section) -> Iterator[Any]:
        """The section's structs in order.

        Raises: BundleFault EMC-1902 (not canonical), EMC-1904 (not strictly sorted).
        """
        view, offset = self._view, self._starts[section] + 4
        decode, key_of, encode = _decoders[section].decode, _KEYS[section], _encoder.encode
        last: tuple[Any, ...] | None = None
        for index in range(self.counts[section]):
            end = offset + _PREFIX_BYTES + int.from_bytes(view[offset : offset + 4], "big")
            raw = bytes(view[offset + _PREFIX_BYTES : end])
            offset = end
            try:
                item = decode(raw)
                require_shape(item)
            except RemoteProtocolError as exc:
                raise BundleFault("EMC-1902", section, index, "", exc.detail) from exc
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
                raise BundleFault(
                    "EMC-1902", section, index, "", f"no {_KINDS[section].__name__}: {exc}"
                ) from exc
            if encode(item) != raw:
                raise BundleFault(
                    "EMC-1902", section, index, describe_key(section, item), "not in canonical form"
                )
            key = key_of(item)
            if last is not None and key <= last:
                raise BundleFault(
                    "EMC-1904", section, index, describe_key(section, item), "not sorted by its key"
                )
            last = key
            yield item


def encode_bundle(bundle: Bundle) -> bytes:
    """The canonical bytes.

    Raises: LocalProtocolError EMC-1902 (a field holds what it may not), EMC-1904 (not sorted).
    """
    out = bytearray(MAGIC)
    for section in Section:
        value = getattr(bundle, section.label)
        items = (value,) if section is Section.HEADER else value
        out += len(items).to_bytes(4, "big")
        keys = list(map(_KEYS[section], items))
        for index, (a, b) in enumerate(pairwise(keys)):
            if a >= b:
                raise LocalProtocolError("EMC-1904", f"{section.label}[{index + 1}] is not sorted by its key")
        for item in items:
            try:
                require_shape(item)
            except RemoteProtocolError as exc:
                raise LocalProtocolError("EMC-1902", f"{section.label}: {exc.detail}") from exc
            raw = _encoder.encode(item)
            out += len(raw).to_bytes(4, "big") + crc32(raw).to_bytes(4, "big") + raw
    return bytes(out)


def decode_bundle(data: bytes) -> Bundle:
    """Decode a whole bundle into memory; `BundleReader` streams.

    Raises: BundleFault EMC-1901 (damaged), 1902 (not canonical), 1903 (too large), 1904 (not sorted).
    """
    reader = BundleReader(data)
    header, *rest = (tuple(reader.items(section)) for section in Section)
    return Bundle(header[0], *rest)


def compute_bundle_hash(data: bytes) -> Hash:
    """The bundle hash of framed bytes. Raises: BundleFault EMC-1901, EMC-1903."""
    return BundleReader(data).bundle_hash()


def read_header(data: bytes) -> BundleHeader:
    """The header alone. Raises: BundleFault EMC-1901 to EMC-1903."""
    header: BundleHeader = next(BundleReader(data).items(Section.HEADER))
    return header


def iter_section(data: bytes, section: Section) -> Iterator[Any]:
    """The structs of one section. Raises: BundleFault as `decode_bundle`, while it iterates."""
    return BundleReader(data).items(section)


def sort_key(section: Section, item: msgspec.Struct) -> tuple[Any, ...]:
    """What a section is sorted by."""
    return _KEYS[section](item)


def describe_key(section: Section, item: msgspec.Struct) -> str:
    """The key of a record for people."""
    return " ".join(map(_part_text, _KEYS[section](item)))


def _part_text(part: bytes | int) -> str:
    if isinstance(part, int):
        return str(part)
    return address_from_bytes(part) if len(part) == 20 else hex_hash(part)


def _guess_key(section: Section, raw: bytes) -> str:
    try:
        return describe_key(section, _decoders[section].decode(raw))
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return ""  # the damage is in the key itself, or in what makes it readable
