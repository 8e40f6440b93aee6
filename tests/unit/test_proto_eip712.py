"""Every signed message: hashed as eth-account hashes it, refused in every wrong form."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest

from emcd.accounting.conformance import TYPED_STRUCTS
from emcd.errors import LocalProtocolError, RemoteProtocolError
from emcd.proto.address import address_of_key
from emcd.proto.eip712 import Domain, TypedStruct, digest, typed_data
from emcd.proto.messages import Verdict
from emcd.proto.signing import recover, require_signer, sign, sign_digest
from tests.support import second_implementation as second
from tests.support.round_world import CHAIN_ID, DISTRIBUTOR, STAKING, address_of, edited, secret_of
from tests.vectors.make_protocol_vectors import make_value

DOMAIN = Domain(CHAIN_ID, STAKING)
SECRET, SIGNER = secret_of("signer"), address_of("signer")
HALF_ORDER = 0x7FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF5D576E7357A4501DDFE92F46681B20A0
ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141


def make(name: str) -> TypedStruct:
    kind = TYPED_STRUCTS[name]
    return kind(*[make_value(text, name, i) for i, text in enumerate(kind.eip712)])


NAMES = sorted(TYPED_STRUCTS)


def test_types_are_those_of_the_second_implementation() -> None:
    assert set(TYPED_STRUCTS) == set(second.TYPES)


@pytest.mark.parametrize("name", NAMES)
def test_message_hashes_and_signs_as_eth_account_does(name: str) -> None:
    struct = make(name)
    values = [getattr(struct, field) for field in struct.__struct_fields__]
    values = [list(value) if isinstance(value, tuple) else value for value in values]
    table = second.make_typed_data(CHAIN_ID, STAKING, name, values)

    assert TYPED_STRUCTS[name].type_string() == f"{name}({second.TYPES[name]})"
    assert struct.struct_hash() == second.struct_hash(table)
    assert digest(DOMAIN, struct) == second.digest(table)
    assert sign(DOMAIN, struct, SECRET) == second.sign(table, SECRET)
    assert second.recover(table, sign(DOMAIN, struct, SECRET)) == SIGNER
    assert second.recover(typed_data(DOMAIN, struct), sign(DOMAIN, struct, SECRET)) == SIGNER


def forge(case: str, struct: TypedStruct) -> bytes:
    good = sign(DOMAIN, struct, SECRET)
    s = int.from_bytes(good[32:64], "big")
    return {
        "empty": b"",
        "short": good[:64],
        "long": good + b"\0",
        "zero": bytes(64) + b"\x1b",
        "garbage": b"\xff" * 64 + b"\x1b",
        "v 0": good[:64] + bytes([good[64] - 27]),
        "v 29": good[:64] + b"\x1d",
        "other half": good[:32] + (ORDER - s).to_bytes(32, "big") + bytes([55 - good[64]]),
        "wrong key": sign(DOMAIN, struct, secret_of("another")),
        "wrong chain": sign(Domain(1, STAKING), struct, SECRET),
        "wrong contract": sign(Domain(CHAIN_ID, DISTRIBUTOR), struct, SECRET),
        "bare hash": sign_digest(struct.struct_hash(), SECRET),
    }[case]


@pytest.mark.parametrize(
    "case",
    ["empty", "short", "long", "zero", "garbage", "v 0", "v 29", "other half", "wrong key", "wrong chain",
     "wrong contract", "bare hash"],
)  # fmt: skip
@pytest.mark.parametrize("name", NAMES)
def test_message_wrong_signature_is_refused(name: str, case: str) -> None:
    struct = make(name)

    with pytest.raises(RemoteProtocolError) as caught:
        require_signer(DOMAIN, struct, forge(case, struct), SIGNER)

    assert caught.value.code in ("EMC-1494", "EMC-1495")
    assert caught.value.status == 401


@pytest.mark.parametrize("name", NAMES)
def test_message_every_field_is_signed(name: str) -> None:
    struct = make(name)
    signature = sign(DOMAIN, struct, SECRET)
    for position, field in enumerate(struct.__struct_fields__):
        changed = edited(struct, **{field: make_value(type(struct).eip712[position], "other", position + 1)})
        assert changed != struct
        assert recover(DOMAIN, changed, signature) != SIGNER


def test_message_signature_counts_for_its_own_type_alone() -> None:
    digests = {digest(DOMAIN, make(name)) for name in NAMES}
    assert len(digests) == len(NAMES)


class _Odd(TypedStruct, frozen=True, array_like=True):
    eip712: ClassVar = ("int8",)
    value: int


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("Receipt", "http_status", 1 << 16),
        ("Receipt", "input_tokens", -1),
        ("Receipt", "input_tokens", 1 << 64),
        ("Receipt", "forward_hash", bytes(31)),
        ("Forward", "call_id", bytes(32)),
        ("Forward", "hub", "0x12"),
        ("Forward", "hub", "nonsense"),
        ("Forward", "hub", None),
        ("NodeStatus", "models", (bytes(31),)),
        ("NodeStatus", "version", 5),
    ],
)
def test_message_value_its_type_cannot_hold_is_refused(name: str, field: str, value: Any) -> None:
    with pytest.raises(LocalProtocolError) as caught:
        edited(make(name), **{field: value}).struct_hash()
    assert caught.value.code == "EMC-1493"


def test_message_of_an_unsupported_type_is_refused() -> None:
    with pytest.raises(LocalProtocolError):
        _Odd(1).struct_hash()


def test_verdict_strikes_are_fail_gross_and_class() -> None:
    assert [verdict for verdict in Verdict if verdict.is_strike] == [
        Verdict.FAIL,
        Verdict.GROSS,
        Verdict.CLASS,
    ]


def test_signer_of_the_tests_is_what_its_key_gives() -> None:
    assert address_of_key(SECRET) == SIGNER
    assert int.from_bytes(sign(DOMAIN, make("Vote"), SECRET)[32:64], "big") <= HALF_ORDER
