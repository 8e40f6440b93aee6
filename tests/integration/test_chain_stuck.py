"""Transactions that do not go through at once, on anvil: too cheap, replaced, and a node that is away."""

from __future__ import annotations

from collections.abc import AsyncIterator
from itertools import pairwise
from typing import Any

import pytest
import trio
import trio.testing

from emcd.chain import Call, Confirmed, JsonRpc, Outbox, OutboxPolicy, Replaced, TxIntent
from emcd.chain.endpoint import LIE_PAUSE_S, MAX_PAUSE_S, VERIFY_EVERY_S
from emcd.chain.tx import GWEI, FeePolicy, Fees, sign_transaction
from emcd.ledger import Ledger
from emcd.ledger.outbox_store import LedgerOutboxStore
from emcd.testing import make_key
from tests.support.anvil import CHAIN_ID, Anvil, running_anvil
from tests.support.devchain import ETHER
from tests.support.faulty_node import FaultyNode, faulty_node
from tests.support.network import HOLDER

pytestmark = pytest.mark.anvil

TO = make_key("to").address
PAY = TxIntent("pay", Call(TO, b"", 9))
EAGER = FeePolicy(bump_after_s=0, resend_after_s=0)
HOUR_S = 3600


@pytest.fixture
async def anvil() -> AsyncIterator[Anvil]:
    async with running_anvil() as node:
        await node.fund(HOLDER.address)
        await node.hold()
        yield node


@pytest.fixture
async def proxy(anvil: Anvil) -> AsyncIterator[FaultyNode]:
    async with faulty_node(anvil.url) as node:
        yield node


@pytest.fixture
def clock() -> trio.testing.MockClock:
    """Time that runs as usual and jumps when a test says so."""
    return trio.testing.MockClock(rate=1.0)


def outbox(rpc: Any, ledger: Ledger, fees: FeePolicy = EAGER, confirmations: int = 1) -> Outbox:
    policy = OutboxPolicy(confirmations, 0.02, fees)
    return Outbox(rpc, CHAIN_ID, LedgerOutboxStore(ledger), HOLDER, policy)


async def list_fees(ledger: Ledger) -> list[tuple[int, int]]:
    attempts = await LedgerOutboxStore(ledger).list_attempts(HOLDER.address, "pay")
    return [(a.max_fee_wei, a.tip_wei) for a in attempts]


async def test_stuck_too_cheap_is_bumped_to_the_ceiling_then_waits_and_goes_through(
    anvil: Anvil, ledger: Ledger
) -> None:
    fees = FeePolicy(ceiling_wei=60 * GWEI, bump_after_s=0, resend_after_s=0)
    box = outbox(anvil.rpc, ledger, fees)
    await anvil.mine_at_base_fee(5 * GWEI)
    await box.submit(PAY)
    await box.step()
    for base_fee in (12, 30, 70, 100, 100):
        await anvil.mine_at_base_fee(base_fee * GWEI, 2)
        await box.step()
    paid = await list_fees(ledger)
    assert len(paid) >= 3
    assert [fee for fee, _ in paid] == sorted({fee for fee, _ in paid}), (
        "each offers more than the one before"
    )
    assert all(new >= old * 11 // 10 for (old, _), (new, _) in pairwise(paid))
    assert paid[-1][0] == 60 * GWEI
    assert "EMC-1512" in box.problem
    before = len(paid)
    for _ in range(5):
        await anvil.mine_at_base_fee(100 * GWEI, 2)
        await box.step()
        assert "EMC-1512" in box.problem
    assert len(await list_fees(ledger)) == before
    assert await box.find("pay") is None

    for _ in range(2):
        await anvil.mine_at_base_fee(30 * GWEI)
        await box.step()
    outcome = await box.find("pay")
    assert isinstance(outcome, Confirmed)
    assert outcome.fee_wei <= 21_000 * 60 * GWEI
    await box.step()
    assert box.problem == ""
    assert await anvil.balance(TO) == 9
    assert await anvil.nonce(HOLDER.address) == 1


async def test_stuck_dropped_by_the_node_is_sent_again(anvil: Anvil, ledger: Ledger) -> None:
    box = outbox(anvil.rpc, ledger, FeePolicy(bump_after_s=600, resend_after_s=0))
    await box.submit(PAY)
    await box.step()
    [attempt] = await LedgerOutboxStore(ledger).list_attempts(HOLDER.address, "pay")
    await anvil.rpc.call("anvil_dropTransaction", "0x" + attempt.tx_hash.hex())
    await anvil.mine()
    assert await anvil.balance(TO) == 0
    await box.step()
    await anvil.mine()
    await box.step()
    outcome = await box.find("pay")
    assert isinstance(outcome, Confirmed)
    assert outcome.tx_hash == attempt.tx_hash
    assert await anvil.balance(TO) == 9


async def test_replaced_by_another_of_the_same_nonce_is_told_and_pays_nothing(
    anvil: Anvil, ledger: Ledger
) -> None:
    """The same key is used elsewhere, with the nonce that was ours and a better fee."""
    box = outbox(anvil.rpc, ledger, FeePolicy(bump_after_s=600, resend_after_s=0), confirmations=2)
    await box.submit(PAY)
    await box.step()
    elsewhere = make_key("elsewhere").address
    fees = Fees(400 * GWEI, 40 * GWEI)
    _, raw = sign_transaction(HOLDER, CHAIN_ID, 0, Call(elsewhere, b"", 5), 21_000, fees)
    await anvil.rpc.call("eth_sendRawTransaction", "0x" + raw.hex())
    await anvil.mine()
    for _ in range(4):
        await box.step()
        assert await box.find("pay") is None, "not before the other is deep enough"
    await anvil.mine()
    for _ in range(4):
        await box.step()
    assert await box.find("pay") == Replaced(0)
    assert (await anvil.balance(TO), await anvil.balance(elsewhere)) == (0, 5)

    await box.submit(TxIntent("pay:1", PAY.call))
    for _ in range(3):
        await box.step()
        await anvil.mine()
    await box.step()
    assert isinstance(await box.find("pay:1"), Confirmed)
    assert await box.find("pay") == Replaced(0)
    assert (await anvil.balance(TO), await anvil.nonce(HOLDER.address)) == (9, 2)


async def test_sender_without_ether_is_paid_for_later(anvil: Anvil, ledger: Ledger) -> None:
    await anvil.fund(HOLDER.address, 0)
    box = outbox(anvil.rpc, ledger)
    await box.submit(PAY)
    for _ in range(3):
        await box.step()
        await anvil.mine()
    assert box.problem
    await anvil.fund(HOLDER.address, ETHER)
    for _ in range(3):
        await box.step()
        await anvil.mine()
    await box.step()
    assert isinstance(await box.find("pay"), Confirmed)
    assert await anvil.balance(TO) == 9


@pytest.mark.parametrize("fault", ["reset", "stall", "half", "status"])
async def test_node_away_for_an_hour_costs_nothing_and_health_comes_back_by_itself(
    anvil: Anvil, proxy: FaultyNode, ledger: Ledger, clock: trio.testing.MockClock, fault: str
) -> None:
    rpc = JsonRpc([proxy.url], CHAIN_ID, timeout_s=10)
    box = outbox(rpc, ledger, FeePolicy())
    async with trio.open_nursery() as nursery:
        await nursery.start(box.run)
        proxy.choose = lambda method: fault
        await box.submit(PAY)
        for _ in range(HOUR_S // 30):
            clock.jump(30)
            await trio.sleep(0.005)
        assert "EMC-1502" in box.problem
        assert await list_fees(ledger) == []
        proxy.choose = lambda method: ""
        back_at = trio.current_time()
        while box.problem:
            clock.jump(1)
            await trio.sleep(0.02)
        assert trio.current_time() - back_at <= MAX_PAUSE_S + 10
        with trio.fail_after(600):
            while not isinstance(await box.find("pay"), Confirmed):
                await anvil.mine()
                await trio.sleep(0.05)
        nursery.cancel_scope.cancel()
    assert len(await list_fees(ledger)) == 1
    assert (await anvil.balance(TO), await anvil.nonce(HOLDER.address)) == (9, 1)


async def test_node_that_answers_for_another_chain_is_sent_nothing(
    anvil: Anvil, proxy: FaultyNode, ledger: Ledger, clock: trio.testing.MockClock
) -> None:
    rpc = JsonRpc([proxy.url], CHAIN_ID, timeout_s=10)
    await rpc.require_chain_id()
    box = outbox(rpc, ledger, FeePolicy())
    proxy.rewrites["eth_chainId"] = lambda params, result: "0x1"
    clock.jump(VERIFY_EVERY_S + 1)
    await box.submit(PAY)
    await box.step()
    assert "is chain 1" in box.problem
    assert rpc.problem
    assert "eth_sendRawTransaction" not in proxy.asked
    proxy.rewrites.clear()
    clock.jump(2 * LIE_PAUSE_S)
    for _ in range(2):
        await box.step()
        await anvil.mine()
    await box.step()
    assert isinstance(await box.find("pay"), Confirmed)
    assert (box.problem, rpc.problem) == ("", "")
