"""What a request asks of routing, out of its body's `provider` and its x-emc-* headers. Pure.

Invariants: body and header say the same or the request is refused; none of it reaches a node, but for
`prompt_cache_key`, which is OpenAI's own field.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Final

from emcd.errors import RemoteProtocolError
from emcd.proto.address import parse_address
from emcd.proto.openai_shape import wrong
from emcd.proto.wish import ANY, Wish
from emcd.types import Address

MAX_PROVIDERS: Final = 64
MAX_SESSION_CHARS: Final = 256
PREFIX: Final = b"x-emc-"
_PRICE = re.compile(r"([0-9]{1,9})(?:\.([0-9]{1,6}))?")
_QUANTIZATION = re.compile(r"[a-z0-9][a-z0-9_.-]{0,31}")
_FIELDS = frozenset(("only", "max_price", "quantization"))


def take_wish(table: dict[str, Any]) -> Wish:
    """Take `provider` out of a JSON body. Raises: RequestError EMC-1702."""
    if "provider" not in table and "prompt_cache_key" not in table:
        return ANY
    provider = table.pop("provider", None)
    session = table.get("prompt_cache_key")
    if type(session) is not str or len(session) > MAX_SESSION_CHARS:
        session = ""
    if provider is None:
        return Wish(session=session) if session else ANY
    if not isinstance(provider, dict) or not provider.keys() <= _FIELDS:
        raise wrong("provider", "provider is an object of only, max_price and quantization")
    only, price, kind = (provider.get(name) for name in ("only", "max_price", "quantization"))
    if only is not None and not isinstance(only, list):
        raise wrong("provider", "provider.only is a list of nodes' addresses")
    return Wish(
        () if only is None else parse_providers(only),
        None if price is None else _read_price(price),
        "" if kind is None else _read_quantization(kind),
        session,
    )


def read_wish_headers(headers: Iterable[tuple[bytes, bytes]]) -> Wish:
    """The wish of a request's headers (lower-case names). Raises: RequestError EMC-1702."""
    found: dict[bytes, str] = {}
    for name, value in headers:
        if name.startswith(PREFIX) and name in _HEADERS:
            if name in found:
                raise wrong("provider", f"{name.decode()} stands twice")
            found[name] = value.decode("latin-1").strip()
    if not found:
        return ANY
    only, price = found.get(b"x-emc-provider"), found.get(b"x-emc-max-price")
    kind, session = found.get(b"x-emc-quantization"), found.get(b"x-emc-session", "")
    if len(session) > MAX_SESSION_CHARS:
        raise wrong("session", f"x-emc-session is at most {MAX_SESSION_CHARS} characters")
    return Wish(
        () if only is None else parse_providers([part.strip() for part in only.split(",")]),
        None if price is None else _read_price(price),
        "" if kind is None else _read_quantization(kind),
        session,
    )


def join_wishes(body: Wish, headers: Wish) -> Wish:
    """Both together. Raises: RequestError EMC-1702 where they contradict each other."""
    if headers is ANY:
        return body
    if body is ANY:
        return headers
    if body.only and headers.only and set(body.only) != set(headers.only):
        raise wrong("provider", "provider.only and x-emc-provider name different nodes")
    prices = {price for price in (body.max_price_micro, headers.max_price_micro) if price is not None}
    kinds = {kind for kind in (body.quantization, headers.quantization) if kind}
    if len(prices) > 1 or len(kinds) > 1:
        raise wrong("provider", "provider and the x-emc headers name different prices or quantizations")
    return Wish(
        headers.only or body.only,
        next(iter(prices), None),
        next(iter(kinds), ""),
        headers.session or body.session,
    )


def parse_providers(entries: list[Any]) -> tuple[Address, ...]:
    """The nodes of a provider choice. Raises: RequestError EMC-1702."""
    if not 0 < len(entries) <= MAX_PROVIDERS:
        raise wrong("provider", f"provider.only names 1 to {MAX_PROVIDERS} nodes")
    out = []
    for entry in entries:
        try:
            out.append(parse_address(entry if isinstance(entry, str) else ""))
        except RemoteProtocolError as exc:
            raise wrong("provider", f"provider.only: {exc.detail}") from None
    return tuple(out)


def _read_price(value: Any) -> int:
    """Credits per million tokens, a decimal number or its text, as micro-credits."""
    text = value if isinstance(value, str) else repr(value) if type(value) in (int, float) else ""
    match = _PRICE.fullmatch(text)
    if match is None:
        raise wrong("provider", "max_price is credits per million tokens, with at most 6 decimals")
    whole, part = match.groups()
    return int(whole) * 1_000_000 + int((part or "").ljust(6, "0"))


def _read_quantization(value: Any) -> str:
    text = value.lower() if isinstance(value, str) else ""
    if _QUANTIZATION.fullmatch(text) is None:
        raise wrong("provider", "quantization is a word such as fp16 or int4")
    return text


_HEADERS = frozenset((b"x-emc-provider", b"x-emc-max-price", b"x-emc-quantization", b"x-emc-session"))
