"""`emcd.proto.json_form`: one content, one JSON value; everything else is refused."""

from __future__ import annotations

from typing import Any

import pytest

from emcd.errors import RemoteProtocolError
from emcd.proto.bundle import BundleHeader, CallEntry, RecordRef, ResultEntry, SnapshotEntry
from emcd.proto.hashing import keccak
from emcd.proto.json_form import from_json, to_json
from emcd.proto.messages import Extraction, NodeStatus, RoundRoot
from emcd.proto.params import NetworkParams, PriceTable
from emcd.proto.records import Delivery, Forward, Receipt, RecordBatch, RecordProof
from emcd.testing import make_key
from emcd.types import ZERO_HASH

ADDRESS = make_key("a").address
FORWARD = Forward(b"c" * 16, ADDRESS, ADDRESS, ADDRESS, keccak(b"r"), keccak(b"m"), 1, 5)
DELIVERY = Delivery(keccak(b"f"), keccak(b"r"), keccak(b"b"), 0, 123_456_789, 5, 7, 9)
BATCH = RecordBatch(ADDRESS, 1, keccak(b"root"), 2, 3)


def test_typed_struct_is_an_object_of_hex_and_decimals() -> None:
    form = to_json(DELIVERY)
    assert form["forward_hash"] == "0x" + keccak(b"f").hex()
    assert (form["credits_micro"], form["vault_micro"]) == ("123456789", "5")
    assert (form["status"], form["round"]) == (0, 7)
    assert from_json(Delivery, form) == DELIVERY


@pytest.mark.parametrize(
    "struct",
    [
        FORWARD,
        BATCH,
        RecordProof(BATCH, b"s" * 65, 1, (keccak(b"1"), keccak(b"2"))),
        NodeStatus(ADDRESS, ADDRESS, 1, 2, (keccak(b"m"),), 3, 4, "v", "ä"),
        RoundRoot(3, keccak(b"b"), keccak(b"r"), 2**200),
        Extraction(ADDRESS, ADDRESS, 3, True, 2**60, 5),
        SnapshotEntry(ADDRESS, ADDRESS, 1, (10**24).to_bytes(32, "big"), 180, 0),
        ResultEntry(ADDRESS, 5, (2**500).to_bytes(64, "big"), bytes(32), ""),
        CallEntry(FORWARD, None, DELIVERY, RecordRef(0, 1), None, None),
        CallEntry(FORWARD, Receipt(ZERO_HASH, ZERO_HASH, 200, 1, 2, 3, 4), DELIVERY, None, None, None),
        NetworkParams(genesis_time_s=7200),
        PriceTable(),
        BundleHeader(
            1, 2, ADDRESS, 3, ADDRESS, ADDRESS, NetworkParams(0), (PriceTable(),), (0,), 4, ZERO_HASH, 5,
            ZERO_HASH, -1, ZERO_HASH, bytes(32), ZERO_HASH, bytes(32),
        ),
    ],
    ids=lambda struct: type(struct).__name__,
)  # fmt: skip
def test_every_kind_reads_what_it_writes(struct: Any) -> None:
    assert from_json(type(struct), to_json(struct)) == struct


def changed(**changes: Any) -> dict[str, Any]:
    return {**to_json(DELIVERY), **changes}


@pytest.mark.parametrize(
    ("table", "where"),
    [
        ([], "Delivery"),
        (None, "Delivery"),
        ({}, "Delivery"),
        (changed(more=1), "more"),
        (changed(round="7"), "round"),
        (changed(round=7.0), "round"),
        (changed(round=True), "round"),
        (changed(round=-1), "round"),
        (changed(round=2**64), "round"),
        (changed(status=256), "status"),
        (changed(credits_micro=5), "credits_micro"),
        (changed(credits_micro="05"), "credits_micro"),
        (changed(credits_micro="-5"), "credits_micro"),
        (changed(credits_micro="18446744073709551616"), "credits_micro"),
        (changed(credits_micro="1e3"), "credits_micro"),
        (changed(forward_hash="00" * 32), "forward_hash"),
        (changed(forward_hash="0x" + "AB" * 32), "forward_hash"),
        (changed(forward_hash="0x" + "00" * 31), "forward_hash"),
        (changed(forward_hash=None), "forward_hash"),
    ],
)
def test_anything_else_is_refused_and_named(table: Any, where: str) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        from_json(Delivery, table)
    assert caught.value.code == "EMC-1499"
    assert where in caught.value.detail


def test_missing_field_is_named() -> None:
    table = to_json(DELIVERY)
    del table["round"]
    with pytest.raises(RemoteProtocolError, match="'round' is missing"):
        from_json(Delivery, table)


def test_wrong_address_and_nested_path_are_named() -> None:
    proof = to_json(RecordProof(BATCH, b"s" * 65, 1, (keccak(b"1"),)))
    proof["batch"]["signer"] = ADDRESS.lower()
    with pytest.raises(RemoteProtocolError, match=r"batch\.signer"):
        from_json(RecordProof, proof)
    status = to_json(NodeStatus(ADDRESS, ADDRESS, 1, 2, (keccak(b"m"),), 3, 4, "v", "g"))
    status["models"] = [status["models"][0], "0x00"]
    with pytest.raises(RemoteProtocolError, match=r"models\[1\]"):
        from_json(NodeStatus, status)
