"""Bundles of several groups: order, random access, and what breaks the one encoding."""

from __future__ import annotations

import mmap
import subprocess
import sys
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from emcd.accounting.audit import audit_bundle
from emcd.accounting.round_close import close_round
from emcd.proto.address import address_bytes
from emcd.proto.bundle_codec import (
    BundleFault,
    BundleReader,
    Section,
    decode_bundle,
    encode_bundle,
    find_call,
    iter_calls,
    read_batch_leaves,
    read_call_ids,
)
from emcd.proto.records import RecordKind, batch_root
from emcd.proto.signing import recover
from tests.bench.round_data import RoundFiles, make_round
from tests.support import second_bundle
from tests.support.round_world import World

CALLS, NODES = 9_000, 40
GROUPS = 3


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> RoundFiles:
    return make_round(tmp_path_factory.mktemp("round"), CALLS, NODES, 100, hub_batch_ms=60_000)


@pytest.fixture(scope="module")
def data(files: RoundFiles) -> bytes:
    out = BytesIO()
    closed = close_round(files.facts(), files.evidence(), out, signatures_checked=True)
    assert (closed.calls, closed.left_out, closed.size_bytes) == (CALLS, (), len(out.getvalue()))
    return out.getvalue()


@pytest.fixture(scope="module")
def bundle(data: bytes) -> Any:
    return decode_bundle(data)


def changed(data: bytes, section: str, number: int, change: Any) -> bytes:
    """The bundle with one frame changed, its checksum right."""
    found = second_bundle.read_frames(data)
    found[section][1][number] = change(found[section][1][number])
    return second_bundle.write_frames(found)


def fault_of(data: bytes) -> BundleFault:
    with pytest.raises(BundleFault) as caught:
        decode_bundle(data)
    return caught.value


# ------------------------------------------------------------------ the whole


def test_groups_bundle_passes_its_audit_and_encodes_again(
    files: RoundFiles, data: bytes, bundle: Any
) -> None:
    seen: list[tuple[int, int]] = []
    outcome = audit_bundle(data, progress=lambda done, total: seen.append((done, total)))

    assert outcome.difference is None
    assert (outcome.calls, outcome.counted_calls) == (CALLS, sum(c.receipt is not None for c in bundle.calls))
    assert outcome.vault_micro == sum(call.delivery.vault_micro for call in bundle.calls)
    assert seen == [(4096, CALLS), (8192, CALLS), (CALLS, CALLS)]
    assert encode_bundle(bundle) == data
    assert [call.forward.call_id for call in bundle.calls] == [c.forward.call_id for c in files.calls()]


def test_groups_written_behind_other_bytes_are_the_same(files: RoundFiles, data: bytes) -> None:
    out = BytesIO(b"before")
    out.seek(6)
    close_round(files.facts(), files.evidence(), out, signatures_checked=True)
    assert out.getvalue() == b"before" + data


def test_groups_of_one_full_group_and_none_more_round_trip(bundle: Any) -> None:
    world = World()
    for count in (4096, 4097):
        part = [
            call.__class__(call.forward, call.receipt, call.delivery, None, None, None)
            for call in bundle.calls[:count]
        ]
        whole = bundle.__class__(bundle.header, calls=tuple(part))
        assert decode_bundle(encode_bundle(whole)) == whole
    assert encode_bundle(decode_bundle(world.close().data)) == world.close().data


# ------------------------------------------------------------------ one by one


class Slices:
    """A source that gives nothing but slices."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.read = 0

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, part: slice) -> bytes:
        assert isinstance(part, slice)
        self.read += len(self._data[part])
        return self._data[part]


def test_groups_call_is_found_without_reading_much(data: bytes, bundle: Any) -> None:
    for index in (0, 1, 4095, 4096, 8191, 8192, CALLS - 1):
        source = Slices(data)
        assert find_call(BundleReader(source), bundle.calls[index].forward.call_id) == (
            index,
            bundle.calls[index],
        )
        assert source.read < 2 * len(data)
    reader = BundleReader(data)
    assert find_call(reader, bytes(16)) is None
    assert find_call(reader, b"\xff" * 16) is None
    assert find_call(reader, bundle.calls[4096].forward.call_id[:15] + b"\x00") is None
    assert find_call(BundleReader(World(node_names=(), validator_names=()).close().data), bytes(16)) is None


def test_groups_calls_of_a_node_or_a_router(data: bytes, bundle: Any) -> None:
    node, router = bundle.calls[0].forward.node, bundle.calls[0].forward.router
    own = [call for call in bundle.calls if call.forward.node == node]

    assert list(iter_calls(BundleReader(data), node=node)) == own
    assert list(iter_calls(BundleReader(data), node=node, router=router)) == own
    assert list(iter_calls(BundleReader(data), router=node)) == []
    assert list(iter_calls(BundleReader(data))) == list(bundle.calls)


def test_groups_call_ids_are_read_alone(data: bytes, bundle: Any) -> None:
    assert read_call_ids(BundleReader(data)) == b"".join(call.forward.call_id for call in bundle.calls)


@pytest.mark.parametrize("kind", list(RecordKind))
def test_groups_leaves_of_a_batch_give_what_was_signed(data: bytes, bundle: Any, kind: RecordKind) -> None:
    reader = BundleReader(data)
    indexes = [i for i, entry in enumerate(bundle.batches) if entry.kind == kind]
    for index in (indexes[0], indexes[-1], max(indexes, key=lambda i: bundle.batches[i].count)):
        entry = bundle.batches[index]
        struct = entry.with_root(batch_root(read_batch_leaves(reader, index)))
        assert recover(bundle.header.domain, struct, entry.signature) == entry.signer
    with pytest.raises(IndexError):
        read_batch_leaves(reader, len(bundle.batches))


def test_groups_from_a_memory_map_that_closes(data: bytes, bundle: Any, tmp_path: Path) -> None:
    (tmp_path / "bundle").write_bytes(data)
    with (tmp_path / "bundle").open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        reader = BundleReader(mapped)
        assert next(iter_calls(reader)) == bundle.calls[0]
        assert audit_bundle(mapped).ok
        mapped.close()


# ------------------------------------------------------------------ damage and other encodings


@pytest.mark.parametrize("group", range(GROUPS))
def test_groups_damage_names_the_calls_of_its_group(data: bytes, bundle: Any, group: int) -> None:
    first, last = bundle.calls[4096 * group], bundle.calls[min(4096 * group + 4095, CALLS - 1)]
    at = data.index(bundle.calls[4096 * group + 7].forward.request_hash)
    damaged = data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :]

    for fault in (fault_of(damaged), audit_bundle(damaged).difference):
        assert fault is not None
        assert fault.index == 4096 * group
        assert fault.record == f"0x{first.forward.call_id.hex()} to 0x{last.forward.call_id.hex()}"
    with pytest.raises(BundleFault):
        find_call(BundleReader(damaged), first.forward.call_id)


def test_groups_damaged_batches_are_named(data: bytes, bundle: Any) -> None:
    at = data.index(bundle.batches[300].signature)
    damaged = data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :]
    fault = fault_of(damaged)
    assert (fault.code, fault.section, fault.index) == ("EMC-1901", Section.BATCHES, 256)


def swapped_ids(frame: bytes) -> bytes:
    return frame[16:32] + frame[:16] + frame[32:]


def lowered_last_id(frame: bytes) -> bytes:
    return bytes(16) + frame[16:]


@pytest.mark.parametrize(
    ("number", "change", "index"), [(0, swapped_ids, 1), (1, swapped_ids, 4097), (2, lowered_last_id, 8192)]
)
def test_groups_calls_out_of_order_are_named(data: bytes, number: int, change: Any, index: int) -> None:
    found = fault_of(changed(data, "calls", number, change))
    assert (found.code, found.section, found.index) == ("EMC-1904", Section.CALLS, index)
    difference = audit_bundle(changed(data, "calls", number, change)).difference
    assert difference is not None
    assert (difference.code, difference.index) == ("EMC-1904", index)


def directory(nodes: Any = None, routers: Any = None, models: Any = None) -> Any:
    """A change of the directory, part by part."""

    def change(frame: bytes) -> bytes:
        take = second_bundle.Taker(frame)
        sizes = [take.number(4) for _ in range(3)]
        parts = [take.items(count, size) for count, size in zip(sizes, (20, 20, 32), strict=True)]
        for number, edit in enumerate((nodes, routers, models)):
            parts[number] = edit(parts[number]) if edit else parts[number]
        return b"".join(len(p).to_bytes(4, "big") for p in parts) + b"".join(b"".join(p) for p in parts)

    return change


@pytest.mark.parametrize(
    "change",
    [
        directory(nodes=lambda items: [*items, bytes(19) + b"\x01"]),
        directory(nodes=lambda items: [*items[:-1], items[0]]),
        directory(nodes=lambda items: items[:-1]),
        directory(routers=lambda items: [*items, bytes(19) + b"\x01"]),
        directory(routers=lambda items: []),
        directory(models=lambda items: [*items, bytes(32)]),
        directory(models=lambda items: items[:-1]),
        lambda frame: frame[:-1],
        lambda frame: frame + b"\x00",
        lambda frame: b"\xff" * 12,
        lambda frame: b"",
    ],
)
def test_groups_directory_of_another_form_is_refused(data: bytes, change: Any) -> None:
    fault = fault_of(changed(data, "calls", GROUPS, change))
    assert (fault.code, fault.section) == ("EMC-1902", Section.CALLS)


@pytest.mark.parametrize("order", [[1, 2, 0], [0, 2, 1], [2, 1, 0]])
def test_groups_directory_in_another_order_is_refused(order: list[int]) -> None:
    """The same content, nodes numbered otherwise: not the one encoding."""
    closed = World().close()
    sections = second_bundle.read_bundle(closed.data)
    found = second_bundle.read_frames(closed.data)
    calls = sections["calls"]
    first = list(dict.fromkeys(call[0][3] for call in calls))
    names = [first[n] for n in order]
    numbers = {
        "nodes": {name: n for n, name in enumerate(names)},
        "routers": {calls[0][0][2]: 0},
        "models": {calls[0][0][5]: 0},
    }
    group = second_bundle.write_group(calls, numbers)
    renamed = directory(nodes=lambda items: list(map(address_bytes, names)))(found["calls"][1][1])
    found["calls"] = (len(calls), [group, renamed, found["calls"][1][2]])

    fault = fault_of(second_bundle.write_frames(found))

    assert (fault.code, fault.reason) == ("EMC-1902", "the directory is not in the order of first use")


@pytest.mark.parametrize("row", [4, 4096 + 4])
def test_groups_leaf_of_another_call_is_refused_across_groups_too(data: bytes, row: int) -> None:
    """A second call refers to the leaf of the first call's delivery, in the same group and in the next."""
    found = second_bundle.read_frames(data)
    count, frames = found["calls"]
    own = second_bundle.Taker(frames[GROUPS + 1])
    taken = [own.column(4096) for _ in range(3)][2][0]
    group, position = divmod(row, 4096)
    take = second_bundle.Taker(frames[GROUPS + 1 + group])
    columns = [take.column(4096) for _ in range(3)]
    columns[2][position] = taken
    frames[GROUPS + 1 + group] = b"".join(map(second_bundle.write_column, columns))
    found["calls"] = (count, frames)

    difference = audit_bundle(second_bundle.write_frames(found)).difference

    assert difference is not None
    assert (difference.code, difference.index) == ("EMC-1912", row)
    assert "which is taken" in difference.detail


def test_groups_of_other_sizes_are_refused(data: bytes) -> None:
    """Two groups merged into one, or one split in two."""
    found = second_bundle.read_frames(data)
    count, frames = found["calls"]
    found["calls"] = (count, [*frames[: GROUPS - 1], *frames[GROUPS:]])
    assert fault_of(second_bundle.write_frames(found)).section is Section.CALLS
    found["calls"] = (count, [frames[0][:-100], *frames])
    assert fault_of(second_bundle.write_frames(found)).section is Section.CALLS


def test_groups_batches_out_of_order_are_named() -> None:
    closed = World().close()
    sections = second_bundle.read_bundle(closed.data)
    sections["batches"][0], sections["batches"][1] = sections["batches"][1], sections["batches"][0]
    fault = fault_of(second_bundle.write_bundle(sections))
    assert (fault.code, fault.section, fault.index) == ("EMC-1904", Section.BATCHES, 1)


def test_groups_other_records_of_a_batch_ascend() -> None:
    closed = World().close()
    sections = second_bundle.read_bundle(closed.data)
    entry = next(batch for batch in sections["batches"] if batch[5])
    entry[5] = [entry[5][0], entry[5][0]]
    assert fault_of(second_bundle.write_bundle(sections)).code == "EMC-1902"


# ------------------------------------------------------------------ what it costs to import


def test_groups_importing_the_codec_pays_for_no_numpy() -> None:
    modules = (
        "emcd.proto.bundle_codec", "emcd.accounting.round_close", "emcd.accounting.audit", "emcd.accounting.tally",
        "emcd.accounting.payment_path", "emcd.accounting.receipt",
    )  # fmt: skip
    code = f"import sys, {', '.join(modules)}; sys.exit('numpy' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
