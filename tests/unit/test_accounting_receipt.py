"""The offline check of a receipt, and how it refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from emcd.accounting.call_rule import CallStanding
from emcd.accounting.receipt import CallReceipt, check_receipt
from emcd.accounting.round_close import CallRecords
from emcd.proto.eip712 import Domain
from emcd.proto.hashing import keccak
from emcd.proto.json_form import from_json, to_json
from emcd.proto.merkle import build_proof, build_tree, record_leaf
from emcd.proto.params import PriceTable
from emcd.proto.records import RecordKind, RecordProof, request_hash
from emcd.types import ZERO_HASH
from tests.support.round_world import STAKING, World, address_of, edited

WORLD = World(calls_per_node=0)
START = WORLD.params.round_start_ms(WORLD.round)
PATH, REQUEST, BODY = "/v1/embeddings", b'{"input":"hello"}', b'{"data":[]}'


def prove(name: str, kind: RecordKind, record: Any) -> RecordProof:
    hashes = [keccak(b"a"), keccak(b"b"), record.struct_hash(), keccak(b"c")]
    signed = WORLD.sign_batch(name, kind, hashes)
    tree = build_tree([record_leaf(item) for item in hashes])
    return RecordProof(signed.batch, signed.signature, 2, tuple(build_proof(tree, 2)))


def make_receipt(edit: Callable[[str, Any], Any] = lambda k, r: r) -> CallReceipt:
    def fill(kind: str, record: Any) -> Any:
        if kind == "forward":
            record = edited(record, request_hash=request_hash(PATH, REQUEST))
        if kind == "delivery":
            record = edited(record, body_hash=keccak(BODY))
        return edit(kind, record)

    return proven(WORLD.make_call("node-1", START, edit=fill))


def proven(call: CallRecords) -> CallReceipt:
    return CallReceipt(
        call.forward,
        prove("hub", RecordKind.FORWARD, call.forward),
        call.receipt,
        None if call.receipt is None else prove("node-1", RecordKind.RECEIPT, call.receipt),
        call.delivery,
        prove("hub", RecordKind.DELIVERY, call.delivery),
    )


def check(receipt: CallReceipt, **more: Any) -> Any:
    return check_receipt(WORLD.domain, WORLD.hub, receipt, **more)


def test_receipt_true_one_is_ok_and_counts() -> None:
    outcome = check(make_receipt(), request=(PATH, REQUEST), body=BODY, prices=WORLD.prices)

    assert outcome.ok
    assert outcome.counts


def test_receipt_survives_its_json_form() -> None:
    receipt = make_receipt()
    assert from_json(CallReceipt, to_json(receipt)) == receipt


def test_receipt_with_a_clock_off_is_true_and_does_not_count() -> None:
    outcome = check(
        make_receipt(lambda k, r: edited(r, started_at_ms=START - 30_001) if k == "receipt" else r)
    )

    assert outcome.ok
    assert outcome.standing is CallStanding.TIMES


def test_receipt_without_the_nodes_part_is_true_and_does_not_count() -> None:
    outcome = check(make_receipt(lambda k, r: None if k == "receipt" else r), prices=WORLD.prices)

    assert outcome.ok
    assert outcome.standing is CallStanding.NO_RECEIPT


def replace_record(kind: str, **changes: Any) -> Callable[[CallReceipt], CallReceipt]:
    return lambda r: edited(r, **{kind: edited(getattr(r, kind), **changes)})


def replace_proof(kind: str, **changes: Any) -> Callable[[CallReceipt], CallReceipt]:
    return lambda r: edited(r, **{f"{kind}_proof": edited(getattr(r, f"{kind}_proof"), **changes)})


def sign_by(name: str, kind: str, record_kind: RecordKind) -> Callable[[CallReceipt], CallReceipt]:
    return lambda r: edited(r, **{f"{kind}_proof": prove(name, record_kind, getattr(r, kind))})


FAKES: list[tuple[str, str, Callable[[CallReceipt], CallReceipt]]] = [
    ("EMC-1960", "forward changed", replace_record("forward", model_hash=ZERO_HASH)),
    ("EMC-1960", "forward of another hub", replace_record("forward", hub=address_of("x"))),
    ("EMC-1960", "receipt changed", replace_record("receipt", output_tokens=9999)),
    ("EMC-1960", "receipt of another call", replace_record("receipt", forward_hash=ZERO_HASH)),
    ("EMC-1960", "receipt withheld", lambda r: edited(r, receipt=None, receipt_proof=None)),
    ("EMC-1960", "receipt without proof", lambda r: edited(r, receipt_proof=None)),
    ("EMC-1960", "proof without receipt", lambda r: edited(r, receipt=None)),
    ("EMC-1960", "delivery of another call", replace_record("delivery", forward_hash=ZERO_HASH)),
    ("EMC-1960", "delivery of another receipt", replace_record("delivery", receipt_hash=ZERO_HASH)),
    ("EMC-1960", "status", replace_record("delivery", status=200)),
    ("EMC-1496", "delivery changed", replace_record("delivery", credits_micro=1)),
    ("EMC-1496", "path cut", replace_proof("delivery", siblings=())),
    ("EMC-1496", "path of another", replace_proof("forward", siblings=(ZERO_HASH, ZERO_HASH))),
    ("EMC-1495", "signature of another batch", lambda r: edited(
        r, forward_proof=edited(r.forward_proof, signature=r.delivery_proof.signature))),
    ("EMC-1494", "empty signature", replace_proof("receipt", signature=b"")),
    ("EMC-1494", "zero signature", replace_proof("receipt", signature=bytes(64) + b"\x1b")),
    ("EMC-1496", "receipt signed by the hub", sign_by("hub", "receipt", RecordKind.RECEIPT)),
    ("EMC-1496", "receipt signed by another node", sign_by("node-2", "receipt", RecordKind.RECEIPT)),
    ("EMC-1496", "forward signed by the node", sign_by("node-1", "forward", RecordKind.FORWARD)),
    ("EMC-1496", "batch of another kind", sign_by("hub", "forward", RecordKind.DELIVERY)),
    ("EMC-1493", "hash too short", replace_record("forward", request_hash=b"")),
]  # fmt: skip


@pytest.mark.parametrize(("code", "fake"), [(c, f) for c, _, f in FAKES], ids=[name for _, name, _ in FAKES])
def test_receipt_fake_is_refused(code: str, fake: Callable[[CallReceipt], CallReceipt]) -> None:
    outcome = check(fake(make_receipt()))

    assert not outcome.ok
    assert not outcome.counts
    assert outcome.fault.code == code


@pytest.mark.parametrize(
    ("domain", "hub"),
    [
        (Domain(1, STAKING), WORLD.hub),
        (Domain(31337, address_of("another contract")), WORLD.hub),
        (WORLD.domain, address_of("another hub")),
    ],
)
def test_receipt_of_another_network_is_refused(domain: Domain, hub: Any) -> None:
    assert not check_receipt(domain, hub, make_receipt()).ok


@pytest.mark.parametrize(
    ("more", "code"),
    [
        ({"request": (PATH, b"another")}, "EMC-1961"),
        ({"request": ("/v1/completions", REQUEST)}, "EMC-1961"),
        ({"body": b"another"}, "EMC-1961"),
        ({"prices": PriceTable(version=2)}, "EMC-1962"),
    ],
)
def test_receipt_for_another_request_body_or_price_is_refused(more: dict[str, Any], code: str) -> None:
    assert check(make_receipt(), **more).fault.code == code


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"credits_micro": 1}, "EMC-1962"),
        ({"credits_micro": 10**12}, "EMC-1962"),
        ({"credits_micro": 10**12, "status": 4}, "EMC-1962"),
        ({"credits_micro": 1, "status": 4}, None),
        ({"credits_micro": 1, "status": 2}, "EMC-1962"),
        ({"credits_micro": 0, "status": 2}, None),
    ],
)
def test_receipt_charge_is_recomputed(changes: dict[str, Any], code: str | None) -> None:
    receipt = make_receipt(lambda k, r: edited(r, **changes) if k == "delivery" else r)

    fault = check(receipt, prices=WORLD.prices).fault

    assert (fault and fault.code) == code
