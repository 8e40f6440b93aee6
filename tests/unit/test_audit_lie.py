"""A hub that lies with valid signatures and checksums: each lie has its code and its place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from emcd.accounting.audit import AuditOutcome, audit_bundle, check_seal
from emcd.accounting.expectation import Expectation
from emcd.money import encode_wei
from emcd.proto.bundle import (
    BatchEntry,
    Bundle,
    CommitmentEntry,
    RecordRef,
    RevealEntry,
    StatusEntry,
    Total,
    VoteEntry,
)
from emcd.proto.bundle_codec import BundleReader, Section, encode_bundle, read_batch_leaves, sort_key
from emcd.proto.eip712 import Domain
from emcd.proto.hashing import keccak
from emcd.proto.messages import Verdict
from emcd.proto.params import PriceTable
from emcd.proto.records import CallStatus, RecordKind, batch_root
from emcd.proto.signing import sign
from tests.support import second_bundle
from tests.support.round_world import CHAIN_ID, STAKING, World, address_of, edited, secret_of

WORLD = World(round=20, node_names=("node-1", "node-2"), verdicts={"node-2": Verdict.GROSS}, calls_per_node=2)
CLOSED = WORLD.close()
BUNDLE = CLOSED.bundle


def audit(bundle: Bundle | bytes, **expected: Any) -> AuditOutcome:
    data = bundle if isinstance(bundle, bytes) else encode_bundle(bundle)
    return audit_bundle(data, Expectation(**expected))


def replace_items(section: Section, items: Any) -> Bundle:
    ordered = tuple(sorted(items, key=lambda item: sort_key(section, item)))
    changed: Bundle = edited(BUNDLE, **{section.label: ordered})
    return changed


def replace_item(section: Section, index: int, item: Any) -> Bundle:
    items = list(getattr(BUNDLE, section.label))
    items[index] = item
    return replace_items(section, items)


def header(**changes: Any) -> Bundle:
    changed: Bundle = edited(BUNDLE, header=edited(BUNDLE.header, **changes))
    return changed


def call(index: int = 0, *, relink: bool = True, **parts: dict[str, Any]) -> Bundle:
    """The bundle with a changed call; later records refer to the changed ones."""
    entry = BUNDLE.calls[index]
    forward = edited(entry.forward, **parts.get("forward", {}))
    receipt = entry.receipt
    if relink:
        receipt = edited(receipt, forward_hash=forward.struct_hash())
    receipt = edited(receipt, **parts.get("receipt", {}))
    delivery = entry.delivery
    if relink:
        delivery = edited(delivery, forward_hash=forward.struct_hash(), receipt_hash=receipt.struct_hash())
    delivery = edited(delivery, **parts.get("delivery", {}))
    return replace_item(
        Section.CALLS,
        index,
        edited(
            entry, **{"forward": forward, "receipt": receipt, "delivery": delivery, **parts.get("entry", {})}
        ),
    )


def status(index: int = 0, signer: str = "", **changes: Any) -> Bundle:
    struct = edited(BUNDLE.statuses[index].status, **changes)
    name = signer or WORLD.by_address[struct.node]
    return replace_item(Section.STATUSES, index, StatusEntry(struct, WORLD.sign(name, struct)))


def commitment(signer: str = "", **changes: Any) -> Bundle:
    struct = edited(BUNDLE.commitments[0].commitment, **changes)
    name = signer or WORLD.by_address[BUNDLE.commitments[0].commitment.validator]
    return replace_item(Section.COMMITMENTS, 0, CommitmentEntry(struct, WORLD.sign(name, struct)))


def reveal_index() -> int:
    return next(i for i, entry in enumerate(BUNDLE.reveals) if entry.probes)


def reveal(signer: str = "", probes: Any = None, **changes: Any) -> Bundle:
    index = reveal_index()
    own = BUNDLE.reveals[index]
    if probes is not None:
        own = WORLD.make_reveal(WORLD.by_address[own.reveal.validator], probes)
    struct = edited(own.reveal, **changes)
    name = signer or WORLD.by_address[own.reveal.validator]
    return replace_item(Section.REVEALS, index, RevealEntry(struct, WORLD.sign(name, struct), own.probes))


def probe(**changes: Any) -> Bundle:
    probes = BUNDLE.reveals[reveal_index()].probes
    return reveal(probes=(edited(probes[0], **changes), *probes[1:]))


def foreign_probe() -> Bundle:
    index = reveal_index()
    other = next(entry for i, entry in enumerate(BUNDLE.reveals) if entry.probes and i != index)
    return reveal(probes=(*BUNDLE.reveals[index].probes, other.probes[0]))


def vote(signer: str = "", **changes: Any) -> Bundle:
    struct = edited(BUNDLE.votes[0].vote, **changes)
    name = signer or WORLD.by_address[BUNDLE.votes[0].vote.validator]
    return replace_item(Section.VOTES, 0, VoteEntry(struct, WORLD.sign(name, struct)))


def sign_entry(index: int, entry: BatchEntry, name: str = "") -> BatchEntry:
    """The entry, signed anew over the root that its batch has in the truth."""
    root = batch_root(read_batch_leaves(BundleReader(CLOSED.data), index))
    signature = WORLD.sign(name or WORLD.by_address[entry.signer], entry.with_root(root))
    signed: BatchEntry = edited(entry, signature=signature)
    return signed


def batch(kind: RecordKind = RecordKind.RECEIPT, signer: str = "", **changes: Any) -> Bundle:
    index = next(i for i, entry in enumerate(BUNDLE.batches) if entry.kind == kind)
    items = list(BUNDLE.batches)
    items[index] = sign_entry(index, edited(items[index], **changes), signer)
    return replace_batches(items)


def others(change: Callable[[int, int], list[tuple[int, bytes]]]) -> Bundle:
    """The first batch of deliveries with other records of elsewhere; given the one's leaf and the count."""
    entry = next(item for item in BUNDLE.batches if item.kind == RecordKind.DELIVERY)
    ((leaf, _),) = entry.others
    return batch(RecordKind.DELIVERY, others=tuple(change(leaf, entry.count)))


def replaced_leaf() -> Bundle:
    """A call says that its delivery stands where the hub signed another record: both are given."""
    index = next(i for i, item in enumerate(BUNDLE.batches) if item.kind == RecordKind.DELIVERY)
    entry = BUNDLE.batches[index]
    leaf = next(c.delivery_ref.leaf for c in BUNDLE.calls if c.delivery_ref and c.delivery_ref.batch == index)
    leaves = read_batch_leaves(BundleReader(CLOSED.data), index)
    leaves[leaf] = keccak(b"what the hub signed")
    both = edited(entry, others=tuple(sorted([*entry.others, (leaf, leaves[leaf])])))
    signed = edited(both, signature=WORLD.sign("hub", entry.with_root(batch_root(leaves))))
    return replace_batches([signed if i == index else item for i, item in enumerate(BUNDLE.batches)])


def unused_batch(**changes: Any) -> Bundle:
    extra = WORLD.sign_batch("hub", RecordKind.FORWARD, [keccak(b"nothing here")])
    struct = extra.batch
    others = ((0, keccak(b"nothing here")),)
    entry = BatchEntry(struct.signer, struct.kind, 1, struct.signed_at_ms, extra.signature, others)
    return replace_batches([*BUNDLE.batches, edited(entry, **changes)])


def foreign_batch() -> Bundle:
    """Another node signs what node-1 should have signed."""
    items = []
    for index, entry in enumerate(BUNDLE.batches):
        if entry.signer == address_of("node-1"):
            entry = sign_entry(index, edited(entry, signer=address_of("node-2")))
        items.append(entry)
    return replace_batches(items)


def replace_batches(items: list[BatchEntry]) -> Bundle:
    """Batches in the order of `BUNDLE.batches`, more at the end; the calls refer to them as before."""
    batches = sorted(items, key=lambda item: sort_key(Section.BATCHES, item))
    moved = [batches.index(item) for item in items]
    calls = [
        edited(
            item,
            **{
                f"{name}_ref": RecordRef(
                    moved[getattr(item, f"{name}_ref").batch], getattr(item, f"{name}_ref").leaf
                )
                for name in ("forward", "receipt", "delivery")
            },
        )
        for item in BUNDLE.calls
    ]
    out: Bundle = edited(BUNDLE, batches=tuple(batches), calls=tuple(calls))
    return out


def by_hand(index: int, **refs: list[int]) -> bytes:
    """The bundle with a call that refers to what is not there: our own coder refuses to write it."""
    sections = second_bundle.read_bundle(CLOSED.data)
    for name, ref in refs.items():
        sections["calls"][index][{"forward": 3, "receipt": 4, "delivery": 5}[name]] = ref
    return second_bundle.write_bundle(sections)


def by_hand_count(count: int) -> bytes:
    """The last batches are said to have so many records."""
    sections = second_bundle.read_bundle(CLOSED.data)
    for entry in sections["batches"][-2:]:
        entry[2] = count
    return second_bundle.write_bundle(sections)


def unreceipted() -> bytes:
    """A call that refers to a receipt which it has not."""
    sections = second_bundle.read_bundle(CLOSED.data)
    entry = sections["calls"][0]
    entry[1], entry[2][1], entry[2][2] = None, bytes(32), bytes(32)
    return second_bundle.write_bundle(sections)


def result(index: int = 0, **changes: Any) -> Bundle:
    return replace_item(Section.RESULTS, index, edited(BUNDLE.results[index], **changes))


START = WORLD.params.round_start_ms(WORLD.round)
OLD_MS = WORLD.params.round_start_ms(WORLD.round - 13)
FREF = BUNDLE.calls[0].forward_ref
assert FREF is not None
FORWARD_BATCH = FREF.batch

LIES: list[tuple[str, str, str, Callable[[], Bundle | bytes]]] = [
    ("EMC-1905", "header", "format", lambda: header(format_version=2)),
    ("EMC-1905", "header", "previous round not before", lambda: header(previous_round=WORLD.round)),
    ("EMC-1905", "header", "previous hash without round", lambda: header(previous_round=-1)),
    ("EMC-1905", "header", "previous round without hash", lambda: header(previous_bundle_hash=bytes(32))),
    ("EMC-1905", "header", "no price table", lambda: header(prices=())),
    ("EMC-1905", "header", "price table twice", lambda: header(prices=(PriceTable(), PriceTable()))),
    ("EMC-1905", "header", "round of 0 s", lambda: header(params=edited(WORLD.params, round_s=0))),
    ("EMC-1905", "header", "epoch of no round", lambda: header(params=edited(WORLD.params, epoch_rounds=0))),
    ("EMC-1905", "header", "no probes", lambda: header(params=edited(WORLD.params, probes_per_node=0))),
    (
        "EMC-1905",
        "header",
        "endless carry",
        lambda: header(params=edited(WORLD.params, carry_rounds=1 << 62)),
    ),
    ("EMC-1905", "header", "round beyond time", lambda: header(round=1 << 50)),
    (
        "EMC-1926",
        "participants",
        "role",
        lambda: replace_item(Section.PARTICIPANTS, 0, edited(BUNDLE.participants[0], role=9)),
    ),
    (
        "EMC-1926",
        "participants",
        "lock",
        lambda: replace_items(
            Section.PARTICIPANTS, [edited(p, lock_days=8) if p.role == 1 else p for p in BUNDLE.participants]
        ),
    ),
    (
        "EMC-1926",
        "validators",
        "no power",
        lambda: replace_item(Section.VALIDATORS, 0, edited(BUNDLE.validators[0], power_wei=bytes(32))),
    ),
    (
        "EMC-1926",
        "totals",
        "zero",
        lambda: replace_item(Section.TOTALS, 0, edited(BUNDLE.totals[0], cumulative_wei=bytes(32))),
    ),
    (
        "EMC-1926",
        "totals",
        "more than ever issued",
        lambda: replace_item(Section.TOTALS, 0, Total(BUNDLE.totals[0].wallet, encode_wei(10**26))),
    ),
    ("EMC-1910", "batches", "none in it", lambda: unused_batch(count=0, others=())),
    ("EMC-1910", "batches", "too many", lambda: batch(count=257)),
    ("EMC-1910", "batches", "no kind", lambda: unused_batch(kind=9)),
    ("EMC-1910", "batches", "signed by another", lambda: batch(signer="validator-1")),
    ("EMC-1910", "batches", "another root", lambda: others(lambda leaf, size: [(leaf, keccak(b"another"))])),
    ("EMC-1910", "batches", "leaf missing", lambda: others(lambda leaf, size: [])),
    (
        "EMC-1910",
        "batches",
        "leaf twice",
        lambda: others(lambda leaf, size: sorted([(0 if leaf else 1, bytes(32)), (leaf, bytes(32))])),
    ),
    (
        "EMC-1910",
        "batches",
        "leaf beyond its end",
        lambda: others(lambda leaf, size: [(leaf, bytes(32)), (size, bytes(32))]),
    ),
    ("EMC-1910", "batches", "leaf of a call and another record", replaced_leaf),
    ("EMC-1910", "batches", "more than all calls have", lambda: by_hand_count(60_000)),
    ("EMC-1910", "batches", "unused", unused_batch),
    ("EMC-1912", "calls", "receipts signed by another node", foreign_batch),
    ("EMC-1912", "calls", "receipt that is not there", unreceipted),
    ("EMC-1911", "calls", "status", lambda: call(delivery={"status": 9})),
    ("EMC-1911", "calls", "ends before it starts", lambda: call(forward={"started_at_ms": START + 14_000})),
    ("EMC-1912", "calls", "no such batch", lambda: by_hand(0, forward=[999, 0])),
    (
        "EMC-1912",
        "calls",
        "batch of another kind",
        lambda: call(entry={"forward_ref": BUNDLE.calls[0].delivery_ref}),
    ),
    ("EMC-1912", "calls", "leaf of a later batch", lambda: by_hand(0, forward=[FORWARD_BATCH, 13])),
    ("EMC-1912", "calls", "no such leaf", lambda: by_hand(0, delivery=[len(BUNDLE.batches) - 1, 200])),
    ("EMC-1912", "calls", "leaf of another", lambda: call(1, entry={"forward_ref": FREF})),
    ("EMC-1913", "calls", "too dear", lambda: call(delivery={"credits_micro": 1 << 40})),
    ("EMC-1913", "calls", "too cheap", lambda: call(delivery={"credits_micro": 1, "vault_micro": 1})),
    ("EMC-1913", "calls", "more from the vault", lambda: call(delivery={"vault_micro": 1 << 40})),
    ("EMC-1913", "calls", "failure charged", lambda: call(delivery={"status": 2})),
    (
        "EMC-1913",
        "calls",
        "capped above the price",
        lambda: call(delivery={"status": int(CallStatus.CAPPED), "credits_micro": 1 << 40}),
    ),
    ("EMC-1913", "calls", "tokens made up", lambda: call(receipt={"output_tokens": 10**6})),
    ("EMC-1914", "calls", "another round", lambda: call(delivery={"round": WORLD.round - 1})),
    (
        "EMC-1914",
        "calls",
        "too old",
        lambda: call(
            forward={"started_at_ms": OLD_MS}, delivery={"round": WORLD.round - 13, "finished_at_ms": OLD_MS}
        ),
    ),
    (
        "EMC-1914",
        "calls",
        "future",
        lambda: call(delivery={"round": WORLD.round + 1, "finished_at_ms": START + 16_000}),
    ),
    ("EMC-1914", "calls", "unknown prices", lambda: call(forward={"price_version": 2})),
    ("EMC-1920", "statuses", "another hub", lambda: status(hub=address_of("x"))),
    ("EMC-1920", "statuses", "old", lambda: status(sent_at_ms=START - 30_001)),
    ("EMC-1920", "statuses", "late", lambda: status(sent_at_ms=START + 15_000 + 30_000)),
    ("EMC-1920", "statuses", "signed by the hub", lambda: status(signer="hub")),
    ("EMC-1921", "commitments", "another round", lambda: commitment(round=WORLD.round + 1)),
    ("EMC-1921", "commitments", "after the start", lambda: commitment(signed_at_ms=START)),
    ("EMC-1921", "commitments", "signed by another", lambda: commitment(signer="hub")),
    (
        "EMC-1921",
        "commitments",
        "not a member",
        lambda: commitment(signer="node-1", validator=address_of("node-1")),
    ),
    ("EMC-1922", "reveals", "another round", lambda: reveal(round=0)),
    ("EMC-1922", "reveals", "another seed", lambda: reveal(seed=bytes(32))),
    ("EMC-1922", "reveals", "another corpus", lambda: reveal(corpus_root=bytes(32))),
    ("EMC-1922", "reveals", "other probes", lambda: reveal(probes_hash=bytes(32))),
    ("EMC-1922", "reveals", "signed by another", lambda: reveal(signer="hub")),
    ("EMC-1922", "reveals", "verdict", lambda: probe(verdict=0)),
    ("EMC-1922", "reveals", "hashes without a call", lambda: probe(call_id=bytes(16))),
    ("EMC-1922", "reveals", "no commitment", lambda: edited(BUNDLE, commitments=())),
    ("EMC-1924", "reveals", "another's probe", foreign_probe),
    ("EMC-1924", "reveals", "a slot too many", lambda: probe(slot=2)),
    ("EMC-1923", "votes", "another round", lambda: vote(round=0)),
    ("EMC-1923", "votes", "no such call", lambda: vote(call_id=bytes(16))),
    ("EMC-1923", "votes", "another receipt", lambda: vote(receipt_hash=bytes(32))),
    ("EMC-1923", "votes", "verdict", lambda: vote(verdict=77)),
    ("EMC-1923", "votes", "signed by another", lambda: vote(signer="hub")),
    ("EMC-1923", "votes", "not a member", lambda: vote(signer="node-1", validator=address_of("node-1"))),
    ("EMC-1930", "results", "credits", lambda: result(credits_micro=BUNDLE.results[0].credits_micro + 1)),
    ("EMC-1930", "results", "weight", lambda: result(weight=b"\1" + bytes(63))),
    ("EMC-1930", "results", "reward", lambda: result(reward_wei=encode_wei(10**30))),
    ("EMC-1930", "results", "reason", lambda: result(reason="I don't like it")),
    ("EMC-1930", "results", "missing", lambda: edited(BUNDLE, results=BUNDLE.results[:-1])),
    (
        "EMC-1930",
        "results",
        "too many",
        lambda: replace_items(
            Section.RESULTS, [*BUNDLE.results, edited(BUNDLE.results[0], node=address_of("nobody"))]
        ),
    ),
    ("EMC-1931", "header", "issue", lambda: header(issue_wei=encode_wei(CLOSED.result.issue_wei + 1))),
    ("EMC-1932", "header", "cumulative", lambda: header(cumulative_wei=encode_wei(1))),
    ("EMC-1933", "header", "root", lambda: header(root=keccak(b"mine"))),
]


@pytest.mark.parametrize(
    ("code", "section", "lie"),
    [(c, s, f) for c, s, _, f in LIES],
    ids=[f"{c[4:]}-{n}" for c, _, n, _ in LIES],
)
def test_audit_lie_is_named(code: str, section: str, lie: Callable[[], Bundle | bytes]) -> None:
    difference = audit(lie()).difference

    assert difference is not None
    assert (difference.code, difference.section) == (code, section)
    assert str(difference).startswith(f"{code}: {section}[")


def test_audit_batches_that_nothing_can_fill_are_refused_before_memory_is_taken_for_them() -> None:
    difference = audit(by_hand_count(60_000)).difference
    assert difference is not None
    assert "can't be all" in difference.detail


def test_audit_truth_is_accepted() -> None:
    assert audit(BUNDLE).ok


EXPECTED: dict[str, Any] = {
    "round": WORLD.round,
    "hub": WORLD.hub,
    "chain_id": CHAIN_ID,
    "staking": STAKING,
    "distributor": BUNDLE.header.distributor,
    "params": WORLD.params,
    "prices": (WORLD.prices,),
    "snapshot_block": 1000,
    "snapshot_block_hash": keccak(b"snapshot"),
    "beacon_block": 1002,
    "beacon_block_hash": keccak(b"beacon"),
    "participants": WORLD.participants(),
    "validators": WORLD.validators(),
    "previous_round": WORLD.round - 1,
    "previous_bundle_hash": keccak(b"previous bundle"),
    "totals": WORLD.facts.totals,
    "settled_call_ids": set(),
    "bundle_hash": CLOSED.bundle_hash,
}


def test_audit_everything_expected_is_accepted() -> None:
    assert audit(BUNDLE, **EXPECTED).ok


@pytest.mark.parametrize(
    ("name", "value", "code"),
    [
        ("round", 21, "EMC-1906"),
        ("hub", STAKING, "EMC-1906"),
        ("chain_id", 1, "EMC-1906"),
        ("staking", address_of("x"), "EMC-1906"),
        ("distributor", address_of("x"), "EMC-1906"),
        ("params", edited(WORLD.params, unbonding_rounds=1), "EMC-1906"),
        ("prices", (PriceTable(version=2),), "EMC-1906"),
        ("snapshot_block", 1, "EMC-1906"),
        ("snapshot_block_hash", bytes(32), "EMC-1906"),
        ("beacon_block", 1, "EMC-1906"),
        ("beacon_block_hash", bytes(32), "EMC-1906"),
        ("participants", WORLD.participants()[1:], "EMC-1906"),
        ("participants", [*WORLD.participants(), edited(WORLD.participants()[0], node=STAKING)], "EMC-1906"),
        ("participants", [edited(p, suspended_until_round=9) for p in WORLD.participants()], "EMC-1906"),
        ("validators", WORLD.validators()[1:], "EMC-1906"),
        ("validators", [edited(v, power_wei=encode_wei(1)) for v in WORLD.validators()], "EMC-1906"),
        ("previous_round", 2, "EMC-1906"),
        ("previous_bundle_hash", bytes(32), "EMC-1906"),
        ("totals", {}, "EMC-1906"),
        ("totals", {**WORLD.facts.totals, STAKING: 1}, "EMC-1906"),
        ("totals", dict.fromkeys(WORLD.facts.totals, 7), "EMC-1906"),
        ("settled_call_ids", {BUNDLE.calls[2].forward.call_id}, "EMC-1915"),
        ("bundle_hash", bytes(32), "EMC-1907"),
    ],
)
def test_audit_what_is_known_from_elsewhere_is_compared(name: str, value: Any, code: str) -> None:
    difference = audit(BUNDLE, **{**EXPECTED, name: value}).difference

    assert difference is not None
    assert difference.code == code


def test_audit_failed_outcome_has_no_root_to_sign() -> None:
    with pytest.raises(ValueError):
        _ = audit(header(root=bytes(32))).round_root


@pytest.mark.parametrize("data", [b"", b"EMCDBDL1", b"EMCDBDL2", b"EMCDBDL3", b"\xff" * 1000])
def test_audit_of_garbage_is_an_outcome(data: bytes) -> None:
    difference = audit_bundle(data).difference
    assert difference is not None
    assert difference.code in ("EMC-1901", "EMC-1903")


@pytest.mark.parametrize("case", ["ok", "other round", "other hash", "other key", "other chain", "empty"])
def test_seal_is_checked(case: str) -> None:
    domain = Domain(1, STAKING) if case == "other chain" else WORLD.domain
    signature = sign(domain, CLOSED.seal, secret_of("node-1" if case == "other key" else "hub"))
    index = WORLD.round + (case == "other round")
    bundle_hash = bytes(32) if case == "other hash" else CLOSED.bundle_hash

    ok = check_seal(WORLD.domain, WORLD.hub, index, bundle_hash, b"" if case == "empty" else signature)

    assert ok is (case == "ok")
