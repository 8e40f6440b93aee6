"""What calls of a model that can be verified ask of a node: one form, which tells nothing of who asked."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from emcd.proto.openai import Endpoint, RequestError, read_request

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "system"]), "content": TEXT},
        optional={"name": st.none() | TEXT, "x": st.lists(st.integers(), max_size=3)},
    ),
    min_size=1,
    max_size=4,
)
SEEDS = st.integers(-(2**63), 2**63 - 1)
COMMON: dict[str, Any] = {
    "temperature": st.none() | st.floats(0, 2) | st.integers(0, 2),
    "top_p": st.none() | st.floats(0, 1),
    "max_tokens": st.none() | st.integers(1, 500),
    "stop": st.none() | TEXT | st.lists(TEXT, max_size=4),
    "seed": st.none() | SEEDS,
    "return_token_ids": st.none() | st.booleans(),
    "stream": st.none() | st.booleans(),
    "user": TEXT,
    "metadata": st.dictionaries(TEXT, TEXT, max_size=2),
    "tools": st.lists(st.dictionaries(TEXT, TEXT, max_size=4), max_size=2),
}
CHATS = st.fixed_dictionaries(
    {"model": st.just("m"), "messages": MESSAGES},
    optional=COMMON | {"logprobs": st.just(True), "top_logprobs": st.integers(0, 20)},
)
PROMPTS = st.fixed_dictionaries(
    {"model": st.just("m"), "prompt": TEXT.filter(bool)},
    optional=COMMON | {"logprobs": st.none() | st.integers(0, 20)},
)
BODIES = st.one_of(
    CHATS.map(lambda table: (Endpoint.CHAT, table)), PROMPTS.map(lambda table: (Endpoint.COMPLETIONS, table))
)
CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
encode = msgspec.json.encode


def asked_of_node(endpoint: Endpoint, table: dict[str, Any], seed: int | None = 99) -> dict[str, Any]:
    request = read_request(endpoint, encode(table), evidence=True, seed=seed)
    sent: dict[str, Any] = msgspec.json.decode(request.body)
    return sent


def is_possible(endpoint: Endpoint, table: dict[str, Any]) -> bool:
    return endpoint is not Endpoint.CHAT or "logprobs" in table or "top_logprobs" not in table


@given(BODIES, SEEDS)
def test_every_call_asks_for_all_that_a_judge_needs(call: tuple[Endpoint, dict[str, Any]], seed: int) -> None:
    endpoint, table = call
    assume(is_possible(endpoint, table))
    sent = asked_of_node(endpoint, table, seed)
    most = sent["top_logprobs"] if endpoint is Endpoint.CHAT else sent["logprobs"]
    asked = table.get("top_logprobs" if endpoint is Endpoint.CHAT else "logprobs") or 0
    assert most == max(5, asked)
    assert sent["logprobs"] is True or endpoint is Endpoint.COMPLETIONS
    assert sent["return_token_ids"] is True
    assert sent["seed"] == (seed if table.get("seed") is None else table["seed"])
    assert not {"user", "metadata"} & sent.keys()
    for name in ("temperature", "top_p", "max_tokens", "stop", "tools"):
        assert sent.get(name) == table.get(name)


@given(BODIES, SEEDS, st.none() | SEEDS)
def test_the_form_of_a_form_is_itself_whatever_seed_is_offered(
    call: tuple[Endpoint, dict[str, Any]], seed: int, other: int | None
) -> None:
    endpoint, table = call
    assume(is_possible(endpoint, table))
    once = read_request(endpoint, encode(table), evidence=True, seed=seed)
    twice = read_request(endpoint, once.body, evidence=True, seed=other)
    assert twice.body == once.body
    assert twice.hidden is None
    assert twice.evidence
    assert once.input_bound_tokens >= len(once.body)


@given(BODIES, st.randoms(use_true_random=False))
def test_a_clients_library_does_not_show_in_the_form(
    call: tuple[Endpoint, dict[str, Any]], draw: random.Random
) -> None:
    endpoint, table = call
    assume(is_possible(endpoint, table))
    plain = read_request(endpoint, encode(table), evidence=True, seed=1)
    told: dict[str, Any] = {
        "frequency_penalty": None,
        "n": None,
        "user": "u",
        "store": False,
        "prompt_cache_key": "k",
    }
    names = [*table.items(), *told.items()]
    draw.shuffle(names)
    other = dict(names)
    if not other.get("stream"):
        other["stream"] = False
    if type(other.get("temperature")) is int:
        other["temperature"] = float(other["temperature"])
    if endpoint is Endpoint.CHAT:
        other["messages"] = [
            dict(reversed([*message.items(), ("refusal", None)])) for message in other["messages"]
        ]
    assert read_request(endpoint, encode(other), evidence=True, seed=1).body == plain.body


@given(BODIES)
def test_only_who_asked_for_all_of_it_gets_the_answer_as_it_comes(
    call: tuple[Endpoint, dict[str, Any]],
) -> None:
    endpoint, table = call
    assume(is_possible(endpoint, table))
    hidden = read_request(endpoint, encode(table), evidence=True, seed=1).hidden
    logprobs = table.get("logprobs")
    most = (
        logprobs if endpoint is Endpoint.COMPLETIONS else table.get("top_logprobs", 0) if logprobs else None
    )
    has_all = most is not None and most >= 5 and bool(table.get("return_token_ids"))
    assert (hidden is None) == has_all
    if hidden is not None:
        assert hidden.most_logprobs == most
        assert hidden.token_ids is not bool(table.get("return_token_ids"))


@given(BODIES)
def test_a_call_of_an_unverified_model_stays_as_it_was(call: tuple[Endpoint, dict[str, Any]]) -> None:
    endpoint, table = call
    body = encode(table)
    plain = read_request(endpoint, body)
    refused = read_request(endpoint, body, evidence=lambda _, model: model == "another", seed=1)
    assert refused == plain
    assert not plain.evidence
    assert (
        msgspec.json.decode(plain.body).items() >= {k: v for k, v in table.items() if k != "stream"}.items()
    )


@pytest.mark.parametrize(
    ("endpoint", "field", "value"),
    [
        (Endpoint.CHAT, "logprobs", 1),
        (Endpoint.CHAT, "top_logprobs", 3),
        (Endpoint.CHAT, "seed", 2**63),
        (Endpoint.CHAT, "seed", 1.5),
        (Endpoint.CHAT, "seed", True),
        (Endpoint.CHAT, "return_token_ids", 1),
        (Endpoint.COMPLETIONS, "logprobs", True),
        (Endpoint.COMPLETIONS, "logprobs", 21),
        (Endpoint.COMPLETIONS, "logprobs", -1),
        (Endpoint.COMPLETIONS, "seed", -(2**63) - 1),
    ],
)
def test_a_wrong_wish_is_refused_by_its_name(endpoint: Endpoint, field: str, value: object) -> None:
    table = {"model": "m", "prompt": "x", "messages": CHAT["messages"], field: value}
    with pytest.raises(RequestError) as caught:
        read_request(endpoint, encode(table), evidence=True, seed=1)
    assert caught.value.param == field
    assert caught.value.code == "EMC-1702"


@pytest.mark.parametrize("most", [21, -1, True, "5", 5.5])
def test_too_many_alternatives_are_refused(most: object) -> None:
    table = CHAT | {"logprobs": True, "top_logprobs": most}
    with pytest.raises(RequestError, match="top_logprobs"):
        read_request(Endpoint.CHAT, encode(table), evidence=True, seed=1)


def test_order_stays_where_a_model_may_see_it() -> None:
    schema = {
        "type": "object",
        "properties": {"z": {"type": "string"}, "a": {"type": "null", "default": None}},
    }
    table = CHAT | {"tools": [{"type": "function", "function": {"name": "f", "parameters": schema}}]}
    table["response_format"] = {"type": "json_schema", "json_schema": {"schema": schema}}
    body = read_request(Endpoint.CHAT, encode(table), evidence=True, seed=1).body
    assert encode(schema) in body
    assert body.count(encode(schema)) == 2


def test_embeddings_have_one_form_and_no_fields_of_texts() -> None:
    one = b'{"user":"u","input":["b","a"],"model":"m","dimensions":null,"encoding_format":"base64"}'
    other = b'{"encoding_format":"base64","model":"m","input":["b","a"]}'
    requests = [read_request(Endpoint.EMBEDDINGS, body, evidence=True, seed=1) for body in (one, other)]
    assert (
        requests[0].body == requests[1].body == b'{"encoding_format":"base64","input":["b","a"],"model":"m"}'
    )
    assert requests[0].hidden is None


def test_other_endpoints_ask_for_nothing_more() -> None:
    body = b'{"model":"m","input":"x","user":"u"}'
    request = read_request(Endpoint.RESPONSES, body, evidence=True, seed=1)
    assert request.body == body
    assert not request.evidence


def test_a_seed_is_drawn_only_where_it_is_needed() -> None:
    drawn: list[int] = []

    def draw() -> int:
        drawn.append(5)
        return 5

    read_request(Endpoint.EMBEDDINGS, b'{"model":"m","input":"x"}', evidence=True, seed=draw)
    read_request(Endpoint.CHAT, encode(CHAT | {"seed": 3}), evidence=True, seed=draw)
    read_request(Endpoint.CHAT, encode(CHAT), seed=draw)
    assert drawn == []
    assert asked_of_node(Endpoint.CHAT, CHAT, None).get("seed") is None
    sent = read_request(Endpoint.CHAT, encode(CHAT), evidence=True, seed=draw).body
    assert msgspec.json.decode(sent)["seed"] == 5
