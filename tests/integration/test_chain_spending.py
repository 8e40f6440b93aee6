"""What the outbox pays, on the embedded chain: bumps, ceilings, and what paying more does not help."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from emcd.chain import Call, Confirmed, Outbox, OutboxPolicy, RpcRefused, TxIntent
from emcd.chain.tx import FeePolicy
from emcd.ledger import Ledger
from emcd.ledger.outbox_store import LedgerOutboxStore
from emcd_devchain.genesis import OfflineRpc
from tests.support.devchain import CHAIN_ID, GWEI, POOR, RICH, make_chain, raw, sign_raw
from tests.support.outbox import LyingRpc, MemoryStore

PAY = TxIntent("pay:1", Call(POOR.address, b"", 7, "pay"))


@pytest.fixture
def rpc(tmp_path: Path) -> Iterator[OfflineRpc]:
    chain = make_chain(tmp_path / "chain.sqlite")
    yield OfflineRpc(chain, instant=False)
    chain.store.close()


def outbox(rpc: Any, store: Any, **policy: Any) -> Outbox:
    return Outbox(rpc, CHAIN_ID, store, RICH, OutboxPolicy(**policy))


async def finish(box: Outbox, rpc: OfflineRpc, steps: int = 10) -> None:
    """Step and mine until nothing is open."""
    for _ in range(steps):
        if not await box.step():
            return
        await rpc.mine()
    raise AssertionError(f"still open: {box.problem}")


def balance(rpc: OfflineRpc) -> int:
    return rpc.chain.state_at(rpc.chain.head).get_balance(raw(POOR))


def nonce(rpc: OfflineRpc) -> int:
    return rpc.chain.state_at(rpc.chain.head).get_nonce(raw(RICH))


async def test_chain_that_stands_still_makes_nothing_dearer(
    rpc: OfflineRpc, jumping_clock: trio.testing.MockClock
) -> None:
    store = MemoryStore()
    box = outbox(rpc, store, fees=FeePolicy(bump_after_s=30, resend_after_s=10))
    await box.submit(PAY)
    for _ in range(20):
        await box.step()
        await trio.sleep(60)
    assert len(store.attempts) == 1


async def test_a_days_ceiling_keeps_the_next_waiting_without_a_nonce(rpc: OfflineRpc, ledger: Ledger) -> None:
    fees = FeePolicy(max_day_cost_wei=26_250 * 4 * GWEI)
    box = outbox(rpc, LedgerOutboxStore(ledger), fees=fees)
    for i in range(2):
        await box.submit(TxIntent(f"pay:{i}", Call(POOR.address, b"", 1)))
    for _ in range(3):
        await box.step()
        await rpc.mine()
    assert isinstance(await box.find("pay:0"), Confirmed)
    assert "EMC-1521" in box.problem
    row = await LedgerOutboxStore(ledger).find(RICH.address, "pay:1")
    assert row is not None and row.nonce is None
    yesterday = "UPDATE chain_attempts SET signed_at_ms = signed_at_ms - 86400001"
    await ledger.write(lambda con: con.execute(yesterday))
    await finish(box, rpc)
    assert (balance(rpc), nonce(rpc)) == (2, 2)


async def test_transaction_never_costs_more_than_its_limit(rpc: OfflineRpc) -> None:
    store = MemoryStore()
    box = outbox(rpc, store, fees=FeePolicy(max_transaction_cost_wei=26_250 * 2 * GWEI))
    await box.submit(PAY)
    await finish(box, rpc)
    assert store.attempts[0].max_fee_wei == 2 * GWEI


async def test_nonce_that_leaves_a_gap_is_told_and_not_paid_more_for(
    rpc: OfflineRpc, jumping_clock: trio.testing.MockClock
) -> None:
    """A node names a next nonce that is too high: what is signed with it can't be mined."""
    wire, store = LyingRpc(rpc), MemoryStore()
    box = outbox(wire, store, fees=FeePolicy(bump_after_s=30, resend_after_s=10))
    await box.submit(PAY)
    wire.answers["eth_getTransactionCount"] = lambda who, which: hex(3) if which == "pending" else hex(0)
    for _ in range(8):
        await box.step()
        await trio.sleep(11)
        await rpc.mine()
    assert "EMC-1522" in box.problem
    assert len(store.attempts) == 1
    wire.answers.clear()
    for used in range(3):
        await rpc.call("eth_sendRawTransaction", "0x" + sign_raw(value=0, nonce=used).hex())
        await rpc.mine()
    await finish(box, rpc)
    assert (balance(rpc), nonce(rpc)) == (7, 4)


async def test_outcome_says_what_it_cost(rpc: OfflineRpc, ledger: Ledger) -> None:
    before = rpc.chain.state_at(rpc.chain.head).get_balance(raw(RICH))
    box = outbox(rpc, LedgerOutboxStore(ledger))
    await box.submit(PAY)
    await finish(box, rpc)
    outcome = await box.find("pay:1")
    assert isinstance(outcome, Confirmed)
    assert outcome.fee_wei == before - 7 - rpc.chain.state_at(rpc.chain.head).get_balance(raw(RICH))


async def test_fee_ceiling_keeps_it_waiting_and_says_so(
    rpc: OfflineRpc, jumping_clock: trio.testing.MockClock
) -> None:
    wire, store = LyingRpc(rpc), MemoryStore()
    wire.answers["eth_sendRawTransaction"] = "0x" + "00" * 32
    box = outbox(wire, store, fees=FeePolicy(ceiling_wei=3 * GWEI, bump_after_s=5))
    await box.submit(PAY)
    await box.step()
    for _ in range(2):
        await rpc.mine()
    await trio.sleep(6)
    await box.step()
    assert "EMC-1512" in box.problem
    await box.step()
    assert "EMC-1512" in box.problem, "it is forgotten while nothing has changed"
    assert len(store.attempts) == 1


async def test_underpriced_is_bumped_at_the_next_look(rpc: OfflineRpc) -> None:
    wire, store = LyingRpc(rpc), MemoryStore()
    wire.answers["eth_sendRawTransaction"] = RpcRefused(
        "eth_sendRawTransaction", -32000, "transaction underpriced"
    )
    box = outbox(wire, store)
    await box.submit(PAY)
    await box.step()
    assert "underpriced" in box.problem
    del wire.answers["eth_sendRawTransaction"]
    await finish(box, rpc)
    assert len(store.attempts) == 2
    assert nonce(rpc) == 1


async def test_stuck_transaction_is_sent_again_and_then_pays_an_eighth_more(
    rpc: OfflineRpc, jumping_clock: trio.testing.MockClock
) -> None:
    wire, store = LyingRpc(rpc), MemoryStore()
    wire.answers["eth_sendRawTransaction"] = "0x" + "00" * 32
    box = outbox(wire, store, fees=FeePolicy(bump_after_s=30, resend_after_s=10))
    await box.submit(PAY)
    for _ in range(4):
        await box.step()
        await trio.sleep(11)
        await rpc.mine()
    assert len(wire.sent) == 4
    assert len(set(wire.sent)) == 2
    first, second = store.attempts
    assert second.max_fee_wei * 8 >= first.max_fee_wei * 9
    assert second.tip_wei * 8 >= first.tip_wei * 9
    del wire.answers["eth_sendRawTransaction"]
    await trio.sleep(11)
    await finish(box, rpc)
    assert (balance(rpc), nonce(rpc)) == (7, 1)
