"""Routing over a real hub and real tunnels: homes, breakers, the line, what is refused, what is told."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from emcd.inference.manifest import EngineManifest
from emcd.net.http_client import Response, request
from emcd.scheduling.breaker import BreakerState
from tests.support.cut_wire import CutWire
from tests.support.hub_world import (
    MODEL,
    HubWorld,
    StubNode,
    answer_embedding,
    answer_with,
    node_key,
    post,
    running_world,
)

CHAT = "/v1/chat/completions"
ANSWER = msgspec.json.encode(
    {
        "id": "c",
        "object": "chat.completion",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "x"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 7, "completion_tokens": 1, "total_tokens": 8},
    }
)
TALK = answer_with(200, ANSWER, (7, 1))


def chat(text: str, **rest: Any) -> dict[str, Any]:
    return {"model": MODEL, "max_tokens": 9, "messages": [{"role": "user", "content": text}], **rest}


async def ask(world: HubWorld, body: dict[str, Any], **headers: str) -> str:
    """Returns: the node that did it."""
    answer = await post(world, body, CHAT, **headers)
    assert answer.status == 200, answer.body
    return answer.headers["x-emc-node"]


async def add_nodes(world: HubWorld, number: int, **rest: Any) -> list[StubNode]:
    return [await world.add_node(StubNode(node_key(n), answer=TALK, **rest)) for n in range(number)]


def code_of(answer: Response) -> str:
    code: str = answer.json()["error"]["emc_code"]
    return code


class Gate:
    """An engine that answers when it is told to."""

    def __init__(self) -> None:
        self.open = trio.Event()

    async def __call__(self, node: StubNode, call: Any, meta: Any) -> None:
        await self.open.wait()
        await answer_embedding(node, call, meta)


async def test_session_stays_on_a_node_and_moves_when_it_is_gone(tmp_path: Path) -> None:
    async with running_world(tmp_path) as world:
        nodes = {node.key.address: node for node in await add_nodes(world, 4)}
        homes = {await ask(world, chat(f"turn {turn}"), x_emc_session="s") for turn in range(6)}
        assert len(homes) == 1
        (home,) = homes
        nodes[home].scope.cancel()
        await world.until(lambda: world.plane.board.find(home) is None)
        after = {await ask(world, chat(f"turn {turn}"), x_emc_session="s") for turn in range(6)}
        assert len(after) == 1
        assert after != homes


async def test_session_moves_while_its_node_is_full(tmp_path: Path) -> None:
    async with running_world(tmp_path) as world:
        gate = Gate()
        nodes = [await world.add_node(StubNode(node_key(n), capacity=2, answer=gate)) for n in range(2)]
        done: list[str] = []

        async def one() -> None:
            answer = await post(world, x_emc_session="s")
            assert answer.status == 200
            done.append(answer.headers["x-emc-node"])

        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(one)
            await world.until(lambda: sum(node.calls for node in nodes) == 4)
            gate.open.set()
        assert sorted(done.count(node.key.address) for node in nodes) == [2, 2]


async def test_calls_with_one_beginning_share_a_node_and_others_spread(tmp_path: Path) -> None:
    async with running_world(tmp_path) as world:
        await add_nodes(world, 4)
        system = "You are a helpful machine. " * 60
        assert len({await ask(world, chat(f"{system} {turn}")) for turn in range(8)}) == 1
        assert len({await ask(world, chat(f"{n} {system}")) for n in range(24)}) > 1
        assert len({await ask(world, chat("short")) for n in range(8)}) == 4


async def test_breaker_opens_by_faults_and_closes_by_a_good_call(tmp_path: Path) -> None:
    async with running_world(tmp_path, affinity=False) as world:
        bad = StubNode(node_key(0), capacity=1000, answer=answer_with(500, b"{}"))
        await world.add_node(bad)
        await world.add_node(StubNode(node_key(1), capacity=1, answer=TALK))
        for _ in range(8):
            await ask(world, chat("x"))
        assert bad.calls == 5, "five faults in a row, and it is left alone"
        entry = world.plane.board.find(bad.key.address)
        assert entry.breaker is BreakerState.OPEN
        bad.answer = TALK
        await world.until(lambda: entry.breaker is BreakerState.HALF_OPEN)
        assert await ask(world, chat("x")) == bad.key.address
        assert entry.breaker is BreakerState.CLOSED
        rows = await request("GET", world.url + "/api/nodes")
        states = {row["address"]: row["breaker"] for row in rows.json()["nodes"]}
        assert states == {node_key(n).address: "closed" for n in range(2)}


async def test_client_faults_open_no_breaker(tmp_path: Path) -> None:
    async with running_world(tmp_path) as world:
        node = await world.add_node(StubNode(node_key(0), answer=answer_with(400, b"{}")))
        for _ in range(8):
            assert (await post(world)).status == 400
        assert world.plane.board.find(node.key.address).breaker is BreakerState.CLOSED


@pytest.mark.parametrize("code", ["EMC-2301", "EMC-1412", "EMC-1424"])
@pytest.mark.parametrize("stream", [False, True])
async def test_node_that_states_a_tunnels_or_a_routers_fault_is_broken_by_it(
    tmp_path: Path, code: str, stream: bool
) -> None:
    async def blame(node: StubNode, call: Any, meta: Any) -> None:
        await call.fail(code, "somebody else's fault")

    async with running_world(tmp_path, affinity=False) as world:
        bad = await world.add_node(StubNode(node_key(0), capacity=1000, answer=blame))
        good = await world.add_node(StubNode(node_key(1), capacity=1, answer=TALK))
        for _ in range(8):
            assert (await post(world, chat("x", stream=stream), CHAT)).status == 200
        assert (bad.calls, good.calls) == (5, 8)
        assert world.plane.board.find(bad.key.address).breaker is BreakerState.OPEN


async def test_named_node_is_reached_when_its_pause_is_over_and_when_suspended(tmp_path: Path) -> None:
    async with running_world(tmp_path) as world:
        node = await world.add_node(StubNode(node_key(0), answer=answer_with(500, b"{}")))
        for _ in range(5):
            assert (await post(world)).status == 502
        node.answer = None
        assert (await post(world, x_emc_provider=node.key.address)).status == 200
        world.plane.board.suspend({node.key.address})
        assert (await post(world, x_emc_provider=node.key.address)).status == 200
        refused = await post(world)
        assert (refused.status, code_of(refused)) == (503, "EMC-1708")
        listed = (await request("GET", world.url + "/api/nodes")).json()["nodes"]
        assert [row["suspended"] for row in listed] == [True]


async def test_line_serves_in_turn_and_is_bounded(tmp_path: Path) -> None:
    async with running_world(tmp_path, queue_timeout_s=8.0, max_waiting=12) as world:
        gate = Gate()
        node = await world.add_node(StubNode(node_key(0), capacity=1, answer=gate))
        board, statuses = world.plane.board, []

        async def one() -> None:
            statuses.append((await post(world)).status)

        async with trio.open_nursery() as nursery:
            for number in range(4):
                nursery.start_soon(one)
                await world.until(partial(lambda n: node.calls == 1 and board.line.waiting == n, number))
            over = await post(world)
            assert (over.status, code_of(over)) == (429, "EMC-1709")
            assert 1 <= int(over.headers["retry-after"]) <= 60
            text = (await request("GET", world.url + "/metrics")).body.decode()
            assert "emcd_hub_calls_waiting 3.0" in text
            assert 'emcd_hub_breakers{state="closed"} 1.0' in text
            gate.open.set()
        assert statuses == [200] * 4


async def test_busy_nodes_are_429_after_the_deadline(tmp_path: Path) -> None:
    async with running_world(tmp_path, queue_timeout_s=0.1) as world:
        gate = Gate()
        node = await world.add_node(StubNode(node_key(0), capacity=1, answer=gate))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(post, world)
            await world.until(lambda: node.calls == 1)
            for headers in ({}, {"x_emc_provider": node.key.address}):
                late = await post(world, **headers)
                assert (late.status, code_of(late)) == (429, "EMC-1709")
                assert late.headers["retry-after"] == "1"
            gate.open.set()


async def test_pinned_call_waits_for_its_node(tmp_path: Path) -> None:
    async with running_world(tmp_path) as world:
        gate = Gate()
        busy = await world.add_node(StubNode(node_key(0), capacity=1, answer=gate))
        await world.add_node(StubNode(node_key(1)))
        got: list[str] = []

        async def pinned() -> None:
            answer = await post(world, x_emc_provider=busy.key.address)
            got.append(answer.headers["x-emc-node"])

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(pinned)
            await world.until(lambda: world.plane.board.line.waiting == 2)
            assert (await post(world)).headers["x-emc-node"] == node_key(1).address
            gate.open.set()
        assert got == [busy.key.address] * 3


async def test_price_and_quantization_are_refused_by_number_where_nobody_fits(tmp_path: Path) -> None:
    plain, small = EngineManifest(name=MODEL), EngineManifest(name=MODEL, quantization="int4")
    async with running_world(tmp_path) as world:
        await world.add_node(StubNode(node_key(0), capacity=99, manifests=(plain,), answer=TALK))
        await world.add_node(StubNode(node_key(1), manifests=(small,), answer=TALK))
        for _ in range(3):
            assert await ask(world, chat("x"), x_emc_quantization="int4") == node_key(1).address
        assert await ask(world, chat("x", provider={"quantization": "int4"})) == node_key(1).address
        refused = await post(world, chat("x"), CHAT, x_emc_quantization="fp8")
        assert (refused.status, code_of(refused)) == (404, "EMC-1767")
        refused = await post(world, chat("x"), CHAT, x_emc_max_price="9999.999999")
        assert (refused.status, code_of(refused)) == (404, "EMC-1766")
        assert await ask(world, chat("x"), x_emc_max_price="10000")


async def test_node_killed_in_a_call_costs_the_client_nothing_but_a_moment(tmp_path: Path) -> None:
    async def die(node: StubNode, call: Any, meta: Any) -> None:
        node.scope.cancel()
        await trio.sleep_forever()

    async with running_world(tmp_path, affinity=False) as world:
        bad = await world.add_node(StubNode(node_key(0), capacity=1000, answer=die))
        good = await world.add_node(StubNode(node_key(1), answer=TALK))
        with trio.fail_after(5):
            assert await ask(world, chat("x")) == good.key.address
        assert world.plane.board.find(good.key.address).breaker is BreakerState.CLOSED
        record = world.plane.board._records[bad.key.address]
        assert record.breaker.state is BreakerState.CLOSED, "a lost link is no fault of the node's answers"


async def test_node_whose_wire_is_cut_gets_no_call_until_it_is_mended(tmp_path: Path) -> None:
    """Its call that nobody has seen anything of goes elsewhere, long before the tunnel is given up."""
    async with running_world(tmp_path, affinity=False) as world:
        wire = CutWire(world.role.ports["tunnel"])
        await world.nursery.start(wire.run)
        away = StubNode(node_key(0), capacity=1000, answer=Gate())
        await world.nursery.start(away.run, wire.port)
        good = await world.add_node(StubNode(node_key(1), answer=TALK))
        entry = world.plane.board.find(away.key.address)
        await world.until(lambda: entry.room == 1000)
        got: list[str] = []

        async def one() -> None:
            got.append(await ask(world, chat("x")))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(one)
            await world.until(lambda: away.calls == 1)
            wire.cut()
            await world.until(lambda: not entry.live)
            assert await ask(world, chat("x")) == good.key.address
            assert got == []
            with trio.fail_after(5):
                await world.until(lambda: got)
        assert got == [good.key.address]
        rows = (await request("GET", world.url + "/api/nodes")).json()["nodes"]
        assert {row["address"]: row["link"] for row in rows}[away.key.address] == "lost"
        assert entry.breaker is BreakerState.CLOSED
        away.answer = TALK
        wire.mend()
        await world.until(lambda: entry.live)
        assert await ask(world, chat("x")) == away.key.address


async def test_models_are_told_without_a_key_and_without_accounts(tmp_path: Path) -> None:
    manifest = EngineManifest(name=MODEL, quantization="int4", context_tokens=8192)
    async with running_world(tmp_path) as world:
        await world.add_node(StubNode(node_key(0), manifests=(manifest,), answer=TALK))
        await world.until(lambda: MODEL in world.plane.models.list_names())
        for _ in range(3):
            await ask(world, chat("x"))
        await world.until(lambda: (world.plane.models.numbers(MODEL) or 0).calls == 3)
        answer = await request("GET", world.url + "/api/models")
        assert answer.status == 200
        (row,) = answer.json()["models"]
        assert row["name"] == MODEL
        assert row["nodes_online"] == 1
        (offer,) = row["manifests"]
        assert (offer["quantization"], offer["context_tokens"], offer["nodes_online"]) == ("int4", 8192, 1)
        assert offer["price"]["input_micro_per_mtok"] == "10000000000"
        assert row["tokens_per_s_p50"] > 0
        assert row["first_token_p50_ms"] is None
        assert (row["calls_24h"], row["error_share_24h"]) == (3, 0.0)
        assert 0 < row["uptime_24h"] <= 1
        assert world.account_id not in answer.body.decode()
