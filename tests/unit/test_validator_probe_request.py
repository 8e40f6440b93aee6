"""The request of a probe: drawn, repeatable, within the context, like users' requests."""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import Any

import msgspec
import pytest

from emcd.accounting.token_check import ProbeKind
from emcd.inference.minilm import MINILM_MANIFEST
from emcd.proto.hashing import keccak
from emcd.proto.openai import ENDPOINTS, read_request
from emcd.testing import make_key
from emcd_validator.call_shape import CallShape
from emcd_validator.client_shape import CLIENTS, build_headers, client_of
from emcd_validator.corpus import Leaf
from emcd_validator.corpus_text import generate_leaves
from emcd_validator.judge_request import TextAsk, kind_of, read_text_ask
from emcd_validator.plan import Draws, Slot
from emcd_validator.probe_request import ProbeRequest, build_probe, list_requests, path_of, upstream_hash
from tests.support.evidence_node import TEXT_MANIFEST

NODE = make_key("node").address
SHAPE = CallShape("chat", "", False, 700, None, 64, "max_tokens", False, 1, 1)
LONG = " ".join(f"word{n}." for n in range(5_000))


def draws(number: int = 0) -> Draws:
    return Draws(keccak(b"seed %d" % number), keccak(b"beacon"))


def count(text: str) -> int:
    return len(text.split())


def build(leaf: Leaf, number: int = 0, **changes: Any) -> tuple[str, dict[str, Any]]:
    manifest = msgspec.structs.replace(TEXT_MANIFEST, **changes)
    request = build_probe(draws(number), Slot(NODE, 0), leaf, manifest, count)
    return request.path, msgspec.json.decode(request.body)


def leaf_of(*texts: str, **changes: Any) -> Leaf:
    return Leaf(bytes(16), texts, True, "", msgspec.structs.replace(SHAPE, **changes))


def test_chat_has_its_turns_and_asks_for_all_evidence() -> None:
    leaf = leaf_of("hello there", "hi", "and now?", "unused", turns=3, system="Be brief.", stream=True)
    path, table = build(leaf)
    assert path == "/v1/chat/completions"
    assert [(m["role"], m["content"]) for m in table["messages"]] == [
        ("system", "Be brief."), ("user", "hello there"), ("assistant", "hi"), ("user", "and now?"),
    ]  # fmt: skip
    assert table["temperature"] == 0.7
    assert table["max_tokens"] == 64
    assert (table["stream"], table["stream_options"]) == (True, {"include_usage": True})
    assert (table["logprobs"], table["top_logprobs"], table["return_token_ids"]) == (True, 5, True)
    assert 0 <= table["seed"] < 2**63
    assert "top_p" not in table
    assert table["provider"] == {"only": [NODE]}


def test_completion_asks_for_all_evidence() -> None:
    path, table = build(
        leaf_of("once upon a time", endpoint="completions", temperature_milli=0, top_p_milli=900)
    )
    assert path == "/v1/completions"
    assert table["prompt"] == "once upon a time"
    assert (table["temperature"], table["top_p"], table["logprobs"]) == (0, 0.9, 5)
    assert table["return_token_ids"] is True


def test_model_that_can_not_chat_is_asked_for_a_completion() -> None:
    files = {name: value for name, value in TEXT_MANIFEST.files.items() if name != "chat_template.jinja"}
    path, table = build(leaf_of("text", limit_name="max_completion_tokens"), files=files)
    assert path == "/v1/completions"
    assert table["max_tokens"] == 64


@pytest.mark.parametrize("number", range(20))
def test_nothing_is_hidden_from_a_probe_so_that_what_it_gets_is_what_was_signed(number: int) -> None:
    leaf = list(generate_leaves(20, Random(3)))[number]
    for manifest in (TEXT_MANIFEST, MINILM_MANIFEST):
        request = build_probe(draws(number), Slot(NODE, 1), leaf, manifest, count)
        made = read_request(ENDPOINTS[request.path], request.body, evidence=True, seed=1)
        assert made.hidden is None
        assert b"provider" not in made.body
        assert path_of(request.body) == request.path
        assert upstream_hash(request.path, request.body) is not None


def test_same_draws_give_the_same_request_and_others_another() -> None:
    leaf = leaf_of("text")
    assert build(leaf, 1) == build(leaf, 1)
    assert build(leaf, 1)[1]["seed"] != build(leaf, 2)[1]["seed"]


def test_greedy_variant_differs_in_the_temperature_alone() -> None:
    drawn, greedy = list_requests(draws(), Slot(NODE, 0), leaf_of("text"), TEXT_MANIFEST, count)
    one, other = msgspec.json.decode(drawn.body), msgspec.json.decode(greedy.body)
    assert (one.pop("temperature"), other.pop("temperature")) == (0.7, 0)
    assert one == other
    assert len(list_requests(draws(), Slot(NODE, 0), leaf_of("text"), MINILM_MANIFEST, count)) == 1


@pytest.mark.parametrize("number", range(12))
@pytest.mark.parametrize("is_long", [True, False])
def test_prompt_and_answer_fit_the_context(number: int, is_long: bool) -> None:
    leaf = leaf_of(LONG, "short", LONG, turns=3, max_tokens=4_096 * (number % 2), is_long=is_long)
    _, table = build(leaf, number)
    used = sum(count(message["content"]) for message in table["messages"])
    assert used + table.get("max_tokens", 1) + 8 * len(table["messages"]) < 512
    assert table["messages"][-1]["role"] == "user"


def test_long_prompts_fill_about_four_fifths_and_not_all_the_same() -> None:
    leaf = leaf_of(LONG, is_long=True)
    tables = [build(leaf, number)[1] for number in range(30)]
    sizes = [count(table["messages"][0]["content"]) for table in tables]
    assert {table["max_tokens"] for table in tables} == {1}
    assert 0.7 * 512 < min(sizes) < max(sizes) <= 0.86 * 512
    assert len(set(sizes)) > 5


def test_prompts_that_are_cut_end_at_many_lengths() -> None:
    sizes = {count(build(leaf_of(LONG), number)[1]["messages"][0]["content"]) for number in range(30)}
    assert len(sizes) > 10


def test_prompt_is_never_empty() -> None:
    _, table = build(leaf_of("x" * 3_000), context_tokens=16)
    assert table["messages"][0]["content"].strip()
    request = build_probe(draws(), Slot(NODE, 0), leaf_of("  " + "x" * 99), TEXT_MANIFEST, lambda text: 999)
    assert msgspec.json.decode(request.body)["messages"][0]["content"].strip()


def test_leaf_of_the_first_form_is_asked_by_drawn_parameters_that_can_be_judged() -> None:
    leaf = Leaf(bytes(16), ("one two", "three"), True, "base64")
    asks = []
    for number in range(300):
        request = build_probe(draws(number), Slot(NODE, 0), leaf, TEXT_MANIFEST, count)
        made = read_request(ENDPOINTS[request.path], request.body, evidence=True)
        ask = read_text_ask(request.path, made.body)
        assert isinstance(ask, TextAsk), ask
        asks.append(ask)
    assert {ask.is_chat for ask in asks} == {ask.is_stream for ask in asks} == {True, False}
    assert len({ask.sampling.temperature for ask in asks}) > 5
    kinds = Counter(kind_of(ask, TEXT_MANIFEST) for ask in asks)
    assert 3 <= kinds[ProbeKind.FIRST] <= 30
    assert kinds[ProbeKind.GREEDY] > 20
    assert kinds[ProbeKind.SEEDED] > 100


def test_embedding_takes_the_inputs_alone_and_of_a_long_text_a_part() -> None:
    request = build_probe(
        draws(), Slot(NODE, 0), leaf_of("a", "b", "c", turns=3, inputs=2), MINILM_MANIFEST, len
    )
    assert msgspec.json.decode(request.body)["input"] == ["a", "b"]
    request = build_probe(draws(), Slot(NODE, 0), leaf_of(LONG, is_long=True), MINILM_MANIFEST, len)
    assert 1 <= count(msgspec.json.decode(request.body)["input"][0]) <= 210


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b"\xff", b'{"model": "x"}', b"[" * 100_000])
def test_body_that_is_no_probes_has_no_path_and_no_hash(body: bytes) -> None:
    assert path_of(body) == ""
    assert upstream_hash("/v1/chat/completions", body) is None
    assert upstream_hash("/v1/models", ProbeRequest("", b"{}").body) is None


def test_key_keeps_its_program_and_keys_differ() -> None:
    shares = dict.fromkeys(CLIENTS, 1.0)
    clients = {f"key {n}": client_of(f"key {n}", shares) for n in range(200)}
    assert clients == {key: client_of(key, shares) for key in clients}
    assert set(clients.values()) == set(CLIENTS)
    assert client_of("key", {"curl": 1.0, "go": 0.0}) == "curl"
    headers = [build_headers(name, "emc_sk_x") for name in CLIENTS]
    assert len({tuple(sorted(h.items())) for h in headers}) == len(CLIENTS)
    for fields in headers:
        assert fields["authorization"] == "Bearer emc_sk_x"
        assert fields["content-type"] == "application/json"
        assert not {"host", "content-length", "accept-encoding", "connection"} & set(fields)
