"""Opening the hub's HTTP listeners."""

from __future__ import annotations

import ssl
from functools import partial

import structlog
import trio

from emcd.config import HttpListen, Listen
from emcd.errors import ConfigError
from emcd.net.http_exchange import ASGIApp, DirectApp
from emcd.net.http_limit import Limits
from emcd.net.http_server import serve_http
from emcd.net.tls import server_context


def find_tls(listen: Listen) -> ssl.SSLContext | None:
    """The TLS context of a listener; None on loopback without certificates. Raises: ConfigError EMC-1323."""
    if listen.tls_cert is None or listen.tls_key is None:
        return None
    return server_context(listen.tls_cert, listen.tls_key)


async def start_http(
    nursery: trio.Nursery,
    app: ASGIApp | DirectApp,
    listen: HttpListen,
    limits: Limits,
    drain: trio.Event,
    log: structlog.stdlib.BoundLogger,
) -> int:
    """Serve an application in the nursery. Returns: the port, 0 on a unix socket.

    Raises: ConfigError EMC-1780 when it can't listen.
    """

    def on_error(exc: BaseException) -> None:
        log.error("request failed", exc_info=exc)

    serve = partial(
        serve_http,
        app,
        host=listen.host,
        port=listen.port,
        unix=listen.unix,
        unix_mode=listen.unix_mode,
        ssl_context=find_tls(listen),
        limits=limits,
        drain=drain,
        on_error=on_error,
    )
    try:
        port: int = await nursery.start(serve)
    except OSError as exc:
        raise ConfigError("EMC-1780", f"{listen}: {exc.strerror or exc}") from exc
    return port
