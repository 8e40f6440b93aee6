"""Fees, bumps and the decisions of the outbox, without a chain."""

from __future__ import annotations

from typing import Any

import pytest
from eth_account import Account
from eth_account.typed_transactions import TypedTransaction
from hexbytes import HexBytes
from hypothesis import given
from hypothesis import strategies as st

from emcd.chain.call import Call
from emcd.chain.deploy import predict_address
from emcd.chain.tx import (
    GWEI,
    FeePolicy,
    Fees,
    TxState,
    Waiting,
    Watch,
    compute_bump,
    compute_fees,
    decide_watch,
    gas_limit_ceil,
    sign_transaction,
)
from emcd.proto.hashing import keccak
from emcd.testing import make_key

KEY = make_key("sender")
POLICY = FeePolicy()


def test_compute_fees_is_twice_the_base_fee_and_the_tip() -> None:
    assert compute_fees(10 * GWEI, 2 * GWEI, POLICY) == Fees(22 * GWEI, 2 * GWEI)


def test_compute_fees_stops_at_the_ceilings() -> None:
    assert compute_fees(10**6 * GWEI, 10**6 * GWEI, POLICY) == Fees(
        POLICY.ceiling_wei, POLICY.tip_ceiling_wei
    )


@given(st.integers(0, 10**12), st.integers(0, 10**12), st.integers(1, 10**12), st.integers(1, 10**12))
def test_compute_fees_tip_never_exceeds_the_fee(base: int, tip: int, ceiling: int, tip_ceiling: int) -> None:
    fees = compute_fees(base, tip, FeePolicy(ceiling_wei=ceiling, tip_ceiling_wei=tip_ceiling))
    assert 0 <= fees.tip_wei <= fees.max_fee_wei <= ceiling


@given(st.integers(1, 10**11), st.integers(1, 10**10))
def test_compute_bump_pays_at_least_an_eighth_more_on_both(max_fee: int, tip: int) -> None:
    old = Fees(max(max_fee, tip), tip)
    bumped = compute_bump(old, Fees(1, 1), POLICY)
    assert bumped is not None
    assert bumped.max_fee_wei * 8 >= old.max_fee_wei * 9
    assert bumped.tip_wei * 8 >= old.tip_wei * 9
    assert bumped.tip_wei <= bumped.max_fee_wei


def test_compute_bump_takes_the_market_where_it_is_higher() -> None:
    assert compute_bump(Fees(10 * GWEI, GWEI), Fees(90 * GWEI, 4 * GWEI), POLICY) == Fees(90 * GWEI, 4 * GWEI)


def test_compute_bump_above_the_ceiling_is_none() -> None:
    assert compute_bump(Fees(POLICY.ceiling_wei, GWEI), Fees(GWEI, GWEI), POLICY) is None
    assert compute_bump(Fees(100 * GWEI, POLICY.tip_ceiling_wei), Fees(GWEI, GWEI), POLICY) is None


@pytest.mark.parametrize(
    ("old_gwei", "ceiling_gwei", "expected_gwei"),
    [(100, 200, 112.5), (100, 112, 112), (100, 110, 110), (100, 109, None)],
)
def test_compute_bump_near_the_ceiling_takes_what_is_left_if_nodes_accept_it(
    old_gwei: int, ceiling_gwei: int, expected_gwei: float | None
) -> None:
    policy = FeePolicy(ceiling_wei=ceiling_gwei * GWEI)
    bumped = compute_bump(Fees(old_gwei * GWEI, GWEI), Fees(GWEI, GWEI), policy)
    assert (bumped and bumped.max_fee_wei) == (expected_gwei and int(expected_gwei * GWEI))


def test_for_gas_keeps_the_cost_of_a_transaction_under_its_limit() -> None:
    policy = FeePolicy(ceiling_wei=500 * GWEI, max_transaction_cost_wei=10**15)
    assert policy.for_gas(100_000).ceiling_wei == 10 * GWEI
    assert policy.for_gas(1_000).ceiling_wei == 500 * GWEI
    assert FeePolicy(max_transaction_cost_wei=0).for_gas(10**9) == FeePolicy(max_transaction_cost_wei=0)


def waiting(**changes: Any) -> Waiting:
    facts = {"nonce": 5, "chain_nonce": 5, "since_sent_s": 0.0, "since_attempt_s": 0.0, **changes}
    return Waiting(**facts)


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({}, Watch.WAIT),
        ({"since_sent_s": 10}, Watch.RESEND),
        ({"since_sent_s": 10, "since_attempt_s": 30}, Watch.BUMP),
        ({"since_attempt_s": 29}, Watch.WAIT),
        ({"since_sent_s": 10, "since_attempt_s": 30, "has_had_blocks": False}, Watch.RESEND),
        ({"since_attempt_s": 30, "has_had_blocks": False, "is_too_low": True}, Watch.BUMP),
        ({"chain_nonce": 6, "since_sent_s": 10, "since_attempt_s": 30}, Watch.LOST),
        ({"chain_nonce": 4}, Watch.WAIT),
    ],
)
def test_decide_watch_table(facts: dict[str, Any], expected: Watch) -> None:
    assert decide_watch(waiting(**facts), POLICY) is expected


def test_gas_limit_ceil_adds_a_quarter() -> None:
    assert gas_limit_ceil(100_001) == 125_002


def test_tx_state_final_states_are_the_last_three() -> None:
    assert [s for s in TxState if s.is_final] == [TxState.CONFIRMED, TxState.FAILED, TxState.REPLACED]


@pytest.mark.parametrize("nonce", [0, 1, 300])
def test_sign_transaction_is_what_eth_account_signs(nonce: int) -> None:
    call = Call(make_key("to").address, b"\x01\x02", 5)
    tx_hash, raw = sign_transaction(KEY, 31337, nonce, call, 21_000, Fees(3, 2))
    fields = TypedTransaction.from_bytes(HexBytes(raw)).as_dict()
    expected = Account.sign_transaction({k: fields[k] for k in fields if k not in "vrs"}, KEY.reveal())
    assert raw == bytes(expected.raw_transaction)
    assert tx_hash == keccak(raw) == bytes(expected.hash)
    assert Account.recover_transaction(raw) == KEY.address
    assert fields["chainId"] == 31337


def test_sign_transaction_creation_has_no_recipient() -> None:
    _, raw = sign_transaction(KEY, 1, 0, Call(None, b"\x60\x00"), 100_000, Fees(3, 2))
    assert bytes(TypedTransaction.from_bytes(HexBytes(raw)).as_dict()["to"]) == b""


def test_predict_address_known_values() -> None:
    """Source: the first contracts of a well-known account, EIP-1014's discussion."""
    deployer = "0x6ac7ea33f8831ea9dcc53393aaa88b25a785dbf0"
    from emcd.proto.address import address_from_bytes

    sender = address_from_bytes(bytes.fromhex(deployer[2:]))
    found = [predict_address(sender, nonce).lower() for nonce in range(3)]
    assert found == [
        "0xcd234a471b72ba2f1ccf0a70fcaba648a5eecd8d",
        "0x343c43a37d37dff08ae8c4a11544c718abb4fcf8",
        "0xf778b86fa74e846c4f0a1fbd1335fe81c00a0c91",
    ]
