"""Real reorganisations, on anvil, shallower and deeper than the confirmations: all comes right again."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from emcd.chain import (
    BlockRef,
    Call,
    Chain,
    ChainConfig,
    Confirmed,
    Failed,
    Outbox,
    OutboxPolicy,
    Replaced,
    TxIntent,
    Watcher,
)
from emcd.chain.outbox import REORG_BLOCKS
from emcd.chain.tx import GWEI, FeePolicy, Fees, sign_transaction
from emcd.ledger import Ledger
from emcd.ledger.outbox_store import LedgerEventSink, LedgerOutboxStore, StoredTx
from emcd.testing import make_key, temporary_ledger
from emcd.types import Hash
from tests.support.anvil import CHAIN_ID, Anvil, running_anvil
from tests.support.network import HOLDER, LiveNetwork, deploy
from tests.support.watch import TABLE, TO, apply, list_paid, undo

pytestmark = pytest.mark.anvil

FRIEND = make_key("friend")
PAYEE = make_key("to").address
PAY = TxIntent("pay", Call(PAYEE, b"", 9))


@pytest.fixture
async def anvil() -> AsyncIterator[Anvil]:
    async with running_anvil() as node:
        await node.fund(HOLDER.address)
        await node.fund(FRIEND.address)
        yield node


@pytest.fixture
async def network(anvil: Anvil) -> LiveNetwork:
    return await deploy(anvil.rpc, chain_id=CHAIN_ID)


@pytest.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[Ledger]:
    async with temporary_ledger(tmp_path, {"test": [TABLE]}) as opened:
        yield opened


def outbox(anvil: Anvil, ledger: Ledger, confirmations: int = 2) -> Outbox:
    return Outbox(anvil.rpc, CHAIN_ID, LedgerOutboxStore(ledger), FRIEND, OutboxPolicy(confirmations))


async def get_row(ledger: Ledger, key: str = "pay") -> StoredTx:
    row = await LedgerOutboxStore(ledger).find(FRIEND.address, key)
    assert row is not None
    return row


async def wait_mined(anvil: Anvil, box: Outbox, count: int) -> None:
    """Step once, and wait until the account's transactions are in blocks."""
    await box.step()
    with trio.fail_after(5):
        while await anvil.nonce(box.address) < count:
            await trio.sleep(0.01)


async def finish(anvil: Anvil, box: Outbox) -> None:
    for _ in range(10):
        if not await box.step():
            return
        await anvil.mine(1)
    raise AssertionError(f"still open: {box.problem}")


# ------------------------------------------------------------------ outbox


async def test_outbox_transaction_that_was_reorganised_out_is_mined_again(
    anvil: Anvil, ledger: Ledger
) -> None:
    """Shallower than the confirmations: it was not settled yet."""
    box = outbox(anvil, ledger, confirmations=4)
    await box.submit(PAY)
    with trio.fail_after(5):
        while (await get_row(ledger)).state != "mined":
            await box.step()
    row = await get_row(ledger)
    await anvil.mine(1)
    await anvil.reorg(2)
    receipt = await anvil.rpc.call("eth_getTransactionReceipt", "0x" + (row.tx_hash or b"").hex())
    assert receipt is None
    await box.step()
    assert (await get_row(ledger)).state == "ready"
    await finish(anvil, box)
    outcome = await box.find("pay")
    assert isinstance(outcome, Confirmed)
    assert outcome.tx_hash == row.tx_hash
    assert await anvil.balance(PAYEE) == 9


@pytest.mark.parametrize("is_restarted", [False, True])
async def test_outbox_settled_transactions_that_a_deep_reorganisation_drops_are_paid_once_again(
    anvil: Anvil, ledger: Ledger, is_restarted: bool
) -> None:
    box = outbox(anvil, ledger)
    await anvil.mine(3)
    for number in range(3):
        await box.submit(TxIntent(f"pay:{number}", Call(PAYEE, b"", 9)))
    await finish(anvil, box)
    before = [await box.find(f"pay:{number}") for number in range(3)]
    assert all(isinstance(outcome, Confirmed) for outcome in before)
    await anvil.mine(2)
    await anvil.reorg(7)
    assert (await anvil.balance(PAYEE), await anvil.nonce(FRIEND.address)) == (0, 0)

    box = outbox(anvil, ledger) if is_restarted else box
    await box.step()
    assert [await box.find(f"pay:{number}") for number in range(3)] == [None] * 3
    await finish(anvil, box)
    after = [await box.find(f"pay:{number}") for number in range(3)]
    assert [o.tx_hash for o in after if isinstance(o, Confirmed)] == [
        o.tx_hash for o in before if isinstance(o, Confirmed)
    ]
    assert (await anvil.balance(PAYEE), await anvil.nonce(FRIEND.address)) == (27, 3)


async def test_outbox_settled_transaction_that_moves_to_another_block_is_not_sent_again(
    anvil: Anvil, ledger: Ledger
) -> None:
    box = outbox(anvil, ledger)
    await anvil.mine(2)
    await box.submit(PAY)
    await finish(anvil, box)
    first = await get_row(ledger)
    [attempt] = await LedgerOutboxStore(ledger).list_attempts(FRIEND.address, "pay")
    await anvil.mine(1)
    await anvil.reorg(4, (attempt.raw, 3))
    await finish(anvil, box)
    moved = await get_row(ledger)
    assert moved.state == "confirmed"
    assert moved.block_hash != first.block_hash
    assert moved.tx_hash == first.tx_hash
    assert (await anvil.balance(PAYEE), await anvil.nonce(FRIEND.address)) == (9, 1)


async def test_outbox_reordered_transactions_of_two_senders_are_both_settled_where_they_are(
    anvil: Anvil, ledger: Ledger
) -> None:
    store = LedgerOutboxStore(ledger)
    ours = outbox(anvil, ledger)
    theirs = Outbox(anvil.rpc, CHAIN_ID, store, HOLDER, OutboxPolicy(2))
    await ours.submit(PAY)
    await wait_mined(anvil, ours, 1)
    await theirs.submit(TxIntent("pay", Call(PAYEE, b"", 5)))
    await wait_mined(anvil, theirs, 1)
    [one] = await store.list_attempts(FRIEND.address, "pay")
    [two] = await store.list_attempts(HOLDER.address, "pay")
    await anvil.reorg(2, (two.raw, 0), (one.raw, 1))
    for box in (ours, theirs):
        await finish(anvil, box)
    rows = [await store.find(key.address, "pay") for key in (FRIEND, HOLDER)]
    assert [row.state for row in rows if row] == ["confirmed", "confirmed"]
    assert rows[0] and rows[1] and (rows[0].block or 0) > (rows[1].block or 0)
    assert await anvil.balance(PAYEE) == 14


async def test_outbox_failure_that_was_reorganised_out_leaves_no_hole_in_the_nonces(
    anvil: Anvil, network: LiveNetwork, ledger: Ledger
) -> None:
    """A transaction failed on chain, another after it went through; both are dropped: both are needed again."""
    box = outbox(anvil, ledger)
    await anvil.mine(2)
    broke = network.chain.token.submit_transfer(TO, 10**30)
    await box.submit(TxIntent("fails", broke, gas_limit=100_000))
    await box.submit(PAY)
    await finish(anvil, box)
    assert isinstance(await box.find("fails"), Failed)
    assert isinstance(await box.find("pay"), Confirmed)
    await anvil.mine(1)
    await anvil.reorg(5)
    await finish(anvil, box)
    assert isinstance(await box.find("fails"), Failed)
    assert isinstance(await box.find("pay"), Confirmed)
    assert (await anvil.balance(PAYEE), await anvil.nonce(FRIEND.address)) == (9, 2)


async def test_outbox_replaced_is_taken_back_when_the_other_transaction_is_dropped(
    anvil: Anvil, ledger: Ledger
) -> None:
    await anvil.hold()
    box = Outbox(
        anvil.rpc,
        CHAIN_ID,
        LedgerOutboxStore(ledger),
        FRIEND,
        OutboxPolicy(2, 0.01, FeePolicy(resend_after_s=0)),
    )
    await anvil.mine(2)
    await box.submit(PAY)
    await box.step()
    _, raw = sign_transaction(FRIEND, CHAIN_ID, 0, Call(TO, b"", 1), 21_000, Fees(400 * GWEI, 40 * GWEI))
    await anvil.rpc.call("eth_sendRawTransaction", "0x" + raw.hex())
    await anvil.mine(2)
    for _ in range(3):
        await box.step()
    assert await box.find("pay") == Replaced(0)
    await anvil.reorg(3)
    await finish(anvil, box)
    assert isinstance(await box.find("pay"), Confirmed)
    assert (await anvil.balance(PAYEE), await anvil.balance(TO)) == (9, 0)


async def test_outbox_looks_after_settled_transactions_for_a_while_only(anvil: Anvil, ledger: Ledger) -> None:
    box = outbox(anvil, ledger, confirmations=1)
    await box.submit(PAY)
    await finish(anvil, box)
    await anvil.mine(REORG_BLOCKS + 1)
    asked: list[str] = []
    call = anvil.rpc.call

    async def counting(method: str, *params: object) -> object:
        asked.append(method)
        return await call(method, *params)

    anvil.rpc.call = counting  # type: ignore[method-assign]
    await box.step()
    assert asked == ["eth_getBlockByNumber"], "the head alone"


# ------------------------------------------------------------------ watcher


@pytest.mark.parametrize("confirmations", [1, 3])
async def test_watcher_effects_of_lost_blocks_are_undone(
    anvil: Anvil, network: LiveNetwork, ledger: Ledger, confirmations: int
) -> None:
    """With 3 confirmations the reorganisation is deeper than they are."""
    sink = LedgerEventSink(ledger, "test:token", apply, undo)
    watcher = Watcher(
        anvil.rpc,
        {"token": network.chain.token},
        sink,
        first_block=network.deployment.deployed_block,
        confirmations=confirmations,
        poll_s=0.01,
    )
    for amount in (1, 2, 3):
        await network.send(HOLDER, network.chain.token.submit_transfer(TO, amount))
        await watcher.poll()
    await anvil.mine(confirmations - 1)
    await watcher.poll()
    assert await ledger.read(list_paid) == [1, 2, 3]
    await anvil.reorg(1 + confirmations)
    await anvil.mine(confirmations - 1)
    await watcher.poll()
    assert await ledger.read(list_paid) == [1]
    assert await network.chain.token.fetch_balance(TO) == 1
    await network.send(HOLDER, network.chain.token.submit_transfer(TO, 7))
    await anvil.mine(confirmations - 1)
    await watcher.poll()
    assert await ledger.read(list_paid) == [1, 7]
    assert await network.chain.token.fetch_balance(TO) == 8


async def test_watcher_reorganisation_above_the_confirmed_block_undoes_nothing(
    anvil: Anvil, network: LiveNetwork, ledger: Ledger
) -> None:
    undone: list[int] = []
    sink = LedgerEventSink(ledger, "test:token", apply, lambda con, number: undone.append(number))
    config = ChainConfig((anvil.url,), confirmations=3)
    watcher = Chain(config, network.deployment).watcher(sink, ("token",))
    await network.send(HOLDER, network.chain.token.submit_transfer(TO, 1))
    await anvil.mine(2)
    await watcher.poll()
    await network.send(HOLDER, network.chain.token.submit_transfer(TO, 2))
    await anvil.reorg(1)
    await anvil.mine(3)
    await watcher.poll()
    assert undone == []
    assert await ledger.read(list_paid) == [1]


async def test_watcher_events_that_change_places_are_applied_in_their_new_order(
    anvil: Anvil, network: LiveNetwork, ledger: Ledger
) -> None:
    token = network.chain.token
    await network.send(HOLDER, token.submit_transfer(FRIEND.address, 100))
    sink = LedgerEventSink(ledger, "test:token", apply, undo)
    watcher = Chain(ChainConfig((anvil.url,), confirmations=1), network.deployment).watcher(sink, ("token",))
    await watcher.poll()
    raws = []
    for key, amount in ((HOLDER, 1), (FRIEND, 2)):
        nonce = await anvil.nonce(key.address)
        call = token.submit_transfer(TO, amount)
        _, raw = sign_transaction(key, CHAIN_ID, nonce, call, 100_000, Fees(50 * GWEI, GWEI))
        await anvil.rpc.call("eth_sendRawTransaction", "0x" + raw.hex())
        raws.append(raw)
        with trio.fail_after(5):
            while await anvil.nonce(key.address) == nonce:
                await trio.sleep(0.01)
        await watcher.poll()
    assert await ledger.read(list_paid) == [1, 2]
    await anvil.reorg(2, (raws[1], 0), (raws[0], 1))
    await watcher.poll()
    assert await ledger.read(list_paid) == [2, 1]
    assert await token.fetch_balance(TO) == 3


# ------------------------------------------------------------------ blocks by time


@pytest.mark.parametrize("depth", [2, 4])
async def test_block_at_is_found_anew_after_a_reorganisation_below_it(
    anvil: Anvil, network: LiveNetwork, depth: int
) -> None:
    """Depth 2 replaces the block after it alone, which might have been the last one in time."""
    chain = Chain(ChainConfig((anvil.url,), confirmations=1), network.deployment)
    head = await chain.head()
    for place in range(1, 5):
        await anvil.move_to(anvil.rpc, head.timestamp_s + 100 * place)
    time_s = head.timestamp_s + 250
    before = await chain.block_at(time_s)
    assert before.timestamp_s == head.timestamp_s + 200
    await anvil.reorg(depth)
    await anvil.move_to(anvil.rpc, head.timestamp_s + 500)
    after = await chain.block_at(time_s)
    following = await chain.fetch_block(after.number + 1)
    assert after == await chain.fetch_block(after.number)
    assert after.timestamp_s <= time_s < following.timestamp_s
    assert after.hash != before.hash


async def test_block_at_asks_for_one_block_when_nothing_changed(anvil: Anvil, network: LiveNetwork) -> None:
    chain = Chain(ChainConfig((anvil.url,), confirmations=1), network.deployment)
    head = await chain.head()
    for place in range(1, 4):
        await anvil.move_to(anvil.rpc, head.timestamp_s + 100 * place)
    found = await chain.block_at(head.timestamp_s + 150)
    asked: list[object] = []
    call = chain.rpc.call

    async def counting(method: str, *params: object) -> object:
        asked.append(params[0])
        return await call(method, *params)

    chain.rpc.call = counting  # type: ignore[method-assign]
    assert await chain.block_at(head.timestamp_s + 150) == found
    assert asked == [hex(found.number + 1)]
    assert isinstance(found, BlockRef) and found.hash != Hash(bytes(32))
