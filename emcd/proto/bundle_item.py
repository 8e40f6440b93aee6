"""The records of a bundle one by one: msgpack arrays of their structs, checked both ways.

Owns the kind and the key of every section, and names the record of a damaged frame. Sections CALLS
and BATCHES are groups of columns on the wire; of them only keys and names stand here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import msgspec

from emcd.errors import LocalProtocolError, RemoteProtocolError
from emcd.proto.address import address_bytes, address_from_bytes, hex_hash
from emcd.proto.bundle import (
    BatchEntry,
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
from emcd.proto.bundle_frame import (
    GROUP_CALLS,
    BundleFault,
    FrameReader,
    Section,
    SectionHash,
    combine_hashes,
    first_record,
)
from emcd.proto.bundle_shape import require_shape
from emcd.types import Hash

_KINDS: tuple[type[msgspec.Struct], ...] = (
    BundleHeader, SnapshotEntry, ValidatorPower, Total, CallEntry, BatchEntry,
    StatusEntry, CommitmentEntry, RevealEntry, VoteEntry, DepositEntry, ResultEntry,
)  # fmt: skip
_KEYS: tuple[Callable[[Any], tuple[Any, ...]], ...] = (
    lambda item: (item.round,),
    lambda item: (address_bytes(item.node),),
    lambda item: (address_bytes(item.node),),
    lambda item: (address_bytes(item.wallet),),
    lambda item: (item.forward.call_id,),
    lambda item: (item.kind, address_bytes(item.signer), item.signed_at_ms, item.signature),
    lambda item: (address_bytes(item.status.node),),
    lambda item: (address_bytes(item.commitment.validator),),
    lambda item: (address_bytes(item.reveal.validator),),
    lambda item: (item.vote.call_id, address_bytes(item.vote.validator)),
    lambda item: (item.index,),
    lambda item: (address_bytes(item.node),),
)
_SHOWN_KEY_PARTS = {Section.BATCHES: 3}
"""A batch is told by kind, signer and time; its signature would be noise."""
_encode = msgspec.msgpack.Encoder().encode
_decoders: tuple[msgspec.msgpack.Decoder[Any], ...] = tuple(msgspec.msgpack.Decoder(kind) for kind in _KINDS)


def sort_key(section: Section, item: msgspec.Struct) -> tuple[Any, ...]:
    """What a section is sorted by."""
    return _KEYS[section](item)


def describe_key(section: Section, item: msgspec.Struct) -> str:
    """The key of a record for people."""
    return " ".join(map(_part_text, _KEYS[section](item)[: _SHOWN_KEY_PARTS.get(section)]))


def encode_item(section: Section, item: msgspec.Struct) -> bytes:
    """The canonical bytes. Raises: LocalProtocolError EMC-1902."""
    require_own_shape(section, item)
    return _encode(item)


def require_own_shape(section: Section, item: msgspec.Struct) -> None:
    """Raises: LocalProtocolError EMC-1902 when a field holds what it may not."""
    try:
        require_shape(item)
    except RemoteProtocolError as exc:
        raise LocalProtocolError("EMC-1902", f"{section.label}: {exc.detail}") from exc


def require_sorted(section: Section, items: Iterable[msgspec.Struct]) -> None:
    """Raises: LocalProtocolError EMC-1904."""
    last: tuple[Any, ...] | None = None
    for index, item in enumerate(items):
        key = _KEYS[section](item)
        if last is not None and last >= key:
            raise LocalProtocolError("EMC-1904", f"{section.label}[{index}] is not sorted by its key")
        last = key


class RecordReader(FrameReader):
    """Frames whose checksum is right, and the records of the sections that are no columns."""

    def contents(self, section: Section, first: int = 0) -> Iterator[bytes]:
        """What is in a section's frames. Raises: BundleFault EMC-1901."""
        for number, content, is_whole in self.frames(section, first):
            if not is_whole:
                raise self._damaged(section, number, content)
            yield content

    def content(self, section: Section, number: int) -> bytes:
        """What is in one frame. Raises: BundleFault EMC-1901."""
        content, is_whole = self.read_frame(section, number)
        if not is_whole:
            raise self._damaged(section, number, content)
        return content

    def bundle_hash(self) -> Hash:
        """The hash that hub and validators sign. Raises: BundleFault EMC-1901."""
        hashes = []
        for section in Section:
            own = SectionHash()
            for content in self.contents(section):
                own.add(content)
            hashes.append(own.digest(self.counts[section]))
        return combine_hashes(hashes)

    def records(self, section: Section) -> Iterator[Any]:
        """The structs of a section of single records, in order.

        Raises: BundleFault EMC-1901, EMC-1902 (not canonical), EMC-1904 (not strictly sorted).
        """
        key_of = _KEYS[section]
        last: tuple[Any, ...] | None = None
        for index, content in enumerate(self.contents(section)):
            item = _decode(section, index, content)
            key = key_of(item)
            if last is not None and key <= last:
                raise BundleFault(
                    "EMC-1904", section, index, describe_key(section, item), "not sorted by its key"
                )
            last = key
            yield item

    def _damaged(self, section: Section, number: int, content: bytes) -> BundleFault:
        index = first_record(section, number, self.counts)
        name = _guess_key(section, content)
        if section is Section.CALLS and number < -(-self.counts[section] // GROUP_CALLS):
            last = min(GROUP_CALLS, self.counts[section] - index) - 1
            name = name_calls(content[:16], content[16 * last : 16 * last + 16])
        return BundleFault("EMC-1901", section, index, name, "the record's bytes are damaged")


def name_calls(first: bytes, last: bytes) -> str:
    """The calls of a group for people, by the ids of the first and the last."""
    return hex_hash(first) if first == last else f"{hex_hash(first)} to {hex_hash(last)}"


def _decode(section: Section, index: int, content: bytes) -> Any:
    try:
        item = _decoders[section].decode(content)
        require_shape(item)
    except RemoteProtocolError as exc:
        raise BundleFault("EMC-1902", section, index, "", exc.detail) from exc
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise BundleFault("EMC-1902", section, index, "", f"no {_KINDS[section].__name__}: {exc}") from exc
    if _encode(item) != content:
        raise BundleFault("EMC-1902", section, index, describe_key(section, item), "not in canonical form")
    return item


def _guess_key(section: Section, content: bytes) -> str:
    """The key of a damaged record, or nothing when the damage is in what makes it readable."""
    try:
        return describe_key(section, _decoders[section].decode(content))
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return ""


def _part_text(part: bytes | int) -> str:
    if isinstance(part, int):
        return str(part)
    return address_from_bytes(part) if len(part) == 20 else hex_hash(part)
