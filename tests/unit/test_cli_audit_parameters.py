"""What `emcd audit` demands of a bundle's parameters: by the file alone, and by the chain."""

from __future__ import annotations

import msgspec
import pytest

from emcd.accounting.audit import audit_bundle
from emcd.accounting.expectation import Expectation
from emcd.cli.audit_parameters import describe_parameters, expect_parameters
from emcd.errors import RecoverableError
from emcd.proto.network import Deployment
from emcd.proto.parameter_schedule import ParameterSchedule, ParameterVersion
from emcd.proto.parameters import ParameterSet, next_set
from emcd.proto.params import ModelPrice, PriceTable
from emcd.testing import make_key
from tests.support.round_world import SealedBundle, World

DEAR = PriceTable(1, ModelPrice(20_000_000_000, 20_000_000_000, 20_000))
WORLD = World(round=20, node_names=("node-1",), calls_per_node=1)
FIRST = ParameterSet(WORLD.params, WORLD.prices)
SECOND = next_set(FIRST, msgspec.structs.replace(FIRST.params, probes_per_node=3), DEAR)
FILE = Deployment(
    chain_id=1,
    deployed_block=1,
    params=FIRST.params,
    prices=FIRST.prices,
    **{name: make_key(name).address for name in ("token", "staking", "distributor", "vault", "parameters")},
)


def schedule(*versions: ParameterSet, through: int = 9) -> ParameterSchedule:
    return ParameterSchedule(
        tuple(ParameterVersion(n, n - 1, content) for n, content in enumerate(versions, start=1)), through
    )


OLD = WORLD.close()
NEW = World(
    round=20, node_names=("node-1",), calls_per_node=1, params=SECOND.params, prices=SECOND.prices
).close({"prices": (FIRST.prices, SECOND.prices), "prices_from": (0, 12)})


def code(sealed: SealedBundle, known: Deployment | None, versions: ParameterSchedule | None) -> str:
    expected = Expectation(**expect_parameters(sealed.header, known, versions))
    difference = audit_bundle(sealed.data, expected).difference
    return "" if difference is None else difference.code


def test_audit_without_the_chain_takes_version_1_by_the_file_and_a_later_one_by_its_word() -> None:
    assert code(OLD, FILE, None) == code(NEW, FILE, None) == code(NEW, None, None) == ""
    other = msgspec.structs.replace(FILE, params=msgspec.structs.replace(FILE.params, carry_rounds=11))
    assert code(OLD, other, None) == "EMC-1906"
    assert code(NEW, other, None) == ""
    clock = msgspec.structs.replace(FILE, params=msgspec.structs.replace(FILE.params, unbonding_rounds=99))
    assert code(NEW, clock, None) == "EMC-1906"


def test_audit_with_the_chain_takes_exactly_what_was_in_force() -> None:
    assert code(NEW, FILE, schedule(FIRST, SECOND)) == ""
    assert code(OLD, FILE, schedule(FIRST, SECOND)) == "EMC-1906"
    assert code(NEW, FILE, schedule(FIRST)) == "EMC-1906"
    assert code(OLD, FILE, schedule(FIRST)) == ""
    with pytest.raises(RecoverableError, match="EMC-1541"):
        code(OLD, FILE, schedule(FIRST, through=0))


def test_audit_says_who_vouches_for_the_versions() -> None:
    assert describe_parameters(NEW.header, None) == (
        "parameters version 2, price tables 1, 2, by the bundle's own word"
    )
    assert describe_parameters(OLD.header, schedule(FIRST)).endswith("price tables 1: as the chain has them")
