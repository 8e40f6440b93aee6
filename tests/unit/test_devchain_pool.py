"""The pool's rules."""

from __future__ import annotations

import pytest

from emcd.keys import SigningKey
from emcd.testing import make_key
from emcd_devchain.fault import PoolRefused
from emcd_devchain.pool import MAX_PER_SENDER, Pool
from emcd_devchain.transaction import SignedTx, decode_transaction
from tests.support.devchain import CHAIN_ID, ETHER, GWEI, RICH, raw, sign_raw


def signed(
    nonce: int = 0, fee: int = 10 * GWEI, tip: int = GWEI, key: SigningKey = RICH, **fields: int
) -> SignedTx:
    raw_tx = sign_raw(key, nonce=nonce, maxFeePerGas=fee, maxPriorityFeePerGas=tip, **fields)
    return decode_transaction(raw_tx, CHAIN_ID)


def add(pool: Pool, tx: SignedTx, next_nonce: int = 0, balance_wei: int = 100 * ETHER) -> SignedTx | None:
    return pool.add(tx, next_nonce, balance_wei, 30_000_000, 21_000)


def test_add_known_transaction_is_refused() -> None:
    pool = Pool()
    add(pool, signed())
    with pytest.raises(PoolRefused, match="already known"):
        add(pool, signed())


@pytest.mark.parametrize(
    ("tx", "next_nonce", "balance", "message"),
    [
        (signed(0), 1, ETHER, "nonce too low"),
        (signed(gas=30_000_001), 0, 100 * ETHER, "exceeds block gas limit"),
        (signed(gas=20_999), 0, ETHER, "intrinsic gas too low"),
        (signed(value=ETHER), 0, ETHER, "insufficient funds"),
    ],
)
def test_add_what_can_never_be_mined_is_refused(
    tx: SignedTx, next_nonce: int, balance: int, message: str
) -> None:
    with pytest.raises(PoolRefused, match=message):
        add(Pool(), tx, next_nonce, balance)


def test_add_replacement_needs_ten_per_cent_more_on_both_fees() -> None:
    pool = Pool()
    first = signed(fee=10 * GWEI, tip=GWEI)
    add(pool, first)
    for fee, tip in ((10 * GWEI, 2 * GWEI), (20 * GWEI, GWEI + 1)):
        with pytest.raises(PoolRefused, match="underpriced"):
            add(pool, signed(fee=fee, tip=tip))
    second = signed(fee=11 * GWEI, tip=11 * GWEI // 10)
    assert add(pool, second) == first
    assert pool.find(first.hash) is None
    assert len(pool) == 1


def test_add_one_sender_can_not_fill_the_pool() -> None:
    pool = Pool()
    for nonce in range(MAX_PER_SENDER):
        add(pool, signed(nonce))
    with pytest.raises(PoolRefused, match="full"):
        add(pool, signed(MAX_PER_SENDER))
    add(pool, signed(key=make_key("other")))


def test_iter_ready_pays_best_first_and_keeps_each_senders_order() -> None:
    pool = Pool()
    other = make_key("other")
    mine = [signed(1, tip=9 * GWEI), signed(0, tip=GWEI)]
    theirs = signed(0, tip=5 * GWEI, key=other)
    for tx in (*mine, theirs):
        add(pool, tx)
    assert list(pool.iter_ready(lambda sender: 0, GWEI)) == [theirs, mine[1], mine[0]]


def test_iter_ready_leaves_gaps_and_low_fees_alone() -> None:
    pool = Pool()
    add(pool, signed(1))
    add(pool, signed(0, fee=GWEI - 1, tip=1, key=make_key("other")))
    assert list(pool.iter_ready(lambda sender: 0, GWEI)) == []


def test_next_nonce_counts_what_waits_without_gaps() -> None:
    pool = Pool()
    for nonce in (0, 1, 3):
        add(pool, signed(nonce))
    assert pool.next_nonce(raw(RICH), 0) == 2
    assert pool.next_nonce(raw(RICH), 3) == 4
    assert pool.next_nonce(raw(make_key("other")), 7) == 7


def test_remove_unknown_does_nothing_and_stale_are_listed() -> None:
    pool = Pool()
    tx = signed(0)
    pool.remove(tx)
    add(pool, tx)
    assert pool.list_stale(lambda sender: 1) == [tx]
    pool.remove(tx)
    assert len(pool) == 0
