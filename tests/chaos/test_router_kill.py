"""A router as a process of its own, killed and frozen: its node is elsewhere within ten seconds."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from emcd.keys import SigningKey, write_keystore
from emcd.ledger import open_ledger
from emcd.proto.network import encode_deployment
from emcd.types import Address
from emcd_node.router_choice import Way
from emcd_node.schema import MIGRATIONS
from tests.support.devnet import free_ports
from tests.support.hub_world import DEPLOYMENT, HUB_KEY, HubWorld, node_key, post, running_world
from tests.support.made_node import MadeModel, running_made_node
from tests.support.process import DaemonProcess, make_environment
from tests.support.router_world import ROUTER_KEYS

pytestmark = pytest.mark.chaos

PASSWORD = "a password of a test"
MOVED_S = 10.0

CONFIG = """
[daemon]
data_dir = "{folder}"
log_format = "json"
[network]
deployment = "deployment.json"
[[role]]
kind = "router"
name = "router"
key = {{ file = "router.json", password_env = "ROUTER_PASSWORD" }}
listen = "127.0.0.1:{port}"
hubs = [{{ url = "ws://127.0.0.1:{hub_port}", address = "{hub}" }}]
"""


class RouterProcess:
    """A router's daemon."""

    def __init__(self, folder: Path, key: SigningKey, hub_port: int) -> None:
        folder.mkdir()
        self.key = key
        self.port = free_ports(1)[0]
        (folder / "deployment.json").write_text(encode_deployment(DEPLOYMENT))
        write_keystore(folder / "router.json", key, PASSWORD, kdf="light")
        config = folder / "emcd.toml"
        config.write_text(
            CONFIG.format(folder=folder, port=self.port, hub_port=hub_port, hub=HUB_KEY.address)
        )
        environment = make_environment(ROUTER_PASSWORD=PASSWORD)
        self.daemon = DaemonProcess(["--config", str(config)], folder, environment)

    @property
    def way(self) -> Way:
        return Way(f"ws://127.0.0.1:{self.port}", self.key.address)


@asynccontextmanager
async def running_processes(folder: Path, world: HubWorld) -> AsyncIterator[list[RouterProcess]]:
    """Two routers, ready."""
    made: list[RouterProcess] = []
    try:
        for number in range(2):
            made.append(
                RouterProcess(folder / f"router-{number}", ROUTER_KEYS[number], world.role.ports["tunnel"])
            )
        for router in made:
            await trio.to_thread.run_sync(router.daemon.wait_ready)
        await world.until(lambda: len(world.plane.routers.list_sessions()) == 2)
        yield made
    finally:
        for router in made:
            router.daemon.signal(signal.SIGCONT)
            router.daemon.kill()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "silent"])
async def test_node_of_a_router_that_died_is_on_another_within_ten_seconds(
    tmp_path: Path, number: signal.Signals
) -> None:
    allowed = tuple(key.address for key in ROUTER_KEYS)
    async with (
        running_world(tmp_path, allowed_routers=allowed) as world,
        open_ledger(tmp_path / "nodes.db", {"node": MIGRATIONS}) as ledger,
        running_processes(tmp_path, world) as routers,
        running_made_node(ledger, node_key(0), [router.way for router in routers], model=MadeModel()) as node,
    ):

        def way() -> Address | None:
            entry = world.plane.board.find(node.address)
            return None if entry is None or entry.status is None else entry.router

        await world.until(way)
        assert (await post(world)).status == 200
        dead, alive = sorted(routers, key=lambda router: router.key.address != way())
        dead.daemon.signal(number)

        await world.until(lambda: way() == alive.key.address, timeout_s=MOVED_S)
        assert (await post(world)).status == 200
        await world.until(lambda: len(world.plane.routers.list_sessions()) == 1, timeout_s=15)
