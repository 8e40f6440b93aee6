"""The embedded chain's HTTP side: who is let in, what is bounded, how errors look."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio

from emcd.errors import ConfigError
from emcd.ledger import Ledger
from emcd.net.http_client import request
from emcd_devchain.app import MAX_BATCH, MAX_BODY_BYTES
from tests.support.devchain import running_devchain


@pytest.fixture
async def url(ledger: Ledger, tmp_path: Path) -> AsyncIterator[str]:
    async with running_devchain(ledger, tmp_path) as running:
        yield running


async def post(url: str, body: Any, **headers: str) -> Any:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return await request("POST", url, body=raw, headers=headers)


async def rpc(url: str, method: str, *params: Any) -> Any:
    return (await post(url, {"jsonrpc": "2.0", "id": 1, "method": method, "params": list(params)})).json()


async def raw_http(url: str, head: str, body: bytes = b"") -> bytes:
    host, _, port = url.removeprefix("http://").partition(":")
    with trio.fail_after(5):
        stream = await trio.open_tcp_stream(host, int(port))
    async with stream:
        await stream.send_all(head.encode() + body)
        return bytes(await stream.receive_some(65536))


ASK = b'{"jsonrpc":"2.0","id":1,"method":"eth_chainId","params":[]}'


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:1", "", "[::1"]
)
async def test_host_of_another_name_is_refused(url: str, host: str) -> None:
    head = f"POST / HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(ASK)}\r\n\r\n"
    answer = await raw_http(url, head, ASK)
    assert answer.split(b" ")[1] in (b"403", b"400")


@pytest.mark.parametrize("host", ["127.0.0.1:8545", "localhost", "[::1]:8545"])
async def test_host_of_this_machine_is_served(url: str, host: str) -> None:
    head = f"POST / HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(ASK)}\r\n\r\n"
    assert b"0x7a69" in await raw_http(url, head, ASK)


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://127.0.0.1.evil.example", "chrome-extension://x"]
)
async def test_origin_of_a_web_page_is_refused(url: str, origin: str) -> None:
    answer = await post(url, ASK, origin=origin)
    assert answer.status == 403
    assert "access-control-allow-origin" not in answer.headers


async def test_origin_of_this_machine_is_allowed(url: str) -> None:
    answer = await post(url, ASK, origin="http://127.0.0.1:8420")
    assert answer.status == 200
    assert answer.headers["access-control-allow-origin"] == "http://127.0.0.1:8420"
    preflight = await request("OPTIONS", url, headers={"origin": "http://localhost:1"})
    assert preflight.status == 204
    assert preflight.headers["access-control-allow-methods"] == "POST"


async def test_origin_named_in_the_config_is_allowed(ledger: Ledger, tmp_path: Path) -> None:
    async with running_devchain(ledger, tmp_path, origins=("chrome-extension://wallet",)) as url:
        assert (await post(url, ASK, origin="chrome-extension://wallet")).status == 200


async def test_get_and_large_bodies_are_refused(url: str) -> None:
    assert (await request("GET", url)).status == 405
    assert (await post(url, b" " * (MAX_BODY_BYTES + 1))).status == 413


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"{", -32700),
        (b"[" * 5000, -32700),
        (b"\xff\xfe", -32700),
        (b"[]", -32600),
        (b"7", -32600),
        (b'{"id":1}', -32600),
        (b'{"id":{},"method":"eth_chainId"}', -32600),
        (b'{"id":1,"method":"eth_chainId","params":{}}', -32600),
        (b'{"id":1,"method":"eth_mineForMe"}', -32601),
        (b'{"id":1,"method":"__init__"}', -32601),
        (b'{"id":1,"method":"eth_getBalance"}', -32602),
        (b'{"id":1,"method":"eth_getBalance","params":["0x12"]}', -32602),
        (
            b'{"id":1,"method":"eth_getBalance","params":["0x1111111111111111111111111111111111111111","soon"]}',
            -32602,
        ),
        (b'{"id":1,"method":"eth_getBlockByNumber","params":["0x1","yes"]}', -32602),
        (b'{"id":1,"method":"eth_call","params":[7]}', -32602),
        (b'{"id":1,"method":"eth_call","params":[{"to":"0x11"}]}', -32602),
        (b'{"id":1,"method":"eth_getLogs","params":[{"topics":[[],[],[],[],[]]}]}', -32602),
        (b'{"id":1,"method":"eth_getLogs","params":[{"fromBlock":"0x9","toBlock":"0x1"}]}', -32602),
        (b'{"id":1,"method":"eth_getLogs","params":[{"blockHash":"0x01"}]}', -32602),
        (b'{"id":1,"method":"eth_sendRawTransaction","params":["0x02"]}', -32000),
        (b'{"id":1,"method":"eth_sendRawTransaction","params":["zz"]}', -32602),
    ],
)
async def test_bad_request_gets_its_code_and_the_chain_lives(url: str, body: bytes, code: int) -> None:
    answer = (await post(url, body)).json()
    assert answer["error"]["code"] == code, answer
    assert (await rpc(url, "eth_chainId"))["result"] == "0x7a69"


async def test_batch_answers_in_order_with_errors_in_place(url: str) -> None:
    batch = [{"id": i, "method": method} for i, method in enumerate(("eth_chainId", "nope", "net_version"))]
    answers = (await post(url, batch)).json()
    assert [a["id"] for a in answers] == [0, 1, 2]
    assert answers[1]["error"]["code"] == -32601
    assert answers[2]["result"] == "31337"
    too_many = (await post(url, [{"id": 1, "method": "eth_chainId"}] * (MAX_BATCH + 1))).json()
    assert too_many["error"]["code"] == -32600


async def test_blocks_come_every_second_with_the_clocks_time(url: str) -> None:
    first = int((await rpc(url, "eth_blockNumber"))["result"], 16)
    await trio.sleep(2.1)
    block = (await rpc(url, "eth_getBlockByNumber", "latest", False))["result"]
    assert int(block["number"], 16) - first in (2, 3)
    import time

    assert abs(int(block["timestamp"], 16) - time.time()) < 2


async def test_block_identifiers_of_eip_1898_are_understood(url: str) -> None:
    block = (await rpc(url, "eth_getBlockByNumber", "earliest", False))["result"]
    address = "0x" + "11" * 20
    for which in (
        "latest", "pending", "safe", "finalized", "earliest", "0x0", block["hash"],
        {"blockHash": block["hash"], "requireCanonical": True}, {"blockNumber": "0x0"},
    ):  # fmt: skip
        assert (await rpc(url, "eth_getBalance", address, which))["result"] == "0x0", which
    assert (await rpc(url, "eth_getBalance", address, {"blockHash": "0x" + "22" * 32}))["error"][
        "code"
    ] == -32000
    assert (await rpc(url, "eth_getBalance", address, {"blockhash": block["hash"]}))["error"][
        "code"
    ] == -32602


async def test_role_new_file_without_funded_accounts_is_refused(ledger: Ledger, tmp_path: Path) -> None:
    from emcd.config import Listen
    from emcd.testing import make_context
    from emcd_devchain.config import DevchainConfig
    from emcd_devchain.role import Devchain

    role = Devchain(DevchainConfig(listen=Listen("127.0.0.1", 0)))
    await role.setup(make_context("devchain", ledger, data_dir=tmp_path))
    with pytest.raises(ConfigError) as caught:
        await role.run()
    assert caught.value.code == "EMC-2206"
