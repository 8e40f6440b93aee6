"""API keys with limits, over real sockets: what they let through, what they say, what they keep."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from emcd.clock import SystemClock
from emcd.net.http_client import Response, request
from emcd.proto.control import ResponseHead, encode
from emcd.proto.hashing import keccak
from emcd_hub.billing.key_usage import find_key_imbalance
from emcd_hub.billing.period import Period, period_end_ms
from emcd_hub.billing.queries import find_imbalance
from emcd_hub.cli import api_key as api_key_command
from tests.support.hub_admin import admin, run_command
from tests.support.hub_world import (
    ADMIN_TOKEN,
    BODY,
    CHUNK,
    MODEL,
    READ_TOKEN,
    HubWorld,
    StubNode,
    answer_embedding,
    answer_stream,
    chat_events,
    embedding_body,
    node_key,
    post,
    running_world,
    sse,
)

EMBEDDING_MICRO = 50_000
"""What the stub node's embedding of 5 tokens costs."""
CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "stream": True}


class Holder:
    """Somebody with a key of the world's account."""

    def __init__(self, world: HubWorld, made: dict[str, Any]) -> None:
        self.world = world
        self.key_id: str = made["key_id"]
        self.secret: str = made["api_key"]

    async def ask(self, body: Any = BODY, path: str = "/v1/embeddings") -> Response:
        return await post(self.world, body, path, authorization=f"Bearer {self.secret}")

    async def get(self, path: str) -> Response:
        headers = {"authorization": f"Bearer {self.secret}"}
        return await request("GET", self.world.url + path, headers=headers)

    async def set(self, **settings: Any) -> Response:
        return await admin(self.world, "PATCH", f"/admin/api-keys/{self.key_id}", settings)

    async def show(self) -> dict[str, Any]:
        found: dict[str, Any] = (await admin(self.world, "GET", f"/admin/api-keys/{self.key_id}")).json()
        return found


async def make_holder(world: HubWorld, **limits: Any) -> Holder:
    made = await admin(world, "POST", "/admin/api-keys", {"account_id": world.account_id, **limits})
    assert made.status == 201, made.body
    return Holder(world, made.json())


@asynccontextmanager
async def limited(folder: Path, node: StubNode | None = None, **limits: Any) -> AsyncIterator[Holder]:
    """A running hub with a node, and a holder of a key with these limits."""
    async with running_world(folder) as world:
        await world.add_node(node or StubNode(node_key(0)))
        yield await make_holder(world, **limits)


def error_of(answer: Response) -> tuple[int, str, str, str]:
    error = answer.json()["error"]
    return answer.status, error["emc_code"], error["type"], error["code"]


def when_told(going: trio.Event) -> Any:
    """An engine that embeds when it is told to."""

    async def answer(node: StubNode, call: Any, meta: Any) -> None:
        await going.wait()
        await call.start(encode(ResponseHead(200, "application/json")))
        await call.send(embedding_body())
        await node.finish(call, meta, keccak(embedding_body()), 200, (5, 0))

    return answer


async def use_to_the_bound(node: StubNode, call: Any, meta: Any) -> None:
    """An engine whose calls cost what was reserved for them: a token a byte, and 64."""
    tokens = len(call.body) + 64
    body = embedding_body(tokens)
    await call.start(encode(ResponseHead(200, "application/json")))
    await call.send(body)
    await node.finish(call, meta, keccak(body), 200, (tokens, 0))


# --- refusals ------------------------------------------------------------------


async def test_model_outside_the_list_is_403_and_not_listed(tmp_path: Path) -> None:
    async with limited(tmp_path, models=["other", "llama*"]) as holder:
        assert error_of(await holder.ask()) == (
            403, "EMC-1783", "invalid_request_error", "model_not_found",
        )  # fmt: skip
        assert (await holder.get("/v1/models")).json()["data"] == []
        assert error_of(await holder.get(f"/v1/models/{MODEL}"))[:2] == (403, "EMC-1783")
        await holder.set(models=["stub*"])
        assert (await holder.ask()).status == 200
        assert [model["id"] for model in (await holder.get("/v1/models")).json()["data"]] == [MODEL]
        await holder.set(models=None)
        assert (await holder.show())["limits"]["models"] == []


async def test_expired_key_is_401_on_every_page_and_lives_again_when_lifted(tmp_path: Path) -> None:
    async with limited(tmp_path, expires_in_s=3600) as holder:
        assert (await holder.ask()).status == 200
        await holder.set(expires_at_ms=SystemClock().now_ms() - 1)
        for answer in (await holder.ask(), await holder.get("/v1/models"), await holder.get("/api/account")):
            assert error_of(answer) == (401, "EMC-1782", "invalid_request_error", "invalid_api_key")
        await holder.set(expires_at_ms=None)
        assert (await holder.ask()).status == 200


async def test_requests_of_a_minute_run_out_and_say_when_to_come_back(tmp_path: Path) -> None:
    async with limited(tmp_path, requests_per_minute=2) as holder:
        first, second = await holder.ask(), await holder.ask()
        assert (first.status, second.status) == (200, 200)
        assert first.headers["x-ratelimit-limit-requests"] == "2"
        assert first.headers["x-ratelimit-remaining-requests"] == "1"
        assert "x-ratelimit-limit-tokens" not in first.headers
        third = await holder.ask()
        assert error_of(third) == (429, "EMC-1784", "requests", "rate_limit_exceeded")
        assert 1 <= int(third.headers["retry-after"]) <= 30
        assert third.headers["x-ratelimit-remaining-requests"] == "0"
        await holder.set(requests_per_minute=None)
        free = await holder.ask()
        assert free.status == 200
        assert not [name for name in free.headers if name.startswith("x-ratelimit")]


async def test_tokens_are_held_by_the_bound_and_given_back_at_the_end(tmp_path: Path) -> None:
    going = trio.Event()
    async with limited(
        tmp_path, StubNode(node_key(0), answer=when_told(going)), tokens_per_minute=150
    ) as holder:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(holder.ask)
            await holder.world.until(lambda: holder.world.plane.gateway.active == 1)
            refused = await holder.ask()
            assert error_of(refused) == (429, "EMC-1785", "tokens", "rate_limit_exceeded")
            assert int(refused.headers["retry-after"]) >= 1
            going.set()
        answer = await holder.ask()
        assert answer.status == 200
        assert answer.headers["x-ratelimit-limit-tokens"] == "150"
        assert 139 <= int(answer.headers["x-ratelimit-remaining-tokens"]) <= 150
        used_up = await holder.ask({"model": MODEL, "input": "x" * 5000})
        assert error_of(used_up)[1] == "EMC-1785"


async def test_calls_at_a_time_are_bounded_and_those_in_flight_are_not_broken(tmp_path: Path) -> None:
    going = trio.Event()
    statuses: list[int] = []
    async with limited(tmp_path, StubNode(node_key(0), answer=when_told(going)), parallel_calls=2) as holder:

        async def ask() -> None:
            statuses.append((await holder.ask()).status)

        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(ask)
            await holder.world.until(lambda: holder.world.plane.gateway.active == 2)
            assert error_of(await holder.ask()) == (429, "EMC-1786", "requests", "rate_limit_exceeded")
            await holder.set(parallel_calls=1, models=["other"], expires_at_ms=1)
            assert (await holder.ask()).status == 401
            going.set()
        assert statuses == [200, 200]


async def test_budget_that_is_used_up_says_when_it_begins_anew(tmp_path: Path) -> None:
    async with limited(tmp_path, budget_micro="1200000", period="week") as holder:
        assert (await holder.ask()).status == 200
        for _ in range(3):
            assert (await holder.ask()).status == 200
        refused = await holder.ask()
        assert error_of(refused) == (429, "EMC-1787", "insufficient_quota", "insufficient_quota")
        now_ms = SystemClock().now_ms()
        ends_ms = period_end_ms(Period.WEEK, now_ms)
        assert ends_ms is not None
        assert abs(int(refused.headers["retry-after"]) - (ends_ms - now_ms) / 1000) < 30
        shown = await holder.show()
        assert shown["spent_micro"] == str(4 * EMBEDDING_MICRO)
        assert shown["left_micro"] == str(1_200_000 - 4 * EMBEDDING_MICRO)
        assert shown["resets_at_ms"] in (ends_ms, period_end_ms(Period.WEEK, now_ms + 30_000))
        await holder.set(period="none")
        assert "retry-after" not in (await holder.ask()).headers
        await holder.set(budget_micro=None)
        assert (await holder.ask()).status == 200
        assert (await holder.show())["limits"]["period"] == "none"


# --- budgets under load ----------------------------------------------------------


async def test_500_calls_at_once_get_exactly_what_the_budget_pays(tmp_path: Path) -> None:
    """To the micro-credit: exactly N succeed, and what the key spent is the sum of their charges."""
    cost = None
    async with running_world(tmp_path) as world:
        await world.add_node(StubNode(node_key(0), answer=use_to_the_bound, keep_bodies=False, capacity=512))
        probe = await post(world)
        cost = int(probe.headers["x-emc-credits"].replace(".", ""))
        holder = await make_holder(world, budget_micro=str(100 * cost + cost - 1), period="month")
        answers: list[Response] = []

        async def ask() -> None:
            answers.append(await holder.ask())

        async with trio.open_nursery() as nursery:
            for _ in range(500):
                nursery.start_soon(ask)
        assert Counter(answer.status for answer in answers) == {200: 100, 429: 400}
        assert {error_of(answer)[1] for answer in answers if answer.status == 429} <= {"EMC-1787", "EMC-1788"}
        charged = sum(
            int(answer.headers["x-emc-credits"].replace(".", ""))
            for answer in answers
            if answer.status == 200
        )
        shown = await holder.show()
        assert charged == 100 * cost == int(shown["spent_micro"])
        assert (shown["left_micro"], shown["held_micro"]) == (str(cost - 1), "0")
        assert (await holder.get("/api/account/key")).json()["spent_micro"] == shown["spent_micro"]
        assert await world.ledger.read(find_key_imbalance) is None
        assert await world.ledger.read(find_imbalance) is None


async def test_nobody_is_refused_while_the_budget_has_room(tmp_path: Path) -> None:
    """Calls that use a twentieth of their bound: those that find all of it held wait for their turn."""
    async with running_world(tmp_path, credit_wait_s=30.0) as world:
        await world.add_node(StubNode(node_key(0), keep_bodies=False))
        bound = 1_100_000
        holder = await make_holder(world, budget_micro=str(bound + 59 * EMBEDDING_MICRO))
        statuses: Counter[int] = Counter()

        async def ask() -> None:
            statuses[(await holder.ask()).status] += 1

        async with trio.open_nursery() as nursery:
            for _ in range(60):
                nursery.start_soon(ask)
        assert statuses == {200: 60}
        assert (await holder.show())["spent_micro"] == str(60 * EMBEDDING_MICRO)


async def test_call_whose_credit_is_held_waits_a_moment_and_is_told_to_come_back(tmp_path: Path) -> None:
    going = trio.Event()
    async with running_world(tmp_path, credit_wait_s=0.2) as world:
        await world.add_node(StubNode(node_key(0), answer=when_told(going)))
        holder = await make_holder(world, budget_micro="1200000")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(holder.ask)
            await world.until(lambda: world.plane.gateway.active == 1)
            refused = await holder.ask()
            assert error_of(refused) == (429, "EMC-1788", "requests", "rate_limit_exceeded")
            assert refused.headers["retry-after"] == "1"
            assert error_of(await holder.ask({"model": MODEL, "input": "x" * 500}))[1] == "EMC-1787"
            going.set()
        assert (await holder.ask()).status == 200
        account = world.plane.book.find(world.account_id)
        assert (account.reserved_micro, account.calls, len(account.line)) == (0, 0, 0)


async def test_client_that_leaves_while_it_waits_leaves_the_line(tmp_path: Path) -> None:
    going = trio.Event()
    async with running_world(tmp_path, credit_wait_s=10.0) as world:
        await world.add_node(StubNode(node_key(0), answer=when_told(going)))
        holder = await make_holder(world, budget_micro="1200000")
        key = world.plane.keys.find_by_id(holder.key_id)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(holder.ask)
            await world.until(lambda: world.plane.gateway.active == 1)
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as leaving:
                    leaving.start_soon(holder.ask)
                    await world.until(lambda: len(key.meter.line) == 1)
                    scope.cancel()
            await world.until(lambda: len(key.meter.line) == 0)
            going.set()
        await world.until(lambda: key.meter.calls == 0)
        assert (await holder.ask()).status == 200


async def test_stream_is_cut_at_the_keys_budget_with_a_proper_end(tmp_path: Path) -> None:
    word = sse({**CHUNK, "choices": [{"index": 0, "delta": {"content": "w"}, "finish_reason": None}]})
    node = StubNode(node_key(0), answer=answer_stream([word] * 2000, (0, 2000)))
    limits: Any = {"budget_micro": "5000000", "period": "day", "tokens_per_minute": 10**6}
    async with limited(tmp_path, node, **limits) as holder:
        options = {"stream_options": {"include_usage": True}}
        answer = await holder.ask({**CHAT, **options}, "/v1/chat/completions")
        assert answer.headers["x-ratelimit-limit-tokens"] == "1000000"
        events = [part[6:] for part in answer.body.decode().split("\n\n") if part]
        assert events[-1] == "[DONE]"
        usage, last = json.loads(events[-2]), json.loads(events[-3])
        assert last["choices"][0]["finish_reason"] == "length"
        assert 0 < usage["usage"]["completion_tokens"] < 2000
        shown = await holder.show()
        assert 0 < int(shown["spent_micro"]) <= 5_000_000
        assert shown["held_micro"] == "0"
        assert await holder.world.ledger.read(find_key_imbalance) is None


async def test_stream_with_less_than_its_bound_leaves_room_for_others(tmp_path: Path) -> None:
    """It holds what it needs, not all there is: a whole call goes on beside it."""
    streaming = answer_stream(chat_events(["w"] * 300), (7, 300), pause_s=0.02)

    async def answer(node: StubNode, call: Any, meta: Any) -> None:
        await (streaming if meta.stream else answer_embedding)(node, call, meta)

    node = StubNode(node_key(0), answer=answer)
    async with limited(tmp_path, node, budget_micro="9000000") as holder:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(holder.ask, CHAT, "/v1/chat/completions")
            await holder.world.until(lambda: holder.world.plane.gateway.active == 1)
            for _ in range(5):
                assert (await holder.ask()).status == 200
            nursery.cancel_scope.cancel()


async def test_spent_of_the_period_survives_a_restart(tmp_path: Path) -> None:
    async with limited(tmp_path, budget_micro="1200000", period="month", requests_per_minute=100) as holder:
        for _ in range(4):
            assert (await holder.ask()).status == 200
        before = await holder.show()
    async with running_world(tmp_path) as world:
        await world.add_node(StubNode(node_key(0)))
        holder.world = world
        after = await holder.show()
        assert {**before, "requests_left": 100} == {**after, "requests_left": 100}
        assert error_of(await holder.ask())[1] == "EMC-1787"
        own = (await holder.get("/api/account/key")).json()
        assert own["spent_micro"] == before["spent_micro"]
        assert own["last_used_at_ms"] == before["last_used_at_ms"] > 0


# --- the operator ------------------------------------------------------------------


async def test_holder_sees_its_own_limits_and_what_is_left(tmp_path: Path) -> None:
    limits: Any = {"budget_micro": "2000000", "period": "day", "tokens_per_minute": 1000, "parallel_calls": 3}
    async with limited(tmp_path, **limits) as holder:
        await holder.ask()
        own = (await holder.get("/api/account/key")).json()
        assert own["key_id"] == holder.key_id
        assert {name: own["limits"][name] for name in limits} == limits
        assert (own["spent_micro"], own["left_micro"]) == ("50000", "1950000")
        assert own["tokens_left"] >= 995
        assert own["calls_in_flight"] == 0
        free = Holder(holder.world, {"key_id": "", "api_key": holder.world.api_key})
        assert (await free.get("/api/account/key")).json()["left_micro"] is None
        assert (await request("GET", holder.world.url + "/api/account/key")).status == 401


async def test_scopes_hold_for_single_keys(tmp_path: Path) -> None:
    async with limited(tmp_path) as holder:
        path = f"/admin/api-keys/{holder.key_id}"
        assert (await admin(holder.world, "GET", path, token=READ_TOKEN)).status == 200
        assert (await admin(holder.world, "PATCH", path, {}, token=READ_TOKEN)).status == 403
        assert (await admin(holder.world, "GET", "/admin/api-keys/key_none")).status == 404
        assert (await admin(holder.world, "PATCH", "/admin/api-keys/key_none", {})).status == 404


@pytest.mark.parametrize(
    ("field", "settings"),
    [
        ("requests_per_minute", {"requests_per_minute": 0}),
        ("models", {"models": ["a*b"]}),
        ("budget_micro", {"budget_micro": "-1"}),
        ("budget_micro", {"budget_micro": "1.5"}),
        ("period", {"period": "day"}),
        ("expires_in_s", {"expires_in_s": 5, "expires_at_ms": 5}),
        ("expires_at_ms", {"expires_in_s": 10**18}),
    ],
)
async def test_wrong_settings_are_refused_and_change_nothing(
    tmp_path: Path, field: str, settings: dict[str, Any]
) -> None:
    async with limited(tmp_path, parallel_calls=7) as holder:
        answer = await holder.set(**settings)
        assert error_of(answer)[:2] == (400, "EMC-1741")
        assert answer.json()["error"]["param"] == field
        for body in ({"rpm": 5}, {"period": "year"}, {"parallel_calls": "many"}, {"label": None}):
            assert (await holder.set(**body)).status == 400
        shown = await holder.show()
        assert shown["limits"] | {"parallel_calls": None} == {
            "models": [], "expires_at_ms": None, "requests_per_minute": None, "tokens_per_minute": None,
            "parallel_calls": None, "budget_micro": None, "period": "none",
        }  # fmt: skip
        assert shown["limits"]["parallel_calls"] == 7
        made = await admin(holder.world, "POST", "/admin/api-keys", {"account_name": "new name", **settings})
        assert made.status == 400
        accounts = (await admin(holder.world, "GET", "/admin/accounts")).json()["accounts"]
        assert [account["name"] for account in accounts] == ["user"]


async def test_commands_make_limit_show_and_lift(tmp_path: Path) -> None:
    async with running_world(tmp_path) as world:
        run = partial(
            run_command, api_key_command, EMCD_ADMIN_TOKEN=ADMIN_TOKEN, EMCD_ADMIN_URL=world.admin_url
        )
        made = await run(
            "create", "ada", "--label", "x", "--models", "llama*,bge", "--expires", "30d", "--rpm", "60",
            "--tpm", "100000", "--parallel", "8", "--budget", "50.5", "--period", "month", "--json",
        )  # fmt: skip
        assert made.exit_code == 0, made.output
        key = json.loads(made.output)
        assert key["limits"]["models"] == ["llama*", "bge"]
        assert key["limits"]["budget_micro"] == "50500000"
        shown = await run("show", key["key_id"])
        assert "60 requests a minute; 100,000 tokens a minute; 8 calls at a time" in shown.output
        assert "budget 50.500000 credits this month" in shown.output
        lifted = await run(
            "set", key["key_id"], "--rpm", "none", "--models", "none", "--expires", "none", "--budget", "none",
            "--json",
        )  # fmt: skip
        limits = json.loads(lifted.output)["limits"]
        assert limits["tokens_per_minute"] == 100000
        assert (limits["requests_per_minute"], limits["models"], limits["period"]) == (None, [], "none")
        dated = await run("set", key["key_id"], "--expires", "2030-01-31", "--label", "y", "--json")
        assert json.loads(dated.output)["limits"]["expires_at_ms"] == 1_896_048_000_000
        listed = await run("list")
        assert "expires 2030-01-31T00:00:00Z" in listed.output
        assert "  y" in listed.output
        assert key["api_key"] not in listed.output
        for wrong in (["--rpm", "0"], ["--rpm", "x"], ["--budget", "0.0000001"], ["--expires", "soon"], []):
            failed = await run("set", key["key_id"], *wrong)
            assert getattr(failed.exception, "code", "") == "EMC-1773", wrong
