"""Random histories of all contracts: what must hold after every step, whoever acts and whenever."""

from __future__ import annotations

import os
import random
import sys
import time

import pytest
from hypothesis import HealthCheck, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.chain.history.round_rule import RoundRules
from tests.chain.history.staking_rule import StakingRules

DURATION, SEED = "EMCD_INVARIANT_SECONDS", "EMCD_INVARIANT_SEED"
HOUR_S, REPORT_S = 3_600, 60
DEEP = settings(
    max_examples=8,
    stateful_step_count=120,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)


class Progress:
    """Steps so far; says so once a minute while it is told to."""

    def __init__(self) -> None:
        self.steps = 0
        self._began_s = self._said_s = float("inf")

    def begin(self) -> None:
        self.steps = 0
        self._began_s = self._said_s = time.monotonic()

    def spent_s(self) -> float:
        return time.monotonic() - self._began_s

    def step(self) -> None:
        self.steps += 1
        if time.monotonic() - self._said_s >= REPORT_S:
            self._said_s = time.monotonic()
            self.say("going on")

    def say(self, text: str) -> None:
        """To the terminal, whatever pytest captures."""
        if sys.__stderr__ is not None:
            sys.__stderr__.write(f"invariants: {self.steps} steps in {self.spent_s():.0f} s, {text}\n")
            sys.__stderr__.flush()


PROGRESS = Progress()


class Histories(StakingRules, RoundRules):
    """Stakers, liars, thieves; calls doubled and out of order; the clock jumps."""

    def check_wei(self) -> None:
        super().check_wei()
        PROGRESS.step()


class TestHistories(Histories.TestCase):  # type: ignore[misc,valid-type]
    settings = settings(max_examples=12, stateful_step_count=50, deadline=None)


@pytest.mark.deep
def test_invariants_hold_for_as_long_as_one_looks() -> None:
    """An hour, or as many seconds as the environment says; the seed that it prints repeats the run."""
    duration_s = float(os.environ.get(DURATION, HOUR_S))
    first = int(os.environ.get(SEED, random.randrange(2**32)))
    PROGRESS.begin()
    batch = 0
    try:
        while PROGRESS.spent_s() < duration_s:
            machine = seed(first + batch)(type("Batch", (Histories,), {}))
            run_state_machine_as_test(machine, settings=DEEP)
            batch += 1
    finally:
        PROGRESS.say(f"batch {batch}, {SEED}={first}")
