"""Commitments: before the round, once, on disk before they are signed; plans: what was committed to."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from emcd.accounting.plan import compute_commitment
from emcd.errors import LocalProtocolError
from emcd.ledger import Ledger, sign_once
from emcd.proto.signing import recover
from emcd.testing import temporary_ledger
from emcd_validator.queries.items import Kind, find_item
from emcd_validator.queries.rounds import find_round, list_probes, list_used_leaves
from emcd_validator.role import SPEC
from tests.support.validator_world import FakeHub, Parts, make_parts, make_world, set_clock

NAME = "validator-1"
INDEX = 4


@pytest.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[Ledger]:
    async with temporary_ledger(tmp_path, {"validator": SPEC.migrations}) as opened:
        yield opened


@pytest.fixture
def hub() -> FakeHub:
    world = make_world((NAME, "validator-2"), round_s=20)
    set_clock(world, world.deployment.params.round_start_ms(INDEX) - 500)
    return world


@pytest.fixture
def parts(ledger: Ledger, hub: FakeHub, tmp_path: Path) -> Parts:
    return make_parts(NAME, ledger, hub, tmp_path)


def begin(hub: FakeHub) -> None:
    set_clock(hub, hub.deployment.params.round_start_ms(INDEX) + 5_000)


async def test_commit_opens_with_what_is_on_disk(parts: Parts, hub: FakeHub) -> None:
    validator = parts.validator
    entry = await parts.committer.commit(INDEX)
    row = await validator.read(lambda con: find_round(con, validator.address, INDEX))
    assert entry is not None
    assert row is not None
    assert compute_commitment(row.seed, row.corpus_root, row.salt) == entry.commitment.commitment
    assert recover(validator.domain, entry.commitment, entry.signature) == validator.address
    assert entry.commitment.signed_at_ms < hub.deployment.params.round_start_ms(INDEX)


async def test_commit_twice_and_after_a_restart_gives_the_same(
    parts: Parts, hub: FakeHub, ledger: Ledger, tmp_path: Path
) -> None:
    first = await parts.committer.commit(INDEX)
    assert await parts.committer.commit(INDEX) == first
    assert await make_parts(NAME, ledger, hub, tmp_path).committer.commit(INDEX) == first


async def test_commit_to_a_round_that_began_is_none(parts: Parts, hub: FakeHub) -> None:
    begin(hub)
    assert await parts.committer.commit(INDEX) is None


async def test_commit_never_signs_a_second_content(parts: Parts, ledger: Ledger) -> None:
    address = parts.validator.address
    await ledger.write(lambda con: sign_once(con, address, "validator.commitment", str(INDEX), bytes(32)))
    with pytest.raises(LocalProtocolError, match="EMC-1802"):
        await parts.committer.commit(INDEX)
    item = await ledger.read(lambda con: find_item(con, address, Kind.COMMITMENT, INDEX, address))
    assert item is None


async def test_plan_uses_each_leaf_once_and_opens_it(parts: Parts, hub: FakeHub) -> None:
    validator = parts.validator
    await parts.committer.commit(INDEX)
    begin(hub)
    assert await parts.committer.plan(await parts.views.fetch_view(INDEX))
    rows = await validator.read(lambda con: list_probes(con, validator.address, INDEX))
    used = await validator.read(lambda con: list_used_leaves(con, validator.address))
    assert len(rows) == len(hub.nodes) == len(used) == len({row.leaf for row in rows})


async def test_plan_is_fixed_once(parts: Parts, hub: FakeHub, ledger: Ledger, tmp_path: Path) -> None:
    validator = parts.validator
    await parts.committer.commit(INDEX)
    begin(hub)
    view = await parts.views.fetch_view(INDEX)
    await parts.committer.plan(view)
    rows = await validator.read(lambda con: list_probes(con, validator.address, INDEX))
    assert await make_parts(NAME, ledger, hub, tmp_path).committer.plan(view)
    assert await validator.read(lambda con: list_probes(con, validator.address, INDEX)) == rows


async def test_plan_without_a_commitment_is_none(parts: Parts, hub: FakeHub) -> None:
    begin(hub)
    assert not await parts.committer.plan(await parts.views.fetch_view(INDEX))


async def test_plan_after_the_corpus_was_replaced_is_none_and_says_so(
    parts: Parts, hub: FakeHub, ledger: Ledger, tmp_path: Path
) -> None:
    await parts.committer.commit(INDEX)
    begin(hub)
    (tmp_path / f"{NAME}-corpus.jsonl").unlink()
    again = make_parts(NAME, ledger, hub, tmp_path)
    assert not await again.committer.plan(await again.views.fetch_view(INDEX))
    assert "corpus changed" in again.committer.complaint


async def test_commitments_of_many_rounds_top_the_corpus_up(parts: Parts, hub: FakeHub) -> None:
    validator, params = parts.validator, hub.deployment.params
    seen: set[bytes] = set()
    for index in range(INDEX, INDEX + 60):
        set_clock(hub, params.round_start_ms(index) - 500)
        assert await parts.committer.commit(index) is not None
        set_clock(hub, params.round_start_ms(index) + 5_000)
        assert await parts.committer.plan(await parts.views.fetch_view(index))
        rows = await validator.read(lambda con: list_probes(con, validator.address, index))  # noqa: B023
        leaves = {row.leaf for row in rows}
        assert len(leaves) == len(hub.nodes)
        assert not leaves & seen
        seen |= leaves
    assert len(seen) == 60 * len(hub.nodes) > 120
