"""Bodies with files at the hub's door: how large, what they cost at most, and what never reaches a node."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import openai
import pytest
import trio

from emcd.inference.manifest import EngineManifest
from emcd.net.http_client import Response
from emcd.proto.records import CallStatus, request_hash
from emcd_hub.billing.queries import find_imbalance
from tests.support.hub_world import StubNode, answer_with, fetch_receipt, node_key
from tests.support.openai_world import OpenAIWorld, openai_world
from tests.support.toy_engine import MODEL

TRANSCRIPTIONS = "/v1/audio/transcriptions"
IMAGES = "/v1/images/generations"
TYPE = "multipart/form-data; boundary=B"


def form(size: int = 100, **fields: str) -> bytes:
    texts = {"model": MODEL, **fields}
    parts = [f'--B\r\nContent-Disposition: form-data; name="{n}"\r\n\r\n{v}\r\n' for n, v in texts.items()]
    head = b'--B\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
    return "".join(parts).encode() + head + bytes(size) + b"\r\n--B--\r\n"


def error_of(answer: Response) -> tuple[int, str]:
    return answer.status, answer.json()["error"]["emc_code"]


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[OpenAIWorld]:
    async with openai_world(tmp_path, granted_micro=10**10) as made:
        yield made


async def test_file_of_25_megabytes_goes_through(world: OpenAIWorld) -> None:
    body = form((25 << 20) - 1000)
    answer = await world.post(TRANSCRIPTIONS, body, content_type=TYPE)
    assert (answer.status, answer.body) == (200, b'{"text":"a b","usage":{"type":"duration","seconds":9}}')
    (seen,) = world.engine.seen
    assert seen.body == body
    receipt = await fetch_receipt(world.hub, answer.headers["x-emc-call-id"])
    assert receipt.forward.request_hash == request_hash(TRANSCRIPTIONS, body, TYPE)


async def test_body_is_bounded_by_its_route(world: OpenAIWorld) -> None:
    def hear(client: openai.OpenAI) -> object:
        return client.audio.transcriptions.create(model=MODEL, file=("a.mp3", bytes(25 << 20)))

    def talk(client: openai.OpenAI) -> object:
        return client.responses.create(model=MODEL, input="x" * (5 << 20))

    for work, code in ((hear, "EMC-1332"), (talk, "EMC-1715")):  # the listener's word, and the route's
        with pytest.raises(openai.APIStatusError) as caught:
            await world.use(work)
        assert caught.value.status_code == 413
        assert code in caught.value.response.text
    assert world.engine.seen == []


async def test_body_of_unknown_length_is_bounded_while_it_comes(world: OpenAIWorld) -> None:
    stream = await trio.open_tcp_stream("127.0.0.1", world.hub.role.ports["public"])
    head = (
        f"POST {TRANSCRIPTIONS} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {world.hub.api_key}\r\n"
        f"Content-Type: {TYPE}\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    received = b""
    async with stream, trio.open_nursery() as nursery:

        async def send() -> None:
            with trio.move_on_after(20):
                try:
                    await stream.send_all(head.encode())
                    while True:
                        await stream.send_all(b"100000\r\n" + bytes(1 << 20) + b"\r\n")
                except trio.BrokenResourceError:
                    pass

        nursery.start_soon(send)
        with trio.fail_after(20):
            while b"\r\n\r\n" not in received:
                received += await stream.receive_some(65536)
        nursery.cancel_scope.cancel()
    assert b" 413 " in received.partition(b"\r\n")[0]


async def test_no_byte_of_a_body_is_read_without_a_key(world: OpenAIWorld) -> None:
    stream = await trio.open_tcp_stream("127.0.0.1", world.hub.role.ports["public"])
    head = (
        f"POST {TRANSCRIPTIONS} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer emc_sk_wrong\r\n"
        f"Content-Type: {TYPE}\r\nContent-Length: 20000000\r\nExpect: 100-continue\r\n\r\n"
    )
    async with stream:
        await stream.send_all(head.encode())
        with trio.fail_after(5):
            received = await stream.receive_some(65536)
    assert received.startswith(b"HTTP/1.1 401 ")


async def test_files_at_once_are_bounded_together(tmp_path: Path) -> None:
    async with openai_world(tmp_path, form_bytes=1 << 20, bodies_bytes=1 << 20) as world:
        stream = await trio.open_tcp_stream("127.0.0.1", world.hub.role.ports["public"])
        head = (
            f"POST {TRANSCRIPTIONS} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {world.hub.api_key}\r\n"
            f"Content-Type: {TYPE}\r\nContent-Length: {1 << 20}\r\n\r\n"
        )
        async with stream:
            await stream.send_all(head.encode())
            with trio.fail_after(10):
                while True:
                    busy = await world.post(TRANSCRIPTIONS, form(), content_type=TYPE)
                    if busy.status != 200:
                        break
            assert (*error_of(busy), busy.headers["retry-after"]) == (429, "EMC-1709", "5")
        with trio.fail_after(10):  # the one that held it all has left
            while (await world.post(TRANSCRIPTIONS, form(), content_type=TYPE)).status != 200:
                await trio.sleep(0.01)


@pytest.mark.parametrize("content_type", ["application/json", "multipart/form-data", "text/plain"])
async def test_form_without_its_content_type_is_415(world: OpenAIWorld, content_type: str) -> None:
    answer = await world.post(TRANSCRIPTIONS, form(), content_type=content_type)
    assert error_of(answer) == (415, "EMC-1702")


async def test_form_that_can_be_read_in_two_ways_reaches_no_node(world: OpenAIWorld) -> None:
    for body in (
        form() + b"--B--\r\n",
        form(model="x\r\n--B \r\n\r\ny"),
        form().replace(b"--B\r\nContent", b"--B\nContent", 1),
        form().replace(b'name="model"', b'name="model"; name="other"'),
        form() .replace(b"--B--", b'--B\r\nContent-Disposition: form-data; name="model"\r\n\r\nother\r\n--B--'),
    ):  # fmt: skip
        assert error_of(await world.post(TRANSCRIPTIONS, body, content_type=TYPE)) == (400, "EMC-1702")
    assert world.engine.seen == []


async def test_file_reserves_what_its_rule_says_and_no_absurd_sum(world: OpenAIWorld) -> None:
    held: list[int] = []
    book = world.hub.plane.book
    reserve = book.reserve

    def watched(key: object, wanted: int, *args: object, **more: object) -> object:
        held.append(wanted)
        return reserve(key, wanted, *args, **more)

    book.reserve = watched
    await world.post(TRANSCRIPTIONS, form(24 << 20), content_type=TYPE)
    price = world.hub.plane.in_force.price(
        next(iter(world.hub.plane.board.list_models()[MODEL])).model_hash, 0
    )
    tokens = held[0] * 1_000_000 // price.input_micro_per_mtok
    assert tokens < 600_000


async def test_engine_that_counts_more_than_was_reserved_is_paid_what_was_reserved(
    world: OpenAIWorld,
) -> None:
    usage = {"input_tokens": 10**6, "output_tokens": 10**6, "total_tokens": 2 * 10**6}
    body = msgspec.json.encode({"created": 1, "data": [], "usage": usage})
    world.engine.broken["/images/generations"] = (200, "application/json", [body])
    answer = await world.post(IMAGES, {"model": MODEL, "prompt": "x"})
    assert (answer.status, answer.body) == (200, body)
    (row,) = await world.rows()
    assert row.receipt is not None
    assert (row.status, row.receipt.output_tokens) == (CallStatus.CAPPED, 10**6)
    assert 0 < row.delivery.credits_micro < 200_000_000
    assert await world.hub.ledger.read(find_imbalance) is None


async def test_node_that_states_a_usage_its_answer_does_not_is_not_believed(world: OpenAIWorld) -> None:
    """A sound without a usage is paid by the call, whatever a receipt says."""
    lying = StubNode(node_key(2), answer=answer_with(200, b'{"text":"a"}', (5, 5)))
    lying.manifests = (EngineManifest(name="lie", endpoints=("transcriptions",)),)
    await world.hub.add_node(lying)
    answer = await world.post(TRANSCRIPTIONS, form(model="lie"), content_type=TYPE)
    assert error_of(answer) == (502, "EMC-1710")
    (row,) = await world.rows()
    assert (row.status, row.delivery.credits_micro) == (CallStatus.NODE_ERROR, 0)


async def test_model_is_served_only_where_its_manifest_says(world: OpenAIWorld) -> None:
    """An engine that says nothing serves chat, completions and embeddings."""
    await world.hub.add_node(StubNode(node_key(1)))
    answer = await world.post(TRANSCRIPTIONS, form(model="stub-model"), content_type=TYPE)
    assert error_of(answer) == (404, "EMC-1707")
    assert (await world.post("/v1/embeddings", {"model": "stub-model", "input": "x"})).status == 200


async def test_wish_of_the_headers_goes_with_a_form_and_never_to_the_node(world: OpenAIWorld) -> None:
    good = await world.post(TRANSCRIPTIONS, form(), content_type=TYPE, x_emc_provider=node_key(0).address)
    assert (good.status, good.headers["x-emc-node"]) == (200, node_key(0).address)
    away = await world.post(TRANSCRIPTIONS, form(), content_type=TYPE, x_emc_provider=node_key(5).address)
    assert away.status == 503
    refused = await world.post(TRANSCRIPTIONS, form(provider="x"), content_type=TYPE)
    assert error_of(refused) == (400, "EMC-1702")
    assert all(b"0x" not in seen.body for seen in world.engine.seen)
