"""What is in force now: the prices of the calls that start, the numbers that nodes are held to.

Invariant: a call is charged by the table that its forward names, that of the round in which it
started; nothing here waits, so that a chain that is away stops no call.
"""

from __future__ import annotations

from emcd.accounting.price import price_of
from emcd.errors import RecoverableError
from emcd.proto.parameter_schedule import ParameterSchedule, ParameterVersion
from emcd.proto.params import ModelPrice, NetworkParams, PriceTable
from emcd.services import ParametersInForce

CACHED_PRICES = 1024


class InForce:
    """The version in force at a time, as far as the chain was read."""

    def __init__(self, parameters: ParametersInForce) -> None:
        self._parameters = parameters
        self._schedule: ParameterSchedule | None = None
        self._index = 0
        self._from_ms = self._until_ms = 0
        self._version: ParameterVersion
        self._closed = ""
        self._prices: dict[bytes, ModelPrice] = {}

    def params(self, at_ms: int) -> NetworkParams:
        """The parameters at a time."""
        return self._find(at_ms).parameters.params

    def prices(self, at_ms: int) -> PriceTable:
        """The table for calls that start at a time."""
        return self._find(at_ms).parameters.prices

    def price(self, model_hash: bytes, at_ms: int) -> ModelPrice:
        """The price of a model for a call that starts at a time."""
        version = self._find(at_ms)
        found = self._prices.get(model_hash)
        if found is None:
            if len(self._prices) >= CACHED_PRICES:
                self._prices.clear()
            found = self._prices[model_hash] = price_of(version.parameters.prices, model_hash)
        return found

    def round_at(self, at_ms: int) -> int:
        """The round of a time."""
        self._find(at_ms)
        return self._index

    def why_closed(self, at_ms: int) -> str:
        """Why no call can be charged at a time; "" when calls can."""
        self._find(at_ms)
        return self._closed

    def _find(self, at_ms: int) -> ParameterVersion:
        schedule = self._parameters.schedule
        if schedule is not self._schedule or not self._from_ms <= at_ms < self._until_ms:
            self._turn_to(schedule, at_ms)
        return self._version

    def _turn_to(self, schedule: ParameterSchedule, at_ms: int) -> None:
        """Look up what holds for the whole round of a time."""
        clock = schedule.clock
        index = clock.round_at(at_ms)
        self._version = schedule.newest_readable_at(index)
        self._schedule, self._index = schedule, index
        self._from_ms, self._until_ms = clock.round_start_ms(index), clock.round_end_ms(index)
        self._prices = {}
        self._closed = "the network's first round has not begun" if index < 0 else ""
        try:
            schedule.newest_known_at(index)
        except RecoverableError as exc:
            self._closed = self._closed or f"the network's prices can't be read by this hub ({exc.code})"
