"""Nodes that lie, on anvil behind proxies: what one contradicts in itself, and what several agree on."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio

from emcd.chain import Chain, ChainConfig, Confirmed, JsonRpc, Outbox, OutboxPolicy, TxIntent, Watcher
from emcd.chain.asking import HEDGE_S
from emcd.chain.blocks import fetch_head
from emcd.errors import RecoverableError
from emcd.ledger import Ledger
from emcd.ledger.outbox_store import LedgerEventSink, LedgerOutboxStore
from emcd.testing import make_key, temporary_ledger
from tests.support.anvil import CHAIN_ID, Anvil, running_anvil
from tests.support.faulty_node import FaultyNode, faulty_node
from tests.support.network import HOLDER, LiveNetwork, deploy
from tests.support.watch import TABLE, TO, apply, list_paid, undo

pytestmark = pytest.mark.anvil

ACCOUNT = b"\x07" * 32


class World:
    """A deployed network, payments to watch, and three endpoints of the one node."""

    def __init__(self, anvil: Anvil, network: LiveNetwork, ledger: Ledger, *nodes: FaultyNode) -> None:
        self.anvil = anvil
        self.network = network
        self.ledger = ledger
        self.nodes = nodes

    def chain(self, *nodes: FaultyNode, agree: int = 1, timeout_s: float = 30.0) -> Chain:
        urls = tuple(node.url for node in nodes)
        config = ChainConfig(urls, confirmations=1, poll_s=0.01, timeout_s=timeout_s, agree=agree)
        return Chain(config, self.network.deployment)

    def watcher(self, chain: Chain, contract: str = "token") -> Watcher:
        return chain.watcher(LedgerEventSink(self.ledger, f"test:{contract}", apply, undo), (contract,))

    async def pay(self, *amounts: int) -> None:
        for amount in amounts:
            await self.network.send(HOLDER, self.network.chain.token.submit_transfer(TO, amount))

    async def buy(self, count: int) -> None:
        vault = self.network.chain.vault
        await self.network.send(HOLDER, self.network.chain.token.submit_approve(vault.address, 10**21))
        for _ in range(count):
            await self.network.send(HOLDER, vault.submit_buy(ACCOUNT, 10**18))

    async def paid(self) -> list[int]:
        return await self.ledger.read(list_paid)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with (
        running_anvil() as anvil,
        temporary_ledger(tmp_path, {"test": [TABLE]}) as ledger,
        faulty_node(anvil.url) as one,
        faulty_node(anvil.url) as two,
        faulty_node(anvil.url) as three,
    ):
        await anvil.fund(HOLDER.address)
        yield World(anvil, await deploy(anvil.rpc, chain_id=CHAIN_ID), ledger, one, two, three)


async def poll_refused(watcher: Watcher) -> RecoverableError:
    with pytest.raises(RecoverableError) as caught:
        await watcher.poll()
    return caught.value


def without_last(params: Any, logs: Any) -> Any:
    return logs[:-1]


def with_other_amount(params: Any, logs: Any) -> Any:
    return [*logs[:-1], {**logs[-1], "data": "0x" + (10**20).to_bytes(32, "big").hex()}] if logs else logs


def twice_paid(params: Any, logs: Any) -> Any:
    return [*logs, {**logs[-1], "logIndex": "0x7"}] if logs else logs


# ------------------------------------------------------------------ one endpoint


@pytest.mark.parametrize("lie", [without_last, with_other_amount, twice_paid])
@pytest.mark.parametrize("receipts", ["together", "one by one"])
async def test_logs_left_out_or_made_up_are_found_by_the_blocks_receipts(
    world: World, lie: Any, receipts: str
) -> None:
    await world.pay(1, 2)
    bad = world.nodes[0]
    bad.rewrites["eth_getLogs"] = lie
    chain = world.chain(bad)
    if receipts == "one by one":
        chain.rpc.call = refuse_block_receipts(chain.rpc.call)  # type: ignore[method-assign]
    watcher = world.watcher(chain)
    assert (await poll_refused(watcher)).code == "EMC-1520"
    assert await world.paid() == []
    assert chain.problem
    bad.rewrites.pop("eth_getLogs")
    await watcher.poll()
    assert await world.paid() == [1, 2]


def refuse_block_receipts(call: Any) -> Any:
    from emcd.chain import RpcRefused

    async def refusing(method: str, *params: Any) -> Any:
        if method == "eth_getBlockReceipts":
            raise RpcRefused(method, -32601, "the method does not exist")
        return await call(method, *params)

    return refusing


async def test_logs_that_an_index_has_not_yet_are_waited_for(world: World) -> None:
    """The node's index lags behind its blocks: it gives no logs at first, and all of them later."""
    bad = world.nodes[0]
    watcher = world.watcher(world.chain(bad))
    await watcher.poll()
    await world.pay(5)
    bad.rewrites["eth_getLogs"] = lambda params, logs: []
    for _ in range(3):
        assert (await poll_refused(watcher)).code == "EMC-1520"
    del bad.rewrites["eth_getLogs"]
    assert await watcher.poll() == 1
    assert await world.paid() == [5]


@pytest.mark.parametrize("method", ["eth_getBlockReceipts", "eth_getBlockByNumber"])
async def test_receipts_or_header_that_hide_a_log_with_it_are_found(world: World, method: str) -> None:
    """A careful liar leaves the log out of the receipts too, or out of the header's filter."""
    await world.pay(3)
    head = hex((await world.network.chain.head()).number)
    bad = world.nodes[0]
    bad.rewrites["eth_getLogs"] = without_last

    def hide(params: Any, result: Any) -> Any:
        if method == "eth_getBlockReceipts":
            return [{**entry, "logs": []} for entry in result] if params[0] == head else result
        return result and {**result, "logsBloom": "0x" + "00" * 256}

    bad.rewrites[method] = hide
    error = await poll_refused(world.watcher(world.chain(bad)))
    assert error.code == "EMC-1520"
    assert await world.paid() == []


@pytest.mark.parametrize(
    ("change", "code"),
    [({"parentHash": "0x" + "66" * 32}, "EMC-1516"), ({"timestamp": "0x1"}, "EMC-1520")],
)
async def test_headers_that_do_not_follow_each_other_are_refused(
    world: World, change: dict[str, str], code: str
) -> None:
    await world.pay(1, 2, 3)
    number = hex((await world.network.chain.head()).number - 1)
    bad = world.nodes[0]
    bad.rewrites["eth_getBlockByNumber"] = lambda params, result: (
        {**result, **change} if params[0] == number else result
    )
    assert (await poll_refused(world.watcher(world.chain(bad)))).code == code
    assert await world.paid() == []


@pytest.mark.parametrize("left_out", [0, 1, 2])
async def test_deposit_left_out_far_below_the_head_is_missed_by_its_number(
    world: World, left_out: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So far back that no header is read: the numbers, and the contract's count, still tell."""
    monkeypatch.setattr("emcd.chain.watcher.CHECKED_BLOCKS", 20)
    await world.buy(3)
    await world.anvil.mine(60)
    bad = world.nodes[0]

    def hide(params: Any, logs: Any) -> Any:
        return [log for place, log in enumerate(logs) if place != left_out]

    bad.rewrites["eth_getLogs"] = hide
    watcher = world.watcher(world.chain(bad), "vault")
    assert (await poll_refused(watcher)).code == "EMC-1520"
    del bad.rewrites["eth_getLogs"]
    assert await watcher.poll() == 3
    again = world.watcher(world.chain(bad), "vault")
    assert await again.poll() == 0
    await world.buy(1)
    bad.rewrites["eth_call"] = lambda params, result: "0x" + (3).to_bytes(32, "big").hex()
    assert (await poll_refused(again)).code == "EMC-1520"


async def test_liar_with_a_second_endpoint_is_avoided_and_nothing_is_missed(world: World) -> None:
    bad, good, _ = world.nodes
    bad.rewrites["eth_getLogs"] = without_last
    chain = world.chain(bad, good)
    watcher = world.watcher(chain)
    await world.pay(1)
    assert (await poll_refused(watcher)).code == "EMC-1520"
    assert bad.url in chain.problem
    await watcher.poll()
    bad.asked.clear()
    await world.pay(2)
    await watcher.poll()
    assert await world.paid() == [1, 2]
    assert bad.asked == []


# ------------------------------------------------------------------ several that must agree


async def test_agreement_finds_the_liar_among_three_and_goes_on(world: World) -> None:
    nodes = world.nodes
    nodes[0].rewrites["eth_getLogs"] = without_last
    chain = world.chain(*nodes, agree=2)
    await world.pay(1, 2)
    watcher = world.watcher(chain)
    await watcher.poll()
    assert await world.paid() == [1, 2]
    assert nodes[0].url in chain.problem
    assert nodes[1].url not in chain.problem.partition(" says ")[0]
    nodes[0].asked.clear()
    await world.pay(3)
    await watcher.poll()
    assert await world.paid() == [1, 2, 3]
    assert nodes[0].asked == []


async def test_agreement_of_two_with_one_liar_believes_nothing_and_names_both(world: World) -> None:
    nodes = world.nodes[:2]
    nodes[0].rewrites["eth_getLogs"] = without_last
    chain = world.chain(*nodes, agree=2)
    await world.pay(1)
    watcher = world.watcher(chain)
    error = await poll_refused(watcher)
    assert error.code == "EMC-1519"
    assert all(node.url in error.detail for node in nodes)
    assert await world.paid() == []
    assert "EMC-1519" in chain.problem
    nodes[0].rewrites.clear()
    await watcher.poll()
    assert await world.paid() == [1]
    assert chain.problem == ""


async def test_agreement_a_made_up_balance_is_not_believed(world: World) -> None:
    nodes = world.nodes
    nodes[0].rewrites["eth_call"] = lambda params, result: "0x" + (10**30).to_bytes(32, "big").hex()
    chain = world.chain(*nodes, agree=2)
    await world.pay(4)
    assert await chain.token.fetch_balance(TO, at=await chain.head()) == 4
    alone = world.chain(nodes[0])
    assert await alone.token.fetch_balance(TO, at=await alone.head()) == 10**30, "the lie works on one"


@pytest.mark.parametrize("shift", [10_000, -3])
async def test_agreement_a_head_that_is_too_high_or_old_moves_nothing(world: World, shift: int) -> None:
    nodes = world.nodes
    await world.anvil.mine(5)
    honest = (await fetch_head(world.anvil.rpc)).number

    def other_head(params: Any, result: Any) -> Any:
        return {**result, "number": hex(honest + shift)} if params[0] == "latest" else result

    nodes[1].rewrites["eth_getBlockByNumber"] = other_head
    chain = world.chain(*nodes, agree=2)
    head = await chain.head()
    assert head.number == honest
    assert head.hash == (await world.network.chain.fetch_block(head.number)).hash


async def test_agreement_a_made_up_receipt_confirms_nothing(world: World) -> None:
    """One of three says that a swallowed transaction is mined; the others know better."""
    nodes = world.nodes
    await world.pay(1)
    head = await world.anvil.rpc.call("eth_getBlockByNumber", "latest", False)
    real = await world.anvil.rpc.call("eth_getTransactionReceipt", head["transactions"][0])
    nodes[0].rewrites["eth_getTransactionReceipt"] = lambda params, result: {
        **real,
        "transactionHash": params[0],
    }
    for node in nodes:
        node.rewrites["eth_sendRawTransaction"] = lambda params, result: result
    chain = world.chain(*nodes, agree=2)
    box = chain.outbox(LedgerOutboxStore(world.ledger), HOLDER)
    await world.anvil.rpc.call("evm_setAutomine", False)
    await box.submit(TxIntent("pay", chain.token.submit_transfer(TO, 8)))
    for _ in range(4):
        await box.step()
    assert await box.find("pay") is None
    await world.anvil.mine(1)
    await box.step()
    assert isinstance(await box.find("pay"), Confirmed)


# ------------------------------------------------------------------ fail-over


async def test_failover_dead_endpoint_costs_little_and_is_left_alone(world: World) -> None:
    good = world.nodes[0]
    rpc = JsonRpc(["http://127.0.0.1:1", good.url], CHAIN_ID, timeout_s=10)
    times = []
    for _ in range(20):
        started = trio.current_time()
        await rpc.call("eth_blockNumber")
        times.append(trio.current_time() - started)
    assert max(times) < 5.0, "half the deadline"
    assert rpc.list_endpoints()[0].failures == 1


async def test_failover_endpoint_that_stalls_costs_the_hedge_once(world: World) -> None:
    bad, good, _ = world.nodes
    bad.choose = lambda method: "stall"
    rpc = JsonRpc([bad.url, good.url], CHAIN_ID, timeout_s=10)
    started = trio.current_time()
    await rpc.call("eth_blockNumber")
    assert HEDGE_S <= trio.current_time() - started < 5.0
    started = trio.current_time()
    await rpc.call("eth_blockNumber")
    assert trio.current_time() - started < HEDGE_S


async def test_failover_carries_a_transaction_through(world: World) -> None:
    """The first endpoint swallows transactions and says that it took them."""
    bad, good, _ = world.nodes
    to = make_key("to").address
    swallowed: list[Any] = []

    class Swallowing(FaultyNode):
        async def _answer(self, stream: trio.SocketStream, body: bytes) -> None:
            if b"eth_sendRawTransaction" in body:
                swallowed.append(body)
                body = body.replace(b"eth_sendRawTransaction", b"web3_sha3")
            await super()._answer(stream, body)

    bad.__class__ = Swallowing
    chain = world.chain(bad, good)
    box = Outbox(chain.rpc, CHAIN_ID, LedgerOutboxStore(world.ledger), HOLDER, OutboxPolicy(1, 0.05))
    async with trio.open_nursery() as nursery:
        await nursery.start(box.run)
        with trio.fail_after(10):
            outcome = await box.execute(TxIntent("pay", chain.token.submit_transfer(to, 5)))
        nursery.cancel_scope.cancel()
    assert isinstance(outcome, Confirmed)
    assert swallowed
    assert await world.network.chain.token.fetch_balance(to) == 5
