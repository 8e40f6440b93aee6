"""Responses, sound and images: what is read of their requests, what is reserved for them, how answers are named."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from emcd.proto.openai import ENDPOINTS, Endpoint, RequestError, read_named, read_request
from emcd.proto.openai_media import find_answer_type
from emcd.proto.records import request_hash

TYPE = "multipart/form-data; boundary=B"
FORMS = [endpoint for endpoint in Endpoint if endpoint.is_form]


def form(size: int = 1000, files: int = 1, **fields: str) -> bytes:
    parts = [
        f'--B\r\nContent-Disposition: form-data; name="{n}"\r\n\r\n{v}\r\n'.encode()
        for n, v in fields.items()
    ]
    head = b'--B\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
    return b"".join(parts) + (head + bytes(size) + b"\r\n") * files + b"--B--\r\n"


def read(endpoint: Endpoint, **table: Any) -> Any:
    return read_request(endpoint, msgspec.json.encode({"model": "m", **table}))


@pytest.mark.parametrize("endpoint", FORMS)
def test_form_goes_on_as_it_came(endpoint: Endpoint) -> None:
    body = form(model="m", stream="true")
    request = read_request(endpoint, body, 'Multipart/form-data;boundary="B"')
    assert (request.body, request.model, request.stream) == (body, "m", True)
    assert request.content_type == TYPE
    assert read_named(endpoint, body, request.content_type) == ("m", True)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (form(), "model"),
        (form(model=""), "model"),
        (form(model="m" * 257), "model"),
        (form(model="m", stream="yes"), "stream"),
        (form(model="m", n="0"), "n"),
        (form(model="m", n="17"), "n"),
        (form(model="m", n="-1"), "n"),
        (form(model="m", n="1.5"), "n"),
        (form(model="m", n="\u0661"), "n"),
        (form(files=0, model="m"), "file"),
    ],
)
def test_form_at_fault_names_its_field(body: bytes, param: str) -> None:
    with pytest.raises(RequestError) as caught:
        read_request(Endpoint.IMAGE_EDITS, body, TYPE)
    assert (caught.value.code, caught.value.param) == ("EMC-1702", param)


def test_large_sound_reserves_a_fraction_of_its_bytes() -> None:
    request = read_request(Endpoint.TRANSCRIPTIONS, form(25 << 20, model="m"), TYPE)
    assert request.input_bound_tokens < 430_000
    assert request.output_bound_tokens is not None
    assert request.output_bound_tokens < 110_000
    small = read_request(Endpoint.TRANSCRIPTIONS, form(10, model="m"), TYPE)
    assert small.input_bound_tokens < 8_300


def test_images_are_reserved_by_their_number() -> None:
    one, four = (read(Endpoint.IMAGES, prompt="x", n=n).output_bound_tokens for n in (None, 4))
    assert four == 4 * one
    edits = read_request(Endpoint.IMAGE_EDITS, form(10, files=3, model="m", n="4"), TYPE)
    assert edits.output_bound_tokens == four
    assert edits.input_bound_tokens > 3 * 8192


def test_speech_is_reserved_by_its_text_and_always_comes_in_pieces() -> None:
    short, long = (read(Endpoint.SPEECH, input="x" * n, voice="v") for n in (1, 1001))
    assert short.stream
    assert long.output_bound_tokens - short.output_bound_tokens == 2000
    assert read_named(Endpoint.SPEECH, short.body, "application/json") == ("m", True)


@pytest.mark.parametrize(
    ("endpoint", "table", "param"),
    [
        (Endpoint.SPEECH, {"input": ""}, "input"),
        (Endpoint.SPEECH, {"input": ["x"]}, "input"),
        (Endpoint.IMAGES, {"prompt": None}, "prompt"),
        (Endpoint.IMAGES, {"prompt": "x", "n": 0}, "n"),
        (Endpoint.IMAGES, {"prompt": "x", "stream": "yes"}, "stream"),
        (Endpoint.RESPONSES, {}, "input"),
        (Endpoint.RESPONSES, {"input": []}, "input"),
        (Endpoint.RESPONSES, {"input": {}}, "input"),
        (Endpoint.RESPONSES, {"input": "x", "previous_response_id": "resp_1"}, "previous_response_id"),
        (Endpoint.RESPONSES, {"input": "x", "conversation": {"id": "c"}}, "conversation"),
        (Endpoint.RESPONSES, {"input": "x", "background": True}, "background"),
        (Endpoint.RESPONSES, {"input": "x", "max_output_tokens": 0}, "max_output_tokens"),
    ],
)
def test_request_at_fault_names_its_field(endpoint: Endpoint, table: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestError) as caught:
        read(endpoint, **table)
    assert (caught.value.code, caught.value.param) == ("EMC-1702", param)


def test_response_is_bounded_by_its_own_field_and_left_alone() -> None:
    body = b'{"model":"m","input":[{"role":"user","content":"x"}],"stream":true,"max_output_tokens":9,"store":false}'
    request = read_request(Endpoint.RESPONSES, body)
    assert (request.body, request.stream, request.output_bound_tokens) == (body, True, 9)
    assert read(Endpoint.RESPONSES, input="x").output_bound_tokens is None


def test_request_hash_covers_the_content_type_of_a_form_and_not_that_of_json() -> None:
    body = form(model="m")
    path = Endpoint.TRANSCRIPTIONS.path
    assert request_hash(path, body, TYPE) != request_hash(path, body, TYPE + "2")
    assert request_hash(path, body, TYPE) != request_hash(path, body)
    assert request_hash("/v1/a", b"{}", "application/json") == request_hash("/v1/a", b"{}")


@pytest.mark.parametrize(
    ("endpoint", "content_type", "kind"),
    [
        (Endpoint.CHAT, "application/json", "application/json"),
        (Endpoint.CHAT, "application/json; charset=utf-8", "application/json"),
        (Endpoint.CHAT, "text/event-stream;charset=UTF-8", "text/event-stream"),
        (Endpoint.CHAT, "text/html", ""),
        (Endpoint.CHAT, "text/plain", ""),
        (Endpoint.CHAT, "audio/mpeg", ""),
        (Endpoint.SPEECH, "audio/mpeg", "audio/mpeg"),
        (Endpoint.SPEECH, "Audio/PCM;rate=24000;channels=1", "audio/pcm;rate=24000;channels=1"),
        (Endpoint.SPEECH, "application/octet-stream", "application/octet-stream"),
        (Endpoint.SPEECH, "text/plain", ""),
        (Endpoint.SPEECH, "image/svg+xml", ""),
        (Endpoint.TRANSCRIPTIONS, "text/plain; charset=utf-8", "text/plain; charset=utf-8"),
        (Endpoint.TRANSCRIPTIONS, "text/vtt", "text/vtt"),
        (Endpoint.TRANSCRIPTIONS, "application/x-subrip", "application/x-subrip"),
        (Endpoint.TRANSCRIPTIONS, "text/html", ""),
        (Endpoint.TRANSCRIPTIONS, "text/plain\r\nx: y", ""),
        (Endpoint.TRANSCRIPTIONS, "", ""),
    ],
)
def test_answer_is_named_by_what_it_may_be(endpoint: Endpoint, content_type: str, kind: str) -> None:
    assert find_answer_type(endpoint, content_type) == kind


def test_every_endpoint_has_a_path_and_a_word() -> None:
    assert {endpoint.path for endpoint in Endpoint} == set(ENDPOINTS)
    assert [Endpoint.IMAGE_EDITS.word, Endpoint.CHAT.word] == ["image_edits", "chat"]
