"""Real reorganisations, on anvil: what the outbox sent and the watcher applied comes right again."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from emcd.chain import Call, Confirmed, Outbox, OutboxPolicy, TxIntent, Watcher
from emcd.ledger.outbox_store import LedgerEventSink, LedgerOutboxStore
from emcd.testing import make_key, temporary_ledger
from tests.support.anvil import CHAIN_ID, Anvil, running_anvil
from tests.support.network import HOLDER, LiveNetwork, deploy
from tests.support.watch import TABLE, TO, apply, list_paid, undo

pytestmark = pytest.mark.anvil


@pytest.fixture
async def anvil() -> AsyncIterator[Anvil]:
    async with running_anvil() as node:
        await node.fund(HOLDER.address)
        yield node


@pytest.fixture
async def network(anvil: Anvil) -> LiveNetwork:
    return await deploy(anvil.rpc, chain_id=CHAIN_ID)


async def test_outbox_transaction_that_was_reorganised_out_is_mined_again(
    anvil: Anvil, network: LiveNetwork, tmp_path: Path
) -> None:
    async with temporary_ledger(tmp_path) as ledger:
        store = LedgerOutboxStore(ledger)
        box = Outbox(anvil.rpc, CHAIN_ID, store, HOLDER, OutboxPolicy(confirmations=4))
        await box.submit(TxIntent("pay", Call(make_key("to").address, b"", 9)))
        for _ in range(2):
            await box.step()
        row = await store.find(HOLDER.address, "pay")
        assert row is not None
        assert row.state == "mined"
        await anvil.mine(1)
        await anvil.reorg(2)
        receipt = await anvil.rpc.call("eth_getTransactionReceipt", "0x" + (row.tx_hash or b"").hex())
        assert receipt is None
        await box.step()
        again = await store.find(HOLDER.address, "pay")
        assert again is not None
        assert again.state == "ready"
        for _ in range(6):
            await box.step()
            await anvil.mine(1)
        outcome = await box.find("pay")
        assert isinstance(outcome, Confirmed)
        assert outcome.tx_hash == row.tx_hash
        assert int(await anvil.rpc.call("eth_getBalance", make_key("to").address, "latest"), 16) == 9


async def test_watcher_effects_of_lost_blocks_are_undone(
    anvil: Anvil, network: LiveNetwork, tmp_path: Path
) -> None:
    async with temporary_ledger(tmp_path, {"test": [TABLE]}) as ledger:
        sink = LedgerEventSink(ledger, "test:token", apply, undo)
        watcher = Watcher(
            anvil.rpc,
            {"token": network.chain.token},
            sink,
            first_block=network.deployment.deployed_block,
            confirmations=1,
            poll_s=0.01,
        )
        for amount in (1, 2, 3):
            await network.send(HOLDER, network.chain.token.submit_transfer(TO, amount))
            await watcher.poll()
        assert await ledger.read(list_paid) == [1, 2, 3]
        await anvil.reorg(2)
        await watcher.poll()
        balance = await network.chain.token.fetch_balance(TO)
        assert sum(await ledger.read(list_paid)) == balance
        assert await ledger.read(list_paid) == [1]
        await network.send(HOLDER, network.chain.token.submit_transfer(TO, 7))
        await watcher.poll()
        assert await ledger.read(list_paid) == [1, 7]
        assert await network.chain.token.fetch_balance(TO) == 8
