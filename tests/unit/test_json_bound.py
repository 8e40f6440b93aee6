"""JSON bodies of very many small things are refused before they are read; text and token lists are not."""

from __future__ import annotations

import json

import pytest

from emcd.proto.json_bound import MAX_NESTED, MAX_STRINGS, is_too_fine
from emcd.proto.openai import Endpoint, RequestError, read_request


def body_of(element: bytes, count: int) -> bytes:
    return b'{"model":"m","messages":[{"role":"user","content":"x"}],"x":[%b]}' % b",".join([element] * count)


@pytest.mark.parametrize("element", [b"{}", b"[]", b'[{"a":0}]'])
def test_body_of_many_small_lists_or_objects_is_refused(element: bytes) -> None:
    with pytest.raises(RequestError, match="EMC-1702"):
        read_request(Endpoint.CHAT, body_of(element, MAX_NESTED))


@pytest.mark.parametrize("element", [b'""', b'"\\""', b'"\\\\"'])
def test_body_of_many_texts_is_refused(element: bytes) -> None:
    assert is_too_fine(body_of(element, MAX_STRINGS + 1))
    assert not is_too_fine(body_of(element, MAX_STRINGS - 20))


@pytest.mark.parametrize("text", ['{"a": [1, {}]}', '\\"[', "\\\\[{\\"])
def test_brackets_within_a_text_do_not_count(text: str) -> None:
    messages = [{"role": "user", "content": text * MAX_NESTED}]
    raw = json.dumps({"model": "m", "messages": messages}).encode()
    assert not is_too_fine(raw)
    assert read_request(Endpoint.CHAT, raw).inputs == 1


def test_token_list_of_a_million_numbers_is_read() -> None:
    raw = b'{"model":"m","input":[%b]}' % b",".join([b"7"] * 1_000_000)
    assert read_request(Endpoint.EMBEDDINGS, raw).inputs == 1


@pytest.mark.parametrize("numbers", ["[1,true]", "[1,-1]", "[1,1.0]"])
def test_token_list_of_anything_but_natural_numbers_is_refused(numbers: str) -> None:
    with pytest.raises(RequestError, match="EMC-1702"):
        read_request(Endpoint.EMBEDDINGS, b'{"model":"m","input":%b}' % numbers.encode())
