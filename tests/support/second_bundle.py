"""The bundle a second time, value by value from the description of its format; shares no code with `emcd`.

Sections are plain lists, as `emcd`'s structs are on the wire: a call is [forward, receipt or None,
delivery, forward ref, receipt ref, delivery ref], a ref [batch, leaf] or None. Slow and obvious.
"""

from __future__ import annotations

import zlib
from typing import Any

from eth_utils.address import to_canonical_address, to_checksum_address
from eth_utils.crypto import keccak

from tests.support import second_implementation as second

MAGIC = b"EMCDBDL3"
SECTIONS = (
    "header", "participants", "validators", "totals", "calls", "batches",
    "statuses", "commitments", "reveals", "votes", "deposits", "results",
)  # fmt: skip
GROUPS = {"calls": 4096, "batches": 256}
M64 = (1 << 64) - 1


# ------------------------------------------------------------------------------------ msgpack


def read_msgpack(data: bytes, at: int = 0) -> tuple[Any, int]:
    """One msgpack value and where it ends; the kinds that a bundle has."""
    tag = data[at]
    at += 1
    if tag <= 0x7F:
        return tag, at
    if tag >= 0xE0:
        return tag - 256, at
    if tag == 0xC0:
        return None, at
    if tag in (0xC2, 0xC3):
        return tag == 0xC3, at
    if tag in (0xCC, 0xCD, 0xCE, 0xCF):
        size = 1 << (tag - 0xCC)
        return int.from_bytes(data[at : at + size], "big"), at + size
    if 0xA0 <= tag <= 0xBF:
        return data[at : at + tag - 0xA0].decode(), at + tag - 0xA0
    if 0x90 <= tag <= 0x9F:
        return _read_items(data, at, tag - 0x90)
    size = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4, 0xDC: 2, 0xDD: 4}[tag]
    length = int.from_bytes(data[at : at + size], "big")
    at += size
    if tag in (0xDC, 0xDD):
        return _read_items(data, at, length)
    raw = data[at : at + length]
    return (raw if tag <= 0xC6 else raw.decode()), at + length


def _read_items(data: bytes, at: int, count: int) -> tuple[list[Any], int]:
    items = []
    for _ in range(count):
        item, at = read_msgpack(data, at)
        items.append(item)
    return items, at


def write_msgpack(value: Any) -> bytes:
    """The shortest form of each value."""
    if value is None or isinstance(value, bool):
        return {None: b"\xc0", False: b"\xc2", True: b"\xc3"}[value]
    if isinstance(value, int):
        if -32 <= value < 128:
            return value.to_bytes(1, "big", signed=value < 0)
        size = next(size for size in (1, 2, 4, 8) if value < 1 << 8 * size)
        return bytes([{1: 0xCC, 2: 0xCD, 4: 0xCE, 8: 0xCF}[size]]) + value.to_bytes(size, "big")
    if isinstance(value, bytes):
        size = next(size for size in (1, 2, 4) if len(value) < 1 << 8 * size)
        return bytes([{1: 0xC4, 2: 0xC5, 4: 0xC6}[size]]) + len(value).to_bytes(size, "big") + value
    if isinstance(value, str):
        raw = value.encode()
        if len(raw) < 32:
            return bytes([0xA0 + len(raw)]) + raw
        size = next(size for size in (1, 2, 4) if len(raw) < 1 << 8 * size)
        return bytes([{1: 0xD9, 2: 0xDA, 4: 0xDB}[size]]) + len(raw).to_bytes(size, "big") + raw
    head = bytes([0x90 + len(value)]) if len(value) < 16 else b"\xdc" + len(value).to_bytes(2, "big")
    return head + b"".join(map(write_msgpack, value))


# ------------------------------------------------------------------------------------ columns


def write_column(numbers: list[int]) -> bytes:
    """Smallest number, width of the largest difference to it, the differences."""
    base = min(numbers, default=0)
    width = next(w for w in range(9) if max(numbers, default=0) - base < 1 << 8 * w)
    return (
        base.to_bytes(8, "big")
        + bytes([width])
        + b"".join((n - base).to_bytes(width, "big") for n in numbers)
    )


def fold(value: int, base: int) -> int:
    """A difference modulo 2**64 with the sign in the lowest bit."""
    difference = (value - base) & M64
    return 2 * difference if difference < 1 << 63 else 2 * (M64 - difference) + 1


def unfold(folded: int, base: int) -> int:
    return (base + (folded // 2 if folded % 2 == 0 else -(folded // 2) - 1)) & M64


class Taker:
    """Takes what a frame holds, piece by piece."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def raw(self, size: int) -> bytes:
        part, self.data = self.data[:size], self.data[size:]
        assert len(part) == size
        return part

    def items(self, count: int, size: int) -> list[bytes]:
        return [self.raw(size) for _ in range(count)]

    def number(self, size: int) -> int:
        return int.from_bytes(self.raw(size), "big")

    def column(self, count: int) -> list[int]:
        base, width = self.number(8), self.number(1)
        return [base + self.number(width) for _ in range(count)]


# ------------------------------------------------------------------------------------ calls


def hash_records(call: list[Any]) -> tuple[bytes, bytes, bytes]:
    """Struct hashes of forward, receipt (zero for none) and delivery."""

    def one(name: str, record: list[Any]) -> bytes:
        return second.struct_hash(second.make_typed_data(1, "0x" + "11" * 20, name, record))

    receipt = one("Receipt", call[1]) if call[1] else bytes(32)
    return one("Forward", call[0]), receipt, one("Delivery", call[2])


def write_group(calls: list[list[Any]], number_of: dict[str, dict[Any, int]]) -> bytes:
    forwards = [call[0] for call in calls]
    deliveries = [call[2] for call in calls]
    pairs = [(call[0], call[1]) for call in calls if call[1]]
    receipts = [receipt for _, receipt in pairs]
    has_body = [call[1] is None or call[1][1] != call[2][2] for call in calls]
    kind = [0 if d[5] == d[4] else 1 if d[5] == 0 else 2 for d in deliveries]
    flags = [(call[1] is not None) + 2 * has_body[n] + 4 * kind[n] for n, call in enumerate(calls)]
    return b"".join((
        *(f[0] for f in forwards),
        write_column([number_of["nodes"][f[3]] for f in forwards]),
        write_column([number_of["routers"][f[2]] for f in forwards]),
        write_column([number_of["models"][f[5]] for f in forwards]),
        write_column([f[6] for f in forwards]),
        *(f[4] for f in forwards),
        write_column([f[7] for f in forwards]),
        write_column([fold(d[7], f[7]) for f, d in zip(forwards, deliveries, strict=True)]),
        write_column([d[6] for d in deliveries]),
        write_column(flags),
        write_column([d[3] for d in deliveries]),
        write_column([d[4] for d in deliveries]),
        write_column([d[5] for n, d in enumerate(deliveries) if kind[n] == 2]),
        *(r[1] for r in receipts),
        write_column([r[2] for r in receipts]),
        write_column([r[3] for r in receipts]),
        write_column([r[4] for r in receipts]),
        write_column([fold(r[5], f[7]) for f, r in pairs]),
        write_column([fold(r[6], r[5]) for r in receipts]),
        *(d[2] for n, d in enumerate(deliveries) if has_body[n]),
    ))  # fmt: skip


def read_group(data: bytes, count: int, hub: str, directory: dict[str, list[Any]]) -> list[list[Any]]:
    take = Taker(data)
    ids = take.items(count, 16)
    nodes = [directory["nodes"][n] for n in take.column(count)]
    routers = [directory["routers"][n] for n in take.column(count)]
    models = [directory["models"][n] for n in take.column(count)]
    versions = take.column(count)
    requests = take.items(count, 32)
    started = take.column(count)
    finished = [unfold(n, base) for n, base in zip(take.column(count), started, strict=True)]
    rounds, flags, status, credits = (take.column(count) for _ in range(4))
    part = iter(take.column(sum(flag // 4 == 2 for flag in flags)))
    vault = [
        paid if flag // 4 == 0 else 0 if flag // 4 == 1 else next(part)
        for flag, paid in zip(flags, credits, strict=True)
    ]
    with_receipt = [n for n in range(count) if flags[n] & 1]
    size = len(with_receipt)
    responses, http, used_in, used_out = (
        take.items(size, 32),
        take.column(size),
        take.column(size),
        take.column(size),
    )
    began = [unfold(n, started[row]) for n, row in zip(take.column(size), with_receipt, strict=True)]
    ended = [unfold(n, base) for n, base in zip(take.column(size), began, strict=True)]
    receipts = dict(
        zip(with_receipt, zip(responses, http, used_in, used_out, began, ended, strict=True), strict=True)
    )
    bodies = iter(take.items(sum(flag & 2 > 0 for flag in flags), 32))
    assert not take.data
    calls = []
    for n in range(count):
        forward = [ids[n], hub, routers[n], nodes[n], requests[n], models[n], versions[n], started[n]]
        call: list[Any] = [forward, None, [bytes(32)] * 2 + [bytes(32), 0, 0, 0, 0, 0]]
        forward_hash = hash_records(call)[0]
        if n in receipts:
            call[1] = [forward_hash, *receipts[n]]
        body = next(bodies) if flags[n] & 2 else receipts[n][0]
        call[2] = [
            forward_hash,
            hash_records(call)[1],
            body,
            status[n],
            credits[n],
            vault[n],
            rounds[n],
            finished[n],
        ]
        calls.append(call)
    return calls


def write_calls(calls: list[list[Any]], batches: list[list[Any]]) -> list[bytes]:
    """The frames: groups, directory, places."""
    if not calls:
        return []
    names = {
        "nodes": list(dict.fromkeys(call[0][3] for call in calls)),
        "routers": list(dict.fromkeys(call[0][2] for call in calls)),
        "models": list(dict.fromkeys(call[0][5] for call in calls)),
    }
    number_of = {kind: {name: n for n, name in enumerate(known)} for kind, known in names.items()}
    parts = [calls[n : n + 4096] for n in range(0, len(calls), 4096)]
    directory = b"".join(len(known).to_bytes(4, "big") for known in names.values())
    directory += b"".join(map(to_canonical_address, names["nodes"] + names["routers"])) + b"".join(
        names["models"]
    )

    def place(ref: list[int] | None) -> int:
        return 0 if ref is None else 1 + sum(batch[2] for batch in batches[: ref[0]]) + ref[1]

    places = [
        b"".join(write_column([place(call[at]) for call in part]) for at in (3, 4, 5)) for part in parts
    ]
    return [*(write_group(part, number_of) for part in parts), directory, *places]


def read_calls(frames: list[bytes], count: int, hub: str, batches: list[list[Any]]) -> list[list[Any]]:
    if not count:
        return []
    groups = -(-count // 4096)
    take = Taker(frames[groups])
    sizes = [take.number(4) for _ in range(3)]
    directory: dict[str, list[Any]] = {
        "nodes": list(map(to_checksum_address, take.items(sizes[0], 20))),
        "routers": list(map(to_checksum_address, take.items(sizes[1], 20))),
        "models": take.items(sizes[2], 32),
    }
    leaves = [[n, leaf] for n, batch in enumerate(batches) for leaf in range(batch[2])]
    calls = []
    for n in range(groups):
        size = min(4096, count - 4096 * n)
        part = read_group(frames[n], size, hub, directory)
        place = Taker(frames[groups + 1 + n])
        columns = [place.column(size) for _ in range(3)]
        calls += [call + [leaves[c[m] - 1] if c[m] else None for c in columns] for m, call in enumerate(part)]
    return calls


# ------------------------------------------------------------------------------------ batches


def write_batches(batches: list[list[Any]], signers: list[str]) -> list[bytes]:
    """A batch is [signer, kind, count, signed at, signature, [[leaf, hash], ...]]."""
    frames = []
    for start in range(0, len(batches), 256):
        part = batches[start : start + 256]
        others = [item for batch in part for item in batch[5]]
        frames.append(b"".join((
            write_column([batch[1] for batch in part]),
            write_column([signers.index(batch[0]) for batch in part]),
            write_column([batch[2] for batch in part]),
            write_column([batch[3] for batch in part]),
            *(batch[4] for batch in part),
            write_column([len(batch[5]) for batch in part]),
            bytes(leaf for leaf, _ in others),
            *(record for _, record in others),
        )))  # fmt: skip
    return frames


def read_batches(frames: list[bytes], count: int, signers: list[str]) -> list[list[Any]]:
    batches: list[list[Any]] = []
    for n, frame in enumerate(frames):
        take, size = Taker(frame), min(256, count - 256 * n)
        kinds, names, counts, times = (take.column(size) for _ in range(4))
        signatures, sizes = take.items(size, 65), take.column(size)
        leaves = list(take.raw(sum(sizes)))
        others = [list(pair) for pair in zip(leaves, take.items(sum(sizes), 32), strict=True)]
        assert not take.data
        for m in range(size):
            own, others = others[: sizes[m]], others[sizes[m] :]
            batches.append([signers[names[m]], kinds[m], counts[m], times[m], signatures[m], own])
    return batches


# ------------------------------------------------------------------------------------ sections


def write_bundle(sections: dict[str, list[Any]]) -> bytes:
    """The bytes of a bundle from its sections."""
    found = {}
    for name in SECTIONS:
        rows = sections[name]
        if name == "calls":
            frames = write_calls(rows, sections["batches"])
        elif name == "batches":
            nodes = dict.fromkeys(call[0][3] for call in sections["calls"])
            frames = write_batches(rows, [sections["header"][0][2], *nodes])
        else:
            frames = list(map(write_msgpack, rows))
        found[name] = len(rows), frames
    return write_frames(found)


def write_frames(found: dict[str, tuple[int, list[bytes]]]) -> bytes:
    """Sections of counted frames, whatever is in them, with right sizes and checksums."""
    out = MAGIC
    for count, frames in found.values():
        body = b"".join(len(f).to_bytes(4, "big") + zlib.crc32(f).to_bytes(4, "big") + f for f in frames)
        out += count.to_bytes(4, "big") + len(body).to_bytes(8, "big") + body
    return out


def read_frames(data: bytes) -> dict[str, tuple[int, list[bytes]]]:
    """Count and frames of every section."""
    assert data[:8] == MAGIC
    take, found = Taker(data[8:]), {}
    for name in SECTIONS:
        count, size = take.number(4), take.number(8)
        body, frames = Taker(take.raw(size)), []
        while body.data:
            length, checksum = body.number(4), body.number(4)
            frames.append(body.raw(length))
            assert zlib.crc32(frames[-1]) == checksum
        found[name] = count, frames
    assert not take.data
    return found


def read_bundle(data: bytes) -> dict[str, list[Any]]:
    """The sections of a bundle as plain lists."""
    found = read_frames(data)
    sections: dict[str, list[Any]] = {}
    for name, (count, frames) in found.items():
        if name not in GROUPS:
            sections[name] = [read_msgpack(frame)[0] for frame in frames]
            assert len(sections[name]) == count
    count, frames = found["calls"]
    hub = sections["header"][0][2]
    nodes: list[str] = []
    if count:
        take = Taker(frames[-(-count // 4096)])
        size = take.number(4)
        take.raw(8)
        nodes = list(map(to_checksum_address, take.items(size, 20)))
    sections["batches"] = read_batches(found["batches"][1], found["batches"][0], [hub, *nodes])
    sections["calls"] = read_calls(frames, count, hub, sections["batches"])
    return {name: sections[name] for name in SECTIONS}


def hash_bundle(data: bytes) -> bytes:
    parts = [
        keccak(count.to_bytes(4, "big") + b"".join(map(keccak, frames)))
        for count, frames in read_frames(data).values()
    ]
    return keccak(data[:8] + b"".join(parts))
