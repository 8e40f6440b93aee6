"""How far away somebody is: the time that a TCP connection takes."""

from __future__ import annotations

import trio

from emcd.net.url_guard import parse_target


async def measure_connect_s(url: str, timeout_s: float) -> float | None:
    """Connect and hang up. Returns: the seconds it took; None when there was no connection in time.

    Raises: ConfigError EMC-1320.
    """
    target = parse_target(url, ("ws", "wss", "http", "https"))
    began = trio.current_time()
    with trio.move_on_after(timeout_s):
        try:
            stream = await trio.open_tcp_stream(target.host, target.port)
        except OSError:
            return None
        took_s = trio.current_time() - began
        await trio.aclose_forcefully(stream)
        return took_s
    return None
