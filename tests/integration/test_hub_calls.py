"""Whole calls through a running hub: what the client gets is what the node sent, and it is all on disk."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from emcd.accounting.receipt import check_receipt
from emcd.net.http_client import request
from emcd.proto.control import ResponseHead, encode
from emcd.proto.hashing import keccak
from emcd.proto.openai import ENDPOINTS, read_request
from emcd.proto.records import CallStatus
from emcd_hub.billing.queries import find_imbalance
from tests.support.hub_world import (
    BODY,
    DEPLOYMENT,
    DOMAIN,
    HUB_KEY,
    MODEL,
    HubWorld,
    StubNode,
    answer_with,
    embedding_body,
    fetch_receipt,
    node_key,
    post,
    running_world,
)

COST = 50_000  # 5 tokens at 10,000 credits per million


async def require_balanced(world: HubWorld) -> None:
    assert await world.ledger.read(find_imbalance) is None


async def test_call_answered_is_recorded_and_charged(tmp_path: Path) -> None:
    async with running_world(tmp_path, granted_micro=10**9) as world:
        node = await world.add_node(StubNode(node_key(0)))
        answer = await post(world)
        assert (answer.status, answer.body) == (200, embedding_body())
        assert answer.headers["x-emc-node"] == node.key.address
        assert answer.headers["x-emc-credits"] == "0.050000"
        rows = await world.rows(
            "SELECT status, node, model, granted_micro, vault_micro, fault FROM hub_calls"
        )
        assert rows == [(int(CallStatus.OK), node.key.address, MODEL, COST, 0, "")]
        assert await world.balances() == (10**9 - COST, 0)
        await require_balanced(world)


async def test_receipt_checks_offline_with_what_the_client_has(tmp_path: Path) -> None:
    async with running_world(tmp_path) as world:
        await world.add_node(StubNode(node_key(0)))
        answer = await post(world)
        receipt = await fetch_receipt(world, answer.headers["x-emc-call-id"])
        sent = msgspec.json.encode(BODY)
        upstream = read_request(ENDPOINTS["/v1/embeddings"], sent).body
        outcome = check_receipt(
            DOMAIN,
            HUB_KEY.address,
            receipt,
            request=("/v1/embeddings", upstream),
            body=answer.body,
            prices=DEPLOYMENT.prices,
        )
        assert outcome.ok
        assert outcome.counts


async def test_receipt_of_another_account_is_not_found(tmp_path: Path) -> None:
    from emcd_hub.bootstrap import make_api_key

    async with running_world(tmp_path) as world:
        await world.add_node(StubNode(node_key(0)))
        call_id = (await post(world)).headers["x-emc-call-id"]
        other = await world.plane.office.create_account("other")
        stranger = await world.plane.office.keys.create_key(other.account_id, "")
        headers = {"authorization": f"Bearer {stranger.secret}"}
        answer = await request("GET", f"{world.url}/v1/calls/{call_id}/receipt", headers=headers)
        assert answer.status == 404
        unknown = {"authorization": f"Bearer {make_api_key(other.account_id).secret}"}
        answer = await request("GET", f"{world.url}/v1/calls/{call_id}/receipt", headers=unknown)
        assert answer.status == 401


async def test_provider_choice_reaches_that_node_and_stays_hidden(tmp_path: Path) -> None:
    async with running_world(tmp_path) as world:
        nodes = [await world.add_node(StubNode(node_key(n))) for n in range(3)]
        for chosen in nodes:
            by_field = await post(world, {**BODY, "provider": {"only": [chosen.key.address]}})
            by_header = await post(world, BODY, x_emc_provider=chosen.key.address)
            assert by_field.headers["x-emc-node"] == by_header.headers["x-emc-node"] == chosen.key.address
        plain = msgspec.json.encode(BODY)
        assert {body for node in nodes for body in node.bodies} == {plain}


async def test_provider_that_is_away_answers_503(tmp_path: Path) -> None:
    async with running_world(tmp_path) as world:
        await world.add_node(StubNode(node_key(0)))
        answer = await post(world, {**BODY, "provider": {"only": [node_key(5).address]}})
        assert answer.status == 503
        assert answer.headers["retry-after"] == "1"
        assert answer.json()["error"]["emc_code"] == "EMC-1708"


async def test_failing_node_is_retried_elsewhere_and_not_charged(tmp_path: Path) -> None:
    async with running_world(tmp_path, granted_micro=10**9) as world:
        bad = await world.add_node(StubNode(node_key(0), capacity=1000, answer=answer_with(500, b"{}")))
        good = await world.add_node(StubNode(node_key(1), capacity=1))
        answer = await post(world)
        assert answer.status == 200
        assert answer.headers["x-emc-node"] == good.key.address
        assert bad.calls == 1
        rows = await world.rows("SELECT status, granted_micro FROM hub_calls ORDER BY call_seq")
        assert rows == [(int(CallStatus.NODE_ERROR), 0), (int(CallStatus.OK), COST)]
        await require_balanced(world)


async def test_every_node_failing_answers_502_within_the_attempts(tmp_path: Path) -> None:
    async with running_world(tmp_path, granted_micro=10**9, max_attempts=2) as world:
        nodes = [
            await world.add_node(StubNode(node_key(n), answer=answer_with(503, b"busy"))) for n in range(3)
        ]
        answer = await post(world)
        assert answer.status == 502
        assert answer.json()["error"]["type"] == "server_error"
        assert sum(node.calls for node in nodes) == 2
        assert await world.balances() == (10**9, 0)


async def test_client_fault_is_passed_on_and_not_charged(tmp_path: Path) -> None:
    body = b'{"error":{"message":"too long","type":"invalid_request_error","param":"input","code":null}}'
    async with running_world(tmp_path, granted_micro=10**9) as world:
        node = await world.add_node(StubNode(node_key(0), answer=answer_with(400, body)))
        answer = await post(world)
        assert (answer.status, answer.body) == (400, body)
        assert node.calls == 1
        assert await world.balances() == (10**9, 0)
        receipt = await fetch_receipt(world, answer.headers["x-emc-call-id"])
        assert receipt.delivery.status == CallStatus.CLIENT_ERROR
        assert receipt.delivery.body_hash == keccak(body)


async def test_client_fault_without_openai_shape_gets_it(tmp_path: Path) -> None:
    async with running_world(tmp_path) as world:
        await world.add_node(StubNode(node_key(0), answer=answer_with(422, b"<html>no</html>")))
        answer = await post(world)
        assert answer.status == 422
        assert answer.json()["error"]["emc_code"] == "EMC-1713"


async def test_lost_tunnel_in_a_call_is_retried(tmp_path: Path) -> None:
    async def vanish(node: StubNode, call: Any, meta: Any) -> None:
        assert node.link is not None
        node.scope.cancel()
        await trio.sleep_forever()

    async with running_world(tmp_path) as world:
        await world.add_node(StubNode(node_key(0), capacity=1000, answer=vanish))
        good = await world.add_node(StubNode(node_key(1), capacity=1))
        answer = await post(world)
        assert answer.status == 200
        assert answer.headers["x-emc-node"] == good.key.address


async def test_silent_node_is_given_up_after_the_deadline(tmp_path: Path) -> None:
    async def silence(node: StubNode, call: Any, meta: Any) -> None:
        await trio.sleep_forever()

    async with running_world(tmp_path, call_timeout_s=0.2) as world:
        silent = await world.add_node(StubNode(node_key(0), capacity=1000, answer=silence))
        good = await world.add_node(StubNode(node_key(1), capacity=1))
        answer = await post(world)
        assert answer.headers["x-emc-node"] == good.key.address
        await world.until(lambda: silent.cancelled == 1)


async def test_no_node_at_all_and_a_lost_one_are_503(tmp_path: Path) -> None:
    async with running_world(tmp_path) as world:
        assert (await post(world)).status == 503
        node = await world.add_node(StubNode(node_key(0)))
        node.scope.cancel()
        await world.until(lambda: world.plane.board.find(node.key.address) is None)
        answer = await post(world)
        assert answer.status == 503
        assert answer.headers["retry-after"]


async def test_busy_node_serves_waiting_calls_in_turn(tmp_path: Path) -> None:
    async def slow(node: StubNode, call: Any, meta: Any) -> None:
        from tests.support.hub_world import answer_embedding

        await trio.sleep(0.02)
        await answer_embedding(node, call, meta)

    async with running_world(tmp_path) as world:
        await world.add_node(StubNode(node_key(0), capacity=2, answer=slow))
        answers: list[int] = []

        async def one() -> None:
            answers.append((await post(world)).status)

        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(one)
        assert answers == [200] * 10


async def test_caller_without_credit_in_line_holds_up_nobody(tmp_path: Path) -> None:
    """Who is woken for room and then refused passes the room on."""
    going = trio.Event()

    async def until_told(node: StubNode, call: Any, meta: Any) -> None:
        from tests.support.hub_world import answer_embedding

        await going.wait()
        await answer_embedding(node, call, meta)

    async with running_world(tmp_path) as world:
        await world.add_node(StubNode(node_key(0), capacity=1, answer=until_told))
        poor = await world.plane.office.create_account("poor")
        poor_key = await world.plane.office.keys.create_key(poor.account_id, "")
        statuses: list[int] = []

        async def ask(**headers: str) -> None:
            statuses.append((await post(world, **headers)).status)

        with trio.fail_after(8):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ask)
                await trio.sleep(0.2)
                nursery.start_soon(partial(ask, authorization=f"Bearer {poor_key.secret}"))
                await trio.sleep(0.2)
                nursery.start_soon(ask)
                await trio.sleep(0.2)
                going.set()
        assert sorted(statuses) == [200, 200, 429]


async def test_busy_nodes_answer_429_after_the_queue_time(tmp_path: Path) -> None:
    async def stuck(node: StubNode, call: Any, meta: Any) -> None:
        await trio.sleep_forever()

    async with running_world(tmp_path, queue_timeout_s=0.1, call_timeout_s=5.0) as world:
        await world.add_node(StubNode(node_key(0), capacity=1, answer=stuck))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(post, world)
            await world.until(lambda: world.plane.gateway.active == 1)
            answer = await post(world)
            assert answer.status == 429
            assert answer.json()["error"]["code"] == "overloaded"
            assert int(answer.headers["retry-after"]) >= 1
            nursery.cancel_scope.cancel()


async def test_one_accounts_calls_never_fill_the_line_for_others(tmp_path: Path) -> None:
    """What waits counts among the account's calls, and goes when its client does."""

    async def hang(node: StubNode, call: Any, meta: Any) -> None:
        await trio.sleep_forever()

    refused = []
    async with running_world(tmp_path, max_waiting=20, max_calls_per_account=8) as world:
        await world.add_node(StubNode(node_key(0), capacity=3, answer=hang))
        account = world.plane.book.find(world.account_id)

        async def ask() -> None:
            answer = await post(world)
            refused.append((answer.status, answer.json()["error"]["emc_code"]))

        async with trio.open_nursery() as nursery:
            for _ in range(30):
                nursery.start_soon(ask)
            await world.until(lambda: len(refused) == 22)
            assert set(refused) == {(429, "EMC-1706")}
            assert (account.calls, account.waiting, world.plane.board.line.waiting) == (3, 5, 5)
            nursery.cancel_scope.cancel()
        await world.until(lambda: world.plane.gateway.active == 0)
        assert (account.calls, account.waiting) == (0, 0)


async def test_insufficient_credit_is_openais_quota_error(tmp_path: Path) -> None:
    async with running_world(tmp_path, granted_micro=1) as world:
        node = await world.add_node(StubNode(node_key(0)))
        answer = await post(world)
        assert answer.status == 429
        error = answer.json()["error"]
        assert (error["type"], error["code"]) == ("insufficient_quota", "insufficient_quota")
        assert node.calls == 0


async def test_concurrent_calls_never_overdraw(tmp_path: Path) -> None:
    async with running_world(tmp_path, granted_micro=20 * COST + 1) as world:
        await world.add_node(StubNode(node_key(0), capacity=100))
        statuses: list[int] = []

        async def one() -> None:
            statuses.append((await post(world)).status)

        async with trio.open_nursery() as nursery:
            for _ in range(60):
                nursery.start_soon(one)
        assert statuses.count(200) <= 20
        granted, vault = await world.balances()
        assert granted == 20 * COST + 1 - statuses.count(200) * COST >= 0
        assert vault == 0
        await require_balanced(world)


async def test_answer_beyond_the_reservation_is_capped_at_what_is_there(tmp_path: Path) -> None:
    text = (
        msgspec.json.encode(
            {"choices": [], "usage": {"prompt_tokens": 100, "completion_tokens": 5000, "total_tokens": 5100}}
        )
        + b" " * 5000
    )  # a token is at least a byte of the answer
    async with running_world(tmp_path, granted_micro=10_000_000, default_output_tokens=1) as world:
        await world.add_node(StubNode(node_key(0), answer=answer_with(200, text, (100, 5000))))
        answer = await post(
            world, {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}, "/v1/chat/completions"
        )
        assert answer.status == 200
        assert await world.balances() == (0, 0)
        assert await world.rows("SELECT status FROM hub_calls") == [(int(CallStatus.CAPPED),)]
        await require_balanced(world)


async def test_drain_finishes_the_call_in_flight_and_refuses_new_ones(tmp_path: Path) -> None:
    release = trio.Event()

    async def held(node: StubNode, call: Any, meta: Any) -> None:
        from tests.support.hub_world import answer_embedding

        await release.wait()
        await answer_embedding(node, call, meta)

    async with running_world(tmp_path) as world:
        await world.add_node(StubNode(node_key(0), answer=held))
        answers: list[int] = []

        async def one() -> None:
            answers.append((await post(world)).status)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(one)
            await world.until(lambda: world.plane.gateway.active == 1)
            nursery.start_soon(world.role.drain)
            await world.until(lambda: world.role.health().state.value == "draining")
            assert (await post(world)).status == 503
            release.set()
        assert answers == [200]
        assert await world.rows("SELECT count(*) FROM hub_batches") == [(2,)]


@pytest.mark.parametrize("wrong", ["", "Bearer", "Basic abc", "Bearer emc_sk_" + "A" * 43])
async def test_wrong_keys_get_one_answer(tmp_path: Path, wrong: str) -> None:
    async with running_world(tmp_path) as world:
        headers = {"authorization": wrong} if wrong else {}
        answer = await request("POST", world.url + "/v1/embeddings", json=BODY, headers=headers)
        assert answer.status == 401
        assert answer.json()["error"]["code"] == "invalid_api_key"


async def test_wrong_keys_are_limited_and_a_right_one_is_not(tmp_path: Path) -> None:
    async with running_world(tmp_path, wrong_keys_per_minute=3) as world:
        await world.add_node(StubNode(node_key(0)))
        wrong = partial(request, "POST", world.url + "/v1/embeddings", json=BODY)
        statuses = [(await wrong(headers={"authorization": "Bearer x"})).status for _ in range(5)]
        assert statuses == [401, 401, 401, 429, 429]
        assert (await post(world)).status == 200


async def test_revoked_key_is_refused_at_once(tmp_path: Path) -> None:
    async with running_world(tmp_path) as world:
        await world.add_node(StubNode(node_key(0)))
        (key_id,) = (await world.rows("SELECT key_id FROM hub_api_keys"))[0]
        assert (await post(world)).status == 200
        await world.plane.office.keys.revoke_key(key_id)
        assert (await post(world)).status == 401


async def test_engine_that_never_begins_to_answer_is_noticed_and_another_node_asked(tmp_path: Path) -> None:
    async def dead(node: StubNode, call: Any, meta: Any) -> None:
        await trio.sleep_forever()

    async with running_world(tmp_path, answer_head_timeout_s=0.1, call_timeout_s=60.0) as world:
        await world.add_node(StubNode(node_key(0), capacity=999, answer=dead))
        good = await world.add_node(StubNode(node_key(1), capacity=1))
        answer = await post(world)
        assert (answer.status, answer.headers["x-emc-node"]) == (200, good.key.address)


async def test_answer_that_has_begun_has_the_time_of_a_whole_call(tmp_path: Path) -> None:
    async def slow(node: StubNode, call: Any, meta: Any) -> None:
        body = embedding_body()
        await call.start(encode(ResponseHead(200, "application/json")))
        await trio.sleep(0.8)
        await call.send(body)
        await node.finish(call, meta, keccak(body), 200, (5, 0))

    async with running_world(tmp_path, answer_head_timeout_s=0.1, call_timeout_s=60.0) as world:
        await world.add_node(StubNode(node_key(0), answer=slow))
        assert (await post(world)).status == 200
