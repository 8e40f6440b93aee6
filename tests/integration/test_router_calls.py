"""Calls through routers, over real sockets: whole, streamed, left by their client, read slowly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import trio

from emcd.proto.records import CallStatus
from emcd.types import ZERO_ADDRESS
from tests.support.hub_world import MODEL, chat_events, fetch_receipt, post
from tests.support.made_node import MadeModel
from tests.support.router_network import deliveries, network, open_stream, read_stream, require_sound

WORDS = ["one ", "two ", "three "]

# ------------------------------------------------------------------------------ calls


async def test_whole_calls_through_routers_have_receipts_that_name_them(tmp_path: Path) -> None:
    async with network(tmp_path) as net:
        for node in net.nodes:
            answer = await post(
                net.world, {"model": MODEL, "input": "hi", "provider": {"only": [node.address]}}
            )
            assert answer.status == 200
            assert answer.headers["x-emc-node"] == node.address
            assert node.router in {router.address for router in net.routers}
            receipt = await fetch_receipt(net.world, answer.headers["x-emc-call-id"])
            assert receipt.forward.node == node.address
            require_sound(receipt, node.router)


async def test_stream_through_a_router_arrives_as_the_node_sent_it(tmp_path: Path) -> None:
    async with network(tmp_path, nodes=1, model=MadeModel(words=WORDS)) as net:
        status, headers, body = await read_stream(net.world, stream_options={"include_usage": True})

        assert (status, body) == (200, b"".join(chat_events(WORDS)))
        receipt = await fetch_receipt(net.world, headers["x-emc-call-id"])
        require_sound(receipt, net.nodes[0].router or ZERO_ADDRESS)
        assert receipt.receipt is not None
        assert (receipt.receipt.input_tokens, receipt.receipt.output_tokens) == (7, 3)


async def test_answer_larger_than_a_window_passes_whole(tmp_path: Path) -> None:
    words = ["x" * 50_000] * 20
    async with network(tmp_path, nodes=1, model=MadeModel(words=words)) as net:
        _, headers, body = await read_stream(net.world, stream_options={"include_usage": True})

        assert body == b"".join(chat_events(words))
        receipt = await fetch_receipt(net.world, headers["x-emc-call-id"])
        require_sound(receipt, net.routers[0].address if net.nodes[0].router is None else net.nodes[0].router)


async def test_client_that_leaves_stops_the_work_and_the_node_has_its_receipt(tmp_path: Path) -> None:
    model = MadeModel(words=["word "] * 10_000, pause_s=0.01)
    async with network(tmp_path, nodes=1, model=model) as net:
        async with open_stream(net.world) as answer:
            call_id = answer.headers["x-emc-call-id"]
            got = b""
            async for piece in answer:
                got += piece
                if got.count(b"word ") >= 5:
                    break
        with trio.fail_after(1.5):
            while not model.cancelled:
                await trio.sleep(0.01)
        with trio.fail_after(5):
            while not await deliveries(net.world):
                await trio.sleep(0.01)

        receipt = await fetch_receipt(net.world, call_id)
        assert receipt.delivery.status == CallStatus.CANCELLED
        assert receipt.receipt is not None
        require_sound(receipt, net.nodes[0].router or ZERO_ADDRESS)
        assert 5 <= receipt.receipt.output_tokens < 1000
        assert receipt.delivery.credits_micro > 0


async def test_client_that_does_not_read_holds_up_its_own_call_only(tmp_path: Path) -> None:
    model = MadeModel(words=["x" * 30_000] * 400)
    async with network(tmp_path, routers=1, nodes=1, model=model) as net:
        async with open_stream(net.world, max_tokens=1000) as answer:
            await anext(aiter(answer))
            await settle(lambda: model.sent)
            assert model.sent < 400
            for _ in range(5):
                assert (await post(net.world)).status == 200
            held_up = model.sent
            assert held_up < 400
            async for _ in answer:
                pass
        assert model.sent > held_up


async def settle(number: Any) -> None:
    """Wait until a number has stopped growing."""
    before = -1
    with trio.fail_after(10):
        while number() != before:
            before = number()
            await trio.sleep(0.3)
