"""websockets' connections, changed so that reading never waits for writing.

As it is, the task that reads also sends (pongs, or nothing at all) and waits for the lock of the
task that writes. Two sides that both write much at once then both stop reading, and wait for each
other. Here, once a writer is attached, whatever wants to send only rings its bell, and the writer
alone waits for the peer, with its own deadline. Pings therefore find a peer that stopped reading.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from websockets.protocol import State
from websockets.trio.client import ClientConnection, connect
from websockets.trio.connection import Connection
from websockets.trio.server import ServerConnection

websocket_logger = logging.getLogger("emcd.net.websocket")
websocket_logger.addHandler(logging.NullHandler())
websocket_logger.propagate = False

_WRITES_MAX = 256
"""Pongs that wait while the writer does: a peer may not fill memory with pings that it never reads."""


class Wire(Connection):
    """A connection whose sending can be handed to one writer."""

    _ring: Callable[[], None] | None = None

    def attach_writer(self, ring: Callable[[], None]) -> None:
        """From now on, bytes to send wait for `flush`; `ring` is called when there are some."""
        self._ring = ring

    def detach_writer(self) -> None:
        """Send as websockets does again: for the farewell."""
        self._ring = None

    async def send_data(self) -> None:
        """What websockets calls after every step of its protocol."""
        if self._ring is None:
            await super().send_data()
        elif len(self.protocol.writes) > _WRITES_MAX:
            raise ConnectionError("pings pile up")  # websockets closes the connection on it
        else:
            self._ring()

    async def flush(self) -> None:
        """Send what waits. Raises what the stream raises."""
        await super().send_data()

    def queue(self, message: bytes) -> bool:
        """Queue a message for `flush`; False when the connection is closing."""
        if self.protocol.state is not State.OPEN:
            return False
        self.protocol.send_binary(message)
        return True


class HubWire(Wire, ServerConnection):
    """The hub's end."""


class NodeWire(Wire, ClientConnection):
    """The node's end."""


class connect_wire(connect):  # noqa: N801 -- named like what it specialises
    """websockets' connect, without its redirects: the hub is where the config says."""

    def process_redirect(self, exc: Exception) -> Exception | str:
        return exc
