"""An unstreamed call at every place where its client, its node or the ledger can go away.

The call waits in one place, while its answer and its row come by callbacks: so each of these tests
holds one of the callbacks back, and looks at the row, the money and the client afterwards.
"""

from __future__ import annotations

import dataclasses
import gc
from pathlib import Path
from typing import Any

import pytest
import trio

from emcd.errors import EmcdError
from emcd.inference.manifest import EngineManifest
from emcd.ledger import Ledger
from emcd.proto.records import CallStatus
from emcd_hub.calls.recorder import OpenCall
from tests.support.hub_stall import answer_when_cancelled, stalled
from tests.support.hub_world import (
    MODEL,
    HubWorld,
    StubNode,
    answer_embedding,
    answer_stream,
    chat_events,
    node_key,
    post,
    running_world,
)

COST = 50_000
GRANTED = 10**12
ROWS = "SELECT status, receipt IS NOT NULL, granted_micro, fault FROM hub_calls ORDER BY call_seq"


async def never(node: StubNode, call: Any, meta: Any) -> None:
    await trio.sleep_forever()


async def leave_when(world: HubWorld, ready: Any) -> None:
    """Begin a call and close its connection once something is so."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(post, world)
        await world.until(ready)
        nursery.cancel_scope.cancel()


async def require_settled(world: HubWorld, charged_micro: int) -> None:
    """The books in memory and on disk agree, and nothing is held."""
    await world.until(lambda: world.plane.gateway.active == 0)
    account = world.plane.book.find(world.account_id)
    assert (account.granted_micro, account.reserved_micro, account.calls) == (GRANTED - charged_micro, 0, 0)
    assert await world.balances() == (GRANTED - charged_micro, 0)
    assert not world.plane.gateway.sweep.watched
    assert all(entry.in_flight == 0 for entry in world.plane.board.list_entries())


async def test_client_that_leaves_a_working_node_pays_nothing(tmp_path: Path) -> None:
    async with running_world(tmp_path) as world:
        node = await world.add_node(StubNode(node_key(0), answer=never))
        await leave_when(world, lambda: node.calls)

        await world.until(lambda: node.cancelled)
        await require_settled(world, 0)
        assert await world.rows(ROWS) == [(CallStatus.CANCELLED, 0, 0, "the client left")]


async def test_client_that_leaves_pays_what_its_node_had_done_by_the_nodes_last_word(tmp_path: Path) -> None:
    async with running_world(tmp_path) as world:
        node = await world.add_node(StubNode(node_key(0), answer=answer_when_cancelled))
        await leave_when(world, lambda: node.calls)

        await require_settled(world, COST)
        assert await world.rows(ROWS) == [(CallStatus.CANCELLED, 1, COST, "the client left")]


async def test_client_that_leaves_a_node_that_lies_at_the_end_pays_nothing(tmp_path: Path) -> None:
    async with running_world(tmp_path) as world:
        node = StubNode(node_key(0), answer=answer_when_cancelled)
        node.edit_receipt = lambda receipt: type(receipt)(*[*_values(receipt)[:3], 9, *_values(receipt)[4:]])
        await world.add_node(node)
        await leave_when(world, lambda: node.calls)

        await require_settled(world, 0)
        assert await world.rows(ROWS) == [(CallStatus.CANCELLED, 0, 0, "the client left")]


async def test_client_that_leaves_while_its_row_is_written_pays_once_for_a_call_that_went_well(
    tmp_path: Path,
) -> None:
    async with running_world(tmp_path) as world:
        node = await world.add_node(StubNode(node_key(0), batching=False))
        async with stalled(world) as go:
            await leave_when(world, lambda: world.plane.gateway.active and node.receipts)
            await trio.sleep(0.6)  # more than two sweeps of the server, which cancels the call
            assert world.plane.gateway.active == 1
            go.set()

        await require_settled(world, COST)
        assert await world.rows(ROWS) == [(CallStatus.OK, 1, COST, "")]


async def test_node_that_says_nothing_is_given_up_and_the_next_one_answers(tmp_path: Path) -> None:
    async with running_world(tmp_path, call_timeout_s=0.2) as world:
        silent = await world.add_node(StubNode(node_key(0), answer=never, capacity=99))
        await leave_when(world, lambda: silent.calls)
        await require_settled(world, 0)
        await world.add_node(StubNode(node_key(1), capacity=1))
        answer = await post(world)

        assert answer.status == 200
        statuses = [row[0] for row in await world.rows(ROWS)]
        assert statuses[-1] == CallStatus.OK
        await require_settled(world, COST)


async def test_node_past_its_deadline_is_a_node_error(tmp_path: Path) -> None:
    async with running_world(tmp_path, call_timeout_s=0.2, max_attempts=1) as world:
        node = await world.add_node(StubNode(node_key(0), answer=never))
        answer = await post(world)

        assert answer.status == 502
        await world.until(lambda: node.cancelled)
        (row,) = await world.rows(ROWS)
        assert row[:3] == (CallStatus.NODE_ERROR, 0, 0)
        assert row[3].startswith("timeout: ")
        await require_settled(world, 0)


async def test_ledger_that_is_late_is_an_error_and_the_charge_stands_with_its_row(tmp_path: Path) -> None:
    async with running_world(tmp_path) as world:
        await world.add_node(StubNode(node_key(0)))
        gateway = world.plane.gateway
        gateway._limits = dataclasses.replace(gateway._limits, record_timeout_s=0.2)
        async with stalled(world):
            answer = await post(world)
            assert answer.status == 500
            assert answer.json()["error"]["emc_code"] == "EMC-1781"

        with trio.fail_after(10):
            while not await world.rows(ROWS):
                await trio.sleep(0.01)
        assert await world.rows(ROWS) == [(CallStatus.OK, 1, COST, "")]
        await require_settled(world, COST)


@pytest.mark.parametrize("has_room", [True, False])
async def test_ledger_that_refuses_a_row_gives_the_charge_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_room: bool
) -> None:
    def refuse(*args: Any) -> None:
        raise EmcdError("EMC-1790", "not this one")

    async with running_world(tmp_path) as world:
        await world.add_node(StubNode(node_key(0)))
        monkeypatch.setattr(Ledger, "has_room", property(lambda self: has_room))
        monkeypatch.setattr("emcd_hub.calls.recorder.insert_calls", refuse)
        answer = await post(world)

        assert answer.status == 500
        assert await world.rows(ROWS) == []
        await require_settled(world, 0)


async def test_ledger_without_room_makes_the_call_wait_not_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_world(tmp_path) as world:
        await world.add_node(StubNode(node_key(0)))
        monkeypatch.setattr(Ledger, "has_room", property(lambda self: False))
        answer = await post(world)

        assert (answer.status, answer.headers["x-emc-credits"]) == (200, "0.050000")
        assert await world.rows(ROWS) == [(CallStatus.OK, 1, COST, "")]
        await require_settled(world, COST)


async def test_call_leaves_no_work_for_the_garbage_collector(tmp_path: Path) -> None:
    """What is in a cycle is freed by the collector alone: at line speed that is 30 ms at a time."""
    async with running_world(tmp_path) as world:
        await world.add_node(StubNode(node_key(0), answer=answer_embedding))
        await post(world)
        gc.collect()
        gc.disable()
        gc.set_debug(gc.DEBUG_SAVEALL)
        try:
            for _ in range(5):
                assert (await post(world)).status == 200
            await world.until(lambda: world.plane.gateway.active == 0)
            gc.collect()
            found = [item for item in gc.garbage if isinstance(item, OpenCall)]
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
            gc.enable()
        assert found == []


def _values(struct: Any) -> list[Any]:
    return [getattr(struct, name) for name in struct.__struct_fields__]


async def test_stream_whose_commit_is_late_has_its_row_its_charge_and_its_delivery(tmp_path: Path) -> None:
    async with running_world(tmp_path) as world:
        await world.add_node(
            StubNode(
                node_key(0),
                manifests=(EngineManifest(name=MODEL),),
                answer=answer_stream(chat_events(["a"]), (7, 1)),
                batching=False,
            )
        )
        gateway = world.plane.gateway
        gateway._limits = dataclasses.replace(gateway._limits, record_timeout_s=0.2)
        body = {"model": MODEL, "messages": [{"role": "user", "content": "x"}], "stream": True}
        async with stalled(world):
            with pytest.raises(EmcdError):
                await post(world, body, "/v1/chat/completions")

        with trio.fail_after(10):
            while not await world.rows(ROWS):
                await trio.sleep(0.01)
        ((status, receipt, charged, fault),) = await world.rows(ROWS)
        assert (status, receipt, fault) == (CallStatus.OK, 1, "")
        assert charged > 0
        await require_settled(world, charged)
        assert world.plane.desk.count_owed() == 1
