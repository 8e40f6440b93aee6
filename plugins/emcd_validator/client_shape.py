"""The headers that users' programs send with a call: several shapes, of which a key keeps one.

No header reaches a node; but a hub sees them, and a hub that knows a validator's keys can tell nodes.
So a key is always used by one program, as a user's is: which one follows from the key.
"""

from __future__ import annotations

from collections.abc import Mapping

from emcd.proto.hashing import keccak

_PYTHON = {
    "accept": "application/json",
    "content-type": "application/json",
    "user-agent": "OpenAI/Python 3.54.0",
    "x-stainless-lang": "python",
    "x-stainless-package-version": "3.54.0",
    "x-stainless-os": "Linux",
    "x-stainless-arch": "x64",
    "x-stainless-runtime": "CPython",
    "x-stainless-runtime-version": "3.11.9",
    "x-stainless-async": "false",
    "x-stainless-retry-count": "0",
    "x-stainless-read-timeout": "600",
}
_NODE = {
    "accept": "application/json",
    "content-type": "application/json",
    "user-agent": "OpenAI/JS 6.30.1",
    "x-stainless-lang": "js",
    "x-stainless-package-version": "6.30.1",
    "x-stainless-os": "Linux",
    "x-stainless-arch": "x64",
    "x-stainless-runtime": "node",
    "x-stainless-runtime-version": "v22.12.0",
    "x-stainless-retry-count": "0",
    "accept-language": "*",
    "sec-fetch-mode": "cors",
}
_PLAIN = {"accept": "*/*", "content-type": "application/json"}

CLIENTS: Mapping[str, Mapping[str, str]] = {
    "openai-python": _PYTHON,
    "openai-python-async": {**_PYTHON, "user-agent": "AsyncOpenAI/Python 3.54.0", "x-stainless-async": "async:asyncio"},
    "openai-python-mac": {
        **_PYTHON,
        "x-stainless-os": "MacOS",
        "x-stainless-arch": "arm64",
        "x-stainless-runtime-version": "3.12.7",
    },
    "openai-node": _NODE,
    "openai-node-mac": {**_NODE, "x-stainless-os": "MacOS", "x-stainless-arch": "arm64"},
    "python-requests": {**_PLAIN, "user-agent": "python-requests/2.32.3"},
    "python-httpx": {**_PLAIN, "user-agent": "python-httpx/0.28.1"},
    "aiohttp": {**_PLAIN, "user-agent": "Python/3.11 aiohttp/3.11.11"},
    "go": {"content-type": "application/json", "user-agent": "Go-http-client/1.1"},
    "curl": {**_PLAIN, "user-agent": "curl/8.5.0"},
}  # fmt: skip
"""Header fields by the program's name, without authorization and framing."""


def client_of(api_key: str, shares: Mapping[str, float]) -> str:
    """The program that uses this key, by the profile's shares: the same whenever it is asked."""
    names = sorted(shares)
    weights = [round(shares[name] * 1_000_000) for name in names]
    drawn = int.from_bytes(keccak(b"client of " + api_key.encode())) % sum(weights)
    for name, weight in zip(names, weights, strict=True):  # noqa: B007
        if drawn < weight:
            break
        drawn -= weight
    return name


def build_headers(client: str, api_key: str) -> Mapping[str, str]:
    """What the program sends with a call. Raises: KeyError for an unknown one."""
    return {**CLIENTS[client], "authorization": f"Bearer {api_key}"}
