"""API keys: drawn, retired by use and by age, read anew, never shown."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest
import trio

from emcd.ledger import Ledger
from emcd.testing import make_key, temporary_ledger
from emcd_validator.api_keys import ApiKeys, Retirement, key_hash, load_api_keys
from emcd_validator.key_watch import KeyWatch
from emcd_validator.queries.key_uses import (
    KeyUse,
    count_key_uses,
    find_key_hash,
    note_key_use,
    prune_key_uses,
)
from emcd_validator.role import SPEC
from tests.support.validator_world import make_parts, make_world

ME, NODE = make_key("me").address, make_key("node").address
DAY_MS = 86_400_000
RULE = Retirement(probes=5, days=2)
ONE, TWO = key_hash("one"), key_hash("two")


@pytest.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[Ledger]:
    async with temporary_ledger(tmp_path, {"validator": SPEC.migrations}) as opened:
        yield opened


def test_key_used_up_or_old_is_not_drawn_any_more() -> None:
    keys = ApiKeys(("one", "two"), RULE)
    assert {keys.pick(n, {}, 0) for n in range(2)} == {"one", "two"}
    assert {keys.pick(n, {ONE: KeyUse(5, 0)}, 0) for n in range(9)} == {"two"}
    assert {keys.pick(n, {ONE: KeyUse(1, 0)}, 2 * DAY_MS) for n in range(9)} == {"two"}
    assert {keys.pick(n, {ONE: KeyUse(4, 0)}, 2 * DAY_MS - 1) for n in range(9)} == {"one", "two"}


def test_key_least_used_goes_on_when_all_are_retired_and_the_operator_is_told() -> None:
    keys = ApiKeys(("one", "two"), RULE)
    uses = {ONE: KeyUse(9, 0), TWO: KeyUse(7, 0)}
    assert keys.pick(3, uses, 0) == "two"
    assert "EMC-1859" in keys.find_complaint(uses, 0)
    assert keys.find_complaint({ONE: KeyUse(9, 0)}, 0) == ""
    assert ApiKeys(()).find_complaint({}, 0) == ""


def test_keys_that_are_replaced_keep_their_rule_and_are_found_by_hash() -> None:
    keys = ApiKeys(("one",), RULE)
    keys.replace(ApiKeys(("two",)))
    assert (keys.find(ONE), keys.find(TWO), keys.find(None)) == (None, "two", None)
    assert keys.count_fresh({TWO: KeyUse(5, 0)}, 0) == 0


async def test_uses_are_counted_and_go_when_the_key_left_the_file(ledger: Ledger) -> None:
    def note(con: object) -> None:
        for n in range(4):
            note_key_use(con, ME, n, NODE, 0, ONE, 100 + n)  # type: ignore[arg-type]
            note_key_use(con, ME, n, NODE, 0, TWO, 200 + n)  # type: ignore[arg-type]
        note_key_use(con, ME, 9, NODE, 1, TWO, 300)  # type: ignore[arg-type]

    await ledger.write(note)
    uses = await ledger.read(lambda con: count_key_uses(con, ME))
    assert uses == {ONE: (4, 100), TWO: (1, 300)}
    assert await ledger.read(lambda con: find_key_hash(con, ME, 2, NODE, 0)) == ONE
    assert await ledger.read(lambda con: find_key_hash(con, ME, 5, NODE, 0)) is None
    await ledger.write(lambda con: prune_key_uses(con, ME, 3, {TWO}))
    assert await ledger.read(lambda con: count_key_uses(con, ME)) == {ONE: (1, 103), TWO: (1, 300)}
    await ledger.write(lambda con: prune_key_uses(con, ME, 100, {TWO}))
    assert await ledger.read(lambda con: count_key_uses(con, ME)) == {TWO: (1, 300)}


async def test_key_file_is_read_anew_without_a_restart(ledger: Ledger, tmp_path: Path) -> None:
    hub = make_world(("validator-1",), round_s=20)
    validator = make_parts("validator-1", ledger, hub, tmp_path).validator
    file = tmp_path / "keys"
    keys = ApiKeys((), RULE)
    watch = KeyWatch(validator, keys, file, "")

    async def wait_for(count: int, complaint: str) -> None:
        with trio.fail_after(10):
            while len(keys) != count or complaint not in watch.complaint:
                await trio.sleep(0.02)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch.run)
        await wait_for(0, "EMC-1805")
        file.write_text("one\n", "utf-8")
        file.chmod(0o600)
        await wait_for(1, "")
        for n in range(5):
            use = partial(note_key_use, instance=validator.address, round_index=n, node=NODE, slot=0)
            await ledger.write(partial(use, key_hash=ONE, now_ms=validator.now_ms()))
        await wait_for(1, "EMC-1859")
        file.write_text("one\ntwo\n", "utf-8")
        await wait_for(2, "")
        nursery.cancel_scope.cancel()
    assert load_api_keys(file, "").hashes == {ONE, TWO}
