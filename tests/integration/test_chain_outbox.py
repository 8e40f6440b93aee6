"""The outbox on the embedded chain: crashes at every step, lies, fees, lost nonces."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from emcd.chain import Call, Confirmed, Failed, Outbox, OutboxPolicy, Replaced, TxIntent
from emcd.chain.tx import FeePolicy
from emcd.errors import LocalProtocolError, RecoverableError
from emcd.ledger import Ledger
from emcd.ledger.outbox_store import LedgerOutboxStore
from emcd.testing import make_key
from emcd_devchain.genesis import OfflineRpc
from tests.support.devchain import CHAIN_ID, ETHER, POOR, RICH, creation, make_chain, raw, sign_raw
from tests.support.outbox import Crash, CrashPoint, LyingRpc, MemoryStore

PAY = TxIntent("pay:1", Call(POOR.address, b"", 7, "pay"))
REVERTS = bytes.fromhex("63deadbeef6000526004601cfd")


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


async def test_execute_pays_once_and_says_where(rpc: OfflineRpc) -> None:
    box = outbox(rpc, MemoryStore(), poll_s=0.01)
    async with trio.open_nursery() as nursery:
        await nursery.start(box.run)

        async def miner() -> None:
            while True:
                await trio.sleep(0.01)
                await rpc.mine()

        nursery.start_soon(miner)
        with trio.fail_after(5):
            outcome = await box.execute(PAY)
            assert await box.execute(PAY) == outcome
        nursery.cancel_scope.cancel()
    assert isinstance(outcome, Confirmed)
    assert (outcome.gas_used, balance(rpc), nonce(rpc)) == (21_000, 7, 1)


@pytest.mark.parametrize("after", [False, True])
async def test_crash_at_every_step_sends_one_transaction_ever(tmp_path: Path, after: bool) -> None:
    """The process dies before, or right after, the n-th thing it asks of store or node, for every n."""
    for at in range(1, 60):
        chain = make_chain(tmp_path / f"chain-{after}-{at}.sqlite")
        rpc = OfflineRpc(chain, instant=False)
        wire, store, point = LyingRpc(rpc), MemoryStore(), CrashPoint(at, after)
        try:
            box = outbox(point.wrap(wire), point.wrap(store), confirmations=2)
            await box.submit(PAY)
            await finish(box, rpc)
        except Crash:
            await rpc.mine()
        survivor = outbox(wire, store, confirmations=2)
        await survivor.submit(PAY)
        await finish(survivor, rpc)
        assert isinstance(await survivor.find("pay:1"), Confirmed)
        assert (balance(rpc), nonce(rpc)) == (7, 1), f"crash at {at}"
        assert len(set(wire.sent)) == 1, f"crash at {at}: other bytes were sent"
        chain.store.close()
        if not point.crashed:
            assert at > 12
            return
    raise AssertionError("the run never ended without a crash")


async def test_crash_in_the_ledger_is_survived_the_same_way(rpc: OfflineRpc, ledger: Ledger) -> None:
    store = LedgerOutboxStore(ledger)
    for at in range(1, 14):
        point = CrashPoint(at, after=True)
        intent = TxIntent(f"pay:{at}", Call(POOR.address, b"", 1))
        with trio.CancelScope():
            try:
                box = outbox(point.wrap(rpc), point.wrap(store))
                await box.submit(intent)
                await box.step()
            except Crash:
                pass
        survivor = outbox(rpc, store)
        await survivor.submit(intent)
        await finish(survivor, rpc)
    assert (balance(rpc), nonce(rpc)) == (13, 13)


async def test_submit_many_at_once_get_consecutive_nonces(rpc: OfflineRpc, ledger: Ledger) -> None:
    box = outbox(rpc, LedgerOutboxStore(ledger))
    async with trio.open_nursery() as nursery:
        for i in range(20):
            nursery.start_soon(box.submit, TxIntent(f"pay:{i}", Call(POOR.address, b"", 1)))
    await finish(box, rpc)
    assert (balance(rpc), nonce(rpc)) == (20, 20)


async def test_submit_same_key_other_content_is_our_bug(rpc: OfflineRpc) -> None:
    box = outbox(rpc, MemoryStore())
    await box.submit(PAY)
    with pytest.raises(LocalProtocolError) as caught:
        await box.submit(TxIntent("pay:1", Call(POOR.address, b"", 8)))
    assert caught.value.code == "EMC-1510"
    with pytest.raises(LocalProtocolError):
        await box.submit(TxIntent("new", Call(None, b"\x00")))
    with pytest.raises(LocalProtocolError) as caught:
        await box.wait("other")
    assert caught.value.code == "EMC-1511"


async def test_estimate_that_reverts_fails_without_using_a_nonce(rpc: OfflineRpc) -> None:
    contract = await deploy(rpc, REVERTS)
    box = outbox(rpc, MemoryStore())
    await box.submit(TxIntent("bad", Call(contract, b"")))
    await box.submit(PAY)
    await finish(box, rpc)
    assert isinstance(await box.find("bad"), Failed)
    assert isinstance(await box.find("pay:1"), Confirmed)
    assert nonce(rpc) == 2


async def test_revert_on_chain_fails_with_its_reason_after_confirmations(rpc: OfflineRpc) -> None:
    contract = await deploy(rpc, REVERTS)
    box = outbox(rpc, MemoryStore(), confirmations=3)
    await box.submit(TxIntent("bad", Call(contract, b""), gas_limit=100_000))
    await box.step()
    for _ in range(2):
        await rpc.mine()
        await box.step()
        assert await box.find("bad") is None
    await rpc.mine()
    await box.step()
    outcome = await box.find("bad")
    assert isinstance(outcome, Failed)
    assert outcome.tx_hash is not None
    assert "0xdeadbeef" in outcome.reason or "reverted" in outcome.reason


async def test_nonce_used_by_another_is_replaced_and_never_moved(rpc: OfflineRpc) -> None:
    wire = LyingRpc(rpc)
    box = outbox(wire, MemoryStore())
    wire.answers["eth_sendRawTransaction"] = "0x" + "00" * 32
    await box.submit(PAY)
    await box.step()
    await rpc.call("eth_sendRawTransaction", "0x" + sign_raw(value=1, nonce=0).hex())
    await rpc.mine()
    del wire.answers["eth_sendRawTransaction"]
    for _ in range(3):
        assert await box.find("pay:1") is None
        await box.step()
    assert await box.find("pay:1") == Replaced(0)
    assert (balance(rpc), nonce(rpc)) == (1, 1)


async def test_lagging_receipts_do_not_lose_a_mined_transaction(rpc: OfflineRpc) -> None:
    wire = LyingRpc(rpc)
    box = outbox(wire, MemoryStore())
    await box.submit(PAY)
    await box.step()
    await rpc.mine()
    wire.answers["eth_getTransactionReceipt"] = None
    for _ in range(2):
        await box.step()
    del wire.answers["eth_getTransactionReceipt"]
    await box.step()
    assert isinstance(await box.find("pay:1"), Confirmed)


async def test_receipt_that_its_block_does_not_list_never_confirms(rpc: OfflineRpc) -> None:
    """The node makes up a receipt for a transaction that it swallowed."""
    wire, store = LyingRpc(rpc), MemoryStore()
    box = outbox(wire, store)
    await rpc.call("eth_sendRawTransaction", "0x" + sign_raw(value=1, nonce=0).hex())
    await rpc.mine()
    other = rpc.chain.store.list_tx_hashes(1)[0]
    receipt = await rpc.call("eth_getTransactionReceipt", "0x" + other.hex())
    wire.answers["eth_sendRawTransaction"] = "0x" + "00" * 32
    wire.answers["eth_getTransactionReceipt"] = lambda tx_hash: receipt | {"transactionHash": tx_hash}
    wire.answers["eth_getTransactionCount"] = lambda who, which: "0x1" if which == "pending" else "0x2"
    await box.submit(PAY)
    for _ in range(3):
        await box.step()
    assert await box.find("pay:1") is None
    assert "EMC-1520" in box.problem


async def test_reorganised_out_goes_back_and_is_sent_again(rpc: OfflineRpc) -> None:
    wire, store = LyingRpc(rpc), MemoryStore()
    box = outbox(wire, store, confirmations=5)
    await box.submit(PAY)
    await box.step()
    await rpc.mine()
    await box.step()
    assert store.rows["pay:1"].state == "mined"
    wire.answers["eth_getTransactionReceipt"] = None
    await box.step()
    assert store.rows["pay:1"].state == "ready"
    assert len(wire.sent) == 2
    assert len(set(wire.sent)) == 1
    del wire.answers["eth_getTransactionReceipt"]
    await finish(box, rpc)
    assert balance(rpc) == 7


async def test_receipt_in_a_block_that_is_not_the_chains_never_confirms(rpc: OfflineRpc) -> None:
    wire, store = LyingRpc(rpc), MemoryStore()
    box = outbox(wire, store)
    await box.submit(PAY)
    await box.step()
    await rpc.mine()
    receipt = await rpc.call("eth_getTransactionReceipt", "0x" + store.attempts[0].tx_hash.hex())
    wire.answers["eth_getTransactionReceipt"] = receipt | {"blockHash": "0x" + "66" * 32}
    await box.step()
    assert await box.find("pay:1") is None
    wire.answers["eth_getTransactionReceipt"] = receipt | {"transactionHash": "0x" + "66" * 32}
    await box.step()
    assert "EMC-1507" in box.problem
    wire.answers.clear()
    await box.step()
    assert isinstance(await box.find("pay:1"), Confirmed)
    assert box.problem == ""


async def test_node_away_is_a_problem_until_it_is_back(rpc: OfflineRpc) -> None:
    wire = LyingRpc(rpc)
    box = outbox(wire, MemoryStore())
    await box.submit(PAY)
    wire.answers["eth_getBlockByNumber"] = RecoverableError("EMC-1502", "down")
    assert await box.step() == 1
    assert "EMC-1502" in box.problem
    del wire.answers["eth_getBlockByNumber"]
    await finish(box, rpc)
    assert box.problem == ""


@pytest.mark.parametrize("answer", [None, [], {}, 7, "zz", "0x", "0x" + "f" * 70])
@pytest.mark.parametrize(
    "method",
    [
        "eth_getBlockByNumber",
        "eth_getTransactionCount",
        "eth_estimateGas",
        "eth_maxPriorityFeePerGas",
        "eth_sendRawTransaction",
        "eth_getTransactionReceipt",
    ],
)
async def test_nonsense_of_a_node_never_stops_the_outbox(rpc: OfflineRpc, method: str, answer: Any) -> None:
    wire = LyingRpc(rpc)
    box = outbox(wire, MemoryStore(), fees=FeePolicy(resend_after_s=0))
    await box.submit(PAY)
    wire.answers[method] = answer
    for _ in range(2):
        await box.step()
        await rpc.mine()
    wire.answers.clear()
    await finish(box, rpc)
    assert (balance(rpc), nonce(rpc)) == (7, 1)


async def test_sender_without_ether_waits_and_says_so(rpc: OfflineRpc) -> None:
    box = Outbox(rpc, CHAIN_ID, MemoryStore(), make_key("pauper"), OutboxPolicy())
    await box.submit(PAY)
    await box.step()
    assert "insufficient funds" in box.problem
    await rpc.call(
        "eth_sendRawTransaction", "0x" + sign_raw(to=make_key("pauper").address, value=ETHER).hex()
    )
    await rpc.mine()
    await finish(box, rpc)
    assert balance(rpc) == 7


async def test_wait_that_reads_while_the_last_step_ends_still_returns(rpc: OfflineRpc) -> None:
    """The row is read as open, the step that closes it ends, and only then does `wait` go on."""
    store = MemoryStore()
    box = outbox(rpc, store)
    await box.submit(PAY)
    reading, go_on = trio.Event(), trio.Event()
    find = store.find

    async def slow_find(sender: str, key: str) -> Any:
        row = await find(sender, key)
        reading.set()
        await go_on.wait()
        return row

    store.find = slow_find  # type: ignore[method-assign]
    outcomes = []

    async def waiter() -> None:
        outcomes.append(await box.wait("pay:1"))

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(waiter)
            await reading.wait()
            await finish(box, rpc)
            go_on.set()
    assert isinstance(outcomes[0], Confirmed)


async def deploy(rpc: OfflineRpc, runtime: bytes) -> Any:
    from emcd.proto.address import address_from_bytes

    tx = sign_raw(to=None, data=creation(runtime), gas=200_000)
    tx_hash = await rpc.call("eth_sendRawTransaction", "0x" + tx.hex())
    await rpc.mine()
    receipt = await rpc.call("eth_getTransactionReceipt", tx_hash)
    return address_from_bytes(bytes.fromhex(receipt["contractAddress"][2:]))
