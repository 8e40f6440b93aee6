"""What the embedded chain takes for a transaction, and what it does not."""

from __future__ import annotations

import pytest
from eth_account import Account
from hypothesis import example, given
from hypothesis import strategies as st

from emcd_devchain.fault import PoolRefused
from emcd_devchain.transaction import MAX_INITCODE_BYTES, compute_intrinsic_gas, decode_transaction
from tests.support.devchain import CHAIN_ID, GWEI, POOR, RICH, raw, sign_raw

_ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141


@pytest.mark.parametrize("fields", [{}, {"gasPrice": 2 * GWEI}])
def test_decode_transaction_knows_sender_and_hash(fields: dict[str, int]) -> None:
    signed = sign_raw(**fields)
    tx = decode_transaction(signed, CHAIN_ID)
    assert tx.sender == raw(RICH)
    assert tx.type_id == (0 if fields else 2)
    assert Account.recover_transaction(signed) == RICH.address


def test_decode_transaction_of_another_chain_is_refused() -> None:
    for fields in ({"chainId": 1}, {"chainId": 1, "gasPrice": GWEI}):
        with pytest.raises(PoolRefused, match="invalid chain id"):
            decode_transaction(sign_raw(**fields), CHAIN_ID)


def test_decode_transaction_without_replay_protection_is_refused() -> None:
    with pytest.raises(PoolRefused, match="replay-protected"):
        decode_transaction(sign_raw(chainId=None, gasPrice=GWEI), CHAIN_ID)


def test_decode_transaction_blob_type_is_refused() -> None:
    with pytest.raises(PoolRefused, match="type not supported"):
        decode_transaction(b"\x03" + sign_raw()[1:], CHAIN_ID)


def test_decode_transaction_with_high_s_is_refused() -> None:
    import rlp

    payload = rlp.decode(sign_raw()[1:])
    payload[9] = b"" if payload[9] else b"\x01"
    payload[11] = (_ORDER - int.from_bytes(payload[11], "big")).to_bytes(32, "big")
    with pytest.raises(PoolRefused, match="invalid"):
        decode_transaction(b"\x02" + rlp.encode(payload), CHAIN_ID)


def test_decode_transaction_tip_above_fee_is_refused() -> None:
    with pytest.raises(PoolRefused, match="priority fee"):
        decode_transaction(sign_raw(maxFeePerGas=1, maxPriorityFeePerGas=2), CHAIN_ID)


def test_decode_transaction_too_much_init_code_is_refused() -> None:
    with pytest.raises(PoolRefused, match="initcode"):
        decode_transaction(sign_raw(to=None, data=bytes(MAX_INITCODE_BYTES + 1), gas=10**7), CHAIN_ID)


@pytest.mark.parametrize("bad", [b"", b"\x02", b"\x02\xc0", b"\xc0", b"\x7f", b"\xff" * 10, bytes(200_000)])
def test_decode_transaction_garbage_is_refused(bad: bytes) -> None:
    with pytest.raises(PoolRefused):
        decode_transaction(bad, CHAIN_ID)


@example(44, 0xC0)  # the data: an empty list instead of no bytes
@given(st.integers(0, 110), st.integers(0, 255))
def test_decode_transaction_one_byte_changed_never_gives_the_same_sender(position: int, value: int) -> None:
    signed = bytearray(sign_raw())
    if position >= len(signed) or signed[position] == value:
        return
    signed[position] = value
    try:
        tx = decode_transaction(bytes(signed), CHAIN_ID)
    except PoolRefused:
        return
    assert tx.sender != raw(RICH)


def test_compute_intrinsic_gas_counts_data_creation_and_access_list() -> None:
    assert compute_intrinsic_gas(b"", False) == 21_000
    assert compute_intrinsic_gas(b"\x00\x01", False) == 21_020
    assert compute_intrinsic_gas(b"\x01" * 33, True) == 21_000 + 33 * 16 + 32_000 + 4
    assert compute_intrinsic_gas(b"", False, ((raw(POOR), 2),)) == 21_000 + 2_400 + 3_800
