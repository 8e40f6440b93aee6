"""OpenAI's API as the network speaks it: requests and error bodies. Pure.

Owns the canonical upstream transform: which bytes a node is asked, given the bytes a client sent.
It is a function of path and body alone, so that whoever sent a request can recompute its
`proto.records.request_hash`. Invariants: the order of the client's fields is kept; what the node
gets never tells which node was asked for, nor how the client writes JSON; nothing but the fields
named here is read or changed.
"""

from __future__ import annotations

from enum import Enum
from typing import Any, Final

import msgspec

from emcd.errors import RemoteProtocolError
from emcd.proto.address import parse_address
from emcd.types import Address

MAX_CHOICES: Final = 16
MAX_INPUTS: Final = 2048
MAX_MODEL_CHARS: Final = 256
MAX_PROVIDERS: Final = 64
_OVERHEAD_TOKENS: Final = 64
"""What a chat template or a tokenizer's special tokens add beyond one token a byte of JSON."""


class Endpoint(Enum):
    """What is asked; the value is the path, which is part of the request hash."""

    CHAT = "/v1/chat/completions"
    COMPLETIONS = "/v1/completions"
    EMBEDDINGS = "/v1/embeddings"


ENDPOINTS: Final = {endpoint.value: endpoint for endpoint in Endpoint}


class RequestError(RemoteProtocolError):
    """A request that is refused before it is priced. `param` names the field for OpenAI's clients."""

    def __init__(self, code: str, detail: str, param: str | None = None, status: int = 400) -> None:
        super().__init__(code, detail, status)
        self.param = param


class UpstreamRequest(msgspec.Struct, frozen=True):
    """A request as it goes to a node. The bounds are what it can cost at most.

    Attributes:
        body: what the node gets, and what the request hash is over.
        wants_usage: whether the client asked for a stream's usage chunk; if not, it is dropped.
        only: the nodes the client allows; empty: any.
        inputs: texts to embed, or prompts to complete.
        output_bound_tokens: over all choices; None when the client set no bound.
    """

    endpoint: Endpoint
    model: str
    body: bytes
    stream: bool
    wants_usage: bool
    only: tuple[Address, ...]
    inputs: int
    choices: int
    input_bound_tokens: int
    output_bound_tokens: int | None


class _ErrorBody(msgspec.Struct, frozen=True):
    message: str
    type: str
    param: str | None
    code: str | None
    emc_code: str


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


def read_request(endpoint: Endpoint, body: bytes) -> UpstreamRequest:
    """Read a client's request and make the node's out of it.

    `provider` is taken out; a streamed completion is made to report its usage; all else stays.
    Raises: RequestError EMC-1701 (not JSON), EMC-1702 (a field is missing or wrong).
    """
    table = _decode_object(body)
    model = table.get("model")
    if type(model) is not str or not 0 < len(model) <= MAX_MODEL_CHARS:
        raise RequestError("EMC-1702", f"model must be a text of 1 to {MAX_MODEL_CHARS} characters", "model")
    only = _take_provider(table)
    if endpoint is Endpoint.EMBEDDINGS:
        if table.get("stream"):
            raise RequestError("EMC-1702", "embeddings are not streamed", "stream")
        upstream = _encode(table)
        inputs = _count_inputs(table, "input")
        return UpstreamRequest(
            endpoint,
            model,
            upstream,
            False,
            False,
            only,
            inputs,
            1,
            len(upstream) + _OVERHEAD_TOKENS * inputs,
            0,
        )
    inputs = _count_messages(table) if endpoint is Endpoint.CHAT else _count_inputs(table, "prompt")
    choices = _read_choices(table)
    output = _read_output_bound(table)
    stream = _read_bool(table, "stream")
    wants_usage = _force_usage(table) if stream else False
    upstream = _encode(table)
    return UpstreamRequest(
        endpoint=endpoint,
        model=model,
        body=upstream,
        stream=stream,
        wants_usage=wants_usage,
        only=only,
        inputs=inputs,
        choices=choices * inputs,
        input_bound_tokens=len(upstream) + _OVERHEAD_TOKENS * inputs,
        output_bound_tokens=None if output is None else output * choices * inputs,
    )


def error_body(
    emc_code: str, message: str, *, type: str, code: str | None = None, param: str | None = None
) -> bytes:
    """An error body in OpenAI's shape, with our code beside theirs."""
    return _encode({"error": _ErrorBody(message, type, param, code, emc_code)})


def _decode_object(body: bytes) -> dict[str, Any]:
    try:
        table = _decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise RequestError("EMC-1701", f"the body is not JSON: {exc}") from exc
    if type(table) is not dict:
        raise RequestError("EMC-1701", "the body must be a JSON object")
    return table


def _take_provider(table: dict[str, Any]) -> tuple[Address, ...]:
    if "provider" not in table:
        return ()
    provider = table.pop("provider")
    if provider is None:
        return ()
    if (
        not isinstance(provider, dict)
        or provider.keys() != {"only"}
        or not isinstance(provider["only"], list)
    ):
        raise RequestError("EMC-1702", 'provider must be {"only": ["0x..."]}', "provider")
    return parse_providers(provider["only"])


def parse_providers(entries: list[Any]) -> tuple[Address, ...]:
    """The nodes of a provider choice. Raises: RequestError EMC-1702."""
    if not 0 < len(entries) <= MAX_PROVIDERS:
        raise RequestError("EMC-1702", f"provider.only names 1 to {MAX_PROVIDERS} nodes", "provider")
    out = []
    for entry in entries:
        try:
            out.append(parse_address(entry if isinstance(entry, str) else ""))
        except RemoteProtocolError as exc:
            raise RequestError("EMC-1702", f"provider.only: {exc.detail}", "provider") from None
    return tuple(out)


def _count_messages(table: dict[str, Any]) -> int:
    messages = table.get("messages")
    if not isinstance(messages, list) or not messages or not all(isinstance(item, dict) for item in messages):
        raise RequestError("EMC-1702", "messages must be a list of objects, and not empty", "messages")
    return 1


def _count_inputs(table: dict[str, Any], name: str) -> int:
    """How many texts: one text, a list of texts, a list of token numbers, or a list of those."""
    value = table.get(name)
    if isinstance(value, str):
        if value:
            return 1
        raise RequestError("EMC-1702", f"{name} must not be empty", name)
    if not isinstance(value, list) or not value:
        raise RequestError("EMC-1702", f"{name} must be a text or a list that is not empty", name)
    if all(type(item) is int and item >= 0 for item in value):
        return 1
    if len(value) > MAX_INPUTS:
        raise RequestError("EMC-1702", f"{name} holds more than {MAX_INPUTS} texts", name)
    if all(isinstance(item, str) and item for item in value):
        return len(value)
    if all(
        isinstance(item, list) and item and all(type(n) is int and n >= 0 for n in item) for item in value
    ):
        return len(value)
    raise RequestError("EMC-1702", f"{name} must hold texts or token numbers, none of them empty", name)


def _read_choices(table: dict[str, Any]) -> int:
    choices = 1
    for name in ("n", "best_of"):
        value = table.get(name)
        if value is None:
            continue
        if type(value) is not int or not 1 <= value <= MAX_CHOICES:
            raise RequestError("EMC-1702", f"{name} must be 1 to {MAX_CHOICES}", name)
        choices = max(choices, value)
    return choices


def _read_output_bound(table: dict[str, Any]) -> int | None:
    """The larger of both names for it: an engine may heed either."""
    bounds = []
    for name in ("max_completion_tokens", "max_tokens"):
        value = table.get(name)
        if value is None:
            continue
        if type(value) is not int or not 1 <= value < 2**31:
            raise RequestError("EMC-1702", f"{name} must be a positive integer", name)
        bounds.append(value)
    return max(bounds, default=None)


def _read_bool(table: dict[str, Any], name: str) -> bool:
    value = table.get(name)
    if value is not None and type(value) is not bool:
        raise RequestError("EMC-1702", f"{name} must be true or false", name)
    return bool(value)


def _force_usage(table: dict[str, Any]) -> bool:
    """Make the stream report its usage. Returns: whether the client had asked for that."""
    options = table.get("stream_options")
    if options is None:
        options = {}
    if not isinstance(options, dict):
        raise RequestError("EMC-1702", "stream_options must be an object", "stream_options")
    wanted = _read_bool(options, "include_usage")
    table["stream_options"] = {**options, "include_usage": True}
    return wanted
