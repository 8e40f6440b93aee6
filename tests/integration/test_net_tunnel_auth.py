"""Who may open a tunnel, over real sockets: every refusal has its number on the other side."""

from __future__ import annotations

import secrets
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from websockets.trio.client import connect

from emcd.clock import ManualClock, SystemClock
from emcd.errors import RecoverableError, RemoteProtocolError
from emcd.net.tls import client_context, server_context
from emcd.net.tunnel import TunnelLimits
from emcd.proto.eip712 import Domain
from emcd.proto.tunnel import FrameType, encode_frame
from emcd.proto.tunnel_auth import NodeHandshake
from emcd.types import Address, ParticipantRole
from tests.support.net_world import WAIT_S, Tls, dial, exchange, read_all, tcp_server
from tests.support.tunnel_world import DOMAIN, HUB, NODE, OTHER, HubWorld, hub_world, node_world

NOW = 1_800_000_000_000


async def refusal(hub: HubWorld, **options: Any) -> str:
    with pytest.raises((RemoteProtocolError, RecoverableError)) as caught:
        async with node_world(hub, **options):
            pass
    assert hub.peers == {}
    return caught.value.code


async def test_auth_key_that_is_not_authorized_is_refused() -> None:
    async with hub_world() as hub:
        assert await refusal(hub, key=OTHER) == "EMC-1407"


async def test_auth_of_another_chain_is_refused() -> None:
    async with hub_world() as hub:
        assert await refusal(hub, domain=Domain(1, HUB.address)) == "EMC-1404"


class Liar:
    """Claims the node's address and signs with another key, or not at all."""

    def __init__(self, sign: Any) -> None:
        self.address = NODE.address
        self.sign = sign


@pytest.mark.parametrize("sign", [OTHER.sign, lambda domain, struct: b""])
async def test_auth_with_a_wrong_signature_is_refused(sign: Any) -> None:
    async with hub_world() as hub:
        assert await refusal(hub, key=Liar(sign)) == "EMC-1404"


async def test_auth_of_another_role_is_refused() -> None:
    async with hub_world() as hub:
        assert await refusal(hub, role=ParticipantRole.VALIDATOR) == "EMC-1406"


async def test_auth_of_a_clock_that_is_late_is_refused() -> None:
    async with hub_world(clock=ManualClock(NOW)) as hub:
        assert await refusal(hub, clock=ManualClock(NOW - 3_600_000)) == "EMC-1405"


async def test_auth_of_another_hub_is_refused_by_the_node() -> None:
    async with hub_world() as hub:
        assert await refusal(hub, hub_address=OTHER.address) == "EMC-1403"


async def test_auth_of_a_hub_that_signs_wrongly_is_refused_by_the_node() -> None:
    class LyingHub:
        address = HUB.address
        sign = staticmethod(OTHER.sign)

    async with hub_world(key=LyingHub()) as hub:
        with pytest.raises(RemoteProtocolError, match="EMC-1404"):
            async with node_world(hub):
                pass


async def test_auth_without_a_pin_on_loopback_takes_the_hub_that_answers() -> None:
    async with hub_world() as hub, node_world(hub, hub_address=None) as node:
        assert node.link.hub == HUB.address


async def test_auth_that_authorize_fails_on_is_refused() -> None:
    async def authorize(address: Address, role: ParticipantRole) -> bool:
        raise ValueError

    async with hub_world(authorize=authorize) as hub:
        assert await refusal(hub) == "EMC-1407"
        assert len(hub.errors) == 1


async def test_auth_that_authorize_takes_too_long_for_is_refused() -> None:
    async def authorize(address: Address, role: ParticipantRole) -> bool:
        await trio.sleep(60)
        return True

    async with hub_world(TunnelLimits(handshake_s=0.2), authorize=authorize) as hub:
        assert await refusal(hub, limits=TunnelLimits()) == "EMC-1401"


async def raw_closing(hub: HubWorld, *messages: bytes | str) -> tuple[int, str]:
    """Send what a test says instead of a handshake; how the hub closed."""
    async with connect(f"ws://127.0.0.1:{hub.port}", compression=None, proxy=None) as websocket:
        await websocket.recv()
        for message in messages:
            await websocket.send(message)
        with trio.fail_after(WAIT_S):
            await websocket.wait_closed()
        return websocket.close_code or 0, websocket.close_reason or ""


@pytest.mark.parametrize("message", [b"", b"garbage", bytes(5000), "text", msgspec.msgpack.encode([1, 2])])
async def test_auth_garbage_is_refused(message: bytes | str) -> None:
    async with hub_world() as hub:
        assert (await raw_closing(hub, message))[0] == 4402


async def test_auth_message_over_the_websocket_bound_is_refused() -> None:
    async with hub_world() as hub:
        assert (await raw_closing(hub, bytes(2_000_000)))[0] == 1009


async def test_auth_silence_is_refused_at_the_deadline() -> None:
    async with hub_world(TunnelLimits(handshake_s=0.2)) as hub:
        assert (await raw_closing(hub))[0] == 4401


async def test_auth_replayed_proof_is_refused() -> None:
    async with hub_world() as hub:
        url = f"ws://127.0.0.1:{hub.port}"
        node = NodeHandshake(NODE, DOMAIN, secrets.token_bytes(32), ParticipantRole.COMPUTE, HUB.address)
        async with connect(url, compression=None, proxy=None) as websocket:
            hello = await websocket.recv()
            assert isinstance(hello, bytes)
            recorded = node.prove(hello, SystemClock().now_ms())
            await websocket.send(recorded)
            assert await websocket.recv()
        await hub.until(lambda: hub.history == ["joined", "left"])
        assert (await raw_closing(hub, recorded))[0] == 4404


async def test_auth_failures_in_a_row_shut_the_source_out() -> None:
    async with hub_world() as hub:
        for _ in range(10):
            assert (await raw_closing(hub, b"garbage"))[0] == 4402
        assert await refusal(hub) == "EMC-1408"


async def test_auth_refused_for_its_binding_may_try_often() -> None:
    async with hub_world() as hub:
        for _ in range(15):
            assert await refusal(hub, key=OTHER) == "EMC-1407"
        hub.authorized.add(OTHER.address)
        async with node_world(hub, key=OTHER) as node:
            assert not node.ended.is_set()


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (b"\xff", 4420),
        (encode_frame(FrameType.DATA, 1, b"x"), 4421),
        (encode_frame(FrameType.OPEN, 1, b"x"), 4421),
        ("text", 4420),
    ],
)
async def test_tunnel_garbage_after_the_handshake_closes_it(message: bytes | str, code: int) -> None:
    async with hub_world() as hub:
        node = NodeHandshake(NODE, DOMAIN, secrets.token_bytes(32), ParticipantRole.COMPUTE, HUB.address)
        async with connect(f"ws://127.0.0.1:{hub.port}", compression=None, proxy=None) as websocket:
            hello = await websocket.recv()
            assert isinstance(hello, bytes)
            await websocket.send(node.prove(hello, SystemClock().now_ms()))
            await websocket.recv()
            await websocket.send(message)
            with trio.fail_after(WAIT_S):
                await websocket.wait_closed()
            assert websocket.close_code == code
        await hub.until(lambda: hub.history == ["joined", "left"])


async def test_hub_page_of_a_browser_is_refused() -> None:
    async with hub_world() as hub:
        data = await exchange(
            hub.port,
            b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\nOrigin: http://evil\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n",
        )
    assert data.startswith(b"HTTP/1.1 403 ")


async def test_hub_connection_that_says_nothing_is_closed() -> None:
    async with hub_world(TunnelLimits(handshake_s=0.2)) as hub, dial(hub.port) as stream:
        with trio.fail_after(2):
            assert await read_all(stream) == b""


async def test_hub_connections_over_the_bound_wait() -> None:
    async with hub_world(TunnelLimits(connections=2)) as hub:
        async with dial(hub.port), dial(hub.port):
            with trio.move_on_after(0.4) as scope:
                async with node_world(hub):
                    pass
            assert scope.cancelled_caught
        with trio.fail_after(3):
            async with node_world(hub):
                pass


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"nonsense",
        b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: /elsewhere\r\nContent-Length: 0\r\n\r\n",
    ],
)
async def test_node_url_that_is_no_hub_raises(answer: bytes) -> None:
    connections = 0

    async def handle(stream: trio.SocketStream) -> None:
        nonlocal connections
        connections += 1
        await stream.receive_some()
        await stream.send_all(answer)

    async with tcp_server(handle) as port:
        with trio.fail_after(3), pytest.raises(RecoverableError, match="EMC-1411"):
            async with node_world(HubWorld(port=port)):
                pass
    assert connections == 1


async def test_node_hub_that_is_silent_raises_at_the_deadline() -> None:
    async def handle(stream: trio.SocketStream) -> None:
        await trio.sleep_forever()

    async with tcp_server(handle) as port:
        with trio.fail_after(3), pytest.raises(RecoverableError, match="EMC-1411"):
            async with node_world(HubWorld(port=port, limits=TunnelLimits(handshake_s=0.2))):
                pass


async def test_tunnel_over_tls_verifies_chain_and_name(tmp_path: Path) -> None:
    tls = Tls.make(tmp_path)
    async with hub_world(ssl_context=server_context(tls.cert_file, tls.key_file)) as hub:
        trusted = client_context(tls.ca_file)
        connecting = partial(node_world, hub, ssl_context=trusted)
        async with connecting(url=f"wss://localhost:{hub.port}"):
            peer = await hub.peer()
            async with peer.call(b"", b"x" * 300_000) as call:
                assert len((await call.whole(1 << 20))[1]) == 300_000
        with pytest.raises(RecoverableError, match="EMC-1411"):
            async with connecting(url=f"wss://127.0.0.1:{hub.port}"):
                pass
        with pytest.raises(RecoverableError, match="EMC-1411"):
            async with node_world(hub, url=f"wss://localhost:{hub.port}"):
                pass
