"""What the hub charges by, now and at the boundary of an epoch."""

from __future__ import annotations

import msgspec
import pytest

from emcd.proto.parameter_schedule import ParameterSchedule, ParameterVersion, Unreadable
from emcd.proto.parameters import ParameterSet, next_set
from emcd.proto.params import ModelPrice, PriceTable, devnet_params
from emcd_hub.in_force import CACHED_PRICES, InForce

PARAMS = devnet_params(1_800_000_000)
SPECIAL = b"\xab" * 32
FIRST = ParameterSet(PARAMS, PriceTable())
SECOND = next_set(
    FIRST,
    msgspec.structs.replace(PARAMS, online_window_ms=9_000),
    PriceTable(1, ModelPrice(7, 8, 9), (("0x" + SPECIAL.hex(), ModelPrice(1, 2, 3)),)),
)
BOUNDARY_MS = PARAMS.round_start_ms(24)


class Parameters:
    """A service whose schedule a test replaces."""

    problem = ""

    def __init__(
        self, *versions: ParameterVersion, gaps: tuple[Unreadable, ...] = (), through: int = 2
    ) -> None:
        self.schedule = ParameterSchedule(versions, through, gaps)

    async def refresh(self) -> None: ...


BOTH = (ParameterVersion(1, 0, FIRST), ParameterVersion(2, 2, SECOND))


def test_price_and_version_change_together_at_the_boundary() -> None:
    in_force = InForce(Parameters(*BOTH))

    for at_ms, wanted in ((BOUNDARY_MS - 1, FIRST), (BOUNDARY_MS, SECOND), (BOUNDARY_MS - 1, FIRST)):
        assert in_force.prices(at_ms) is wanted.prices
        assert in_force.params(at_ms) is wanted.params
        assert in_force.price(b"x" * 32, at_ms) == wanted.prices.default
    assert in_force.price(SPECIAL, BOUNDARY_MS - 1) == ModelPrice()
    assert in_force.price(SPECIAL, BOUNDARY_MS) == ModelPrice(1, 2, 3)


def test_new_schedule_counts_at_once() -> None:
    service = Parameters(BOTH[0])
    in_force = InForce(service)
    assert in_force.price(SPECIAL, BOUNDARY_MS) == ModelPrice()

    service.schedule = ParameterSchedule(BOTH, 2)
    assert in_force.price(SPECIAL, BOUNDARY_MS) == ModelPrice(1, 2, 3)


def test_prices_kept_are_bounded() -> None:
    in_force = InForce(Parameters(*BOTH))
    for number in range(CACHED_PRICES + 10):
        in_force.price(number.to_bytes(32, "big"), BOUNDARY_MS)

    assert len(in_force._prices) <= CACHED_PRICES


def test_calls_go_on_while_the_chain_is_away_and_stop_under_unknown_prices() -> None:
    later_ms = PARAMS.round_start_ms(60)

    away = InForce(Parameters(*BOTH, through=2))
    assert away.why_closed(later_ms) == ""
    assert away.prices(later_ms) is SECOND.prices
    unknown = InForce(Parameters(*BOTH, gaps=(Unreadable(3, 4, "EMC-1470: new"),), through=9))
    assert unknown.why_closed(PARAMS.round_end_ms(47) - 1) == ""
    assert "EMC-1540" in unknown.why_closed(PARAMS.round_start_ms(48))


@pytest.mark.parametrize("at_ms", [0, PARAMS.round_start_ms(0) - 1])
def test_before_genesis_the_first_version_counts(at_ms: int) -> None:
    assert InForce(Parameters(*BOTH)).prices(at_ms) is FIRST.prices
