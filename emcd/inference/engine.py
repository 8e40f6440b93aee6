"""External engines that speak OpenAI's API (vLLM, SGLang, llama.cpp, Ollama, TGI), by their URL.

Owns the way to one engine. Invariants: only the scheme, host and port that the operator named are
ever connected to, on paths made of the operator's base path and a fixed ending: nothing of a
request chooses where it goes; no redirects; the API key is sent to the engine and shown nowhere.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from emcd.errors import ConfigError, RecoverableError
from emcd.net.http_client import request
from emcd.net.http_stream import stream
from emcd.net.url_guard import parse_target
from emcd.proto.openai_shape import JSON, Endpoint

_MODELS_BYTES = 4 << 20
_BASE = "/v1"
"""What the operator's URL stands for in an endpoint's path."""


@dataclass(frozen=True)
class EngineTimes:
    """Deadlines and bounds of one call to an engine.

    Args:
        head_s: until the engine begins to answer; without a stream that is the whole generation.
        idle_s: the longest silence within an answer.
        max_bytes: of one answer.
    """

    connect_s: float = 5.0
    head_s: float = 300.0
    idle_s: float = 60.0
    probe_s: float = 5.0
    max_bytes: int = 1 << 26


class _ModelEntry(msgspec.Struct, frozen=True):
    id: str


class _ModelList(msgspec.Struct, frozen=True):
    data: list[_ModelEntry]


@dataclass(frozen=True)
class EngineAnswer:
    """An answer's head, and its body as it comes; a loop over `pieces` may be left at any time."""

    status: int
    content_type: str
    pieces: AsyncIterator[bytes]

    async def read(self) -> bytes:
        """The rest of the body. Raises: RecoverableError EMC-1302, 1303, 1304."""
        return b"".join([piece async for piece in self.pieces])


@dataclass(frozen=True)
class Engine:
    """One engine; `url` is its base, with the /v1 where it has one."""

    url: str
    api_key: str = field(default="", repr=False)
    times: EngineTimes = field(default_factory=EngineTimes)

    def __post_init__(self) -> None:
        """Raises: ConfigError EMC-1620 when the URL can't be used."""
        require_engine_url(self.url)

    async def list_models(self) -> frozenset[str]:
        """The names the engine serves: its health probe.

        Raises: RecoverableError EMC-1301 to 1308 (away, too late), EMC-1622 (not an engine's answer).
        """
        answer = await request(
            "GET",
            self._url_of("/models"),
            headers=self._headers(),
            timeout_s=self.times.probe_s,
            max_bytes=_MODELS_BYTES,
        )
        if answer.status != 200:
            raise RecoverableError("EMC-1622", f"{answer.url} answers {answer.status}")
        return frozenset(entry.id for entry in answer.json(_ModelList).data)

    async def ask(self, path: str, question: Any = None) -> Mapping[str, Any] | None:
        """What the engine's own API answers at a path beside OpenAI's; None when that is no JSON object.

        Args:
            path: fixed, from the engine's root (the URL without its /v1).
            question: sent as a POST's JSON where given.

        Raises: RecoverableError EMC-1301 to 1308 (away, too late).
        """
        answer = await request(
            "GET" if question is None else "POST",
            self.url.rstrip("/").removesuffix(_BASE) + path,
            json=question,
            headers=self._headers(),
            timeout_s=self.times.probe_s,
            max_bytes=_MODELS_BYTES,
        )
        if answer.status != 200:
            return None
        try:
            found = answer.json()
        except RecoverableError:
            return None
        return found if isinstance(found, dict) else None

    @asynccontextmanager
    async def open_call(
        self, endpoint: Endpoint, body: bytes, content_type: str = JSON
    ) -> AsyncIterator[EngineAnswer]:
        """Send one request and hand out its answer to be read as it comes.

        Raises: RecoverableError EMC-1301 to 1308, also while the body is read.
        Cancellation: the connection is closed, which tells the engine to stop.
        """
        async with stream(
            "POST",
            self._url_of(endpoint.path.removeprefix(_BASE)),
            headers=self._headers() | {"content-type": content_type},
            body=body,
            connect_timeout_s=self.times.connect_s,
            head_timeout_s=self.times.head_s,
            idle_timeout_s=self.times.idle_s,
            max_bytes=self.times.max_bytes,
        ) as response:
            yield EngineAnswer(response.status, response.headers.get("content-type", ""), aiter(response))

    def _url_of(self, ending: str) -> str:
        return self.url.rstrip("/") + ending

    def _headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.api_key}"} if self.api_key else {}


def require_engine_url(url: str) -> None:
    """Raises: ConfigError EMC-1620 unless it is a plain http(s) base URL."""
    try:
        target = parse_target(url)
    except ConfigError as exc:
        raise ConfigError("EMC-1620", exc.detail) from exc
    if "?" in target.path:
        raise ConfigError("EMC-1620", f"{target.shown} has a query")


def load_api_key(env: str, file: Path | None) -> str:
    """The key from an environment variable or a file's first line; "" when neither is named.

    Raises: ConfigError EMC-1621, which never repeats the content.
    """
    if env:
        key = os.environ.get(env, "").strip()
        where = f"environment variable {env}"
    elif file is not None:
        where = str(file)
        try:
            key = file.read_text("utf-8").partition("\n")[0].strip()
        except (OSError, UnicodeDecodeError) as exc:
            raise ConfigError("EMC-1621", f"{where}: {type(exc).__name__}") from exc
    else:
        return ""
    if not key or not key.isascii() or not key.isprintable():
        raise ConfigError("EMC-1621", f"{where} holds no key")
    return key
