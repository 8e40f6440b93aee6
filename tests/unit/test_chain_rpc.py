"""JSON-RPC: fail-over, the pinned chain id, and nodes that answer nonsense. No sockets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from emcd.chain.asking import HEDGE_S
from emcd.chain.endpoint import MAX_LIE_PAUSE_S, VERIFY_EVERY_S
from emcd.chain.rpc import JsonRpc, RpcRefused
from emcd.errors import FatalError, RecoverableError
from emcd.net.http_client import Response

Answer = Callable[[dict[str, Any]], Any]


class Nodes:
    """Answers by URL; what is posted is kept."""

    def __init__(self, **answers: Answer) -> None:
        self.answers = answers
        self.asked: list[tuple[str, str]] = []

    async def post(self, url: str, body: bytes, timeout_s: float) -> Response:
        request = msgspec.json.decode(body)
        self.asked.append((url, request["method"]))
        with trio.fail_after(timeout_s):
            answer = self.answers[url](request)
            if isinstance(answer, Exception):
                raise answer
            if answer is STALL:
                try:
                    await trio.sleep_forever()
                finally:
                    raise RecoverableError("EMC-1302", url)
        raw = answer if isinstance(answer, bytes) else msgspec.json.encode(answer)
        return Response(200, {}, raw, url)


STALL = object()


def good(chain_id: int = 5, result: Any = "0x1") -> Answer:
    def answer(request: dict[str, Any]) -> Any:
        found = hex(chain_id) if request["method"] == "eth_chainId" else result
        return {"jsonrpc": "2.0", "id": request["id"], "result": found}

    return answer


def rpc(nodes: Nodes, timeout_s: float = 4.0) -> JsonRpc:
    return JsonRpc(list(nodes.answers), 5, timeout_s=timeout_s, post=nodes.post)


async def test_call_checks_the_chain_id_before_the_first_answer_only() -> None:
    nodes = Nodes(a=good())
    client = rpc(nodes)
    assert await client.call("eth_blockNumber") == "0x1"
    await client.call("eth_blockNumber")
    assert [method for _, method in nodes.asked] == ["eth_chainId", "eth_blockNumber", "eth_blockNumber"]


async def test_call_other_chain_is_fatal_and_its_answer_never_used() -> None:
    nodes = Nodes(a=good(chain_id=6))
    with pytest.raises(FatalError) as caught:
        await rpc(nodes).call("eth_blockNumber")
    assert caught.value.code == "EMC-1501"
    assert nodes.asked == [("a", "eth_chainId")]


@pytest.mark.parametrize(
    "bad",
    [
        lambda request: RecoverableError("EMC-1301", "down"),
        lambda request: b"<html>",
        lambda request: b"",
        lambda request: [],
        lambda request: {"jsonrpc": "2.0", "id": request["id"]},
        lambda request: {"jsonrpc": "2.0", "id": request["id"] + 1, "result": "0x9"},
        lambda request: {"jsonrpc": "2.0", "id": None, "error": {"code": -32700, "message": "?"}},
        lambda request: {
            "jsonrpc": "2.0",
            "id": request["id"],
            "error": {"code": -32005, "message": "limit"},
        },
        lambda request: {"jsonrpc": "2.0", "id": request["id"], "error": "boom"},
        lambda request: b'{"id":1,"result":' + b"[" * 5000,
    ],
)
async def test_call_bad_first_node_the_second_answers(bad: Answer) -> None:
    nodes = Nodes(a=bad, b=good(result="0x2"))
    client = rpc(nodes)
    assert await client.call("eth_blockNumber") == "0x2"
    nodes.asked.clear()
    assert await client.call("eth_blockNumber") == "0x2"
    assert nodes.asked == [("b", "eth_blockNumber")]


async def test_call_stalling_node_costs_its_share_of_the_deadline(
    autojump_clock: trio.testing.MockClock,
) -> None:
    client = rpc(Nodes(a=lambda request: STALL, b=good(result="0x2")), timeout_s=4.0)
    started = trio.current_time()
    assert await client.call("eth_blockNumber") == "0x2"
    assert trio.current_time() - started <= 2.0


async def test_call_all_nodes_down_names_each() -> None:
    down = {url: (lambda request, url=url: RecoverableError("EMC-1301", f"{url} down")) for url in "ab"}
    with pytest.raises(RecoverableError) as caught:
        await rpc(Nodes(**down)).call("eth_blockNumber")
    assert caught.value.code == "EMC-1502"
    assert "a down" in caught.value.detail
    assert "b down" in caught.value.detail


async def test_call_refusal_is_not_tried_elsewhere() -> None:
    def refuse(request: dict[str, Any]) -> Any:
        if request["method"] == "eth_chainId":
            return good()(request)
        return {"id": request["id"], "error": {"code": -32000, "message": "nonce too low"}}

    nodes = Nodes(a=refuse, b=good())
    with pytest.raises(RpcRefused) as caught:
        await rpc(nodes).call("eth_estimateGas", {})
    assert (caught.value.rpc_code, caught.value.code) == (-32000, "EMC-1503")
    assert all(url == "a" for url, _ in nodes.asked)


async def test_call_transaction_goes_to_every_node_and_one_that_takes_it_is_enough(
    autojump_clock: trio.testing.MockClock,
) -> None:
    def refuse(request: dict[str, Any]) -> Any:
        if request["method"] == "eth_chainId":
            return good()(request)
        return {"id": request["id"], "error": {"code": -32000, "message": "nonce too low"}}

    nodes = Nodes(a=refuse, b=good(result="0xhash"), c=lambda request: STALL)
    started = trio.current_time()
    assert await rpc(nodes).call("eth_sendRawTransaction", "0x") == "0xhash"
    assert trio.current_time() - started <= HEDGE_S
    assert {url for url, method in nodes.asked if method == "eth_sendRawTransaction"} == {"a", "b"}
    with pytest.raises(RpcRefused):
        await rpc(Nodes(a=refuse, b=refuse)).call("eth_sendRawTransaction", "0x")


async def test_call_chain_id_is_asked_again_every_minute(autojump_clock: trio.testing.MockClock) -> None:
    nodes = Nodes(a=good())
    client = rpc(nodes)
    for _ in range(3):
        await client.call("eth_blockNumber")
        await trio.sleep(VERIFY_EVERY_S / 2)
    await trio.sleep(1)
    await client.call("eth_blockNumber")
    assert [method for _, method in nodes.asked].count("eth_chainId") == 2


async def test_call_node_that_changes_its_chain_is_avoided_and_named(
    autojump_clock: trio.testing.MockClock,
) -> None:
    nodes = Nodes(a=good(), b=good(result="0x2"))
    client = rpc(nodes)
    await client.require_chain_id()
    nodes.answers["a"] = good(chain_id=6, result="0x666")
    await trio.sleep(VERIFY_EVERY_S + 1)
    assert await client.call("eth_blockNumber") == "0x2"
    assert client.problem == "a: answers for chain 6"
    nodes.answers["b"] = nodes.answers["a"]
    await trio.sleep(VERIFY_EVERY_S + 1)
    with pytest.raises(RecoverableError) as caught:
        await client.call("eth_blockNumber")
    assert caught.value.code == "EMC-1502"
    nodes.answers["a"] = good()
    await trio.sleep(2 * MAX_LIE_PAUSE_S)
    assert await client.call("eth_blockNumber") == "0x1"
    assert "a: " not in client.problem


async def test_call_stalling_node_is_joined_by_the_next_and_goes_last(
    autojump_clock: trio.testing.MockClock,
) -> None:
    nodes = Nodes(a=lambda request: STALL, b=good(result="0x2"))
    client = rpc(nodes, timeout_s=30)
    for expected_s in (HEDGE_S, 0.0):
        started = trio.current_time()
        assert await client.call("eth_blockNumber") == "0x2"
        assert trio.current_time() - started == pytest.approx(expected_s)


async def test_message_of_a_failed_node_does_not_show_its_path() -> None:
    url = "https://node.example/v3/secret"
    nodes = Nodes(**{url: lambda request: RecoverableError("EMC-1301", f"{url}: refused")})
    with pytest.raises(RecoverableError) as caught:
        await rpc(nodes).call("eth_blockNumber")
    assert "secret" not in str(caught.value)
    assert "node.example" in str(caught.value)


async def test_require_chain_id_checks_every_node_that_answers() -> None:
    nodes = Nodes(a=lambda request: RecoverableError("EMC-1301", "down"), b=good(chain_id=6))
    with pytest.raises(FatalError):
        await rpc(nodes).require_chain_id()
    await rpc(Nodes(a=nodes.answers["a"], b=good())).require_chain_id()
    with pytest.raises(RecoverableError) as caught:
        await rpc(Nodes(a=nodes.answers["a"])).require_chain_id()
    assert caught.value.code == "EMC-1502"
