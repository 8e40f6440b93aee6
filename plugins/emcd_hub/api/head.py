"""What a call's head says, before its body is looked at. Pure but for the key's look-up.

A connection repeats its head: what is read of it is kept beside it (`Head.note`) and used for the next
call, after one look whether the key is still good.
"""

from __future__ import annotations

import re
from typing import Final

from emcd.net.http_exchange import ClientAddress
from emcd.net.http_request import Headers
from emcd.proto.openai_shape import JSON, Endpoint, RequestError
from emcd.proto.openai_wish import read_wish_headers
from emcd.proto.wish import Wish
from emcd_hub.api.auth import KeyGate
from emcd_hub.billing.keys import ApiKey

_ONCE_KEY = re.compile(rb"[\x21-\x7e]{1,255}")
_MAX_TYPE_BYTES: Final = 256


class CallHead:
    """What the call's path needs of a head. `once_key`: its Idempotency-Key, b"" for none."""

    __slots__ = ("content_type", "endpoint", "key", "once_key", "wish")

    def __init__(
        self, endpoint: Endpoint, key: ApiKey, wish: Wish, content_type: str, once_key: bytes
    ) -> None:
        self.endpoint = endpoint
        self.key = key
        self.wish = wish
        self.content_type = content_type
        self.once_key = once_key


def read_head(endpoint: Endpoint, headers: Headers, client: ClientAddress | None, gate: KeyGate) -> CallHead:
    """Raises: ApiError 401, 429 for the key; RequestError EMC-1702."""
    key = gate.require_key({"headers": headers, "client": client})
    types = [value for name, value in headers if name == b"content-type"]
    once_keys = [value for name, value in headers if name == b"idempotency-key"]
    if len(types) > 1 or (types and len(types[0]) > _MAX_TYPE_BYTES):
        raise RequestError("EMC-1702", "the content type must stand once, and be short", "content-type")
    if len(once_keys) > 1 or (once_keys and _ONCE_KEY.fullmatch(once_keys[0]) is None):
        detail = "an idempotency key is 1 to 255 visible ASCII characters, and stands once"
        raise RequestError("EMC-1702", detail, "idempotency-key")
    return CallHead(
        endpoint,
        key,
        read_wish_headers(headers),
        types[0].decode("latin-1") if types else JSON,
        once_keys[0] if once_keys else b"",
    )


def find_length(headers: Headers) -> int | None:
    """The body's declared length. The server has checked that it stands once and is a number."""
    for name, value in headers:
        if name == b"content-length":
            return int(value)
    return None
