"""The outbox dies at every step, on anvil: before or after anything it asks of store or node."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from emcd.chain import Call, Confirmed, Outbox, OutboxPolicy, TxIntent
from emcd.chain.tx import GWEI, FeePolicy
from emcd.testing import make_key
from tests.support.anvil import CHAIN_ID, Anvil, running_anvil
from tests.support.network import HOLDER
from tests.support.outbox import Crash, CrashPoint, LyingRpc, MemoryStore

pytestmark = pytest.mark.anvil

TO = make_key("to").address
PAY = TxIntent("pay", Call(TO, b"", 9))


@pytest.fixture
async def anvil() -> AsyncIterator[Anvil]:
    async with running_anvil() as node:
        await node.fund(HOLDER.address)
        await node.hold()
        yield node


def outbox(rpc: Any, store: Any) -> Outbox:
    fees = FeePolicy(bump_after_s=0, resend_after_s=0)
    return Outbox(rpc, CHAIN_ID, store, HOLDER, OutboxPolicy(2, 0.01, fees))


async def live(anvil: Anvil, box: Outbox) -> None:
    """A life in which the fee is first too low, then raised; then a reorganisation drops it once."""
    await box.submit(PAY)
    await box.step()
    await anvil.mine_at_base_fee(40 * GWEI, 2)
    await box.step()
    await box.step()
    await anvil.mine()
    await box.step()
    await anvil.reorg(1)
    for _ in range(12):
        if not await box.step():
            return
        await anvil.mine()
    raise AssertionError(f"still open: {box.problem}")


@pytest.mark.parametrize("after", [False, True])
async def test_crash_at_every_step_of_a_bumped_and_reorganised_transaction_pays_once(
    anvil: Anvil, after: bool
) -> None:
    await anvil.mine_at_base_fee(5 * GWEI)
    crashes = 0
    for at in range(1, 200):
        snapshot = await anvil.rpc.call("evm_snapshot")
        wire, store, point = LyingRpc(anvil.rpc), MemoryStore(), CrashPoint(at, after)
        try:
            await live(anvil, outbox(point.wrap(wire), point.wrap(store)))
        except Crash:
            crashes += 1
            await anvil.mine()
        survivor = outbox(wire, store)
        await survivor.submit(PAY)
        for _ in range(12):
            if not await survivor.step():
                break
            await anvil.mine()
        assert isinstance(await survivor.find("pay"), Confirmed), f"crash at {at}: {survivor.problem}"
        assert (await anvil.balance(TO), await anvil.nonce(HOLDER.address)) == (9, 1), f"crash at {at}"
        signed = {attempt.raw for attempt in store.attempts}
        assert set(wire.sent) <= signed, f"crash at {at}: sent without being stored"
        assert store.rows["pay"].nonce == 0
        assert await anvil.rpc.call("evm_revert", snapshot)
        if not point.crashed:
            assert crashes > 30
            return
    raise AssertionError("the run never ended without a crash")
