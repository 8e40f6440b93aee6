"""Fixtures for every test: a ledger, a clock that jumps, quiet logs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import structlog
import trio.testing

from emcd import log
from emcd.ledger import Ledger
from emcd.recursion import cap_recursion
from emcd.testing import AUTOJUMP_S, temporary_ledger


@pytest.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[Ledger]:
    """An empty ledger file with the core tables."""
    async with temporary_ledger(tmp_path) as opened:
        yield opened


@pytest.fixture
def jumping_clock() -> trio.testing.MockClock:
    """Virtual time that jumps when everybody waits, and leaves threads the time to answer."""
    return trio.testing.MockClock(autojump_threshold=AUTOJUMP_S)


@pytest.fixture(autouse=True)
def _capped_recursion() -> None:
    """As in the daemon, whatever a test imported before this one."""
    cap_recursion()


@pytest.fixture(autouse=True)
def _quiet_log() -> Iterator[None]:
    """Log lines go nowhere and secrets of one test are unknown to the next."""
    structlog.configure(
        processors=[structlog.contextvars.merge_contextvars, log.redact, _drop],
        wrapper_class=structlog.make_filtering_bound_logger(0),
        cache_logger_on_first_use=False,
    )
    yield
    structlog.reset_defaults()
    log.forget_secrets()


def _drop(_logger: object, _method: str, _event: object) -> str:
    raise structlog.DropEvent
