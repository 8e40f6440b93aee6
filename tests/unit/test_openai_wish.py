"""What a request asks of routing: body and headers, alike, and never both in different words."""

from __future__ import annotations

from typing import Any

import pytest

from emcd.proto.openai_shape import RequestError
from emcd.proto.openai_wish import join_wishes, read_wish_headers, take_wish
from emcd.proto.wish import ANY, Wish
from emcd.testing import make_key

ONE, TWO = make_key("one").address, make_key("two").address


def test_plain_request_wishes_nothing_and_makes_nothing() -> None:
    assert take_wish({"model": "m"}) is ANY
    assert take_wish({"model": "m", "provider": None}) is ANY
    assert read_wish_headers([(b"host", b"x"), (b"x-emc-unknown", b"y")]) is ANY
    assert join_wishes(ANY, ANY) is ANY


def test_body_and_headers_say_the_same() -> None:
    table: dict[str, Any] = {
        "provider": {"only": [ONE, TWO], "max_price": 0.25, "quantization": "FP16"},
        "prompt_cache_key": "chat-7",
    }
    headers = [
        (b"x-emc-provider", f"{ONE} , {TWO}".encode()),
        (b"x-emc-max-price", b"0.25"),
        (b"x-emc-quantization", b"fp16"),
        (b"x-emc-session", b"chat-7"),
    ]
    wish = Wish((ONE, TWO), 250_000, "fp16", "chat-7")
    assert take_wish(table) == read_wish_headers(headers) == wish
    assert "provider" not in table
    assert table["prompt_cache_key"] == "chat-7"  # OpenAI's own field goes on
    assert join_wishes(wish, wish) == wish


@pytest.mark.parametrize(
    ("price", "micro"), [(1, 1_000_000), ("2.000001", 2_000_001), (0.1, 100_000), ("0", 0), (3.0, 3_000_000)]
)
def test_price_is_exact(price: Any, micro: int) -> None:
    assert take_wish({"provider": {"max_price": price}}).max_price_micro == micro


@pytest.mark.parametrize(
    "provider",
    [
        [],
        "x",
        {"only": ONE},
        {"only": []},
        {"only": [ONE] * 65},
        {"only": ["0x00"]},
        {"only": [ONE.lower()]},
        {"only": [1]},
        {"order": [ONE]},
        {"max_price": -1},
        {"max_price": "1e3"},
        {"max_price": 0.0000001},
        {"max_price": "0.0000001"},
        {"max_price": True},
        {"max_price": "1,5"},
        {"max_price": "\u0661"},
        {"max_price": 10**10},
        {"quantization": 4},
        {"quantization": ""},
        {"quantization": "int 4"},
        {"quantization": "x" * 33},
    ],
)
def test_wish_that_is_none_is_refused(provider: Any) -> None:
    with pytest.raises(RequestError) as caught:
        take_wish({"provider": provider})
    assert (caught.value.code, caught.value.param) == ("EMC-1702", "provider")


@pytest.mark.parametrize(
    "headers",
    [
        [(b"x-emc-provider", b"")],
        [(b"x-emc-provider", ONE.encode() + b",")],
        [(b"x-emc-provider", ONE.encode())] * 2,
        [(b"x-emc-max-price", b"")],
        [(b"x-emc-max-price", b"-1")],
        [(b"x-emc-quantization", b"\xff")],
        [(b"x-emc-session", b"x" * 257)],
    ],
)
def test_header_that_is_wrong_is_refused(headers: list[tuple[bytes, bytes]]) -> None:
    with pytest.raises(RequestError):
        read_wish_headers(headers)


@pytest.mark.parametrize(
    ("body", "header"),
    [
        (Wish((ONE,)), Wish((TWO,))),
        (Wish((ONE, TWO)), Wish((TWO,))),
        (Wish(max_price_micro=1), Wish(max_price_micro=2)),
        (Wish(quantization="fp16"), Wish(quantization="int4")),
    ],
)
def test_contradiction_is_refused(body: Wish, header: Wish) -> None:
    with pytest.raises(RequestError):
        join_wishes(body, header)


def test_header_of_a_session_goes_before_the_bodys() -> None:
    assert join_wishes(Wish(session="body"), Wish((ONE,), session="header")) == Wish((ONE,), session="header")
    assert join_wishes(Wish(session="body"), Wish((ONE,))) == Wish((ONE,), session="body")


def test_long_cache_key_is_no_session() -> None:
    assert take_wish({"prompt_cache_key": "x" * 257}) is ANY
    assert take_wish({"prompt_cache_key": 7}) is ANY
