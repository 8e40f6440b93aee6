"""Whatever a client sends, it gets OpenAI's error shape with our code, and nothing is recorded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from emcd.net.http_client import request
from tests.support.hub_world import MODEL, StubNode, node_key, running_world

CHAT = "/v1/chat/completions"
EMBED = "/v1/embeddings"
MESSAGES = [{"role": "user", "content": "hi"}]

CASES: list[tuple[str, bytes, str, str | None]] = [
    (EMBED, b"", "EMC-1701", None),
    (EMBED, b"not json", "EMC-1701", None),
    (EMBED, b"[1]", "EMC-1701", None),
    (EMBED, b'{"model":', "EMC-1701", None),
    (EMBED, b'{"model":"\xff"}', "EMC-1701", None),
    (EMBED, b"[" * 100_000, "EMC-1701", None),
    (EMBED, b'{"input":"x"}', "EMC-1702", "model"),
    (EMBED, b'{"model":7,"input":"x"}', "EMC-1702", "model"),
    (EMBED, b'{"model":"","input":"x"}', "EMC-1702", "model"),
    (EMBED, b'{"model":"m"}', "EMC-1702", "input"),
    (EMBED, b'{"model":"m","input":""}', "EMC-1702", "input"),
    (EMBED, b'{"model":"m","input":[]}', "EMC-1702", "input"),
    (EMBED, b'{"model":"m","input":["a",""]}', "EMC-1702", "input"),
    (EMBED, b'{"model":"m","input":["a",1]}', "EMC-1702", "input"),
    (EMBED, b'{"model":"m","input":[[]]}', "EMC-1702", "input"),
    (EMBED, b'{"model":"m","input":[-1]}', "EMC-1702", "input"),
    (EMBED, msgspec.json.encode({"model": "m", "input": ["a"] * 2049}), "EMC-1702", "input"),
    (EMBED, b'{"model":"m","input":"x","stream":true}', "EMC-1702", "stream"),
    (EMBED, b'{"model":"m","input":"x","provider":"0x"}', "EMC-1702", "provider"),
    (EMBED, b'{"model":"m","input":"x","provider":{"only":[]}}', "EMC-1702", "provider"),
    (EMBED, b'{"model":"m","input":"x","provider":{"only":["0xabc"]}}', "EMC-1702", "provider"),
    (EMBED, b'{"model":"m","input":"x","provider":{"only":[1],"sort":"price"}}', "EMC-1702", "provider"),
    (CHAT, b'{"model":"m"}', "EMC-1702", "messages"),
    (CHAT, b'{"model":"m","messages":[]}', "EMC-1702", "messages"),
    (CHAT, b'{"model":"m","messages":["hi"]}', "EMC-1702", "messages"),
    (CHAT, msgspec.json.encode({"model": "m", "messages": MESSAGES, "n": 17}), "EMC-1702", "n"),
    (CHAT, msgspec.json.encode({"model": "m", "messages": MESSAGES, "n": 0}), "EMC-1702", "n"),
    (CHAT, msgspec.json.encode({"model": "m", "messages": MESSAGES, "n": True}), "EMC-1702", "n"),
    (
        CHAT,
        msgspec.json.encode({"model": "m", "messages": MESSAGES, "max_tokens": -1}),
        "EMC-1702",
        "max_tokens",
    ),
    (
        CHAT,
        msgspec.json.encode({"model": "m", "messages": MESSAGES, "max_tokens": 1.5}),
        "EMC-1702",
        "max_tokens",
    ),
    (CHAT, msgspec.json.encode({"model": "m", "messages": MESSAGES, "stream": "yes"}), "EMC-1702", "stream"),
    (
        CHAT,
        msgspec.json.encode({"model": "m", "messages": MESSAGES, "stream": True, "stream_options": 1}),
        "EMC-1702",
        "stream_options",
    ),
    ("/v1/completions", b'{"model":"m"}', "EMC-1702", "prompt"),
]


async def test_wrong_bodies_are_400_with_the_field(tmp_path: Path) -> None:
    async with running_world(tmp_path) as world:
        headers = {"authorization": f"Bearer {world.api_key}"}
        for path, body, code, param in CASES:
            answer = await request("POST", world.url + path, body=body, headers=headers)
            error = answer.json()["error"]
            assert (answer.status, error["emc_code"], error["param"]) == (400, code, param), body[:80]
            assert error["type"] == "invalid_request_error"
            assert code in error["message"]
        assert await world.rows("SELECT count(*) FROM hub_calls") == [(0,)]


async def test_unknown_model_is_404(tmp_path: Path) -> None:
    async with running_world(tmp_path) as world:
        await world.add_node(StubNode(node_key(0)))
        headers = {"authorization": f"Bearer {world.api_key}"}
        answer = await request("POST", world.url + EMBED, json={"model": "no", "input": "x"}, headers=headers)
        error = answer.json()["error"]
        assert (answer.status, error["code"], error["param"]) == (404, "model_not_found", "model")


async def test_header_and_field_naming_different_nodes_is_400(tmp_path: Path) -> None:
    async with running_world(tmp_path) as world:
        headers = {"authorization": f"Bearer {world.api_key}", "x-emc-provider": node_key(1).address}
        body = {"model": MODEL, "input": "x", "provider": {"only": [node_key(0).address]}}
        answer = await request("POST", world.url + EMBED, json=body, headers=headers)
        assert (answer.status, answer.json()["error"]["param"]) == (400, "provider")
        headers["x-emc-provider"] = "0x12"
        answer = await request(
            "POST", world.url + EMBED, json={"model": MODEL, "input": "x"}, headers=headers
        )
        assert answer.status == 400


async def test_wrong_method_and_path(tmp_path: Path) -> None:
    async with running_world(tmp_path) as world:
        for method, path, status in (
            ("GET", EMBED, 405),
            ("DELETE", CHAT, 405),
            ("POST", "/v1/models", 405),
            ("GET", "/v1/nothing", 404),
            ("GET", "/", 404),
            ("GET", "/v1/calls/call_xyz/receipt", 401),
        ):
            answer = await request(method, world.url + path)
            assert answer.status == status, (method, path)
            assert answer.json()["error"]["emc_code"].startswith("EMC-")


async def test_body_over_the_limit_is_413(tmp_path: Path) -> None:
    async with running_world(tmp_path, body_bytes=2048) as world:
        headers = {"authorization": f"Bearer {world.api_key}"}
        answer = await request("POST", world.url + EMBED, body=b"x" * 4096, headers=headers)
        assert answer.status == 413
        assert "error" in answer.json()


async def raw(port: int, payload: bytes) -> bytes:
    """What comes back for bytes as they are, until the server closes or answers whole."""
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    async with stream:
        await stream.send_all(payload)
        received = b""
        with trio.move_on_after(2):
            while piece := await stream.receive_some(65536):
                received += piece
                if b"\r\n\r\n" in received and received.endswith(b"}"):
                    break
        return received


@pytest.mark.parametrize(
    "value", [b"Bearer", b"Bearer ", b"Bearer \xff\xfe", b"bearer " + b"x" * 8000, b"\t"]
)
async def test_odd_authorization_bytes_are_401(tmp_path: Path, value: bytes) -> None:
    async with running_world(tmp_path) as world:
        head = b"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\nauthorization: " + value
        answer = await raw(world.role.ports["public"], head + b"\r\ncontent-length: 2\r\n\r\n{}")
        assert answer.startswith(b"HTTP/1.1 401 ")
        assert b"invalid_api_key" in answer


async def test_client_that_leaves_in_its_body_leaves_nothing_behind(tmp_path: Path) -> None:
    async with running_world(tmp_path) as world:
        await world.add_node(StubNode(node_key(0)))
        key = world.api_key.encode()
        head = b"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\nauthorization: Bearer " + key
        stream = await trio.open_tcp_stream("127.0.0.1", world.role.ports["public"])
        await stream.send_all(head + b"\r\ncontent-length: 100\r\n\r\n{")
        await trio.sleep(0.05)
        await stream.aclose()
        await trio.sleep(0.1)
        assert world.plane.gateway.active == 0
        assert await world.rows("SELECT count(*) FROM hub_calls") == [(0,)]


async def test_errors_name_no_secret(tmp_path: Path) -> None:
    async with running_world(tmp_path) as world:
        secret = "emc_sk_" + "z" * 43
        answer: Any = await request(
            "POST", world.url + EMBED, body=b"{}", headers={"authorization": f"Bearer {secret}"}
        )
        assert answer.status == 401
        assert secret.encode() not in answer.body
