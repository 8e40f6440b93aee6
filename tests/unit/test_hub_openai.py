"""`emcd.proto.openai`: the canonical upstream transform and error bodies."""

from __future__ import annotations

import msgspec
import pytest

from emcd.proto.openai import Endpoint, RequestError, error_body, read_request
from emcd.testing import make_key

NODE = make_key("node").address
CHAT = b'{"messages":[{"role":"user","content":"hi"}],"model":"m"}'


def test_transform_keeps_the_clients_order_and_drops_nothing_but_provider() -> None:
    body = b'{ "user" : "u", "provider": {"only": ["%s"]}, "input" : "x", "model" : "m", "foo": [1, 2.50, null] }'
    request = read_request(Endpoint.EMBEDDINGS, body % NODE.encode())
    assert request.body == b'{"user":"u","input":"x","model":"m","foo":[1,2.5,null]}'
    assert request.only == (NODE,)


def test_transform_hides_how_a_client_writes_json() -> None:
    one = read_request(Endpoint.EMBEDDINGS, b'{"model":"m","input":"\\u00e4\\/"}')
    other = read_request(Endpoint.EMBEDDINGS, '{"model": "m",\n "input": "ä/"}'.encode())
    assert one.body == other.body


@pytest.mark.parametrize("provider", [b"null", b'{"only":["%s"]}' % NODE.encode()])
def test_transform_is_the_same_with_and_without_a_provider(provider: bytes) -> None:
    plain = read_request(Endpoint.CHAT, CHAT).body
    assert read_request(Endpoint.CHAT, CHAT[:-1] + b',"provider":' + provider + b"}").body == plain


@pytest.mark.parametrize(
    ("options", "wanted", "sent"),
    [
        (b"", False, b'{"include_usage":true}'),
        (b',"stream_options":null', False, b'{"include_usage":true}'),
        (b',"stream_options":{"include_usage":true,"x":1}', True, b'{"include_usage":true,"x":1}'),
        (b',"stream_options":{"x":1,"include_usage":false}', False, b'{"x":1,"include_usage":true}'),
    ],
)
def test_stream_always_reports_usage_upstream(options: bytes, wanted: bool, sent: bytes) -> None:
    request = read_request(Endpoint.CHAT, CHAT[:-1] + b',"stream":true' + options + b"}")
    assert (request.stream, request.wants_usage) == (True, wanted)
    assert request.body.endswith(b'"stream_options":' + sent + b"}")


def test_unstreamed_call_is_left_alone() -> None:
    request = read_request(Endpoint.CHAT, CHAT)
    assert (request.body, request.stream, request.wants_usage) == (CHAT, False, False)


def test_bounds_cover_choices_and_inputs() -> None:
    body = b'{"model":"m","prompt":["a","b"],"n":3,"best_of":4,"max_tokens":10}'
    request = read_request(Endpoint.COMPLETIONS, body)
    assert (request.inputs, request.choices, request.output_bound_tokens) == (2, 8, 80)
    assert request.input_bound_tokens >= len(body)
    assert read_request(Endpoint.CHAT, CHAT).output_bound_tokens is None
    assert read_request(Endpoint.EMBEDDINGS, b'{"model":"m","input":[[1,2],[3]]}').inputs == 2
    assert read_request(Endpoint.EMBEDDINGS, b'{"model":"m","input":[1,2,3]}').inputs == 1


def test_larger_of_both_token_bounds_counts() -> None:
    body = CHAT[:-1] + b',"max_tokens":5,"max_completion_tokens":7}'
    assert read_request(Endpoint.CHAT, body).output_bound_tokens == 7


def test_request_error_names_the_field_and_the_code() -> None:
    with pytest.raises(RequestError) as caught:
        read_request(Endpoint.CHAT, b'{"model":"m","messages":[],"stream":1}')
    assert (caught.value.code, caught.value.param, caught.value.status) == ("EMC-1702", "messages", 400)


def test_error_body_has_openais_shape() -> None:
    body = error_body("EMC-1705", "no credit", type="insufficient_quota", code="insufficient_quota")
    assert msgspec.json.decode(body) == {
        "error": {
            "message": "no credit",
            "type": "insufficient_quota",
            "param": None,
            "code": "insufficient_quota",
            "emc_code": "EMC-1705",
        }
    }
