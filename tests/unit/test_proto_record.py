"""Addresses, hashes, call ids, batch proofs, the clock of the network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from emcd.errors import RemoteProtocolError
from emcd.proto.address import (
    address_bytes,
    address_from_bytes,
    hex_hash,
    parse_address,
    parse_hash,
)
from emcd.proto.hashing import keccak
from emcd.proto.merkle import build_proof, build_root, build_tree, record_leaf, root_from_proof
from emcd.proto.params import PriceTable, devnet_params, mainnet_params
from emcd.proto.records import (
    BATCH_RECORDS,
    RecordKind,
    RecordProof,
    batch_root,
    format_call_id,
    parse_call_id,
    request_hash,
    require_proof,
)
from tests.support import second_implementation as second
from tests.support.round_world import World, address_of, edited

EIP55 = (
    "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed",
    "0xfB6916095ca1df60bB79Ce92cE3Ea74c37c5d359",
    "0xdbF03B407c01E7cD3CBea99509d93f8DDDC8C6FB",
    "0xD1220A0cf47c7B9Be7A2E6BA89F429762e7b9aDb",
)
WORLD = World(calls_per_node=0)
RECORD = WORLD.calls[0].delivery


@pytest.mark.parametrize("text", EIP55)
def test_address_examples_of_eip55_are_read_and_written(text: str) -> None:
    assert parse_address(text) == text
    assert address_from_bytes(address_bytes(text)) == text


@pytest.mark.parametrize("form", [str.lower, str.upper, str.swapcase, lambda t: "0X" + t[2:]])
def test_address_without_its_capitals_is_refused(form: Callable[[str], str]) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        parse_address(form(EIP55[0]))
    assert caught.value.code in ("EMC-1490", "EMC-1491")


@pytest.mark.parametrize(
    "text", ["", "0x", "0x12", EIP55[0] + "0", EIP55[0][:-1] + "g", "٠" * 42, EIP55[0][:-1] + "\n"]
)
def test_address_malformed_is_refused(text: str) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        parse_address(text)
    assert caught.value.code == "EMC-1490"


@pytest.mark.parametrize("text", ["", "0x" + "0" * 63, "0x" + "g" * 64, "0" * 66, "0x" + "0" * 65])
def test_hash_malformed_is_refused(text: str) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        parse_hash(text)
    assert caught.value.code == "EMC-1492"


def test_hash_round_trips() -> None:
    assert parse_hash(hex_hash(keccak(b"x"))) == keccak(b"x")


@pytest.mark.parametrize("raw", [b"", bytes(19), bytes(21)])
def test_address_of_another_length_is_refused(raw: bytes) -> None:
    with pytest.raises(ValueError):
        address_from_bytes(raw)


def test_call_id_round_trips() -> None:
    assert parse_call_id(format_call_id(bytes(range(16)))) == bytes(range(16))


@pytest.mark.parametrize(
    "text", ["", "call_", "0" * 32, "call_" + "A" * 32, "call_" + "0" * 31, "call_" + "0" * 33]
)
def test_call_id_malformed_is_refused(text: str) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        parse_call_id(text)
    assert caught.value.code == "EMC-1497"


def test_request_hash_separates_path_and_body() -> None:
    assert request_hash("/v1/a", b"b") != request_hash("/v1/ab", b"")
    assert request_hash("/v1/a", b"b") == keccak(b"/v1/a\0b")


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 255, 256])
def test_tree_root_is_that_of_the_second_implementation(count: int) -> None:
    leaves = [keccak(bytes([n])) for n in range(count)]
    assert build_root(leaves) == second.tree_root([bytes(leaf) for leaf in leaves])


def test_tree_without_leaves_is_refused() -> None:
    with pytest.raises(ValueError):
        build_tree([])


@pytest.mark.parametrize("index", [-1, 3, 4, 99])
def test_tree_proof_of_no_leaf_is_refused(index: int) -> None:
    tree = build_tree([keccak(bytes([n])) for n in range(3)])
    with pytest.raises(IndexError):
        build_proof(tree, index)


def prove(
    name: str = "hub", kind: RecordKind = RecordKind.DELIVERY, record: Any = RECORD, others: int = 3
) -> RecordProof:
    hashes = [*(keccak(bytes([n])) for n in range(others)), record.struct_hash()]
    signed = WORLD.sign_batch(name, kind, hashes)
    tree = build_tree([record_leaf(item) for item in hashes])
    assert batch_root(hashes) == tree[0]
    return RecordProof(signed.batch, signed.signature, others, tuple(build_proof(tree, others)))


@pytest.mark.parametrize("others", [0, 1, 2, BATCH_RECORDS - 1])
def test_proof_of_a_record_is_accepted(others: int) -> None:
    proof = prove(others=others)

    require_proof(WORLD.domain, RECORD, proof, WORLD.hub)

    leaf = record_leaf(RECORD.struct_hash())
    assert second.climb(bytes(leaf), [bytes(item) for item in proof.siblings]) == root_from_proof(
        leaf, proof.siblings
    )


@pytest.mark.parametrize(
    ("code", "proof"),
    [
        ("EMC-1496", prove(kind=RecordKind.FORWARD)),
        ("EMC-1496", prove(name="node-1")),
        ("EMC-1496", edited(prove(), siblings=())),
        ("EMC-1496", edited(prove(), batch=edited(prove().batch, count=0))),
        ("EMC-1496", edited(prove(), batch=edited(prove().batch, count=BATCH_RECORDS + 1))),
        ("EMC-1495", edited(prove(), batch=edited(prove().batch, signed_at_ms=1))),
        ("EMC-1494", edited(prove(), signature=b"")),
        ("EMC-1496", prove(record=WORLD.calls[1].delivery)),
    ],
)
def test_proof_wrong_in_one_thing_is_refused(code: str, proof: RecordProof) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        require_proof(WORLD.domain, RECORD, proof, WORLD.hub)
    assert caught.value.code == code


def test_params_rounds_follow_the_clock() -> None:
    params = mainnet_params(1_800_000_000)
    start = params.round_start_ms(5)

    assert [params.round_at(t) for t in (start - 1, start, start + 7_200_000 - 1, start + 7_200_000)] == [
        4,
        5,
        5,
        6,
    ]
    assert params.round_at(params.genesis_time_s * 1000 - 1) == -1
    assert params.grace_end_ms(5) == params.round_start_ms(7)
    assert (params.epoch_of(11), params.epoch_of(12)) == (0, 1)


def test_params_devnet_scales_durations_with_its_rounds() -> None:
    params = devnet_params(1_800_000_000)

    assert params.online_window_ms == 3_750
    assert params.challenge_delay_rounds == 1
    assert params.day_s == 180


@pytest.mark.parametrize("make", [mainnet_params, devnet_params])
def test_params_genesis_off_the_grid_is_refused(make: Callable[[int], Any]) -> None:
    with pytest.raises(ValueError):
        make(1_800_000_001)


def test_prices_unknown_model_costs_the_default() -> None:
    assert PriceTable().price_of(address_of("x")) == PriceTable().default
