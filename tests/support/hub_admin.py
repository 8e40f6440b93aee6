"""The operator of a hub in tests: requests to its admin listener, and commands that make them."""

from __future__ import annotations

from typing import Any

import trio
from click.testing import CliRunner, Result

from emcd.net.http_client import Response, request
from tests.support.hub_world import ADMIN_TOKEN, HubWorld


async def admin(
    world: HubWorld, method: str, path: str, body: Any = None, token: str = ADMIN_TOKEN
) -> Response:
    """One request to the admin listener."""
    return await request(
        method, world.admin_url + path, json=body, headers={"authorization": f"Bearer {token}"}
    )


async def run_command(command: Any, *arguments: str, **environment: str) -> Result:
    """Run a command in a thread, as it runs a loop of its own."""

    def run() -> Result:
        return CliRunner().invoke(command, arguments, env=environment, catch_exceptions=True)

    return await trio.to_thread.run_sync(run)
