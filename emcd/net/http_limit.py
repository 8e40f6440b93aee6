"""What the HTTP server grants a client, and how it says no. Pure data.

Every wait on a client is bounded by one of these, and so is every byte kept for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one listener. Times are checked four times a second, so they hold to 0.25 s.

    Attributes:
        header_bytes: request line, header fields and trailers of one request.
        header_fields: how many of them.
        body_bytes: body of one request.
        header_s: from the first byte (or the accept, or the TLS handshake's start) to a whole head.
        body_s: from the first wait for the body to its end, plus its bytes at `min_rate_bytes_s`.
        idle_s: between two requests of a connection.
        write_stall_s: how long one send may wait for the client, plus its bytes at
            `min_rate_bytes_s`.
        min_rate_bytes_s: the slowest client that is served.
        connections: open at once; more wait in the backlog, and idle ones are closed for them.
        disconnect_grace_s: how long an application that waits in `receive()` may go on after it
            was told `http.disconnect`.
        drain_s: how long requests in flight may take once the drain began.
    """

    header_bytes: int = 32 * 1024
    header_fields: int = 128
    body_bytes: int = 16 * 1024 * 1024
    header_s: float = 10.0
    body_s: float = 60.0
    idle_s: float = 75.0
    write_stall_s: float = 30.0
    min_rate_bytes_s: int = 16 * 1024
    connections: int = 4096
    disconnect_grace_s: float = 1.0
    drain_s: float = 30.0


class Refusal(NamedTuple):
    """Why the server answers a request itself, and then closes."""

    status: int
    code: str
    detail: str


HEAD_TIMEOUT = Refusal(408, "EMC-1333", "the request's head did not arrive in time")
BODY_TIMEOUT = Refusal(408, "EMC-1333", "the request's body did not arrive in time")
HEAD_TOO_LARGE = Refusal(431, "EMC-1331", "the request's header is too large")
BODY_TOO_LARGE = Refusal(413, "EMC-1332", "the request's body is too large")
APP_FAILED = Refusal(500, "EMC-1334", "internal error")
DRAINED = Refusal(503, "EMC-1340", "the server is stopping")
