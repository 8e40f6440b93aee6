"""Forms that bytes go through: the upstream transform, server-sent events, JSON of structs."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emcd.accounting.event_stream import EventSplitter, StreamMeter
from emcd.errors import RemoteProtocolError
from emcd.proto.json_form import from_json, to_json
from emcd.proto.openai import Endpoint, RequestError, read_request
from emcd.proto.records import Delivery
from emcd.testing import make_key
from emcd_hub.billing.keys import KeyIndex
from emcd_hub.billing.secret import hash_secret
from emcd_hub.bootstrap import make_api_key

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
FIELDS = st.sampled_from(
    ["model", "input", "messages", "prompt", "stream", "stream_options", "provider", "n", "max_tokens", "x"]
)
HASH = st.binary(min_size=32, max_size=32)
U64 = st.integers(0, 2**64 - 1)
DELIVERIES = st.builds(Delivery, HASH, HASH, HASH, st.integers(0, 255), U64, U64, U64, U64)


@given(st.sampled_from(Endpoint), st.dictionaries(FIELDS, JSON), st.sampled_from([None, {"only": []}]))
def test_any_json_object_is_transformed_or_refused_with_a_code(
    endpoint: Endpoint, table: dict[str, Any], provider: Any
) -> None:
    body = msgspec.json.encode({"model": "m", **table, "provider": provider})
    try:
        request = read_request(endpoint, body)
    except RequestError:
        return
    sent = msgspec.json.decode(request.body)
    assert "provider" not in sent
    assert read_request(endpoint, request.body).body == request.body
    assert request.input_bound_tokens >= len(request.body)


@given(st.sampled_from(Endpoint), st.binary(max_size=200))
def test_garbage_is_refused_with_a_code(endpoint: Endpoint, body: bytes) -> None:
    with pytest.raises(RequestError):
        read_request(endpoint, body)


@given(JSON)
def test_input_and_chat_bodies_survive_the_round_trip(extra: Any) -> None:
    body = msgspec.json.encode({"model": "m", "messages": [{"role": "user", "content": "x", "extra": extra}]})
    assert msgspec.json.decode(read_request(Endpoint.CHAT, body).body) == msgspec.json.decode(body)


EVENTS = st.lists(
    st.sampled_from(
        [b"data: 1\n\n", b"data: [DONE]\n\n", b": x\r\n\r\n", b"data: \xff\n\n", b"a\r\r", b'data: {"usage"']
    ),
    max_size=8,
)


@given(EVENTS, st.lists(st.integers(1, 9), max_size=60))
def test_splitting_anywhere_gives_every_byte_in_order(events: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(events)
    whole = EventSplitter()
    expected = whole.feed(stream)
    rest = whole.take_rest()
    splitter = EventSplitter()
    got, at = [], 0
    for cut in [*cuts, len(stream)]:
        got += splitter.feed(stream[at : at + cut])
        at += cut
    got_rest = splitter.take_rest()
    assert b"".join(got) + got_rest == stream == b"".join(expected) + rest
    if b"\r\r" not in stream and b"\r\n" not in stream:
        assert got == expected


@given(st.sampled_from(Endpoint), st.binary(max_size=300))
def test_any_event_is_told_apart_without_raising(endpoint: Endpoint, event: bytes) -> None:
    meter = StreamMeter(endpoint)
    meter.read(event)
    meter.read(b"data: " + event + b"\n\n")


@given(DELIVERIES)
def test_json_form_gives_back_what_it_was_given(delivery: Delivery) -> None:
    form = to_json(delivery)
    assert from_json(Delivery, form) == delivery
    assert from_json(Delivery, msgspec.json.decode(msgspec.json.encode(form))) == delivery


@given(DELIVERIES, st.sampled_from(Delivery.__struct_fields__), JSON)
def test_changed_json_form_is_refused_or_means_what_it_says(
    delivery: Delivery, name: str, value: Any
) -> None:
    form = {**to_json(delivery), name: value}
    try:
        read = from_json(Delivery, form)
    except RemoteProtocolError:
        return
    assert to_json(read) == form


@settings(max_examples=30)
@given(st.lists(st.booleans(), min_size=1, max_size=8))
def test_only_the_exact_secret_opens_an_account(kept: list[bool]) -> None:
    index = KeyIndex()
    made = [make_api_key(f"acct_{n}") for n in range(len(kept))]
    for key, keep in zip(made, kept, strict=True):
        if keep:
            index.add(key.key)
    for key, keep in zip(made, kept, strict=True):
        assert (index.find(key.secret.encode()) is not None) is keep
        other = key.secret[:-1] + ("A" if key.secret[-1] != "A" else "B")
        assert index.find(other.encode()) is None
        assert index.find(hash_secret(key.secret).hex().encode()) is None
    assert make_key("x").address not in str(made[0].key)
