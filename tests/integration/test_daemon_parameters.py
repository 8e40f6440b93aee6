"""The parameters that a daemon's roles share: read from the chain, kept, told by health."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from emcd.chain import Chain
from emcd.clock import ManualClock
from emcd.daemon import Daemon, Prepared
from emcd.daemon import life as daemon_life
from emcd.errors import RecoverableError
from emcd.role import Role
from emcd.services import HealthState, ParametersInForce
from emcd.types import ParticipantRole
from emcd_devchain.genesis import OfflineRpc
from tests.support.daemon_roles import Actor, ActorConfig, Diary, make_prepared
from tests.support.network import GENESIS_S, LiveNetwork, deploy, empty_chain
from tests.support.parameter_quorum import DEAR, changed, first_set, publish_change, publish_text

EPOCH_S = 12 * 15


class Wire:
    """The RPC, until a test takes it away."""

    def __init__(self, rpc: OfflineRpc) -> None:
        self.rpc = rpc
        self.is_away = False

    async def call(self, method: str, *params: Any) -> Any:
        if self.is_away:
            raise RecoverableError("EMC-1502", "no endpoint answers")
        return await self.rpc.call(method, *params)


class World:
    """A network whose chain every daemon of the test is given."""

    def __init__(self, network: LiveNetwork, keys: list[Any], rpc: OfflineRpc, folder: Path) -> None:
        self.network, self.keys, self.rpc, self.folder = network, keys, rpc, folder
        self.wire = Wire(rpc)
        self.clock = ManualClock((GENESIS_S + 20) * 1000)

    def prepare(self) -> Prepared:
        prepared = make_prepared(self.folder, [ActorConfig("a", Diary())])
        specs = tuple(replace(spec, needs_network=True) for spec in prepared.specs)
        return replace(prepared, specs=specs, deployment=self.network.deployment)

    @asynccontextmanager
    async def daemon(self) -> AsyncIterator[tuple[Daemon, ParametersInForce, Role]]:
        daemon = Daemon(self.prepare(), clock=self.clock, signals=False)
        async with trio.open_nursery() as nursery:
            await nursery.start(lambda task_status: daemon.run(task_status=task_status))
            yield daemon, daemon.services.get(ParametersInForce), daemon._runners[0].role
            daemon.stop()


async def until(condition: Any) -> None:
    with trio.fail_after(20):
        while not condition():
            await trio.sleep(0.01)


@pytest.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    with empty_chain(tmp_path / "chain.sqlite") as rpc:
        network = await deploy(rpc)
        keys = [await network.join(f"v{n}", ParticipantRole.VALIDATOR) for n in range(4)]
        await rpc.mine(GENESIS_S + 20)
        made = World(network, keys, rpc, tmp_path)
        chain = Chain(network.chain.config, network.deployment, made.wire)
        monkeypatch.setattr(daemon_life, "make_chain", lambda prepared: chain)
        yield made


async def test_daemon_gives_its_roles_the_chains_parameters(world: World) -> None:
    dear = changed(first_set(world.network), prices=DEAR)
    await publish_change(world.network, dear, 2, world.keys)
    async with world.daemon() as (daemon, parameters, role):
        assert isinstance(role, Actor)
        assert role.ctx is not None
        assert role.ctx.parameters is parameters
        await until(lambda: parameters.schedule.newest.number == 2)
        assert daemon.board.list_roles()[0].health.state is HealthState.READY
    world.wire.is_away = True
    async with world.daemon() as (_, parameters, _role):
        assert parameters.schedule.newest.parameters == dear


async def test_daemon_is_degraded_before_a_version_it_cant_read(world: World) -> None:
    await publish_text(world.network, "{}", first_set(world.network), 3, world.keys, 2)
    async with world.daemon() as (daemon, parameters, _):
        await until(lambda: parameters.problem)
        (shown,) = daemon.board.list_roles()

        assert shown.health.state is HealthState.DEGRADED
        assert "EMC-1540" in shown.health.reason
        assert "update emcd" in shown.health.reason
        assert daemon.board.is_ready()


async def test_daemon_without_a_chain_has_the_deployment_files(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemon_life, "make_chain", lambda prepared: None)
    daemon = Daemon(world.prepare(), clock=world.clock, signals=False)
    async with trio.open_nursery() as nursery:
        await nursery.start(lambda task_status: daemon.run(task_status=task_status))
        role = daemon._runners[0].role
        assert isinstance(role, Actor)
        assert role.ctx is not None
        assert daemon.services.find(ParametersInForce) is None
        assert role.ctx.parameters.schedule.params_at(10**6) == world.network.deployment.params
        daemon.stop()


async def test_daemon_with_another_networks_deployment_file_stops(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployment = world.network.deployment
    other = msgspec.structs.replace(
        deployment, params=msgspec.structs.replace(deployment.params, probes_per_node=5)
    )
    chain = Chain(world.network.chain.config, other, world.wire)
    monkeypatch.setattr(daemon_life, "make_chain", lambda prepared: chain)
    daemon = Daemon(replace(world.prepare(), deployment=other), clock=world.clock, signals=False)
    with trio.fail_after(20):
        assert await daemon.run() == 1
