from __future__ import annotations

from collections.abc import Callable
from typing import Any
from zlib import crc32

import msgspec
import pytest

from emcd.errors import LocalProtocolError, RemoteProtocolError
from emcd.proto.bundle import Bundle, Total
from emcd.proto.bundle_codec import (
    MAGIC,
    MAX_ITEM_BYTES,
    BundleFault,
    Section,
    compute_bundle_hash,
    decode_bundle,
    encode_bundle,
    iter_section,
    read_header,
)
from tests.support import second_implementation as second
from tests.support.round_world import World, address_of, edited


@pytest.fixture(scope="module")
def closed() -> Any:
    return World().close()


def frame(sections: list[list[bytes]]) -> bytes:
    """Sections of raw items with right lengths and checksums."""
    out = MAGIC
    for items in sections:
        out += len(items).to_bytes(4, "big")
        for raw in items:
            out += len(raw).to_bytes(4, "big") + crc32(raw).to_bytes(4, "big") + raw
    return out


def raw_sections(bundle: Bundle) -> list[list[bytes]]:
    rows = [[msgspec.msgpack.encode(bundle.header)]]
    rows += [[msgspec.msgpack.encode(item) for item in getattr(bundle, s.label)] for s in list(Section)[1:]]
    return rows


def test_bundle_round_trips(closed: Any) -> None:
    assert decode_bundle(closed.data) == closed.bundle
    assert encode_bundle(decode_bundle(closed.data)) == closed.data == frame(raw_sections(closed.bundle))


def test_bundle_reads_the_same_by_the_second_implementation(closed: Any) -> None:
    sections = second.read_bundle(closed.data)

    for section in Section:
        value = getattr(closed.bundle, section.label)
        items = [value] if section is Section.HEADER else value
        assert sections[section.label] == [
            msgspec.msgpack.decode(msgspec.msgpack.encode(item)) for item in items
        ]
    assert compute_bundle_hash(closed.data) == second.hash_bundle(closed.data) == closed.bundle_hash


def test_bundle_header_and_sections_are_read_alone(closed: Any) -> None:
    assert read_header(closed.data) == closed.bundle.header
    assert tuple(iter_section(closed.data, Section.CALLS)) == closed.bundle.calls
    assert tuple(iter_section(closed.data, Section.VOTES)) == ()


def test_bundle_every_prefix_is_refused(closed: Any) -> None:
    for size in range(0, len(closed.data), 7):
        with pytest.raises(BundleFault) as caught:
            compute_bundle_hash(closed.data[:size])
        assert caught.value.code == "EMC-1901"


def test_bundle_with_bytes_behind_it_is_refused(closed: Any) -> None:
    with pytest.raises(BundleFault, match="too many"):
        decode_bundle(closed.data + b"\0")


def test_bundle_damaged_record_is_named(closed: Any) -> None:
    call = closed.bundle.calls[3]
    at = closed.data.index(call.delivery.body_hash)
    damaged = closed.data[:at] + bytes([closed.data[at] ^ 1]) + closed.data[at + 1 :]

    with pytest.raises(BundleFault) as caught:
        decode_bundle(damaged)

    assert (caught.value.code, caught.value.section, caught.value.index) == ("EMC-1901", Section.CALLS, 3)
    assert caught.value.record == "0x" + call.forward.call_id.hex()


@pytest.mark.parametrize("count", [0, 2])
def test_bundle_with_other_than_one_header_is_refused(closed: Any, count: int) -> None:
    sections = raw_sections(closed.bundle)
    with pytest.raises(BundleFault) as caught:
        decode_bundle(frame([sections[0] * count, *sections[1:]]))
    assert caught.value.code == "EMC-1903"


@pytest.mark.parametrize("section", list(Section)[1:], ids=lambda section: section.label)
def test_bundle_endless_section_is_refused(closed: Any, section: Section) -> None:
    data = bytearray(frame([[] if s else raw_sections(closed.bundle)[0] for s in Section]))
    at = len(data) - 4 * (len(Section) - section)
    data[at : at + 4] = b"\xff\xff\xff\xff"

    with pytest.raises(BundleFault) as caught:
        decode_bundle(bytes(data))
    assert (caught.value.code, caught.value.section) == ("EMC-1903", section)


def test_bundle_record_over_the_size_is_refused(closed: Any) -> None:
    sections = raw_sections(closed.bundle)
    sections[Section.DEPOSITS] = [bytes(MAX_ITEM_BYTES + 1)]
    with pytest.raises(BundleFault) as caught:
        decode_bundle(frame(sections))
    assert (caught.value.code, caught.value.section) == ("EMC-1901", Section.DEPOSITS)


Change = Callable[[list[bytes]], list[bytes]]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda items: items[::-1], "EMC-1904"),
        (lambda items: [items[0], items[0]], "EMC-1904"),
        (lambda items: [b"", *items[1:]], "EMC-1902"),
        (lambda items: [items[0] + b"\xc0", *items[1:]], "EMC-1902"),
        (lambda items: [b"\x81\xa1a\x01", *items[1:]], "EMC-1902"),
        (lambda items: [b"\x91" * 2000, *items[1:]], "EMC-1902"),
        (
            lambda items: [items[0].replace(b"\x92\xd9\x2a", b"\xdc\x00\x02\xd9\x2a", 1), *items[1:]],
            "EMC-1902",
        ),
        (lambda items: [items[0].replace(b"\xd9\x2a", b"\xda\x00\x2a", 1), *items[1:]], "EMC-1902"),
        (lambda items: [items[0].replace(b"\xc4\x20", b"\xc5\x00\x20", 1), *items[1:]], "EMC-1902"),
        (lambda items: [items[0].lower(), *items[1:]], "EMC-1902"),
        (lambda items: [msgspec.msgpack.encode((address_of("x"), bytes(31)))], "EMC-1902"),
        (lambda items: [msgspec.msgpack.encode((address_of("x"), bytes(32), 1))], "EMC-1902"),
        (lambda items: [msgspec.msgpack.encode((address_of("x"),))], "EMC-1902"),
        (lambda items: [msgspec.msgpack.encode(("0x12", bytes(32)))], "EMC-1902"),
        (lambda items: [msgspec.msgpack.encode((address_of("x"), "0" * 32))], "EMC-1902"),
        (lambda items: [b"\x92\xd9\x2a" + b"\xff" * 42 + b"\xc4\x20" + bytes(32)], "EMC-1902"),
    ],
)
def test_bundle_totals_not_canonical_are_refused(closed: Any, change: Change, code: str) -> None:
    sections = raw_sections(closed.bundle)
    sections[Section.TOTALS] = change(sections[Section.TOTALS])
    assert sections[Section.TOTALS] != raw_sections(closed.bundle)[Section.TOTALS]

    with pytest.raises(BundleFault) as caught:
        decode_bundle(frame(sections))

    assert (caught.value.code, caught.value.section) == (code, Section.TOTALS)


@pytest.mark.parametrize(
    ("section", "edit"),
    [
        (Section.HEADER, lambda item: edited(item, previous_round=-2)),
        (Section.HEADER, lambda item: edited(item, round=1 << 63)),
        (Section.HEADER, lambda item: edited(item, params=edited(item.params, publish_fee_wei=b""))),
        (Section.HEADER, lambda item: edited(item, params=edited(item.params, round_s=-1))),
        (Section.HEADER, lambda item: edited(item, prices=(edited(item.prices[0], version=-1),))),
        (
            Section.HEADER,
            lambda item: edited(
                item,
                prices=(
                    edited(
                        item.prices[0], models=(("b", item.prices[0].default), ("a", item.prices[0].default))
                    ),
                ),
            ),
        ),
        (Section.PARTICIPANTS, lambda item: edited(item, role=256)),
        (Section.BATCHES, lambda item: edited(item, signature=bytes(64))),
        (Section.BATCHES, lambda item: edited(item, others=((1, bytes(32)), (0, bytes(32))))),
        (Section.BATCHES, lambda item: edited(item, others=((256, bytes(32)),))),
        (Section.BATCHES, lambda item: edited(item, others=((0, bytes(31)),))),
        (Section.CALLS, lambda item: edited(item, forward=edited(item.forward, call_id=bytes(15)))),
        (Section.CALLS, lambda item: edited(item, delivery=edited(item.delivery, status=-1))),
        (Section.CALLS, lambda item: edited(item, forward_ref=edited(item.forward_ref, leaf=256))),
        (Section.STATUSES, lambda item: edited(item, status=edited(item.status, models=(bytes(33),)))),
        (
            Section.STATUSES,
            lambda item: edited(item, status=edited(item.status, node=item.status.node.lower())),
        ),
        (Section.RESULTS, lambda item: edited(item, reason="x" * 5000)),
        (Section.RESULTS, lambda item: edited(item, weight=bytes(32))),
    ],
)
def test_bundle_field_that_holds_what_it_may_not_is_refused_both_ways(
    closed: Any, section: Section, edit: Callable[[Any], Any]
) -> None:
    value = getattr(closed.bundle, section.label)
    items = (value,) if section is Section.HEADER else value
    changed = (edit(items[0]), *items[1:])
    bundle = edited(closed.bundle, **{section.label: changed[0] if section is Section.HEADER else changed})

    with pytest.raises(LocalProtocolError) as ours:
        encode_bundle(bundle)
    sections = raw_sections(closed.bundle)
    sections[section] = [msgspec.msgpack.encode(item) for item in changed]
    with pytest.raises(RemoteProtocolError) as theirs:
        decode_bundle(frame(sections))

    assert ours.value.code == theirs.value.code == "EMC-1902"


def test_encode_unsorted_section_is_our_fault(closed: Any) -> None:
    totals = (Total(address_of("b"), bytes(32)), Total(address_of("b"), bytes(32)))
    with pytest.raises(LocalProtocolError) as caught:
        encode_bundle(edited(closed.bundle, totals=totals))
    assert caught.value.code == "EMC-1904"
