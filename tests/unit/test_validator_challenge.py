"""Challenged receipts: who may challenge, what a node is told, what it may show, and to whom."""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
import trio.testing
from starlette.requests import Request
from starlette.responses import Response

from emcd.ledger import Ledger
from emcd.proto.json_form import from_json, to_json
from emcd.proto.messages import Challenge
from emcd.proto.openai import Endpoint, read_request
from emcd.proto.records import CallStatus, format_call_id
from emcd.proto.signing import require_signer
from emcd.proto.watch import knowledge_hash
from emcd.testing import make_key, temporary_ledger
from emcd_validator.challenge_page import ChallengePages
from emcd_validator.queries import challenges
from emcd_validator.role import SPEC
from tests.support.validator_world import Call, FakeHub, Parts, make_call, make_parts, make_world, set_clock

NODE = make_key("node-0")
BODY = b'{"input":"what is a secret?","model":"all-MiniLM-L6-v2"}'
PATH = "/v1/embeddings"
UPSTREAM = read_request(Endpoint.EMBEDDINGS, BODY, evidence=True).body
ANSWER = b'{"object":"list","data":[]}'
INDEX = 20


@dataclass
class World:
    hub: FakeHub
    parts: Parts
    pages: ChallengePages
    call: Call

    async def post(self, page: Any, source: str = "10.0.0.1") -> tuple[int, Any]:
        return await read(self.pages._challenge(make_request(page, source)))

    async def listed(self, node: str = NODE.address) -> list[Any]:
        answer = await self.pages._list(make_request(None, node=node))
        return list(msgspec.json.decode(bytes(answer.body))["challenges"])

    async def open(self, response: bytes, call_id: bytes | None = None) -> tuple[int, Any]:
        page = {"status": 200, "content_type": "application/json", "response": b64encode(response).decode()}
        name = format_call_id(call_id or self.call.records.forward.call_id)
        return await read(self.pages._open(make_request(page, call_id=name)))

    async def state(self, node: str = NODE.address) -> tuple[int, Any]:
        name = format_call_id(self.call.records.forward.call_id)
        return await read(self.pages._state(make_request(None, node=node, call_id=name)))

    def page(self, **changes: Any) -> dict[str, Any]:
        shown = {"receipt": to_json(self.call.receipt), "path": PATH, "request": b64encode(BODY).decode()}
        return {**shown, **changes}


async def read(answer: Any) -> tuple[int, Any]:
    response: Response = await answer
    return response.status_code, msgspec.json.decode(bytes(response.body))


def make_request(page: Any, source: str = "10.0.0.1", **path_params: str) -> Request:
    body = page if isinstance(page, bytes) else msgspec.json.encode(page)

    async def receive() -> dict[str, Any]:
        await trio.lowlevel.checkpoint()
        return {"type": "http.request", "body": body, "more_body": False}

    scope = {
        "type": "http",
        "method": "POST",
        "headers": [],
        "client": (source, 5),
        "path_params": path_params,
    }
    return Request(scope, receive)


@pytest.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[Ledger]:
    async with temporary_ledger(tmp_path, {"validator": SPEC.migrations}) as opened:
        yield opened


@pytest.fixture
async def world(ledger: Ledger, tmp_path: Path) -> World:
    hub = make_world(("validator-1",), round_s=20)
    at_ms = hub.deployment.params.round_start_ms(INDEX) + 1000
    set_clock(hub, at_ms + 2000)
    parts = make_parts("validator-1", ledger, hub, tmp_path)
    call = make_call(hub.deployment, NODE, UPSTREAM, ANSWER, at_ms)
    return World(hub, parts, ChallengePages(parts.watch.challenges), call)


async def test_challenge_of_who_knows_the_request_is_told_to_the_node_without_it(world: World) -> None:
    status, page = await world.post(world.page())
    assert (status, page["state"], page["node"]) == (202, "open", NODE.address)
    (item,) = await world.listed()
    assert b"secret" not in msgspec.json.encode(item)
    challenge = from_json(Challenge, item["challenge"])
    validator = world.parts.validator
    require_signer(validator.domain, challenge, bytes.fromhex(item["signature"][2:]), validator.address)
    call_id = world.call.records.forward.call_id
    assert challenge.knowledge == knowledge_hash(validator.address, NODE.address, call_id, PATH, UPSTREAM)
    assert challenge.deadline_ms > validator.now_ms()
    assert await world.listed(make_key("node-1").address) == []


async def test_opening_with_the_signed_answer_is_shown_to_who_shows_the_request_again(world: World) -> None:
    await world.post(world.page())
    assert await world.open(ANSWER) == (202, {"state": "opened"})
    assert await world.listed() == []
    status, page = await world.post(world.page())
    assert (status, page["state"], b64decode(page["response"])) == (200, "opened", ANSWER)
    assert "response" not in (await world.state())[1]
    assert (await world.open(ANSWER))[0] == 200
    other = read_request(Endpoint.EMBEDDINGS, BODY.replace(b"what", b"who"), evidence=True).body
    status, page = await world.post(world.page(request=b64encode(other).decode()))
    assert status == 400
    assert "response" not in page


async def test_opening_with_another_answer_is_refused(world: World) -> None:
    await world.post(world.page())
    for response in (b"", ANSWER + b" ", b"x"):
        status, page = await world.open(response)
        assert (status, page["code"]) == (400, "EMC-1873")
    assert (await world.state())[1]["state"] == "open"


async def test_opening_that_nobody_asked_for_is_not_read(world: World) -> None:
    async def receive() -> dict[str, Any]:
        raise AssertionError("the body was read")

    scope = {"type": "http", "method": "POST", "headers": [], "client": ("10.0.0.9", 5)}
    scope["path_params"] = {"call_id": format_call_id(b"\1" * 16)}
    assert (await world.pages._open(Request(scope, receive))).status_code == 404


async def test_receipt_not_opened_in_time_is_unanswered_for_good(world: World) -> None:
    await world.post(world.page())
    deadline = from_json(Challenge, (await world.listed())[0]["challenge"]).deadline_ms
    set_clock(world.hub, deadline)
    assert await world.listed() == []
    assert (await world.state())[1]["state"] == "unanswered"
    assert (await world.open(ANSWER))[0] == 410
    assert (await world.state())[1]["state"] == "unanswered"
    await world.parts.watch.challenges.tell_expired()
    assert (await world.state(make_key("node-1").address))[0] == 404


async def test_challenge_of_what_is_no_call_is_refused(world: World) -> None:
    deployment = world.hub.deployment
    at_ms = deployment.params.round_start_ms(INDEX) + 1000
    stranger = make_call(deployment, NODE, UPSTREAM, ANSWER, at_ms, hub=make_key("other hub"))
    unsigned = make_call(deployment, NODE, UPSTREAM, ANSWER, at_ms, receipt_key=make_key("node-1"))
    status = CallStatus.OK
    old = make_call(deployment, NODE, UPSTREAM, ANSWER, at_ms - 13 * 20_000, status=status)
    bare = {**to_json(world.call.receipt), "receipt": None, "receipt_proof": None}
    pages = [
        world.page(request=b64encode(b'{"input":"else","model":"all-MiniLM-L6-v2"}').decode()),
        world.page(path="/v1/chat/completions"),
        world.page(path="/nowhere"),
        world.page(receipt=to_json(stranger.receipt)),
        world.page(receipt=to_json(unsigned.receipt)),
        world.page(receipt=to_json(old.receipt)),
        world.page(receipt=bare),
        world.page(receipt={}),
        {},
        b"nonsense",
    ]
    for number, page in enumerate(pages):
        status_code, answer = await world.post(page, source=f"10.0.{number}.1")
        assert status_code == 400, (number, answer)
    assert await world.listed() == []


class SlowBody:
    """A request whose body does not come; `is_read` once somebody waits for it."""

    def __init__(self, source: str, **path_params: str) -> None:
        self.request = make_request(None, source, **path_params)
        self.request._receive = self._receive
        self.is_read = trio.Event()

    async def _receive(self) -> dict[str, Any]:
        self.is_read.set()
        await trio.sleep_forever()
        raise AssertionError


async def test_slow_challenges_and_openings_of_others_stop_no_opening(
    world: World, nursery: trio.Nursery
) -> None:
    await world.post(world.page())
    call_id = format_call_id(world.call.records.forward.call_id)
    found = []

    async def challenge(body: SlowBody) -> None:
        found.append((await world.pages._challenge(body.request)).status_code)

    async def opening(body: SlowBody) -> None:
        found.append((await world.pages._open(body.request)).status_code)

    slow = [SlowBody(f"10.1.0.{number}") for number in range(8)]
    openings = [SlowBody("10.2.0.1", call_id=call_id) for _ in range(2)]
    for body in slow:
        nursery.start_soon(challenge, body)
    for body in openings:
        nursery.start_soon(opening, body)
    with trio.fail_after(5):
        for body in (*slow, *openings):
            await body.is_read.wait()
    await challenge(SlowBody("10.1.0.1"))
    await challenge(SlowBody("10.1.0.9"))
    await opening(SlowBody("10.2.0.1", call_id=call_id))
    assert found == [503, 503, 503]
    assert await world.open(ANSWER) == (202, {"state": "opened"})


async def test_source_has_one_challenge_read_at_a_time(world: World, nursery: trio.Nursery) -> None:
    slow = SlowBody("10.1.0.1")
    nursery.start_soon(world.pages._challenge, slow.request)
    await slow.is_read.wait()
    assert (await world.post(world.page(), source="10.1.0.1"))[0] == 503
    assert (await world.post(world.page(), source="10.1.0.2"))[0] == 202


async def test_body_that_does_not_come_gives_its_place_back(
    world: World, autojump_clock: trio.testing.MockClock
) -> None:
    await world.post(world.page())
    call_id = format_call_id(world.call.records.forward.call_id)
    for _ in range(10):
        answer = await world.pages._challenge(SlowBody("10.1.0.1").request)
        assert answer.status_code == 408
        answer = await world.pages._open(SlowBody("10.1.0.1", call_id=call_id).request)
        assert answer.status_code == 408
    assert (await world.post(world.page(), source="10.1.0.1"))[0] == 202
    assert await world.open(ANSWER) == (202, {"state": "opened"})


async def test_source_that_challenges_nothing_is_not_listened_to(world: World) -> None:
    for _ in range(30):
        assert (await world.post(b"nonsense"))[0] == 400
    assert (await world.post(world.page()))[0] == 429
    assert (await world.post(world.page(), source="10.9.9.9"))[0] == 202


async def test_challenges_are_bounded_per_node(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(challenges, "MAX_PER_NODE", 2)
    at_ms = world.hub.deployment.params.round_start_ms(INDEX) + 1000
    found = []
    for _ in range(3):
        call = make_call(world.hub.deployment, NODE, UPSTREAM, ANSWER, at_ms)
        found.append((await world.post(world.page(receipt=to_json(call.receipt))))[0])
    assert found == [202, 202, 409]
    assert (await world.post(world.page(receipt=to_json(call.receipt))))[0] == 409


async def test_challenge_filed_twice_is_one(world: World) -> None:
    first = await world.post(world.page())
    set_clock(world.hub, world.parts.validator.now_ms() + 1000)
    assert await world.post(world.page()) == first
    assert len(await world.listed()) == 1
