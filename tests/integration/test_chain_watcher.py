"""The watcher: each event once, in order, with its cursor; nodes that lag, lie and reorganise."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import trio

from emcd.chain import ChainEvent, RpcRefused, Watcher
from emcd.chain.watcher import SAVE_EVERY_BLOCKS
from emcd.errors import RecoverableError
from emcd.ledger import Connection, Ledger
from emcd.ledger.outbox_store import LedgerEventSink
from emcd.testing import temporary_ledger
from tests.support.network import HOLDER, LiveNetwork, deploy, empty_chain
from tests.support.outbox import LyingRpc
from tests.support.watch import TABLE, TO, apply, list_paid, undo


class World:
    """A deployed network, a ledger with one table, and a watcher of the token over a wire that may lie."""

    def __init__(self, network: LiveNetwork, ledger: Ledger) -> None:
        self.network = network
        self.ledger = ledger
        self.wire = LyingRpc(network.rpc)

    def watcher(self, apply_events: Any = apply, confirmations: int = 1) -> Watcher:
        sink = LedgerEventSink(self.ledger, "test:token", apply_events, undo)
        token = self.network.chain.token
        return Watcher(
            self.wire,
            {"token": token},
            sink,
            first_block=self.network.deployment.deployed_block,
            confirmations=confirmations,
            poll_s=0.01,
        )

    async def pay(self, amount: int) -> None:
        await self.network.send(HOLDER, self.network.chain.token.submit_transfer(TO, amount))

    async def mine(self, blocks: int) -> None:
        for _ in range(blocks):
            await self.network.rpc.mine()  # type: ignore[attr-defined]

    async def paid(self) -> list[int]:
        return await self.ledger.read(list_paid)

    async def cursor(self) -> int | None:
        sql = "SELECT max(number) FROM chain_cursors WHERE name = 'test:token'"
        found = await self.ledger.read(lambda con: con.execute(sql).fetchone())
        return None if found is None else found[0]


@pytest.fixture
def chain_file(tmp_path: Path) -> Iterator[Any]:
    with empty_chain(tmp_path / "chain.sqlite") as rpc:
        yield rpc


@pytest.fixture
async def world(chain_file: Any, tmp_path: Path) -> AsyncIterator[World]:
    async with temporary_ledger(tmp_path, {"test": [TABLE]}) as ledger:
        yield World(await deploy(chain_file), ledger)


async def test_poll_applies_each_event_once_in_order(world: World) -> None:
    watcher = world.watcher()
    for amount in (1, 2, 3):
        await world.pay(amount)
    assert await watcher.poll() == 3 + 1  # and the mint of the genesis supply
    assert await watcher.poll() == 0
    await world.pay(4)
    assert await watcher.poll() == 1
    assert await world.paid() == [1, 2, 3, 4]
    assert await world.watcher().poll() == 0


async def test_poll_event_has_names_values_and_place(world: World) -> None:
    seen: list[ChainEvent] = []
    await world.pay(5)
    await world.watcher(lambda con, events: seen.extend(events)).poll()
    head = await world.network.chain.head()
    event = seen[-1]
    assert (event.contract, event.name) == ("token", "Transfer")
    assert event.args == {"from": HOLDER.address, "to": TO, "value": 5}
    assert (event.block, event.block_hash, event.timestamp_s) == (head.number, head.hash, head.timestamp_s)


async def test_poll_waits_for_confirmations(world: World) -> None:
    watcher = world.watcher(confirmations=3)
    await world.pay(1)
    await watcher.poll()
    assert await world.paid() == []
    await world.mine(2)
    await watcher.poll()
    assert await world.paid() == [1]


async def test_apply_that_fails_leaves_neither_effect_nor_cursor(world: World) -> None:
    await world.pay(1)

    def broken(con: Connection, events: Sequence[ChainEvent]) -> None:
        apply(con, events)
        raise RuntimeError("dies after its writes")

    with pytest.raises(RuntimeError, match="dies"):
        await world.watcher(broken).poll()
    assert await world.paid() == []
    assert await world.cursor() is None
    await world.watcher().poll()
    assert await world.paid() == [1]


async def test_empty_blocks_are_saved_now_and_then_only(world: World) -> None:
    watcher = world.watcher()
    await watcher.poll()
    first = await world.cursor()
    await world.mine(SAVE_EVERY_BLOCKS - 10)
    await watcher.poll()
    assert await world.cursor() == first
    await world.mine(20)
    await watcher.poll()
    assert await world.cursor() == (await world.network.chain.head()).number


async def test_request_that_is_refused_is_made_smaller(world: World) -> None:
    for amount in (1, 2, 3):
        await world.pay(amount)
    asked: list[int] = []

    async def few_blocks(method: str, *params: Any) -> Any:
        if method == "eth_getLogs":
            span = int(params[0]["toBlock"], 16) - int(params[0]["fromBlock"], 16) + 1
            asked.append(span)
            if span > 2:
                raise RpcRefused(method, -32000, "block range too large")
        return await world.network.rpc.call(method, *params)

    world.wire.call = few_blocks  # type: ignore[method-assign]
    await world.watcher().poll()
    assert await world.paid() == [1, 2, 3]
    assert max(asked) > 2 >= asked[-1]


@pytest.mark.parametrize(
    "change",
    [
        {"address": TO},
        {"blockNumber": "0xffff"},
        {"blockHash": "0x" + "66" * 32},
        {"topics": []},
        {"topics": ["0x" + "11" * 32, "zz"]},
        {"data": "0x01"},
        {"data": None},
    ],
)
async def test_logs_that_lie_are_never_applied(world: World, change: dict[str, Any]) -> None:
    await world.pay(1)
    logs = await world.network.rpc.call(
        "eth_getLogs", {"fromBlock": "0x0", "address": world.network.deployment.token}
    )
    world.wire.answers["eth_getLogs"] = [*logs[:-1], logs[-1] | change] if logs else [change]
    with pytest.raises(RecoverableError) as caught:
        await world.watcher().poll()
    assert caught.value.code in ("EMC-1507", "EMC-1516", "EMC-1520")
    assert await world.paid() == []


async def test_log_given_twice_is_refused(world: World) -> None:
    await world.pay(1)
    head = (await world.network.chain.head()).number
    logs = await world.network.rpc.call("eth_getLogs", {"fromBlock": hex(head), "toBlock": hex(head)})
    world.wire.answers["eth_getLogs"] = logs * 2
    with pytest.raises(RecoverableError):
        await world.watcher().poll()
    assert await world.paid() == []


async def test_node_that_lags_is_waited_for_and_nothing_is_undone(world: World) -> None:
    watcher = world.watcher()
    await world.pay(1)
    await watcher.poll()
    head = await world.network.chain.head()

    async def lagging(method: str, *params: Any) -> Any:
        if method == "eth_getBlockByNumber":
            number = head.number - 1 if params[0] == "latest" else int(params[0], 16)
            return None if number >= head.number else await world.network.rpc.call(method, hex(number), False)
        return await world.network.rpc.call(method, *params)

    world.wire.call = lagging  # type: ignore[method-assign]
    for again in (watcher, world.watcher()):
        with pytest.raises(RecoverableError) as caught:
            await again.poll()
        assert caught.value.code == "EMC-1505"
    assert await world.paid() == [1]


async def test_cursor_block_that_changed_is_rolled_back_and_read_again(world: World) -> None:
    """The node shows other hashes from a block on, as after a reorganisation; then what is there now."""
    watcher = world.watcher()
    await world.pay(1)
    await watcher.poll()
    kept = await world.cursor()
    await world.pay(2)
    await watcher.poll()
    assert await world.paid() == [1, 2]
    await world.ledger.write(
        lambda con: con.execute(
            "UPDATE chain_cursors SET block_hash = zeroblob(32) WHERE number > ?", (kept,)
        )
    )
    fresh = world.watcher()
    assert await fresh.poll() == 1
    assert await world.paid() == [1, 2]
    await world.ledger.write(lambda con: con.execute("UPDATE chain_cursors SET block_hash = zeroblob(32)"))
    assert await world.watcher().poll() == 3
    assert await world.paid() == [1, 2]


async def test_run_starts_when_caught_up_and_names_its_problem(world: World) -> None:
    await world.pay(1)
    watcher = world.watcher()
    world.wire.answers["eth_getLogs"] = RecoverableError("EMC-1502", "down")
    async with trio.open_nursery() as nursery:
        started = trio.Event()

        async def start() -> None:
            await nursery.start(watcher.run)
            started.set()

        nursery.start_soon(start)
        with trio.fail_after(5):
            while "down" not in watcher.problem:
                await trio.sleep(0.01)
            assert not started.is_set()
            del world.wire.answers["eth_getLogs"]
            await started.wait()
        assert await world.paid() == [1]
        assert watcher.problem == ""
        await world.pay(2)
        with trio.fail_after(5):
            while await world.paid() != [1, 2]:
                await trio.sleep(0.02)
        nursery.cancel_scope.cancel()
