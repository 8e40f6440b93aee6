"""The evidence of a large round, made column by column, as files that a hub's ledger could have given.

Everything is drawn from one seed: the same sizes give the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from emcd.accounting.assignment import assign_probes, probed_nodes
from emcd.accounting.plan import compute_commitment, compute_probes_hash
from emcd.accounting.round_close import CallRecords, Evidence, RoundFacts, SignedBatch
from emcd.money import WEI_PER_TOKEN, encode_wei
from emcd.proto.address import address_bytes
from emcd.proto.bundle import (
    CommitmentEntry,
    ProbeResult,
    RevealEntry,
    SnapshotEntry,
    StatusEntry,
    ValidatorPower,
)
from emcd.proto.bundle_calls import CallGroup, Directory, GroupHashes, hash_group
from emcd.proto.bundle_column import rows_of
from emcd.proto.bundle_table import iter_records, join_groups
from emcd.proto.eip712 import Domain
from emcd.proto.hashing import keccak
from emcd.proto.messages import NodeStatus, PlanCommitment, Reveal, Verdict
from emcd.proto.params import PriceTable, mainnet_params
from emcd.proto.records import Delivery, Forward, Receipt, RecordBatch, RecordKind, batch_root
from emcd.proto.signing import sign
from emcd.types import ZERO_ADDRESS, Address, ParticipantRole
from tests.support.round_world import CHAIN_ID, DISTRIBUTOR, GENESIS_S, STAKING, address_of, secret_of

ROUND = 30
PARAMS = mainnet_params(GENESIS_S)
START_MS = PARAMS.round_start_ms(ROUND)
VALIDATORS = 13
_AT_ONCE = 4096
_decode_rows = msgspec.msgpack.Decoder(list[tuple[Forward, Receipt | None, Delivery]]).decode
_decode_batches = msgspec.msgpack.Decoder(list[tuple[RecordBatch, bytes, bytes]]).decode
_encode = msgspec.msgpack.Encoder().encode


class Rest(msgspec.Struct):
    """Everything of a round but calls and batches."""

    participants: list[SnapshotEntry]
    validators: list[ValidatorPower]
    statuses: list[StatusEntry]
    commitments: list[CommitmentEntry]
    reveals: list[RevealEntry]


@dataclass(frozen=True)
class RoundFiles:
    """The folder with a round's evidence."""

    folder: Path

    def facts(self) -> RoundFacts:
        rest = self.rest()
        return RoundFacts(
            round=ROUND, hub=address_of("hub"), chain_id=CHAIN_ID, staking=STAKING, distributor=DISTRIBUTOR,
            params=PARAMS, prices=(PriceTable(),), snapshot_block=1, snapshot_block_hash=keccak(b"snapshot"),
            beacon_block=3, beacon_block_hash=keccak(b"beacon"), participants=rest.participants,
            validators=rest.validators,
        )  # fmt: skip

    def evidence(self) -> Evidence:
        rest = self.rest()
        return Evidence(
            calls=self.calls(),
            batches=self.batches(),
            statuses=rest.statuses,
            commitments=rest.commitments,
            reveals=rest.reveals,
        )

    def rest(self) -> Rest:
        return msgspec.msgpack.decode((self.folder / "rest").read_bytes(), type=Rest)

    def calls(self) -> Iterator[CallRecords]:
        for part in _frames(self.folder / "calls"):
            yield from map(CallRecords._make, _decode_rows(part))

    def batches(self) -> Iterator[SignedBatch]:
        for part in _frames(self.folder / "batches"):
            for row in _decode_batches(part):
                yield SignedBatch(*row)


def make_round(folder: Path, calls: int, nodes: int, node_batch: int, hub_batch_ms: int = 250) -> RoundFiles:
    """Write a round's evidence.

    Args: `node_batch` receipts of a node are in one signed batch, what the hub recorded in
    `hub_batch_ms` in one of its own.
    """
    names = [f"node-{n}" for n in range(nodes)]
    group, directory = _make_calls(calls, [address_of(name) for name in names])
    parts = [group.take(slice(at, at + _AT_ONCE)) for at in range(0, calls, _AT_ONCE)]
    hub = address_of("hub")
    hashes = [hash_group(part, directory, address_bytes(hub)) for part in parts]
    with (folder / "calls").open("wb") as out:
        for part, own in zip(parts, hashes, strict=True):
            _put(out, _encode(list(iter_records(part, own, directory, hub))))
    whole = GroupHashes(
        *(np.concatenate([getattr(h, n) for h in hashes]) for n in ("forward", "receipt", "delivery"))
    )
    with (folder / "batches").open("wb") as out:
        rows: list[Any] = []
        for row in _make_batches(group, whole, names, node_batch, hub_batch_ms):
            rows.append(row)
            if len(rows) == 1000:
                _put(out, _encode(rows))
                rows = []
        _put(out, _encode(rows))
    (folder / "rest").write_bytes(_encode(_make_rest(group, names)))
    return RoundFiles(folder)


def _make_calls(count: int, nodes: list[Address]) -> tuple[CallGroup, Directory]:
    draw = np.random.default_rng(7)
    started = START_MS + np.sort(draw.integers(0, 7_100_000, count)).astype(np.uint64)
    took = draw.integers(100, 60_000, count).astype(np.uint64)
    tokens_in = draw.integers(10, 4000, count).astype(np.uint64)
    tokens_out = draw.integers(1, 2000, count).astype(np.uint64)
    has_receipt = draw.random(count) < 0.99
    credits = (tokens_in + tokens_out) * np.uint64(10_000)
    vault = np.where(draw.random(count) < 0.9, credits, np.uint64(0))
    response = draw.integers(0, 256, (count, 32), np.uint8)
    body = np.where(
        (draw.random(count) < 0.95)[:, None], response, draw.integers(0, 256, (count, 32), np.uint8)
    )
    none = np.zeros(count, np.uint64)

    def answered(values: Any) -> Any:
        return np.where(has_receipt, values, 0).astype(np.uint64)

    group = CallGroup(
        call_id=draw.integers(0, 256, (count, 16), np.uint8),
        node=draw.permutation(np.arange(count) % len(nodes)).astype(np.uint64),
        router=none,
        model=draw.integers(0, 3, count).astype(np.uint64),
        price_version=none + np.uint64(1),
        request_hash=draw.integers(0, 256, (count, 32), np.uint8),
        started_at_ms=started,
        has_receipt=has_receipt,
        response_hash=np.where(has_receipt[:, None], response, 0).astype(np.uint8),
        http_status=answered(200),
        input_tokens=answered(tokens_in),
        output_tokens=answered(tokens_out),
        receipt_started_at_ms=answered(started + np.uint64(3)),
        receipt_finished_at_ms=answered(started + took - np.uint64(5)),
        body_hash=body,
        status=np.where(has_receipt, 0, 2).astype(np.uint64),
        credits_micro=answered(credits),
        vault_micro=answered(vault),
        round=none + np.uint64(ROUND),
        finished_at_ms=started + took,
    )
    order = np.argsort(np.ascontiguousarray(group.call_id).view("S16").reshape(count))
    models = [keccak(b"model %d" % n) for n in range(3)]
    directory = Directory(
        rows_of(list(map(address_bytes, nodes)), 20),
        rows_of([address_bytes(ZERO_ADDRESS)], 20),
        rows_of(models, 32),
    )
    return join_groups([group.take(order)]), directory


def _make_batches(
    group: CallGroup, hashes: GroupHashes, names: list[str], node_batch: int, hub_batch_ms: int
) -> Iterator[tuple[RecordBatch, bytes, bytes]]:
    ticks = group.finished_at_ms // np.uint64(hub_batch_ms)
    by_time = np.argsort(ticks, kind="stable")
    cuts = np.flatnonzero(np.diff(ticks[by_time])) + 1
    for rows in np.split(by_time, cuts):
        at_ms = (int(ticks[rows[0]]) + 1) * hub_batch_ms
        for start in range(0, len(rows), 256):
            part = rows[start : start + 256]
            yield _sign_batch("hub", RecordKind.FORWARD, hashes.forward[part], at_ms)
            yield _sign_batch("hub", RecordKind.DELIVERY, hashes.delivery[part], at_ms)
    own = np.flatnonzero(group.has_receipt)
    by_node = own[np.argsort(group.node[own], kind="stable")]
    for rows in np.split(by_node, np.flatnonzero(np.diff(group.node[by_node])) + 1):
        for start in range(0, len(rows), node_batch):
            part = rows[start : start + node_batch]
            name = names[int(group.node[part[0]])]
            yield _sign_batch(
                name, RecordKind.RECEIPT, hashes.receipt[part], int(group.finished_at_ms[part[-1]])
            )


def _sign_batch(name: str, kind: RecordKind, hashes: Any, at_ms: int) -> tuple[RecordBatch, bytes, bytes]:
    joined = hashes.tobytes()
    root = batch_root([joined[at : at + 32] for at in range(0, len(joined), 32)])
    batch = RecordBatch(address_of(name), int(kind), root, len(hashes), at_ms)
    return batch, _sign(name, batch), joined


def _make_rest(group: CallGroup, names: list[str]) -> Rest:
    validators = [f"validator-{n}" for n in range(VALIDATORS)]
    stake, power = encode_wei(5_000 * WEI_PER_TOKEN), encode_wei(1_000_000 * WEI_PER_TOKEN)
    rows = [
        SnapshotEntry(address_of(n), address_of(f"wallet of {n}"), int(ParticipantRole.COMPUTE), stake, 30, 0)
        for n in names
    ]
    rows += [
        SnapshotEntry(
            address_of(n), address_of(f"wallet of {n}"), int(ParticipantRole.VALIDATOR), power, 360, 0
        )
        for n in validators
    ]
    statuses = []
    for name in names:
        status = NodeStatus(
            address_of(name),
            address_of("hub"),
            9,
            START_MS + 5,
            (keccak(b"model 0"),),
            8,
            0,
            "emcd/0.1.0",
            "none",
        )
        statuses.append(StatusEntry(status, _sign(name, status)))
    plans, reveals = _make_plans(group, names, validators, rows)
    return Rest(rows, [ValidatorPower(address_of(n), power) for n in validators], statuses, plans, reveals)


def _make_plans(
    group: CallGroup, names: list[str], validators: list[str], rows: list[SnapshotEntry]
) -> tuple[list[CommitmentEntry], list[RevealEntry]]:
    """Every node's first calls are its probes."""
    number = {address_of(name): n for n, name in enumerate(names)}
    by_node = np.argsort(group.node, kind="stable")
    first = np.searchsorted(group.node[by_node], np.arange(len(names)))
    powers = [(address_of(name), 10**24) for name in validators]
    probes: dict[Address, list[ProbeResult]] = {address_of(name): [] for name in validators}
    for item in assign_probes(keccak(b"beacon"), ROUND, probed_nodes(rows, PARAMS), powers, PARAMS):
        row = int(by_node[first[number[item.node]] + item.slot])
        request, response = group.request_hash[row].tobytes(), group.response_hash[row].tobytes()
        verdict = int(Verdict.PASS if group.has_receipt[row] else Verdict.ERROR)
        probes[item.validator].append(
            ProbeResult(item.node, item.slot, 1, group.call_id[row].tobytes(), request, response, verdict, 12)
        )
    plans, reveals = [], []
    for name in validators:
        seed, corpus, salt = (keccak(f"{what} {name}".encode()) for what in ("seed", "corpus", "salt"))
        plan = PlanCommitment(
            address_of(name), ROUND, compute_commitment(seed, corpus, salt), START_MS - 1000
        )
        plans.append(CommitmentEntry(plan, _sign(name, plan)))
        own = tuple(probes[address_of(name)])
        reveal = Reveal(address_of(name), ROUND, seed, corpus, salt, compute_probes_hash(own))
        reveals.append(RevealEntry(reveal, _sign(name, reveal), own))
    return plans, reveals


def _sign(name: str, struct: Any) -> bytes:
    return sign(Domain(CHAIN_ID, STAKING), struct, secret_of(name))


def _put(out: Any, content: bytes) -> None:
    out.write(len(content).to_bytes(8, "big") + content)


def _frames(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while head := file.read(8):
            yield file.read(int.from_bytes(head, "big"))
