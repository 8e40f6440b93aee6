"""Can a node tell probes from users' calls? A classifier is trained on what nodes get, and must not.

The corpus is built of other topics than the users' texts come from, and whoever is held out has topics
that nobody in training had. Each test of a mark breaks the likeness on purpose and sees the classifier
find it: else it would prove nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import openai
import pytest
import trio

from emcd.accounting.assignment import draw_time_ms
from emcd.accounting.receipt import CallReceipt
from emcd.inference.minilm import MINILM_MANIFEST
from emcd.net.tunnel import IncomingCall
from emcd.proto.control import CallMeta
from emcd.proto.hashing import keccak
from emcd.proto.openai import ENDPOINTS, read_request
from emcd.proto.params import mainnet_params
from emcd_validator.corpus import Leaf
from emcd_validator.corpus_text import generate_leaves
from emcd_validator.hub_client import HubAnswer, HubClient
from emcd_validator.plan import Draws, Slot
from emcd_validator.probe_request import build_probe, upstream_hash
from emcd_validator.statement import read_receipt
from tests.support.call_classifier import FEATURES, measure_accuracy, measure_values
from tests.support.evidence_node import TEXT_MANIFEST, answer_with_evidence
from tests.support.hub_world import StubNode, node_key, running_world
from tests.support.seen_calls import BEACON, NODE, count_tokens, list_leaves, see_probes
from tests.support.text_pool import deal_topics
from tests.support.user_calls import SeenCall, UserWriter

CHANCE, MOST = 0.5, 0.55
CONTEXT = 2048
MANIFEST = msgspec.structs.replace(TEXT_MANIFEST, context_tokens=CONTEXT)
SHORT = 300
DEALS = (1, 2, 3)
"""Of topics to both sides: two sets of some hundred topics differ by chance, too."""
QUICK_FEATURES = ("form", "shape", "words")


@cache
def make_leaves(count: int, topics: int, deal: int = 1) -> tuple[tuple[Leaf, str], ...]:
    return tuple(list_leaves(deal_topics(deal, topics)[0], count, Random(deal)))


@cache
def make_users(count: int, topics: int, endpoint: str = "text", deal: int = 1) -> tuple[SeenCall, ...]:
    writer = UserWriter(deal_topics(deal, topics)[1], Random(-deal), MANIFEST.name, MINILM_MANIFEST.name)
    if endpoint == "embedding":
        return tuple(writer.write_embeddings(count))
    return tuple(writer.write_texts(count, CONTEXT))


def short_users() -> tuple[SeenCall, ...]:
    return make_users(SHORT, 200)


def short_probes() -> list[SeenCall]:
    return see_probes(make_leaves(SHORT, 200), MANIFEST)


def allow(calls: int) -> float:
    """What chance plus 5 points may look like with so few calls: two standard deviations more."""
    return MOST + 2 * math.sqrt(0.25 / calls)


def change(call: SeenCall, edit: Callable[[dict[str, Any]], object]) -> SeenCall:
    table = msgspec.json.decode(call.body)
    edit(table)
    return SeenCall(call.path, msgspec.json.encode(table), call.topic)


@pytest.mark.parametrize("name", QUICK_FEATURES)
def test_probes_to_a_text_model_are_not_told_from_users(name: str) -> None:
    assert measure_accuracy(short_probes(), short_users(), FEATURES[name]) < allow(2 * SHORT)


def test_probes_to_an_embedding_model_are_not_told_from_users() -> None:
    probes = see_probes(make_leaves(SHORT, 200), MINILM_MANIFEST)
    users = make_users(SHORT, 200, "embedding")
    for name in ("form", "shape"):
        assert measure_accuracy(probes, users, FEATURES[name]) < allow(2 * SHORT)


@pytest.mark.parametrize(
    "edit",
    [
        lambda table: table.update(top_k=0),
        lambda table: table.update(temperature=0),
        lambda table: table.update(seed=table["seed"] % 2**32),
        lambda table: table.pop("logprobs"),
        lambda table: table.update(max_tokens=64),
    ],
    ids=["extra field", "always T=0", "short seed", "no evidence", "one length"],
)
def test_mark_in_the_parameters_is_found(edit: Callable[[dict[str, Any]], object]) -> None:
    marked = [change(call, edit) for call in short_probes()]
    assert measure_accuracy(marked, short_users(), FEATURES["form"]) > MOST + 0.1


def test_mark_in_the_order_of_fields_is_found_without_the_hubs_transform() -> None:
    draw = Random(3)

    def shuffle(table: dict[str, Any]) -> None:
        fields = list(table.items())
        draw.shuffle(fields)
        table.clear()
        table.update(fields)

    mixed = [change(call, shuffle) for call in short_users()]
    assert measure_accuracy(short_probes(), mixed, FEATURES["form"]) > 0.75


def test_mark_of_a_generated_corpus_is_found() -> None:
    """Why generated leaves are called weak: another corpus of the generator teaches it."""
    leaves = [(leaf, f"generated {n}") for n, leaf in enumerate(generate_leaves(SHORT, Random(5)))]
    probes = see_probes(leaves, MANIFEST)
    for name in ("shape", "words"):
        assert measure_accuracy(probes, short_users(), FEATURES[name]) > 0.8


def test_mark_of_texts_that_begin_where_files_begin_is_found() -> None:
    texts = deal_topics(1, 200)[0]
    bodies = [msgspec.json.encode({"prompt": text.text[:300]}) for text in texts]
    heads = [SeenCall("/v1/completions", body, text.topic) for body, text in zip(bodies, texts, strict=True)]
    users = [call for call in short_users() if call.path == "/v1/completions"]
    assert measure_accuracy(heads[:SHORT], users, FEATURES["shape"]) > MOST + 0.1


def list_times(
    rounds: int, sessions: int, window: tuple[float, float] = (0, 1)
) -> tuple[list[list[float]], list[list[float]]]:
    """(time in the round, gap to the call before, gap to the one after) of probes and of users' calls.

    Users come in sessions: a first call at any time, others some seconds or minutes after. Probes come when
    the plan says, their time moved into `window`, in shares of the round.
    """
    draw, params = Random(4), mainnet_params(0)
    length = params.round_s
    probes: list[list[float]] = []
    users: list[list[float]] = []
    for number in range(rounds):
        calls: list[tuple[float, bool]] = []
        for _ in range(draw.randint(sessions // 2, sessions * 3 // 2) * 3):
            at = draw.uniform(-length, 2 * length)
            for _ in range(draw.choice((1, 1, 1, 2, 3, 6))):
                calls.append((at, False))
                at += draw.expovariate(1 / 40)
        for slot in range(2):
            share = draw_time_ms(keccak(b"%d" % number), BEACON, NODE, slot, params, 0) / 1000 / length
            calls.append((length * (window[0] + (window[1] - window[0]) * share), True))
        calls.sort()
        for (before, _), (at, is_probe), (after, _) in zip(calls, calls[1:], calls[2:], strict=False):
            if 0 <= at < length:
                (probes if is_probe else users).append([at / length, at - before, after - at])
    return probes, draw.sample(users, len(probes))


def test_probe_times_to_a_busy_node_are_not_told_from_users() -> None:
    probes, users = list_times(300, 300)
    assert measure_values(probes, users) < allow(2 * len(probes))


def test_mark_of_a_call_alone_is_found_where_users_come_in_sessions_and_seldom() -> None:
    """A limit, and written down as one: a node with some twenty calls in two hours sees who comes alone."""
    probes, users = list_times(600, 10)
    assert measure_values(probes, users) > MOST + 0.1


def test_mark_of_a_narrow_window_in_the_round_is_found() -> None:
    """Half of the round free of probes: cheating in the other half would be safe."""
    probes, users = list_times(200, 100, (0.3, 0.8))
    assert measure_values(probes, users) > MOST + 0.1


@pytest.mark.deep
@pytest.mark.parametrize("endpoint", ["text", "embedding"])
@pytest.mark.parametrize("name", list(FEATURES))
def test_probes_are_not_told_from_users_by_many_calls(
    name: str, endpoint: str, record_property: Callable[[str, object], None]
) -> None:
    count, topics = 1_500, 1_000
    manifest = MANIFEST if endpoint == "text" else MINILM_MANIFEST
    found = []
    for deal in DEALS:
        probes = see_probes(make_leaves(count, topics, deal), manifest)
        found.append(measure_accuracy(probes, make_users(count, topics, endpoint, deal), FEATURES[name]))
    accuracy = sum(found) / len(found)
    record_property("accuracy", accuracy)
    print(f"{endpoint} {name}: {accuracy:.3f} (deals of topics: {', '.join(f'{x:.3f}' for x in found)})")
    assert accuracy < MOST


async def test_node_gets_of_probe_and_user_what_the_transform_makes_and_nothing_else(tmp_path: Path) -> None:
    """The whole way: real clients, hub and tunnel. What differs is the text and what users choose."""
    seen: list[tuple[CallMeta, bytes]] = []

    async def answer(node: StubNode, call: IncomingCall, meta: CallMeta) -> None:
        seen.append((meta, call.body))
        await answer_with_evidence(node, call, meta)

    manifest = TEXT_MANIFEST
    node = StubNode(node_key(0), (manifest,), answer=answer)
    async with running_world(tmp_path) as world:
        await world.add_node(node)
        leaves = [row for row in make_leaves(SHORT, 200) if row[0].call and not row[0].call.is_long][:12]
        draws = Draws(bytes(32), BEACON)
        requests = [
            build_probe(draws, Slot(node.key.address, n % 4), leaf, manifest, count_tokens)
            for n, (leaf, _) in enumerate(leaves)
        ]
        client = HubClient(world.url)
        answers: list[HubAnswer] = []
        for request in requests:
            got = await client.send_probe(request.path, request.body, world.api_key, 10)
            assert got.status == 200, got
            answers.append(got)
        receipts = [await _fetch_receipt(client, got.call_id, world.api_key) for got in answers]
        probes, seen[:] = list(seen), []
        await trio.to_thread.run_sync(_ask_as_users, world.url, world.api_key, manifest.name)
    for got, call in zip(answers, receipts, strict=True):
        assert call.receipt is not None
        assert keccak(got.body) == call.delivery.body_hash == call.receipt.response_hash
    assert {got.content_type.partition(";")[0] for got in answers} == {
        "application/json",
        "text/event-stream",
    }
    for request, (meta, body) in zip(requests, probes, strict=True):
        assert meta.forward.request_hash == upstream_hash(request.path, request.body)
        assert body == read_request(ENDPOINTS[request.path], request.body, evidence=True).body
        assert node.key.address.encode() not in body
    assert len(seen) == 3
    for (meta, body), (probe, sent) in zip(seen, probes, strict=False):
        assert meta.content_type == probe.content_type
        assert meta.forward.price_version == probe.forward.price_version
        evidence = {"logprobs", "seed", "return_token_ids"}
        assert evidence <= set(msgspec.json.decode(body)) & set(msgspec.json.decode(sent))


async def _fetch_receipt(client: HubClient, call_id: bytes, api_key: str) -> CallReceipt:
    with trio.fail_after(10):
        while (data := await client.fetch_receipt(call_id, api_key)) is None:
            await trio.sleep(0.05)
    return read_receipt(data)


def _ask_as_users(url: str, key: str, model: str) -> None:
    with openai.OpenAI(base_url=url + "/v1", api_key=key, max_retries=0) as client:
        client.chat.completions.create(model=model, messages=[{"role": "user", "content": "hello"}])
        client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": "and now?"}], temperature=0.2, max_tokens=20
        )
        client.completions.create(model=model, prompt="once upon")
