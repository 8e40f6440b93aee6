"""Calls that share a connection: what is remembered of one's head is never used for another's."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import trio

from emcd_hub.billing.key_limits import KeyLimits
from tests.support.hub_world import BODY, HubWorld, StubNode, node_key, running_world

LENGTH = re.compile(rb"content-length: (\d+)", re.IGNORECASE)


class Connection:
    """One connection of a client, kept alive."""

    def __init__(self, stream: trio.SocketStream, api_key: str) -> None:
        self._stream = stream
        self._api_key = api_key

    async def call(self, **headers: str) -> tuple[int, bytes]:
        """Returns: status and head of the answer."""
        body = msgspec.json.encode(BODY)
        fields = {"authorization": f"Bearer {self._api_key}", "host": "x", "content-length": str(len(body))}
        fields |= {name.replace("_", "-"): value for name, value in headers.items()}
        head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        await self._stream.send_all(f"POST /v1/embeddings HTTP/1.1\r\n{head}\r\n".encode() + body)
        data = b""
        with trio.fail_after(10):
            while True:
                top, end, rest = data.partition(b"\r\n\r\n")
                length = LENGTH.search(top)
                if end and length is not None and len(rest) >= int(length[1]):
                    return int(top.split(b" ")[1]), top.lower()
                data += await self._stream.receive_some(65536)


async def connect(world: HubWorld) -> Connection:
    stream = await trio.open_tcp_stream("127.0.0.1", world.role.ports["public"])
    world.nursery.start_soon(close_at_the_end, stream)
    return Connection(stream, world.api_key)


async def close_at_the_end(stream: trio.SocketStream) -> None:
    try:
        await trio.sleep_forever()
    finally:
        stream.socket.close()


async def test_key_that_is_revoked_between_two_calls_is_refused(tmp_path: Path) -> None:
    async with running_world(tmp_path) as world:
        await world.add_node(StubNode(node_key(0)))
        connection = await connect(world)
        for _ in range(3):
            assert (await connection.call())[0] == 200
        ((key_id,),) = await world.rows("SELECT key_id FROM hub_api_keys")
        await world.plane.office.keys.revoke_key(key_id)
        assert (await connection.call())[0] == 401


async def test_key_that_gets_a_limit_between_two_calls_is_limited(tmp_path: Path) -> None:
    async with running_world(tmp_path) as world:
        await world.add_node(StubNode(node_key(0)))
        connection = await connect(world)
        assert (await connection.call())[0] == 200
        ((key_id,),) = await world.rows("SELECT key_id FROM hub_api_keys")
        key = world.plane.keys.find_by_id(key_id)
        key.limits = KeyLimits(expires_at_ms=1)
        assert (await connection.call())[0] == 401


async def test_wish_of_one_call_is_not_that_of_the_next(tmp_path: Path) -> None:
    async with running_world(tmp_path) as world:
        nodes = [await world.add_node(StubNode(node_key(number))) for number in range(2)]
        connection = await connect(world)
        for _ in range(2):
            for node in nodes:
                status, head = await connection.call(x_emc_provider=node.key.address)
                assert status == 200
                assert f"x-emc-node: {node.key.address}".lower().encode() in head
        assert (await connection.call(x_emc_provider=node_key(5).address))[0] == 503
        assert (await connection.call())[0] == 200


async def test_idempotency_key_of_one_call_is_not_that_of_the_next(tmp_path: Path) -> None:
    async with running_world(tmp_path) as world:
        node = await world.add_node(StubNode(node_key(0)))
        connection = await connect(world)
        for key, replayed in (("a", False), ("b", False), ("a", True), ("b", True)):
            _, head = await connection.call(idempotency_key=key)
            assert (b"x-emc-idempotent-replay: true" in head) == replayed
        await connection.call()
        assert node.calls == 3
