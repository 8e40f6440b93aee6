"""The request a leaf becomes: what the openai client would send. Pure.

A peer that holds the leaf, model and node rebuilds the very same bytes. The hub strips the provider
choice, so the node sees an ordinary embeddings request.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from emcd.errors import RemoteProtocolError
from emcd.proto.openai import Endpoint, read_request
from emcd.proto.records import request_hash
from emcd.types import Address, Hash
from emcd_validator.corpus import Leaf

PATH = Endpoint.EMBEDDINGS.value
_CLIENT_VERSION = "3.54.0"

_encode = msgspec.json.Encoder().encode


def build_request(leaf: Leaf, model: str, node: Address) -> bytes:
    """The body of the probe, its fields in the client's order."""
    table: dict[str, Any] = {"input": list(leaf.texts) if leaf.as_list else leaf.texts[0], "model": model}
    if leaf.encoding:
        table["encoding_format"] = leaf.encoding
    table["provider"] = {"only": [node]}
    return _encode(table)


def build_headers(api_key: str) -> Mapping[str, str]:
    """The headers of the openai client for Python."""
    return {
        "accept": "application/json",
        "content-type": "application/json",
        "user-agent": f"OpenAI/Python {_CLIENT_VERSION}",
        "x-stainless-lang": "python",
        "x-stainless-package-version": _CLIENT_VERSION,
        "x-stainless-os": "Linux",
        "x-stainless-arch": "x64",
        "x-stainless-runtime": "CPython",
        "x-stainless-runtime-version": "3.11.9",
        "x-stainless-async": "false",
        "x-stainless-retry-count": "0",
        "x-stainless-read-timeout": "600",
        "authorization": f"Bearer {api_key}",
    }


def upstream_hash(path: str, body: bytes) -> Hash | None:
    """The request hash that hub and node must have signed for this body; None when it is no request."""
    if path != PATH:
        return None
    try:
        return request_hash(path, read_request(Endpoint.EMBEDDINGS, body).body)
    except RemoteProtocolError:
        return None
