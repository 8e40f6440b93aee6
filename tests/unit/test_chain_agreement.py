"""What several endpoints must agree on, and what happens when they do not. No sockets."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from emcd.chain.agreement import Answer, Comparison, compare_how, count_votes, describe_dissent, read_vote
from emcd.chain.asking import HEDGE_S
from emcd.chain.endpoint import LIE_PAUSE_S, Endpoint
from emcd.chain.revert import CallReverted, Revert
from emcd.chain.rpc import STALE_S, JsonRpc, RpcRefused
from emcd.errors import RecoverableError
from emcd.net.http_client import Response

AT = {"blockHash": "0x" + "11" * 32, "requireCanonical": True}


def block(number: int, fork: int = 0) -> dict[str, str]:
    return {
        "number": hex(number),
        "hash": f"0x{fork:02x}{number:062x}",
        "parentHash": f"0x{fork:02x}{number - 1:062x}",
        "timestamp": hex(1_000 + number),
    }


class Node:
    """A node of chain 5 with a head; `answers` by method, functions of the parameters."""

    def __init__(self, head: int = 100, fork: int = 0) -> None:
        self.head, self.fork = head, fork
        self.asked: list[str] = []
        self.stalls = False
        self.reverts: set[str] = set()
        self.answers: dict[str, Callable[..., Any]] = {
            "eth_chainId": lambda: "0x5",
            "eth_getBlockByNumber": self._block,
            "eth_call": lambda call, at: "0x2a",
            "eth_getTransactionCount": lambda who, at: hex(7),
            "eth_getLogs": lambda wanted: [],
            "eth_estimateGas": lambda call: "0x5208",
        }

    def _block(self, which: str, full: bool) -> Any:
        number = self.head if which == "latest" else int(which, 16)
        return block(number, self.fork) if number <= self.head else None

    async def post(self, url: str, body: bytes, timeout_s: float) -> Response:
        request = msgspec.json.decode(body)
        self.asked.append(request["method"])
        if self.stalls:
            await trio.sleep_forever()
        told: dict[str, Any] = {"id": request["id"]}
        if request["method"] in self.reverts:
            told["error"] = {"code": 3, "message": "execution reverted", "data": "0x8b8b8b8b"}
            return Response(200, {}, msgspec.json.encode(told), url)
        try:
            told["result"] = self.answers[request["method"]](*request["params"])
        except KeyError:
            told["error"] = {"code": -32000, "message": "header not found"}
        return Response(200, {}, msgspec.json.encode(told), url)


class Nodes(dict[str, Node]):
    def client(self, agree: int = 2, timeout_s: float = 8.0) -> JsonRpc:
        async def post(url: str, body: bytes, timeout_s: float) -> Response:
            return await self[url].post(url, body, timeout_s)

        return JsonRpc(list(self), 5, timeout_s=timeout_s, agree=agree, post=post)


def nodes(*names: str) -> Nodes:
    return Nodes({name: Node() for name in names or ("a", "b", "c")})


@pytest.mark.parametrize(
    ("method", "params", "how"),
    [
        ("eth_getBlockByNumber", ("0x1", False), Comparison.EQUAL),
        ("eth_getBlockByNumber", ("latest", False), Comparison.HEAD),
        ("eth_getBlockByHash", ("0x11", False), Comparison.EQUAL),
        ("eth_getLogs", ({},), Comparison.EQUAL),
        ("eth_getTransactionReceipt", ("0x11",), Comparison.EQUAL),
        ("eth_call", ({}, AT), Comparison.EQUAL),
        ("eth_call", ({}, "0x1"), Comparison.EQUAL),
        ("eth_call", ({}, "latest"), Comparison.STATE_AT_HEAD),
        ("eth_getBalance", ("0x11",), Comparison.STATE_AT_HEAD),
        ("eth_getTransactionCount", ("0x11", "0x9"), Comparison.EQUAL),
        ("eth_getTransactionCount", ("0x11", "pending"), Comparison.LEAST),
        ("eth_estimateGas", ({},), Comparison.MOST),
        ("eth_maxPriorityFeePerGas", (), Comparison.NONE),
    ],
)
def test_compare_how_what_decides_money_is_compared(method: str, params: Any, how: Comparison) -> None:
    assert compare_how(method, params) is how


def said(name: str, result: Any = None, refusal: Any = None) -> Answer:
    return Answer(Endpoint(name), result, refusal)


LOG = {
    "address": "0xAB",
    "topics": ["0xCD"],
    "data": "0x",
    "blockNumber": "0x1",
    "blockHash": "0x01",
    "transactionHash": "0x02",
    "logIndex": "0x0",
}

RECEIPT = {
    "transactionHash": "0x02",
    "blockHash": "0x01",
    "blockNumber": "0x1",
    "status": "0x1",
    "gasUsed": "0x5208",
    "effectiveGasPrice": "0x3",
    "logs": [],
}


@pytest.mark.parametrize(
    ("method", "one", "other"),
    [
        ("eth_call", "0xAB", "0xab"),
        ("eth_getTransactionCount", "0x07", "0x7"),
        ("eth_getBlockByNumber", block(3) | {"size": "0x1"}, block(3) | {"totalDifficulty": "0x0"}),
        ("eth_getLogs", [LOG], [{**LOG, "address": "0xab", "removed": False}]),
    ],
)
def test_count_votes_the_same_in_other_words_agrees(method: str, one: Any, other: Any) -> None:
    assert count_votes(method, [said("a", one), said("b", other)], 2, is_last=True) is not None


@pytest.mark.parametrize(
    ("method", "one", "other"),
    [
        ("eth_call", "0xab", "0xac"),
        ("eth_getBlockByNumber", block(3), block(3) | {"hash": "0x09"}),
        ("eth_getBlockByNumber", block(3), block(3) | {"timestamp": "0x1"}),
        ("eth_getLogs", [LOG], []),
        ("eth_getLogs", [LOG], [{**LOG, "data": "0x01"}]),
        ("eth_getLogs", [LOG], "nonsense"),
        ("eth_call", "0x", {"revert": 1}),
        ("eth_getTransactionReceipt", RECEIPT, {**RECEIPT, "effectiveGasPrice": "0x4"}),
        ("eth_getBlockByNumber", block(3) | {"gasLimit": "0x1"}, block(3) | {"gasLimit": "0x2"}),
    ],
)
def test_count_votes_other_content_does_not_agree(method: str, one: Any, other: Any) -> None:
    assert count_votes(method, [said("a", one), said("b", other)], 2, is_last=True) is None


def test_count_votes_reverts_agree_by_their_data() -> None:
    one, same = (said(n, refusal=CallReverted(Revert("", data=b"\x01"))) for n in "ab")
    other = said("c", refusal=CallReverted(Revert("", data=b"\x02")))
    assert count_votes("eth_call", [one, same], 2, is_last=True) is one
    assert count_votes("eth_call", [one, other], 2, is_last=True) is None


def test_count_votes_what_one_has_not_yet_is_absent_when_all_were_heard() -> None:
    has, lags = said("a", block(3)), said("b", None)
    assert count_votes("eth_getBlockByNumber", [has, lags], 2, is_last=False) is None
    assert count_votes("eth_getBlockByNumber", [has, lags], 2, is_last=True) is lags
    pruned = said("c", refusal=RpcRefused("eth_call", -32000, "missing trie node"))
    assert count_votes("eth_call", [said("a", "0x1"), pruned], 2, is_last=True) is pruned


def test_describe_dissent_shows_the_first_difference_of_long_answers() -> None:
    text = describe_dissent("eth_call", [said("a", "0x" + "00" * 500 + "77"), said("b", "0x" + "00" * 501)])
    assert "a says ..." in text
    assert "77" in text
    assert len(text) < 250


async def test_call_liar_is_outvoted_named_and_avoided() -> None:
    world = nodes()
    world["a"].answers["eth_call"] = lambda call, at: "0x666"
    client = world.client()
    assert await client.call("eth_call", {}, AT) == "0x2a"
    assert client.problem.startswith("a: eth_call: a says")
    world["a"].asked.clear()
    for _ in range(5):
        assert await client.call("eth_call", {}, AT) == "0x2a"
    assert world["a"].asked == []


async def test_call_two_that_disagree_are_both_named_and_neither_believed() -> None:
    world = nodes("a", "b")
    world["a"].answers["eth_call"] = lambda call, at: "0x666"
    client = world.client()
    with pytest.raises(RecoverableError) as caught:
        await client.call("eth_call", {}, AT)
    assert caught.value.code == "EMC-1519"
    assert "a says" in caught.value.detail and "b says" in caught.value.detail
    assert "EMC-1519" in client.problem
    world["a"].answers["eth_call"] = lambda call, at: "0x2a"
    assert await client.call("eth_call", {}, AT) == "0x2a"
    assert client.problem == ""


async def test_call_liar_that_has_mended_its_ways_is_believed_after_its_rest(
    autojump_clock: trio.testing.MockClock,
) -> None:
    world = nodes()
    world["a"].answers["eth_call"] = lambda call, at: "0x666"
    client = world.client()
    await client.call("eth_call", {}, AT)
    await trio.sleep(LIE_PAUSE_S + 1)
    await client.call("eth_call", {}, AT)
    assert client.problem, "it lies still, and was heard beside the others"
    world["a"].answers["eth_call"] = lambda call, at: "0x2a"
    await trio.sleep(LIE_PAUSE_S + 1)
    await client.call("eth_call", {}, AT)
    assert client.problem, "its second rest is longer"
    await trio.sleep(2 * LIE_PAUSE_S)
    await client.call("eth_call", {}, AT)
    assert client.problem == ""


async def test_call_suspect_that_stalls_keeps_nobody_waiting(autojump_clock: trio.testing.MockClock) -> None:
    world = nodes()
    world["a"].answers["eth_call"] = lambda call, at: "0x666"
    client = world.client()
    await client.call("eth_call", {}, AT)
    await trio.sleep(LIE_PAUSE_S + 1)
    world["a"].stalls = True
    started = trio.current_time()
    assert await client.call("eth_call", {}, AT) == "0x2a"
    assert trio.current_time() - started <= HEDGE_S


async def test_call_head_is_the_newest_that_enough_nodes_have() -> None:
    world = nodes()
    world["a"].head = 10**9
    world["c"].head = 98
    client = world.client()
    assert (await client.call("eth_getBlockByNumber", "latest", False))["number"] == hex(100)
    world["b"].head = 90
    assert (await client.call("eth_getBlockByNumber", "latest", False))["number"] == hex(98), (
        "a and c have it"
    )
    assert client.problem == "", "who lags, or is ahead, does not lie"


async def test_call_latest_state_is_asked_at_the_agreed_head() -> None:
    world = nodes("a", "b")
    world["a"].head = 105
    seen: list[Any] = []
    for node in world.values():
        node.answers["eth_call"] = lambda call, at: seen.append(at) or "0x2a"
    assert await world.client().call("eth_call", {}, "latest") == "0x2a"
    assert seen == [{"blockHash": block(100)["hash"], "requireCanonical": True}] * 2


async def test_call_next_nonce_is_one_that_enough_nodes_have_reached() -> None:
    world = nodes()
    world["a"].answers["eth_getTransactionCount"] = lambda who, at: hex(50)
    assert await world.client().call("eth_getTransactionCount", "0x11", "pending") == hex(7)


async def test_call_estimate_is_the_highest_of_several() -> None:
    world = nodes()
    world["b"].answers["eth_estimateGas"] = lambda call: "0x10000"
    assert await world.client().call("eth_estimateGas", {}) == "0x10000"
    world["a"].answers["eth_estimateGas"] = lambda call: None
    with pytest.raises(RecoverableError) as caught:
        await world.client().call("eth_estimateGas", {})
    assert caught.value.code == "EMC-1507"


async def test_call_estimate_one_false_revert_decides_nothing() -> None:
    world = nodes()
    world["a"].reverts.add("eth_estimateGas")
    assert await world.client().call("eth_estimateGas", {}) == "0x5208"
    world["b"].reverts.add("eth_estimateGas")
    with pytest.raises(CallReverted):
        await world.client().call("eth_estimateGas", {})


@pytest.mark.parametrize("method", ["eth_getBlockByNumber", "eth_blockNumber"])
async def test_call_head_of_one_frozen_node_holds_nobody_back(
    autojump_clock: trio.testing.MockClock, method: str
) -> None:
    """It answers, and the others truthfully have its old block too; it stops while the client runs."""
    world = nodes()
    for node in world.values():
        node.answers["eth_blockNumber"] = partial(lambda node: hex(node.head), node)
    client = world.client()
    params = ("latest", False) if method == "eth_getBlockByNumber" else ()
    for _ in range(2 * int(STALE_S) + 10):
        answer = await client.call(method, *params)
        for name in "bc":
            world[name].head += 1
        await trio.sleep(1)
    head = int(answer["number"] if params else answer, 16)
    assert head == world["b"].head - 1
    assert "stands at block 100" in client.list_endpoints()[0].last_error
    assert client.problem == ""


async def test_call_head_of_a_node_that_never_caught_up_is_not_taken_at_first() -> None:
    world = nodes()
    world["a"].head = 1
    client = world.client()
    assert (await client.call("eth_getBlockByNumber", "latest", False))["number"] == hex(100)
    world["b"].head = world["c"].head = 101
    assert (await client.call("eth_getBlockByNumber", "latest", False))["number"] == hex(101)


async def test_call_next_nonce_of_a_frozen_node_holds_nobody_back(
    autojump_clock: trio.testing.MockClock,
) -> None:
    world = nodes()
    client = world.client()
    assert await client.call("eth_getTransactionCount", "0x11", "pending") == hex(7)
    for name in "bc":
        world[name].answers["eth_getTransactionCount"] = lambda who, at: hex(9)
    await trio.sleep(STALE_S + 1)
    assert await client.call("eth_getTransactionCount", "0x11", "pending") == hex(9)


async def test_call_head_that_too_few_have_left_behind_is_told(
    autojump_clock: trio.testing.MockClock,
) -> None:
    world = nodes("a", "b")
    client = world.client()
    await client.call("eth_getBlockByNumber", "latest", False)
    world["b"].head = 1000
    await trio.sleep(STALE_S + 1)
    assert (await client.call("eth_getBlockByNumber", "latest", False))["number"] == hex(100)
    assert client.problem == "a is at block 100, b at 1000"
    world["a"].head = 1000
    await client.call("eth_getBlockByNumber", "latest", False)
    assert client.problem == ""
    assert [endpoint.failures for endpoint in client.list_endpoints()] == [0, 0]


async def test_call_numbers_beyond_all_bounds_are_a_dissent_not_a_crash() -> None:
    world = nodes("a", "b")
    world["a"].answers["eth_getBlockByNumber"] = lambda which, full: block(1) | {"timestamp": "0x" + "f" * 66}
    with pytest.raises(RecoverableError) as caught:
        await world.client().call("eth_getBlockByNumber", hex(1), False)
    assert caught.value.code == "EMC-1519"
    assert read_vote("eth_getLogs", said("a", [2**70]))


async def test_call_elsewhere_asks_another_than_the_one_that_answered() -> None:
    world = nodes("a", "b")
    client = world.client(agree=1)
    await client.call("eth_estimateGas", {})
    world["b"].answers["eth_call"] = lambda call, at: "0xbb"
    assert await client.call_elsewhere("eth_call", {}, AT, than="eth_estimateGas") == "0xbb"
    client.doubt("eth_estimateGas", "says that it reverts")
    world["a"].asked.clear()
    await client.call("eth_estimateGas", {})
    assert world["a"].asked == []
    assert client.problem == ""


async def test_call_block_that_one_of_two_has_not_is_not_there_yet() -> None:
    world = nodes("a", "b")
    world["b"].head = 99
    client = world.client()
    assert await client.call("eth_getBlockByNumber", hex(100), False) is None
    assert client.problem == ""


async def test_call_too_few_that_answer_says_so(autojump_clock: trio.testing.MockClock) -> None:
    world = nodes("a", "b")
    world["b"].stalls = True
    with pytest.raises(RecoverableError) as caught:
        await world.client().call("eth_call", {}, AT)
    assert caught.value.code == "EMC-1502"
    assert "1 of the 2 endpoints that must agree answered" in caught.value.detail


async def test_call_third_node_stands_in_for_one_that_stalls(autojump_clock: trio.testing.MockClock) -> None:
    world = nodes()
    world["b"].stalls = True
    client = world.client()
    started = trio.current_time()
    assert await client.call("eth_call", {}, AT) == "0x2a"
    assert trio.current_time() - started == pytest.approx(HEDGE_S)
    started = trio.current_time()
    assert await client.call("eth_call", {}, AT) == "0x2a"
    assert trio.current_time() == started


async def test_call_node_whose_head_stands_still_is_left_for_one_that_goes_on(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """It answers, and answers truly, what was long ago."""
    world = nodes("a", "b")
    client = world.client(agree=1)
    for _ in range(int(STALE_S) + 5):
        world["b"].head += 1
        head = await client.call("eth_getBlockByNumber", "latest", False)
        await trio.sleep(1)
    assert int(head["number"], 16) > 100
    assert "stands at block 100" in client.list_endpoints()[0].last_error
    assert client.problem == ""


async def test_call_chain_that_stands_still_is_nobodys_fault(autojump_clock: trio.testing.MockClock) -> None:
    world = nodes("a", "b")
    client = world.client(agree=1)
    for _ in range(200):
        await client.call("eth_getBlockByNumber", "latest", False)
        await trio.sleep(1)
    assert [endpoint.failures for endpoint in client.list_endpoints()] == [0, 0]
    assert world["b"].asked.count("eth_getBlockByNumber") < 10


@pytest.mark.parametrize("agree", [0, 3])
def test_json_rpc_more_agreement_than_endpoints_is_refused(agree: int) -> None:
    with pytest.raises(ValueError, match="can't agree"):
        JsonRpc(["a", "b"], 5, agree=agree)
