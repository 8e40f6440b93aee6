"""ASGI's lifespan: an application is told of the server's start and end, and may share a state.

For applications that want it (frameworks' own); the roles of this project have a life of their own
and are served without. Invariants: no request is served before the startup is complete; an
application that knows nothing of lifespan is served all the same; the shutdown has a deadline.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import trio

from emcd.errors import LocalProtocolError
from emcd.net.http_exchange import ASGIApp, Message

SHUTDOWN_S = 10.0


class _Lifespan:
    """One application's."""

    def __init__(self, app: ASGIApp, on_error: Callable[[BaseException], None]) -> None:
        self.state: dict[str, Any] = {}
        self.started = trio.Event()
        self.stopped = trio.Event()
        self.failed: str | None = None
        self._app = app
        self._on_error = on_error
        self._asked = 0
        self._stop = trio.Event()

    async def run(self) -> None:
        scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": self.state}
        try:
            await self._app(scope, self._receive, self._send)
        except Exception as exc:  # noqa: BLE001 -- before its startup: the application has no lifespan
            if self.started.is_set():
                self._on_error(exc)
        finally:
            self.started.set()
            self.stopped.set()

    async def stop(self) -> None:
        self._stop.set()
        with trio.move_on_after(SHUTDOWN_S):
            await self.stopped.wait()

    async def _receive(self) -> Message:
        self._asked += 1
        if self._asked == 1:
            return {"type": "lifespan.startup"}
        await self._stop.wait()
        return {"type": "lifespan.shutdown"}

    async def _send(self, message: Message) -> None:
        kind = message["type"]
        if kind == "lifespan.startup.failed":
            self.failed = str(message.get("message", ""))
            self.started.set()
        elif kind == "lifespan.startup.complete":
            self.started.set()
        elif kind == "lifespan.shutdown.failed":
            self._on_error(LocalProtocolError("EMC-1341", str(message.get("message", ""))))
            self.stopped.set()
        elif kind == "lifespan.shutdown.complete":
            self.stopped.set()


@asynccontextmanager
async def run_lifespan(
    app: ASGIApp, on_error: Callable[[BaseException], None]
) -> AsyncIterator[dict[str, Any]]:
    """Start an application, yield the state that its requests share, and stop it in the end.

    Raises: LocalProtocolError EMC-1341 when the application says that its startup failed.
    """
    life = _Lifespan(app, on_error)
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(life.run)
        await life.started.wait()
        if life.failed is None:
            try:
                yield life.state
            except Exception as exc:  # noqa: BLE001 -- goes on below, as it is and not in a group
                failure = exc
            await life.stop()
        nursery.cancel_scope.cancel()
    if life.failed is not None:
        raise LocalProtocolError("EMC-1341", life.failed)
    if failure is not None:
        raise failure
