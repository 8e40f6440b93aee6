"""A wallet's state from a hub, pushed: server-sent events, through broken connections.

Every event holds the whole state, so a reader that was away has missed nothing.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import click
import trio

from emcd.errors import RecoverableError
from emcd.net.http_stream import stream
from emcd.types import Address

IDLE_S = 60.0
"""The hub says something every 15 s."""
MAX_EVENT_BYTES = 16 << 20
MAX_STREAM_BYTES = 1 << 40
FIRST_PAUSE_S = 1.0
MAX_PAUSE_S = 30.0


@dataclass
class EventReader:
    """Server-sent events from pieces cut anywhere. Sans-IO; only `id` and `data` matter here."""

    last_id: str = ""
    _rest: bytes = b""
    _data: list[str] = field(default_factory=list)

    def feed(self, piece: bytes) -> list[str]:
        """The data of the events that this piece completes. Raises: RecoverableError EMC-2137."""
        self._rest += piece.replace(b"\r\n", b"\n")
        *lines, self._rest = self._rest.split(b"\n")
        if len(self._rest) > MAX_EVENT_BYTES:
            raise RecoverableError("EMC-2137", "the hub's event does not end")
        return [event for line in lines if (event := self._take(line.decode("utf-8", "replace"))) is not None]

    def _take(self, line: str) -> str | None:
        if not line:
            data, self._data = self._data, []
            return "\n".join(data) if data else None
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "id":
            self.last_id = value
        elif name == "data":
            self._data.append(value)
        return None


async def watch_wallet(hub_url: str, wallet: Address) -> AsyncGenerator[dict[str, Any], None]:
    """The wallet's states as they change: {"rewards", "extractions"}. Never ends by itself.

    A connection that breaks is made anew, and says so on stderr once.

    Raises: RecoverableError EMC-2137 when the hub refuses the stream.
    """
    reader = EventReader()
    pause_s = FIRST_PAUSE_S
    while True:
        try:
            async with aclosing(_read(hub_url, wallet, reader)) as states:
                async for state in states:
                    pause_s = FIRST_PAUSE_S
                    yield state
        except RecoverableError as exc:
            if exc.code == "EMC-2137":
                raise
            if pause_s == FIRST_PAUSE_S:
                click.echo(f"{exc.code}: {exc.detail}; trying again", err=True)
        await trio.sleep(pause_s)
        pause_s = min(2 * pause_s, MAX_PAUSE_S)


async def _read(hub_url: str, wallet: Address, reader: EventReader) -> AsyncGenerator[dict[str, Any], None]:
    """The states of one connection."""
    headers = {"accept": "text/event-stream"}
    if reader.last_id:
        headers["last-event-id"] = reader.last_id
    url = f"{hub_url}/api/wallets/{wallet}/events"
    async with stream(
        "GET", url, headers=headers, idle_timeout_s=IDLE_S, max_bytes=MAX_STREAM_BYTES
    ) as answer:
        if answer.status in (429, 503):
            raise RecoverableError("EMC-1301", f"{url} answers {answer.status}")
        if answer.status != 200:
            raise RecoverableError("EMC-2137", f"{url} answers {answer.status}")
        async for piece in answer:
            for event in reader.feed(piece):
                try:
                    state = json.loads(event)
                except ValueError as exc:
                    raise RecoverableError("EMC-2137", f"{url} sends no JSON") from exc
                if isinstance(state, dict):
                    yield state
