from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from emcd.errors import LocalProtocolError, RemoteProtocolError
from emcd.proto.bundle import Total
from emcd.proto.bundle_codec import (
    MAX_FRAME_BYTES,
    BundleFault,
    Section,
    compute_bundle_hash,
    decode_bundle,
    encode_bundle,
    iter_section,
    read_header,
)
from emcd.proto.bundle_frame import GROUP_BATCHES, GROUP_CALLS, MAGIC, MAX_ITEMS
from tests.support import second_bundle
from tests.support.round_world import World, address_of, edited


@pytest.fixture(scope="module")
def closed() -> Any:
    return World().close()


def raw_frames(data: bytes, section: Section) -> tuple[int, list[bytes]]:
    return second_bundle.read_frames(data)[section.label]


def reframed(data: bytes, section: Section, frames: list[bytes], count: int | None = None) -> bytes:
    """The bundle with other frames in a section."""
    found = second_bundle.read_frames(data)
    found[section.label] = (len(frames) if count is None else count, frames)
    return second_bundle.write_frames(found)


def test_bundle_round_trips(closed: Any) -> None:
    assert decode_bundle(closed.data) == closed.bundle
    assert encode_bundle(decode_bundle(closed.data)) == closed.data


def test_bundle_reads_the_same_by_the_second_implementation(closed: Any) -> None:
    sections = second_bundle.read_bundle(closed.data)

    for section in Section:
        value = getattr(closed.bundle, section.label)
        items = [value] if section is Section.HEADER else value
        assert sections[section.label] == [
            msgspec.msgpack.decode(msgspec.msgpack.encode(item)) for item in items
        ]
    assert second_bundle.write_bundle(sections) == closed.data
    assert compute_bundle_hash(closed.data) == second_bundle.hash_bundle(closed.data) == closed.bundle_hash


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
    at = closed.data.index(call.forward.request_hash)
    damaged = closed.data[:at] + bytes([closed.data[at] ^ 1]) + closed.data[at + 1 :]

    with pytest.raises(BundleFault) as caught:
        decode_bundle(damaged)

    assert (caught.value.code, caught.value.section, caught.value.index) == ("EMC-1901", Section.CALLS, 0)
    first, last = closed.bundle.calls[0].forward, closed.bundle.calls[-1].forward
    assert caught.value.record == f"0x{first.call_id.hex()} to 0x{last.call_id.hex()}"


def test_bundle_damaged_single_record_is_named(closed: Any) -> None:
    status = closed.bundle.statuses[1]
    at = closed.data.index(status.signature)
    damaged = closed.data[:at] + bytes([closed.data[at] ^ 1]) + closed.data[at + 1 :]

    with pytest.raises(BundleFault) as caught:
        decode_bundle(damaged)

    assert (caught.value.code, caught.value.section, caught.value.index) == ("EMC-1901", Section.STATUSES, 1)
    assert caught.value.record == status.status.node


def test_bundle_of_the_format_before_says_so(closed: Any) -> None:
    with pytest.raises(BundleFault, match="of format 1, this program reads 3"):
        decode_bundle(b"EMCDBDL1" + closed.data[8:])


@pytest.mark.parametrize("count", [0, 2])
def test_bundle_with_other_than_one_header_is_refused(closed: Any, count: int) -> None:
    header = raw_frames(closed.data, Section.HEADER)[1]
    with pytest.raises(BundleFault) as caught:
        decode_bundle(reframed(closed.data, Section.HEADER, header * count))
    assert caught.value.code == "EMC-1903"


@pytest.mark.parametrize("section", list(Section)[1:], ids=lambda section: section.label)
def test_bundle_endless_section_is_refused(closed: Any, section: Section) -> None:
    data = reframed(closed.data, section, [], (1 << 32) - 1)
    with pytest.raises(BundleFault) as caught:
        decode_bundle(data)
    assert (caught.value.code, caught.value.section) == ("EMC-1903", section)


@pytest.mark.parametrize("section", list(Section)[1:], ids=lambda section: section.label)
def test_bundle_section_that_can_not_hold_what_it_counts_is_refused(closed: Any, section: Section) -> None:
    data = reframed(closed.data, section, [], 1)
    with pytest.raises(BundleFault) as caught:
        decode_bundle(data)
    assert (caught.value.code, caught.value.section) == ("EMC-1901", section)


@pytest.mark.parametrize("section", list(Section), ids=lambda section: section.label)
def test_bundle_section_with_a_frame_too_many_is_refused(closed: Any, section: Section) -> None:
    count, frames = raw_frames(closed.data, section)
    with pytest.raises(BundleFault) as caught:
        decode_bundle(reframed(closed.data, section, [*frames, b"more"], count))
    assert (caught.value.code, caught.value.section) == ("EMC-1901", section)


@pytest.mark.parametrize("by", [-1, 1])
def test_bundle_section_of_another_size_is_refused(closed: Any, by: int) -> None:
    data = bytearray(closed.data)
    data[8 + 11] += by
    with pytest.raises(BundleFault) as caught:
        decode_bundle(bytes(data))
    assert caught.value.code in ("EMC-1901", "EMC-1903")


def test_bundle_record_over_the_size_is_refused(closed: Any) -> None:
    with pytest.raises(BundleFault) as caught:
        decode_bundle(reframed(closed.data, Section.DEPOSITS, [bytes(MAX_FRAME_BYTES + 1)]))
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
    frames = raw_frames(closed.data, Section.TOTALS)[1]
    assert change(frames) != frames

    with pytest.raises(BundleFault) as caught:
        decode_bundle(reframed(closed.data, Section.TOTALS, change(frames)))

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
        (Section.CALLS, lambda item: edited(item, forward_ref=edited(item.forward_ref, batch=99))),
        (Section.CALLS, lambda item: edited(item, forward=edited(item.forward, hub=address_of("x")))),
        (Section.CALLS, lambda item: edited(item, delivery=edited(item.delivery, forward_hash=bytes(32)))),
        (Section.CALLS, lambda item: edited(item, delivery=edited(item.delivery, receipt_hash=bytes(32)))),
        (Section.CALLS, lambda item: edited(item, receipt=edited(item.receipt, forward_hash=bytes(32)))),
        (Section.CALLS, lambda item: edited(item, receipt=None, receipt_ref=None)),
        (Section.BATCHES, lambda item: edited(item, kind=0, signer=address_of("nobody's node"))),
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
    assert ours.value.code == "EMC-1902"
    if section not in (Section.CALLS, Section.BATCHES):
        with pytest.raises(RemoteProtocolError) as theirs:
            decode_bundle(reframed(closed.data, section, [msgspec.msgpack.encode(item) for item in changed]))
        assert theirs.value.code == "EMC-1902"


def test_encode_unsorted_section_is_our_fault(closed: Any) -> None:
    totals = (Total(address_of("b"), bytes(32)), Total(address_of("b"), bytes(32)))
    with pytest.raises(LocalProtocolError) as caught:
        encode_bundle(edited(closed.bundle, totals=totals))
    assert caught.value.code == "EMC-1904"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MAX_BUNDLE_BYTES", 5000),
        ("MAX_FRAME_BYTES", 1000),
        ("MAX_ITEMS", (1, 1 << 17, 256, 1 << 22, 17, *[1 << 17] * 7)),
    ],
)
def test_encode_what_no_reader_takes_is_our_fault(
    closed: Any, name: str, value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert encode_bundle(closed.bundle)
    monkeypatch.setattr(f"emcd.proto.bundle_write.{name}", value)
    with pytest.raises(LocalProtocolError) as caught:
        encode_bundle(closed.bundle)
    assert caught.value.code == "EMC-1903"


def test_bundle_of_more_nodes_than_have_results_is_refused(
    closed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = [1 << 22] * 12
    limits[Section.RESULTS] = 2
    monkeypatch.setattr("emcd.proto.bundle_groups.MAX_ITEMS", tuple(limits))
    with pytest.raises(BundleFault) as caught:
        decode_bundle(closed.data)
    assert (caught.value.code, caught.value.section) == ("EMC-1903", Section.CALLS)


def test_bundle_document_has_the_numbers_of_the_code() -> None:
    text = " ".join((Path(__file__).parents[2] / "docs" / "bundle.md").read_text("utf-8").split())
    sections = [section.label for section in Section]
    assert f'"{MAGIC.decode()}" section*{len(sections)}' in text
    assert f"{sections[0]} (one record), {', '.join(sections[1:])}." in text
    assert f"{GROUP_CALLS} calls a group" in text
    assert f"{GROUP_BATCHES} batches a group" in text
    assert f"{MAX_FRAME_BYTES >> 20} MiB a frame, {MAX_ITEMS[Section.CALLS]:,} calls" in text
