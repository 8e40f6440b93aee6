"""The description of the public API, kept by hand; a test compares it with the routes."""

from __future__ import annotations

from typing import Any

from emcd_hub.api.openapi_call import describe_calls

_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code", "emc_code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
                "emc_code": {"type": "string", "pattern": "^EMC-[0-9]{4}$"},
            },
        }
    },
}
_HEX = {"type": "string", "pattern": "^0x[0-9a-f]*$"}
_BINARY = {"type": "string", "format": "binary"}
_KEY: list[dict[str, list[str]]] = [{"apiKey": []}]


def _json(description: str, schema: dict[str, Any] | None = None) -> dict[str, Any]:
    return {
        "description": description,
        "content": {"application/json": {"schema": schema or {"type": "object"}}},
    }


def _errors(*statuses: int) -> dict[str, Any]:
    return {str(status): {"$ref": "#/components/responses/Error"} for status in statuses}


def _parameter(name: str, description: str, where: str = "path") -> dict[str, Any]:
    return {
        "name": name,
        "in": where,
        "required": where == "path",
        "description": description,
        "schema": {"type": "string"},
    }


def _get(
    summary: str,
    description: str,
    *errors: int,
    parameters: list[dict[str, Any]] | None = None,
    key: bool = False,
) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "summary": summary,
        "responses": {"200": _json(description), **_errors(*errors)},
    }
    if parameters:
        operation["parameters"] = parameters
    if key:
        operation["security"] = _KEY
    return {"get": operation}


_ROUND = [_parameter("round", "index, from 0 at genesis")]
_WALLET = [_parameter("address", "EIP-55 checksummed")]

_LIMIT = _parameter("limit", "at most 100", "query")
_BEFORE = _parameter("before", "`next` of the page before", "query")
_EXTRACTIONS = _get(
    "A wallet's extraction requests, newest first",
    "each with every step it took; `next` for the next page",
    400,
    parameters=[*_WALLET, _LIMIT, _BEFORE],
)
_EXTRACTIONS["post"] = {
    "summary": "Ask for rewards up to a round, signed by the wallet",
    "parameters": _WALLET,
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["extraction", "signature"],
                    "properties": {"extraction": {"type": "object"}, "signature": _HEX},
                }
            }
        },
    },
    "responses": {"202": _json("taken: id and state"), **_errors(400, 401, 409, 429)},
}

_REPORT = {
    "post": {
        "summary": "A settler's word on a claim, signed by it; from addresses that published a root",
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": {
                        "type": "object",
                        "required": ["report", "signature"],
                        "properties": {"report": {"type": "object"}, "signature": _HEX},
                    }
                }
            },
        },
        "responses": {"202": _json("whether it was taken"), **_errors(400, 401, 403, 404, 429)},
    }
}
_STREAM = {
    "get": {
        "summary": "A wallet's rewards and extractions, pushed as they change",
        "description": "Every event holds the whole state; its id is a hash of it (send it as Last-Event-ID).",
        "parameters": [*_WALLET, _parameter("last-event-id", "of the last event seen", "header")],
        "responses": {
            "200": {
                "description": "events named `state`",
                "content": {"text/event-stream": {"schema": {"type": "string"}}},
            },
            **_errors(400, 429, 503),
        },
    }
}
_ROUNDS = [
    _parameter("from", "first round; default: a month before `to`", "query"),
    _parameter("to", "last round; default: the open one", "query"),
]

OPENAPI: dict[str, Any] = {
    "openapi": "3.1.0",
    "info": {
        "title": "emcd hub",
        "version": "1",
        "description": "OpenAI's API over a network of compute nodes, with a receipt for every call.",
    },
    "paths": {
        **describe_calls(),
        "/v1/models": _get("Models served now", "OpenAI's list, with prices", 401, 429, key=True),
        "/v1/models/{model}": _get(
            "One model", "as in the list", 401, 403, 404, 429, parameters=[_parameter("model", "its name")], key=True
        ),
        "/v1/calls/{call_id}/receipt": _get(
            "A call's three records and their proofs; 202 while a proof is still to come",
            "forward, receipt, delivery, each with the signed batch it stands in; notes (unsigned): whether the"
            " node's body and the delivered one differ and why, what was withheld, the seed that was drawn,"
            " tokens that nobody can count",
            400, 401, 404, 429,
            parameters=[_parameter("call_id", "from x-emc-call-id")], key=True,
        ),
        "/api/models": _get(
            "Models served now or in the last day",
            "nodes, price, context, quantization, speed, uptime, errors; of each manifest its verification:"
            " standing (unverified, shadow, enforced, delisted), kind, numeric class, sampler, thresholds",
        ),
        "/api/models/{model_hash}": _get(
            "A manifest that can be verified", "the canonical JSON that its hash is over", 400, 404,
            parameters=[_parameter("model_hash", "keccak-256 of the manifest, 0x and 64 hex digits")],
        ),
        "/api/routers": _get(
            "Routers that are connected",
            "address, region, version, nodes, calls in flight, since when, age of the last status",
        ),
        "/api/nodes": _get(
            "Connected nodes",
            "address, router, models with their speed and token drift, breaker, capacity, last status; of"
            " verification the newest closed round's verdicts, strikes, suspensions, until when and why",
        ),
        "/api/nodes/{address}/counts": _get(
            "A node's calls whose tokens the hub counted again, newest first",
            "call id; input and output tokens as claimed (receipt), named (ids in the answer), counted (tokenizer)",
            400, parameters=[_parameter("address", "of the node")],
        ),
        "/api/rounds": _get("The last 50 rounds", "the open round and the states"),
        "/api/rounds/{round}": _get("One round", "its results and signatures", 400, 404, parameters=_ROUND),
        "/api/rounds/{round}/bundle": {
            "get": {
                "summary": "The canonical bundle of a closed round",
                "parameters": _ROUND,
                "responses": {
                    "200": {
                        "description": "bytes; x-emc-bundle-hash and x-emc-bundle-seal beside them",
                        "content": {"application/octet-stream": {"schema": _BINARY}},
                    },
                    **_errors(400, 404),
                },
            }
        },
        "/api/wallets/{address}/rewards": _get(
            "What a wallet has earned",
            "accrued (an estimate) to claimed, in all and by round, with transactions; and a proof",
            400, parameters=_WALLET,
        ),
        "/api/wallets/{address}/events": _STREAM,
        "/api/wallets/{address}/extractions": _EXTRACTIONS,
        "/api/extractions": _get(
            "Open requests of all wallets, for settlers, oldest first", "requests; `next` for the next page", 400,
            parameters=[
                _parameter("state", "requested (default, all that are open) or synchronised", "query"),
                _parameter("after", "`next` of the page before", "query"),
            ],
        ),
        "/api/extractions/reports": _REPORT,
        "/api/account": _get("The balance of the key's account", "balance, debt, what is held", 401, 429, key=True),
        "/api/account/key": _get("The key that asks", "its limits, and what is left of them", 401, 429, key=True),
        "/api/account/statement": _get(
            "The books of the key's account", "opening + moved - used = closing, by round", 400, 401, 429,
            parameters=_ROUNDS, key=True,
        ),
        "/healthz": _get("Is the process alive", "yes"),
        "/readyz": _get("Can the daemon serve", "every role's state", 503),
        "/metrics": {"get": {"summary": "Prometheus", "responses": {"200": {"description": "text format"}}}},
        "/openapi.json": _get("This document", "OpenAPI 3.1"),
    },
    "components": {
        "securitySchemes": {"apiKey": {"type": "http", "scheme": "bearer", "bearerFormat": "emc_sk_..."}},
        "responses": {"Error": _json("OpenAI's shape, with our code", _ERROR)},
    },
}  # fmt: skip
