"""A validator that dies at every write of a round, before and after it, and starts again.

Whatever the point: it never signs two contents, never sends a probe twice, and ends with the
round attested.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from emcd.ledger import Connection, Ledger
from emcd.ledger.sign_once import find_signed
from emcd.proto.eip712 import digest
from emcd.testing import temporary_ledger
from emcd_validator.attester import Signed
from emcd_validator.entry import read_struct
from emcd_validator.queries.items import Item, Kind, list_drafts, list_items
from emcd_validator.queries.rounds import mark_lost
from emcd_validator.revealer import reveal_round, sign_results
from emcd_validator.role import SPEC
from emcd_validator.signatory import domain_of, finish_drafts
from tests.support.validator_world import FakeHub, Parts, make_parts, make_world, set_clock, take_statements

INDEX = 3
NAME = "validator-1"


class CrashError(Exception):
    """The power went out."""


class CrashingLedger:
    """A ledger that dies at its nth write: `after` the commit or before it."""

    def __init__(self, ledger: Ledger, at: int, *, after: bool) -> None:
        self._ledger, self._left, self._after = ledger, at, after
        self.path = ledger.path

    async def write(self, query: Callable[[Connection], Any]) -> Any:
        self._left -= 1
        if self._left < 0 and not self._after:
            raise CrashError
        result = await self._ledger.write(query)
        if self._left < 0:
            raise CrashError
        return result

    async def read(self, query: Callable[[Connection], Any]) -> Any:
        return await self._ledger.read(query)


class Run:
    """One validator's way through a round, restarted where it died."""

    def __init__(self, ledger: Ledger, hub: FakeHub, folder: Path) -> None:
        self.ledger, self.hub, self.folder = ledger, hub, folder
        self.params = hub.deployment.params
        self.outcome: object = None

    async def step(self, name: str, crash_at: int | None, *, after: bool) -> bool:
        """One step on a freshly started validator. Returns: whether it died."""
        ledger = self.ledger if crash_at is None else CrashingLedger(self.ledger, crash_at, after=after)
        parts = make_parts(NAME, cast("Ledger", ledger), self.hub, self.folder)
        died = False
        try:
            await self._start(parts)
            await getattr(self, f"_{name}")(parts)
        except* CrashError:
            died = True
        return died

    async def _start(self, parts: Parts) -> None:
        validator = parts.validator
        await validator.write(lambda con: mark_lost(con, validator.address, "restart"))
        await finish_drafts(validator)

    async def _commit(self, parts: Parts) -> None:
        set_clock(self.hub, self.params.round_start_ms(INDEX) - 500)
        await parts.committer.commit(INDEX)

    async def _probe(self, parts: Parts) -> None:
        set_clock(self.hub, self.params.round_start_ms(INDEX) + self.params.round_s * 850)
        if await parts.committer.plan(await parts.views.fetch_view(INDEX)):
            await parts.prober.run_round(INDEX)

    async def _results(self, parts: Parts) -> None:
        set_clock(self.hub, self.params.round_end_ms(INDEX))
        await sign_results(parts.validator, INDEX)

    async def _reveal(self, parts: Parts) -> None:
        set_clock(self.hub, parts.validator.reveal_at_ms(INDEX))
        await reveal_round(parts.validator, INDEX)

    async def _attest(self, parts: Parts) -> None:
        set_clock(self.hub, self.params.grace_end_ms(INDEX) + 1)
        if INDEX not in self.hub.closed:
            await take_statements(self.hub, parts.validator, INDEX)
            self.hub.close(INDEX)
        self.outcome = await parts.attester.decide(INDEX)


STEPS = ("commit", "probe", "results", "reveal", "attest")


async def require_signed_once(ledger: Ledger, run: Run) -> None:
    parts = make_parts(NAME, ledger, run.hub, run.folder)
    validator = parts.validator
    assert not await ledger.read(lambda con: list_drafts(con, validator.address, validator.address))
    items = await ledger.read(lambda con: list_items(con, validator.address, INDEX))
    assert {item.kind for item in items} == {Kind.COMMITMENT, Kind.RESULTS, Kind.REVEAL, Kind.ROUND_ROOT}
    for item in items:
        await require_recorded(ledger, validator, item)


async def require_recorded(ledger: Ledger, validator: Any, item: Item) -> None:
    signed = digest(domain_of(validator, item.kind), read_struct(item))
    purpose = f"validator.{item.kind.value}"
    recorded = await ledger.read(lambda con: find_signed(con, validator.address, purpose, str(INDEX)))
    assert recorded == signed
    assert item.signature == validator.signer.sign(domain_of(validator, item.kind), read_struct(item))


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("step", STEPS)
async def test_validator_dies_at_every_write_of_a_step_and_goes_on(
    tmp_path: Path, step: str, after: bool
) -> None:
    for crash_at in range(40):
        folder = tmp_path / str(crash_at)
        folder.mkdir()
        async with temporary_ledger(folder, {"validator": SPEC.migrations}) as ledger:
            run = Run(ledger, make_world((NAME, "validator-2"), round_s=20), folder)
            died = False
            for name in STEPS:
                if name == step:
                    died = await run.step(name, crash_at, after=after)
                    if not died:
                        continue
                assert not await run.step(name, None, after=after)
            assert isinstance(run.outcome, Signed)
            await require_signed_once(ledger, run)
            bodies = [body for _, body in run.hub.requests]
            assert len(bodies) == len(set(bodies))
        if not died:
            assert bodies
            assert crash_at >= 2
            return
    raise AssertionError("a step has fewer than 40 writes")
