"""Parameters that a quorum changes, as read from real contracts: on an embedded chain."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from emcd.chain import CallReverted, Chain, ChainConfig
from emcd.chain.parameters import ParameterKeeper, fetch_parameter_schedule, fetch_published
from emcd.clock import ManualClock
from emcd.errors import FatalError, RecoverableError
from emcd.keys import SigningKey
from emcd.ledger import Ledger
from emcd.ledger.parameter_store import LedgerParameterStore
from emcd.log import get_logger
from emcd.proto.parameters import encode_document
from emcd.proto.params import NetworkParams
from emcd.types import ParticipantRole
from emcd_devchain.genesis import OfflineRpc
from tests.support.network import GENESIS_S, HOLDER, LiveNetwork, deploy, empty_chain
from tests.support.parameter_quorum import (
    DEAR,
    change_call,
    changed,
    first_set,
    publish_change,
    publish_text,
)

EPOCH_S = 12 * 15


class Quorum:
    """A network with four validators, in the middle of its epoch 0."""

    def __init__(self, network: LiveNetwork, keys: Sequence[SigningKey]) -> None:
        self.network = network
        self.keys = keys
        self.first = first_set(network)

    async def move_to_epoch(self, epoch: int) -> None:
        assert isinstance(self.network.rpc, OfflineRpc)
        await self.network.rpc.mine(GENESIS_S + epoch * EPOCH_S + 20)

    def keeper(self, ledger: Ledger, rpc: Any = None, at_epoch: int = 0) -> ParameterKeeper:
        chain = self.network.chain
        if rpc is not None:
            chain = Chain(chain.config, self.network.deployment, rpc)
        clock = ManualClock((GENESIS_S + at_epoch * EPOCH_S + 20) * 1000)
        return ParameterKeeper(chain, LedgerParameterStore(ledger), clock, get_logger())


class AwayRpc:
    """An RPC that nobody reaches."""

    async def call(self, method: str, *params: Any) -> Any:
        raise RecoverableError("EMC-1502", "no endpoint answers")


@pytest.fixture
async def quorum(tmp_path: Path) -> AsyncIterator[Quorum]:
    with empty_chain(tmp_path / "chain.sqlite") as rpc:
        network = await deploy(rpc)
        keys = [await network.join(f"v{n}", ParticipantRole.VALIDATOR) for n in range(4)]
        world = Quorum(network, keys)
        await world.move_to_epoch(0)
        yield world


async def test_schedule_of_a_fresh_chain_is_the_deployment_files(quorum: Quorum) -> None:
    schedule = await fetch_parameter_schedule(quorum.network.chain)

    assert [(v.number, v.from_epoch, v.parameters) for v in schedule.versions] == [(1, 0, quorum.first)]
    assert (schedule.known_through_epoch, schedule.unreadable) == (1, ())
    assert schedule.versions[0].block_number >= quorum.network.deployment.deployed_block


async def test_schedule_follows_what_a_quorum_signed(quorum: Quorum) -> None:
    dear = changed(quorum.first, prices=DEAR, compute_minimum_wei=(4_000 * 10**18).to_bytes(32, "big"))
    probed = changed(dear, probes_per_node=3)
    await publish_change(quorum.network, dear, 2, quorum.keys[:3])
    before = await quorum.network.chain.head()
    await quorum.move_to_epoch(1)
    await publish_change(quorum.network, probed, 5, quorum.keys)

    schedule = await fetch_parameter_schedule(quorum.network.chain)
    assert [(v.number, v.from_epoch, v.parameters) for v in schedule.versions] == [
        (1, 0, quorum.first), (2, 2, dear), (3, 5, probed),
    ]  # fmt: skip
    assert schedule.known_through_epoch == 2
    assert schedule.prices_at(23) == quorum.first.prices
    assert schedule.prices_at(24) == dear.prices
    with pytest.raises(RecoverableError, match="EMC-1541"):
        schedule.params_at(36)
    then = await fetch_parameter_schedule(quorum.network.chain, before)
    assert [v.number for v in then.versions] == [1, 2]
    rules = await quorum.network.chain.parameters.fetch_rules_at(2)
    assert rules.roles[0].minimum_wei == 4_000 * 10**18


@pytest.mark.parametrize(
    ("signers", "from_epoch", "number", "error"),
    [
        (2, 2, 2, "NoQuorum"),
        (0, 2, 2, "NoQuorum"),
        (4, 1, 2, "BadEpoch"),
        (4, 18, 2, "BadEpoch"),
        (4, 2, 1, "WrongVersion"),
        (4, 2, 3, "WrongVersion"),
    ],
)
async def test_change_that_the_contract_refuses(
    quorum: Quorum, signers: int, from_epoch: int, number: int, error: str
) -> None:
    after = changed(quorum.first, prices=DEAR)
    call = change_call(quorum.network, after, from_epoch, quorum.keys[:signers], number)
    with pytest.raises(CallReverted) as caught:
        await quorum.network.chain.require_can(call, HOLDER.address)

    assert caught.value.reason.name == error
    assert len((await fetch_parameter_schedule(quorum.network.chain)).versions) == 1


async def test_version_nobody_can_read_ends_the_schedule_and_a_later_one_heals_it(
    quorum: Quorum, ledger: Ledger
) -> None:
    await publish_text(quorum.network, '{"params":{"new":1}}', quorum.first, 3, quorum.keys, 2)
    keeper = quorum.keeper(ledger)
    await keeper.refresh()

    assert "EMC-1540" in keeper.problem
    assert "update emcd" in keeper.problem
    assert keeper.schedule.version_at(23).number == 1
    await quorum.move_to_epoch(2)
    await keeper.refresh()
    assert keeper.schedule.version_at(35).number == 1
    with pytest.raises(RecoverableError, match="EMC-1540"):
        keeper.schedule.version_at(36)
    healed = msgspec.structs.replace(changed(quorum.first, probes_per_node=3).params, version=3)
    await publish_change(quorum.network, type(quorum.first)(healed, quorum.first.prices), 4, quorum.keys, 3)
    await quorum.move_to_epoch(4)
    await keeper.refresh()
    assert keeper.schedule.params_at(48).probes_per_node == 3
    assert quorum.keeper(ledger, at_epoch=4).problem != ""  # not loaded: it knows the first epochs only


async def test_rules_that_are_not_the_documents_are_unreadable(quorum: Quorum) -> None:
    text = changed(quorum.first, prices=DEAR)
    other = changed(quorum.first, compute_minimum_wei=(1).to_bytes(32, "big"))
    await publish_text(quorum.network, encode_document(text.params, text.prices), other, 2, quorum.keys, 2)

    schedule = await fetch_parameter_schedule(quorum.network.chain)
    assert "EMC-1475" in schedule.unreadable[0].reason


async def test_empty_document_is_unreadable_and_not_the_rpcs_fault(quorum: Quorum) -> None:
    await publish_text(quorum.network, "", quorum.first, 2, quorum.keys, 2)
    assert (await fetch_parameter_schedule(quorum.network.chain)).unreadable[0].number == 2


async def test_keeper_starts_from_the_ledger_without_the_chain(quorum: Quorum, ledger: Ledger) -> None:
    dear = changed(quorum.first, prices=DEAR)
    await publish_change(quorum.network, dear, 2, quorum.keys)
    await quorum.move_to_epoch(1)
    await quorum.keeper(ledger).refresh()

    away = quorum.keeper(ledger, AwayRpc(), at_epoch=1)
    assert len(away.schedule.versions) == 1
    await away.load()
    assert away.schedule.prices_at(24) == dear.prices
    assert away.problem == ""
    with pytest.raises(RecoverableError, match="EMC-1502"):
        await away.refresh()
    assert away.schedule.prices_at(24) == dear.prices
    late = quorum.keeper(ledger, AwayRpc(), at_epoch=3)
    await late.load()
    assert "EMC-1541" in late.problem
    assert late.schedule.newest_known_at(36).parameters == dear


async def test_keeper_reads_a_document_once_and_sees_the_next_version(quorum: Quorum, ledger: Ledger) -> None:
    class Counting:
        def __init__(self) -> None:
            self.asked: list[str] = []

        async def call(self, method: str, *params: Any) -> Any:
            self.asked.append(method)
            return await quorum.network.rpc.call(method, *params)

    rpc = Counting()
    keeper = quorum.keeper(ledger, rpc)
    await keeper.refresh()
    assert rpc.asked.count("eth_getLogs") == 1
    rpc.asked.clear()
    await keeper.refresh()
    assert "eth_getLogs" not in rpc.asked
    assert len(rpc.asked) <= 3
    await publish_change(quorum.network, changed(quorum.first, prices=DEAR), 2, quorum.keys)
    await keeper.refresh()
    assert keeper.schedule.newest.number == 2
    assert rpc.asked.count("eth_getLogs") == 1


async def test_keeper_forgets_a_version_that_the_chain_took_back(quorum: Quorum, ledger: Ledger) -> None:
    before = await quorum.network.chain.head()
    await publish_change(quorum.network, changed(quorum.first, prices=DEAR), 2, quorum.keys)
    keeper = quorum.keeper(ledger)
    await keeper.refresh()
    assert keeper.schedule.newest.number == 2
    found = await fetch_published(keeper._chain, before, keeper._published)

    assert [item.number for item in found.versions] == [1]


@pytest.mark.parametrize("lie", ["missing", "other", "garbage"])
async def test_document_that_the_rpc_makes_up_is_not_believed(
    quorum: Quorum, ledger: Ledger, lie: str
) -> None:
    class Lying:
        async def call(self, method: str, *params: Any) -> Any:
            answer = await quorum.network.rpc.call(method, *params)
            if method != "eth_getLogs":
                return answer
            if lie == "missing":
                return []
            data = answer[0]["data"]
            return [{**answer[0], "data": data.replace("7b22", "7b23", 1) if lie == "other" else data[:300]}]

    keeper = quorum.keeper(ledger, Lying())
    with pytest.raises(RecoverableError, match="EMC-1507"):
        await keeper.refresh()
    assert keeper.schedule.newest.number == 1


async def test_keeper_with_another_networks_file_stops_the_daemon(quorum: Quorum, ledger: Ledger) -> None:
    deployment = quorum.network.deployment
    other: NetworkParams = msgspec.structs.replace(deployment.params, probes_per_node=5)
    chain = Chain(
        ChainConfig(("http://127.0.0.1:1",), confirmations=1),
        msgspec.structs.replace(deployment, params=other),
        quorum.network.rpc,
    )
    keeper = ParameterKeeper(chain, LedgerParameterStore(ledger), ManualClock(0), get_logger())

    with pytest.raises(FatalError, match="EMC-1542"):
        await keeper.run()


async def test_keeper_complains_after_the_chain_is_away_and_goes_on(
    quorum: Quorum, ledger: Ledger, jumping_clock: object
) -> None:
    class Flaky:
        away = True

        async def call(self, method: str, *params: Any) -> Any:
            if self.away:
                raise RecoverableError("EMC-1502", "no endpoint answers")
            return await quorum.network.rpc.call(method, *params)

    rpc = Flaky()
    keeper = quorum.keeper(ledger, rpc)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keeper.run)
        with trio.fail_after(60):
            while not keeper.problem:
                await trio.sleep(0.05)
            assert "EMC-1502" in keeper.problem
            rpc.away = False
            while keeper.problem:
                await trio.sleep(0.05)
        nursery.cancel_scope.cancel()
    assert keeper.schedule.versions[0].block_number > 0
