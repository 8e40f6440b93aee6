"""Streams from an engine to a client and back: what leaving, running dry and breaking do, and who is paid."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from emcd.errors import RecoverableError
from emcd.net.http_stream import stream
from emcd.proto.records import CallStatus
from emcd_hub.billing.queries import find_imbalance
from tests.support.hub_world import fetch_receipt, node_key
from tests.support.openai_world import OpenAIWorld, openai_world
from tests.support.toy_engine import (
    CHAT_EVENTS,
    DONE,
    MODEL,
    SOUND,
    USAGE_EVENT,
    response_events,
)

CHAT = "/v1/chat/completions"
RESPONSES = "/v1/responses"
SPEECH = "/v1/audio/speech"


def chat(**fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": "count"}], "stream": True, **fields}


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[OpenAIWorld]:
    async with openai_world(tmp_path, granted_micro=10**9) as made:
        yield made


async def settled(world: OpenAIWorld) -> None:
    await world.hub.until(lambda: world.hub.plane.gateway.active == 0)
    assert await world.hub.ledger.read(find_imbalance) is None


async def test_chat_passes_byte_for_byte_and_usage_only_to_who_asked(world: OpenAIWorld) -> None:
    _, _, asked = await world.read(CHAT, chat(stream_options={"include_usage": True}))
    assert asked == b"".join([*CHAT_EVENTS, USAGE_EVENT, DONE])
    _, _, plain = await world.read(CHAT, chat())
    assert plain == b"".join([*CHAT_EVENTS, DONE])
    assert all(seen.json()["stream_options"]["include_usage"] for seen in world.engine.seen)
    one, other = await world.rows()
    assert one.delivery.credits_micro == other.delivery.credits_micro == 150_000


async def test_response_passes_byte_for_byte_and_is_not_told_to_report_usage(world: OpenAIWorld) -> None:
    _, headers, body = await world.read(RESPONSES, {"model": MODEL, "input": "x", "stream": True})
    assert body == b"".join(response_events())
    assert headers["content-type"] == "text/event-stream"
    assert world.engine.seen[0].json() == {"model": MODEL, "input": "x", "stream": True}
    (row,) = await world.rows()
    assert (row.status, row.delivery.credits_micro) == (CallStatus.OK, 150_000)


async def test_end_of_a_response_waits_for_the_record(world: OpenAIWorld) -> None:
    for number in range(1, 4):
        await world.read(RESPONSES, {"model": MODEL, "input": "x", "stream": True})
        assert len(await world.rows()) == number


async def test_client_that_leaves_stops_the_engine_within_a_second_and_its_node_is_paid(
    world: OpenAIWorld,
) -> None:
    world.engine.endless = True
    headers = {"authorization": f"Bearer {world.hub.api_key}"}
    body = msgspec.json.encode(chat())
    async with stream("POST", world.hub.url + CHAT, headers=headers, body=body) as answer:
        received = b""
        async for piece in answer:
            received += piece
            if received.count(b'"choices"') >= 20:
                break
        call_id = answer.headers["x-emc-call-id"]
    with trio.fail_after(1):
        while not world.engine.left_at:
            await trio.sleep(0.01)
    await settled(world)
    (row,) = await world.rows()
    assert row.status is CallStatus.CANCELLED
    assert row.receipt is not None
    assert 20 <= row.receipt.output_tokens <= world.engine.sent
    prompt = len(world.engine.seen[0].body) // 6
    assert (row.receipt.http_status, row.receipt.input_tokens) == (200, prompt)
    assert row.delivery.credits_micro == 10_000 * (prompt + row.receipt.output_tokens)
    proven = await fetch_receipt(world.hub, call_id)  # the node has signed it: the call counts in its round
    assert proven.receipt_proof is not None


async def test_chat_that_stops_without_its_end_is_an_error_event(world: OpenAIWorld) -> None:
    world.engine.broken[CHAT.removeprefix("/v1")] = (200, "text/event-stream", [b": wait\n\n"] * 3)
    _, _, body = await world.read(CHAT, chat())
    assert b"EMC-1714" in body  # no end mark: the engine's stream stopped
    (row,) = await world.rows()
    assert (row.status, row.receipt, row.delivery.credits_micro) == (CallStatus.NODE_ERROR, None, 0)


async def test_stream_that_has_begun_outlives_a_lost_tunnel(world: OpenAIWorld) -> None:
    world.engine.endless = True
    headers = {"authorization": f"Bearer {world.hub.api_key}"}
    body = msgspec.json.encode(chat())
    async with stream("POST", world.hub.url + CHAT, headers=headers, body=body) as answer:
        pieces = aiter(answer)
        await anext(pieces)
        world.wire.cut()
        entry = world.hub.plane.board.find(node_key(0).address)
        await world.hub.until(lambda: not entry.live)
        sent = world.engine.sent
        await trio.sleep(1.5)  # longer than a call is waited for that nobody has seen anything of
        world.wire.mend()
        received = b""
        while received.count(b'"choices"') <= sent + 20:
            received += await anext(pieces)
    assert b"error" not in received
    await settled(world)
    (row,) = await world.rows()
    assert row.status is CallStatus.CANCELLED
    assert row.receipt is not None
    assert row.receipt.output_tokens >= received.count(b'"choices"')


async def test_budget_that_ends_cuts_the_stream_and_pays_the_node(tmp_path: Path) -> None:
    async with openai_world(tmp_path, granted_micro=2_500_000) as world:
        world.engine.endless = True
        _, _, body = await world.read(CHAT, chat(max_tokens=10_000))
        assert body.endswith(DONE)
        *_, last, _, _ = body.split(b"\n\n")
        assert msgspec.json.decode(last[6:])["choices"][0]["finish_reason"] == "length"
        await settled(world)
        (row,) = await world.rows()
        assert row.status is CallStatus.CAPPED
        assert row.receipt is not None
        assert row.receipt.output_tokens >= 20
        assert row.delivery.credits_micro <= 2_500_000
        granted, _ = await world.hub.balances()
        assert granted == 2_500_000 - row.delivery.credits_micro >= 0


async def test_response_whose_budget_ends_is_incomplete(tmp_path: Path) -> None:
    async with openai_world(tmp_path, granted_micro=1_600_000) as world:
        events = response_events()
        world.engine.broken["/responses"] = (200, "text/event-stream", [*events[:4], *[events[4]] * 500])
        _, _, body = await world.read(RESPONSES, {"model": MODEL, "input": "x", "stream": True})
        last = body.rstrip().rpartition(b"\n\n")[2]
        assert last.startswith(b"event: response.incomplete\n")
        response = msgspec.json.decode(last.partition(b"data: ")[2])["response"]
        assert (response["id"], response["status"]) == ("resp_1", "incomplete")
        (row,) = await world.rows()
        assert row.status is CallStatus.CAPPED


@pytest.mark.parametrize("events", [response_events()[:-1], [*response_events()[:4], b"data: [DO"]])
async def test_response_that_stops_without_its_end_is_an_error_event(
    world: OpenAIWorld, events: list[bytes]
) -> None:
    world.engine.broken["/responses"] = (200, "text/event-stream", events)
    _, _, body = await world.read(RESPONSES, {"model": MODEL, "input": "x", "stream": True})
    error = msgspec.json.decode(body.rpartition(b"data: ")[2])
    assert body.rstrip().rpartition(b"\n\n")[2].startswith(b"event: error\n")
    assert (error["type"], error["error"]["emc_code"]) == ("error", "EMC-1714")
    (row,) = await world.rows()
    assert (row.status, row.delivery.credits_micro) == (CallStatus.NODE_ERROR, 0)


async def test_engine_that_reports_an_error_is_not_charged_and_its_words_arrive(world: OpenAIWorld) -> None:
    failed = (
        b'event: response.failed\ndata: {"type":"response.failed","response":{"error":{"message":"oom"}}}\n\n'
    )
    world.engine.broken["/responses"] = (200, "text/event-stream", [*response_events()[:4], failed])
    _, _, body = await world.read(RESPONSES, {"model": MODEL, "input": "x", "stream": True})
    assert b"oom" in body
    assert b"EMC-1714" in body
    (row,) = await world.rows()
    assert (row.status, row.delivery.credits_micro) == (CallStatus.NODE_ERROR, 0)


async def test_sound_that_breaks_off_has_no_proper_end(world: OpenAIWorld) -> None:
    body = {"model": MODEL, "voice": "v", "input": "x"}
    status, headers, sound = await world.read(SPEECH, body)
    assert (status, headers["content-type"], sound) == (200, "audio/mpeg", SOUND)
    world.engine.cut = True
    with pytest.raises(RecoverableError) as caught:
        await world.read(SPEECH, body)
    assert caught.value.code == "EMC-1304"
    good, bad = await world.rows()
    assert (good.status, bad.status) == (CallStatus.OK, CallStatus.NODE_ERROR)
    assert good.delivery.credits_micro > bad.delivery.credits_micro == 0


async def test_speech_events_end_by_their_own_end(world: OpenAIWorld) -> None:
    body = {"model": MODEL, "voice": "v", "input": "x", "stream_format": "sse"}
    _, headers, events = await world.read(SPEECH, body)
    assert headers["content-type"] == "text/event-stream"
    assert b"speech.audio.done" in events
    (row,) = await world.rows()
    assert row.receipt is not None
    assert (row.receipt.input_tokens, row.receipt.output_tokens) == (11, 4)


async def test_trailer_tells_the_price_to_who_asks_for_it(world: OpenAIWorld) -> None:
    body = msgspec.json.encode(chat())
    for asks in (True, False):
        reader = await trio.open_tcp_stream("127.0.0.1", world.hub.role.ports["public"])
        head = (
            f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {world.hub.api_key}\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n" + ("TE: trailers\r\n" if asks else "")
        )
        await reader.send_all(head.encode() + b"\r\n" + body)
        received = b"".join([piece async for piece in reader])
        await reader.aclose()
        assert (b"x-emc-credits: 0.150000" in received.rpartition(b"\r\n0\r\n")[2].lower()) == asks
