"""The outbox and a node that is wrong about gas, prices and reverts, on the embedded chain."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from emcd.chain import Call, CallReverted, Confirmed, Failed, Outbox, OutboxPolicy, RpcRefused, TxIntent
from emcd.chain.revert import Revert
from emcd.chain.tx import FeePolicy
from emcd.ledger import Ledger
from emcd.ledger.outbox_store import LedgerOutboxStore
from emcd_devchain.genesis import OfflineRpc
from tests.support.devchain import CHAIN_ID, POOR, RICH, make_chain, raw
from tests.support.outbox import LyingRpc, MemoryStore

PAY = TxIntent("pay:1", Call(POOR.address, b"", 7, "pay"))
LONG = TxIntent("long", Call(POOR.address, b"\x01" * 1_200, 7, "long"))
EAGER = FeePolicy(bump_after_s=0, resend_after_s=0)
FALSE_REVERT = CallReverted(Revert("", message="says the node"))


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


async def test_estimate_that_is_too_low_to_be_true_is_not_taken(rpc: OfflineRpc) -> None:
    """Signed with it, the call would be refused, or mined and lost."""
    wire, store = LyingRpc(rpc), MemoryStore()
    wire.answers["eth_estimateGas"] = hex(21_000)
    box = outbox(wire, store, fees=EAGER)
    for intent in (LONG, PAY):
        await box.submit(intent)
    await box.step()
    assert "EMC-1507" in box.problem
    assert store.rows["long"].nonce is None
    await rpc.mine()
    await box.step()
    assert isinstance(await box.find("pay:1"), Confirmed)
    wire.answers.clear()
    await finish(box, rpc)
    assert balance(rpc) == 14


@pytest.mark.parametrize("estimate", [hex(10**9), "0x" + "f" * 64])
async def test_estimate_that_is_far_too_high_blocks_nobody(rpc: OfflineRpc, estimate: str) -> None:
    wire = LyingRpc(rpc)
    wire.answers["eth_estimateGas"] = estimate
    box = outbox(wire, MemoryStore(), fees=EAGER)
    for intent in (LONG, PAY):
        await box.submit(intent)
    await finish(box, rpc)
    assert balance(rpc) == 14


@pytest.mark.parametrize("gas", [21_000, 10**9])
async def test_gas_limit_that_nodes_refuse_is_changed_under_the_same_nonce(
    rpc: OfflineRpc, ledger: Ledger, gas: int
) -> None:
    store = LedgerOutboxStore(ledger)
    box = outbox(rpc, store, fees=EAGER)
    await box.submit(TxIntent("long", LONG.call, gas_limit=gas))
    await box.submit(PAY)
    await box.step()
    row = await store.find(RICH.address, "long")
    assert row is not None and (row.nonce, row.gas) == (0, gas)
    await finish(outbox(rpc, store, fees=EAGER), rpc)
    row = await store.find(RICH.address, "long")
    assert row is not None and (row.nonce, row.state) == (0, "confirmed")
    assert 40_200 <= row.gas <= 60_000
    assert balance(rpc) == 14


async def test_gas_limit_refused_is_kept_while_the_estimate_stays(rpc: OfflineRpc) -> None:
    """Nothing is signed anew for nothing, and the problem is told."""
    wire, store = LyingRpc(rpc), MemoryStore()
    refusal = RpcRefused("eth_sendRawTransaction", -32000, "intrinsic gas too low")
    wire.answers["eth_sendRawTransaction"] = refusal
    box = outbox(wire, store, fees=EAGER)
    await box.submit(PAY)
    for _ in range(4):
        await box.step()
        await rpc.mine()
    assert "intrinsic gas too low" in box.problem
    assert len(store.attempts) == 1
    wire.answers.clear()
    await finish(box, rpc)
    assert balance(rpc) == 7


@pytest.mark.parametrize("price", ["0x" + "ff" * 33, "0xffffffffffffffff", "-0x1", "0x" + "f" * 40])
async def test_price_that_a_receipt_makes_up_costs_no_more_than_was_offered(
    rpc: OfflineRpc, ledger: Ledger, price: str
) -> None:
    wire, store = LyingRpc(rpc), LedgerOutboxStore(ledger)
    box = outbox(wire, store)
    await box.submit(PAY)
    await box.step()
    await rpc.mine()
    (attempt,) = await store.list_attempts(RICH.address, "pay:1")
    receipt = await rpc.call("eth_getTransactionReceipt", "0x" + attempt.tx_hash.hex())
    wire.answers["eth_getTransactionReceipt"] = receipt | {"effectiveGasPrice": price}
    await box.step()
    outcome = await box.find("pay:1")
    if price == "0xffffffffffffffff":
        assert isinstance(outcome, Confirmed)
        assert outcome.fee_wei == 21_000 * attempt.max_fee_wei
    else:
        assert outcome is None
        assert "EMC-1507" in box.problem
    wire.answers.clear()
    await finish(box, rpc)
    await box.submit(TxIntent("pay:2", PAY.call))
    await finish(box, rpc)
    assert balance(rpc) == 14


@pytest.mark.parametrize("field", ["gasUsed", "blockNumber"])
async def test_number_in_a_receipt_beyond_all_bounds_ends_nothing(
    rpc: OfflineRpc, ledger: Ledger, field: str
) -> None:
    wire, store = LyingRpc(rpc), LedgerOutboxStore(ledger)
    box = outbox(wire, store)
    await box.submit(PAY)
    await box.step()
    await rpc.mine()
    (attempt,) = await store.list_attempts(RICH.address, "pay:1")
    receipt = await rpc.call("eth_getTransactionReceipt", "0x" + attempt.tx_hash.hex())
    wire.answers["eth_getTransactionReceipt"] = receipt | {field: "0x" + "f" * 40}
    await box.step()
    assert "EMC-1507" in box.problem
    wire.answers.clear()
    await finish(box, rpc)
    assert balance(rpc) == 7


async def test_next_nonce_beyond_all_bounds_ends_nothing(rpc: OfflineRpc, ledger: Ledger) -> None:
    wire = LyingRpc(rpc)
    box = outbox(wire, LedgerOutboxStore(ledger))
    wire.answers["eth_getTransactionCount"] = lambda who, at: "0x" + "f" * 40 if at == "pending" else "0x0"
    await box.submit(PAY)
    await box.step()
    assert "EMC-1507" in box.problem
    wire.answers.clear()
    await finish(box, rpc)
    assert balance(rpc) == 7


async def test_estimate_that_falsely_reverts_is_not_final(rpc: OfflineRpc) -> None:
    wire, store = LyingRpc(rpc), MemoryStore()
    wire.answers["eth_estimateGas"] = FALSE_REVERT
    box = outbox(wire, store)
    await box.submit(PAY)
    await box.step()
    assert await box.find("pay:1") is None
    assert "says the node" in box.problem
    assert store.rows["pay:1"].nonce is None
    wire.answers.clear()
    await finish(box, rpc)
    assert isinstance(await box.find("pay:1"), Confirmed)


async def test_estimate_that_reverts_is_final_once_the_confirmed_block_says_so_too(rpc: OfflineRpc) -> None:
    wire = LyingRpc(rpc)
    asked: list[Any] = []

    def call(params: Any, at: str) -> CallReverted | str:
        asked.append(at)
        return FALSE_REVERT if int(at, 16) >= 2 else "0x"

    wire.answers |= {"eth_estimateGas": FALSE_REVERT, "eth_call": call}
    box = outbox(wire, MemoryStore(), confirmations=3)
    await box.submit(PAY)
    for _ in range(4):
        await rpc.mine()
        assert await box.find("pay:1") is None
        await box.step()
    assert asked == ["0x0", "0x0", "0x1", "0x2"]
    assert isinstance(await box.find("pay:1"), Failed)
