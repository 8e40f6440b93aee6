"""A validator and the parameters of a round: the chain's, never the hub's."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest

from emcd.accounting.round_close import RoundFacts
from emcd.errors import RecoverableError
from emcd.ledger import Ledger
from emcd.proto.parameter_schedule import ParameterSchedule, ParameterVersion, Unreadable
from emcd.proto.parameters import ParameterSet, next_set
from emcd.proto.params import ModelPrice, PriceTable
from emcd.testing import temporary_ledger
from emcd_validator.attester import Decision, Signed
from emcd_validator.queries.rounds import list_probes
from emcd_validator.revealer import reveal_round
from emcd_validator.role import SPEC
from tests.support.validator_world import FakeHub, Parts, make_parts, make_world, set_clock, take_statements

NAME = "validator-1"
CHANGE = 2
"""The first round of epoch 1, from which the second version is in force."""
DEAR = PriceTable(1, ModelPrice(20_000_000_000, 20_000_000_000, 20_000))


class Parameters:
    """What the chain says, as a test has it."""

    problem = ""

    def __init__(self, *versions: ParameterSet, through: int = 9, gaps: tuple[Unreadable, ...] = ()) -> None:
        numbered = [ParameterVersion(n, n - 1, content) for n, content in enumerate(versions, start=1)]
        self.schedule = ParameterSchedule(tuple(numbered), through, gaps)

    async def refresh(self) -> None: ...


@pytest.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[Ledger]:
    async with temporary_ledger(tmp_path, {"validator": SPEC.migrations}) as opened:
        yield opened


@pytest.fixture
def hub() -> FakeHub:
    return make_world((NAME, "validator-2", "validator-3"), round_s=20, epoch_rounds=2)


def both(hub: FakeHub, **changes: Any) -> tuple[ParameterSet, ParameterSet]:
    first = ParameterSet(hub.deployment.params, hub.deployment.prices)
    return first, next_set(first, msgspec.structs.replace(first.params, **changes), DEAR)


def obey(hub: FakeHub, monkeypatch: pytest.MonkeyPatch, schedule: ParameterSchedule, index: int) -> None:
    """The hub charges and closes the round by a schedule."""
    made = type(hub).facts
    tables = schedule.tables_for(0, index)

    def facts(self: FakeHub, asked: int) -> RoundFacts:
        return replace(
            made(self, asked),
            params=schedule.params_at(index),
            prices=tuple(item.table for item in tables),
            prices_from=tuple(item.from_round for item in tables),
        )

    monkeypatch.setattr(type(hub), "facts", facts)
    hub.deployment = msgspec.structs.replace(hub.deployment, prices=schedule.prices_at(index))


async def live_through(parts: Parts, hub: FakeHub, index: int) -> Decision:
    """Commit, probe, reveal; the hub closes; the validator decides."""
    params = hub.deployment.params
    set_clock(hub, params.round_start_ms(index) - 500)
    await parts.committer.commit(index)
    set_clock(hub, params.round_start_ms(index) + params.round_s * 850)
    await parts.committer.plan(await parts.views.fetch_view(index))
    await parts.prober.run_round(index)
    set_clock(hub, parts.validator.reveal_at_ms(index))
    await reveal_round(parts.validator, index)
    await take_statements(hub, parts.validator, index)
    set_clock(hub, params.grace_end_ms(index) + 1)
    hub.close(index)
    return await parts.attester.decide(index)


def refusal_of(decision: Decision) -> tuple[str, str]:
    assert not isinstance(decision, Signed)
    return decision.code, decision.reason


async def test_validator_attests_rounds_before_and_after_a_change(
    hub: FakeHub, ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain = Parameters(*both(hub, probes_per_node=3))
    parts = make_parts(NAME, ledger, hub, tmp_path, parameters=chain)
    planned = {}
    for index in (CHANGE - 1, CHANGE):
        obey(hub, monkeypatch, chain.schedule, index)
        decision = await live_through(parts, hub, index)
        assert isinstance(decision, Signed), decision
        read = partial(list_probes, instance=parts.validator.address, round_index=index)
        planned[index] = await ledger.read(read)
    assert len(planned[CHANGE]) == len(hub.nodes)  # three probes of each node, by three validators
    slots = {probe.slot for index in planned for probe in planned[index]}
    view = await parts.views.fetch_view(CHANGE)
    assert {item.slot for item in view.assignments(parts.validator.params_at(CHANGE))} == {0, 1, 2} >= slots
    header = hub.closed[CHANGE].header
    assert [table.version for table in header.prices] == [1, 2]
    assert header.prices_from == (0, CHANGE)


async def test_hub_that_charges_the_new_price_a_round_early_is_refused_and_named(
    hub: FakeHub, ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = both(hub)
    parts = make_parts(NAME, ledger, hub, tmp_path, parameters=Parameters(first, second))
    honest = Parameters(first, second).schedule
    obey(hub, monkeypatch, honest, CHANGE - 1)
    made = type(hub).facts
    early = {"prices": (first.prices, second.prices), "prices_from": (0, CHANGE - 1)}
    monkeypatch.setattr(type(hub), "facts", lambda self, index: replace(made(self, index), **early))
    hub.deployment = msgspec.structs.replace(hub.deployment, prices=second.prices)
    code, reason = refusal_of(await live_through(parts, hub, CHANGE - 1))

    assert code == "EMC-1906"
    assert "prices_from is [0, 1], expected [0]" in reason or "price table 2 is not one in force" in reason


async def test_hub_that_keeps_the_early_price_out_of_its_header_is_refused(
    hub: FakeHub, ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own builder takes no such call, and the validator misses the calls of its probes."""
    first, second = both(hub)
    parts = make_parts(NAME, ledger, hub, tmp_path, parameters=Parameters(first, second))
    obey(hub, monkeypatch, Parameters(first, second).schedule, CHANGE - 1)
    hub.deployment = msgspec.structs.replace(hub.deployment, prices=second.prices)

    assert refusal_of(await live_through(parts, hub, CHANGE - 1))[0] == "EMC-1823"


async def test_hub_that_goes_on_with_the_old_price_is_refused(
    hub: FakeHub, ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = both(hub)
    parts = make_parts(NAME, ledger, hub, tmp_path, parameters=Parameters(first, second))
    old = ParameterSet(second.params, first.prices)
    obey(hub, monkeypatch, Parameters(first, old).schedule, CHANGE)
    code, reason = refusal_of(await live_through(parts, hub, CHANGE))

    assert code == "EMC-1906"
    assert "the price tables up to 2 are not all in the bundle" in reason


async def test_hub_that_goes_on_with_the_old_parameters_is_refused(
    hub: FakeHub, ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = both(hub)
    parts = make_parts(NAME, ledger, hub, tmp_path, parameters=Parameters(first, second))
    obey(hub, monkeypatch, Parameters(first).schedule, CHANGE)
    code, reason = refusal_of(await live_through(parts, hub, CHANGE))

    assert code == "EMC-1906"
    assert "params is" in reason


@pytest.mark.parametrize(
    ("options", "code"),
    [({"gaps": (Unreadable(2, 1, "EMC-1470: new"),)}, "EMC-1540"), ({"through": 0}, "EMC-1541")],
)
async def test_validator_signs_nothing_under_parameters_it_does_not_know(
    hub: FakeHub, ledger: Ledger, tmp_path: Path, options: dict[str, Any], code: str
) -> None:
    first, _ = both(hub)
    parts = make_parts(NAME, ledger, hub, tmp_path, parameters=Parameters(first, **options))
    set_clock(hub, hub.deployment.params.grace_end_ms(CHANGE) + 1)
    hub.close(CHANGE)
    with pytest.raises(RecoverableError, match=code):
        await parts.attester.decide(CHANGE)
    with pytest.raises(RecoverableError, match=code):
        await parts.views.fetch_view(CHANGE)
    assert not await ledger.read(
        lambda con: con.execute("SELECT 1 FROM validator_items WHERE kind = 'round_root'").fetchall()
    )
