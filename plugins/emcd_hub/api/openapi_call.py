"""The part of the API's description that calls are: every endpoint that nodes serve."""

from __future__ import annotations

from typing import Any

from emcd.proto.openai_shape import Endpoint

_BINARY = {"type": "string", "format": "binary"}
_TEXT = {"type": "string"}
_KEY: list[dict[str, list[str]]] = [{"apiKey": []}]
_ERRORS = (400, 401, 403, 404, 409, 413, 415, 422, 429, 502, 503)
_HEADERS = {
    name: {"description": text, "schema": _TEXT}
    for name, text in (
        ("x-emc-call-id", "id of the call, for its receipt"),
        ("x-emc-node", "address of the node that did it"),
        ("x-emc-credits", "credits charged (whole answers; a trailer of streams, to who sent TE: trailers)"),
        ("x-emc-credits-reserved", "credits held at the beginning (streams)"),
        ("x-emc-idempotent-replay", "true: this is the answer to an earlier request with the same key"),
        ("x-ratelimit-limit-requests", "a minute; with -remaining- and -reset-: only for keys so limited"),
        ("x-ratelimit-limit-tokens", "a minute; with -remaining- and -reset-: only for keys so limited"),
    )
}
_PARAMETERS = [
    {"name": name, "in": "header", "required": False, "description": text, "schema": _TEXT}
    for name, text in (
        ("x-emc-provider", "the same as provider.only, by commas"),
        ("x-emc-max-price", "the same as provider.max_price"),
        ("x-emc-quantization", "the same as provider.quantization"),
        ("x-emc-session", "calls of one session go to one node where that is possible; or prompt_cache_key"),
        ("Idempotency-Key", "1 to 255 visible characters: the same request is done once in 24 hours"),
    )
]
_PROVIDER = {
    "type": "object",
    "description": "who may do it; never shown to a node",
    "properties": {
        "only": {"type": "array", "items": _TEXT, "description": "addresses of nodes"},
        "max_price": {"type": ["number", "string"], "description": "credits per million tokens"},
        "quantization": {"type": "string", "description": "as in the node's manifest"},
    },
}
_REQUIRED = {
    Endpoint.CHAT: ("Chat", ["messages"]),
    Endpoint.COMPLETIONS: ("Completions", ["prompt"]),
    Endpoint.EMBEDDINGS: ("Embeddings", ["input"]),
    Endpoint.RESPONSES: ("Responses; nothing is kept between calls, so the input must be whole", ["input"]),
    Endpoint.TRANSCRIPTIONS: ("Speech to text", ["file"]),
    Endpoint.TRANSLATIONS: ("Speech to English text", ["file"]),
    Endpoint.SPEECH: ("Text to speech, in pieces as it is made", ["input"]),
    Endpoint.IMAGES: ("Images from a prompt", ["prompt"]),
    Endpoint.IMAGE_EDITS: ("Images from images and a prompt", ["image", "prompt"]),
    Endpoint.IMAGE_VARIATIONS: ("Images from an image", ["image"]),
}
_STREAMED = frozenset(Endpoint) - {Endpoint.EMBEDDINGS, Endpoint.IMAGE_VARIATIONS, Endpoint.TRANSLATIONS}


def describe_calls() -> dict[str, Any]:
    """The paths of all endpoints."""
    return {endpoint.path: _describe(endpoint, *_REQUIRED[endpoint]) for endpoint in Endpoint}


def _describe(endpoint: Endpoint, summary: str, required: list[str]) -> dict[str, Any]:
    properties: dict[str, Any] = {"model": _TEXT}
    if endpoint.is_form:
        properties |= {name: _BINARY for name in required if name in ("file", "image")}
    else:
        properties["provider"] = _PROVIDER
    body = {
        "type": "object",
        "required": ["model", *required],
        "properties": properties,
        "additionalProperties": True,
    }
    kind = "multipart/form-data" if endpoint.is_form else "application/json"
    return {
        "post": {
            "summary": summary,
            "security": _KEY,
            "parameters": _PARAMETERS,
            "requestBody": {"required": True, "content": {kind: {"schema": body}}},
            "responses": {
                "200": {
                    "description": "the node's answer, without what was asked of it beyond the request",
                    "headers": _HEADERS,
                    "content": _list_answers(endpoint),
                },
                **{str(status): {"$ref": "#/components/responses/Error"} for status in _ERRORS},
            },
        }
    }


def _list_answers(endpoint: Endpoint) -> dict[str, Any]:
    answers: dict[str, Any] = {"application/json": {"schema": {"type": "object"}}}
    if endpoint is Endpoint.SPEECH:
        answers = {"audio/*": {"schema": _BINARY}}
    elif endpoint in (Endpoint.TRANSCRIPTIONS, Endpoint.TRANSLATIONS):
        answers["text/plain"] = {"schema": _TEXT}
    if endpoint in _STREAMED:
        answers["text/event-stream"] = {"schema": _TEXT}
    return answers
