"""The validator's tables: signed once, first one stays, old rounds go, several validators apart."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from emcd.accounting.suspension import Conduct
from emcd.errors import LocalProtocolError
from emcd.ledger import Connection, Ledger
from emcd.proto.bundle import VoteEntry
from emcd.proto.messages import RoundRoot, Verdict, Vote
from emcd.proto.signing import recover
from emcd.testing import make_key, temporary_ledger
from emcd.types import Address
from emcd_validator.entry import read_round_root_item, read_struct, round_root_item, vote_item
from emcd_validator.queries.bundles import (
    SettledRound,
    delete_settled,
    find_last_settled,
    find_settled,
    insert_bundle,
    insert_settled,
    list_bundles,
    list_settled_deposits,
    prune_bundles,
    set_refusal,
)
from emcd_validator.queries.items import Held, Kind, find_item, hold_item, list_conflicts, list_items
from emcd_validator.queries.rounds import RoundRow, find_round, insert_round
from emcd_validator.queries.settled_calls import (
    PIECE_BYTES,
    insert_settled_calls,
    is_settled,
    iter_settled_calls,
)
from emcd_validator.role import SPEC
from emcd_validator.round_run import KEPT_ROUNDS, prune
from emcd_validator.signatory import domain_of, issue
from tests.support.validator_world import Parts, make_parts, make_world, set_clock

ME, OTHER = make_key("validator-1").address, make_key("validator-2").address


@pytest.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[Ledger]:
    async with temporary_ledger(tmp_path, {"validator": SPEC.migrations}) as opened:
        yield opened


@pytest.fixture
def parts(ledger: Ledger, tmp_path: Path) -> Parts:
    return make_parts("validator-1", ledger, make_world(), tmp_path)


def root(index: int = 5, content: bytes = b"\1") -> RoundRoot:
    return RoundRoot(index, content * 32, content * 32, 2**200)


def list_settled(con: Connection, instance: Address, first: int, last: int) -> frozenset[bytes]:
    """The ids of these rounds, if they are any of those that these tests use."""
    asked = [bytes([letter]) * 16 for letter in b"ab"]
    return frozenset(item for item in asked if is_settled(con, instance, item, first, last))


def settled(index: int, previous: int = -1, total: int = 5) -> SettledRound:
    return SettledRound(
        index,
        bytes([index]) * 32,
        bytes(32),
        previous,
        {OTHER: total},
        {OTHER: Conduct((index,), 1, 9)},
        7,
        True,
    )


async def test_issue_signs_the_first_content_and_no_other(parts: Parts) -> None:
    validator = parts.validator
    first = await issue(validator, round_root_item(root(), ME, 1))
    assert first.signature is not None
    assert recover(domain_of(validator, Kind.ROUND_ROOT), read_struct(first), first.signature) == ME
    second = await issue(validator, round_root_item(root(content=b"\2"), ME, 2))
    assert second == first
    assert read_round_root_item(second) == root()


async def test_issue_a_content_whose_row_is_gone_is_refused(parts: Parts, ledger: Ledger) -> None:
    await issue(parts.validator, round_root_item(root(), ME, 1))
    await ledger.write(lambda con: con.execute("DELETE FROM validator_items"))
    again = await issue(parts.validator, round_root_item(root(), ME, 1))
    assert again.signature is not None
    await ledger.write(lambda con: con.execute("DELETE FROM validator_items"))
    with pytest.raises(LocalProtocolError, match="EMC-1802"):
        await issue(parts.validator, round_root_item(root(content=b"\2"), ME, 1))


async def test_round_root_is_signed_for_the_distributor_and_votes_for_staking(parts: Parts) -> None:
    deployment = parts.validator.deployment
    assert domain_of(parts.validator, Kind.ROUND_ROOT) == deployment.distributor_domain
    assert {domain_of(parts.validator, kind) for kind in (Kind.COMMITMENT, Kind.REVEAL, Kind.VOTE)} == {
        deployment.staking_domain
    }


async def test_hold_keeps_the_first_of_a_peer_and_the_second_as_evidence(ledger: Ledger) -> None:
    def entry(verdict: Verdict) -> VoteEntry:
        return VoteEntry(Vote(OTHER, 5, bytes(16), bytes(32), int(verdict), 1), b"signature")

    def hold(con: Connection, verdict: Verdict) -> Held:
        return hold_item(con, ME, vote_item(entry(verdict), 3), bytes([verdict]) * 32)

    outcomes = [
        await ledger.write(lambda con: hold(con, verdict))  # noqa: B023
        for verdict in (Verdict.FAIL, Verdict.FAIL, Verdict.PASS, Verdict.PASS)
    ]
    assert outcomes == [Held.NEW, Held.KNOWN, Held.CONFLICT, Held.CONFLICT]
    assert await ledger.read(lambda con: list_conflicts(con, ME, 5)) == [("vote", OTHER)]
    assert len(await ledger.read(lambda con: list_items(con, ME, 5))) == 1
    assert await ledger.read(lambda con: list_items(con, OTHER, 5)) == []


async def test_settled_round_comes_back_and_goes_with_its_calls(ledger: Ledger) -> None:
    await ledger.write(lambda con: insert_settled(con, ME, settled(1), b"a" * 16, [3]))
    await ledger.write(lambda con: insert_settled(con, ME, settled(2, 1), b"b" * 16, [4]))
    assert await ledger.read(lambda con: find_settled(con, ME, 2)) == settled(2, 1)
    assert await ledger.read(lambda con: list_settled(con, ME, 0, 9)) == {b"a" * 16, b"b" * 16}
    await ledger.write(lambda con: delete_settled(con, ME, 2))
    last = await ledger.read(lambda con: find_last_settled(con, ME, 9))
    assert last is not None
    assert last.round == 1
    assert await ledger.read(lambda con: list_settled(con, ME, 0, 9)) == {b"a" * 16}
    assert await ledger.read(lambda con: list_settled_deposits(con, ME, 9)) == {3}
    assert await ledger.read(lambda con: find_last_settled(con, OTHER, 9)) is None


async def test_settled_round_replaced_by_another_bundle_frees_its_calls(ledger: Ledger) -> None:
    await ledger.write(lambda con: insert_settled(con, ME, settled(1), b"a" * 16, []))
    await ledger.write(lambda con: insert_settled(con, ME, settled(1, total=6), b"b" * 16, []))
    assert await ledger.read(lambda con: list_settled(con, ME, 0, 9)) == {b"b" * 16}


async def test_settled_totals_are_kept_of_the_newest_rounds_alone(ledger: Ledger) -> None:
    for index in range(1, 8):
        row = settled(index, index - 1)
        await ledger.write(lambda con: insert_settled(con, ME, row, b"", []))  # noqa: B023
    rows = [await ledger.read(lambda con: find_settled(con, ME, index)) for index in range(1, 8)]  # noqa: B023
    assert [bool(row.totals) for row in rows if row is not None] == [False] * 4 + [True] * 3


async def test_prune_drops_old_rounds_and_keeps_sign_once_and_the_base(parts: Parts, ledger: Ledger) -> None:
    hub = make_world()
    validator = parts.validator
    await issue(validator, round_root_item(root(2), ME, 1))
    row = RoundRow(2, bytes(32), bytes(32), bytes(32), 9, None)
    await ledger.write(lambda con: insert_round(con, ME, row))
    await ledger.write(lambda con: insert_settled(con, ME, settled(2), b"a" * 16, []))
    await ledger.write(lambda con: insert_bundle(con, ME, 2, bytes(32), b"seal", 1))
    parts.validator.clock.at_ms = hub.deployment.params.round_start_ms(3 + KEPT_ROUNDS)  # type: ignore[attr-defined]
    await prune(validator)
    assert await ledger.read(lambda con: find_item(con, ME, Kind.ROUND_ROOT, 2, ME)) is None
    assert await ledger.read(lambda con: find_round(con, ME, 2)) is None
    assert await ledger.read(lambda con: list_bundles(con, ME, 2)) == []
    assert await ledger.read(lambda con: list_settled(con, ME, 0, 99)) == frozenset()
    assert await ledger.read(lambda con: find_settled(con, ME, 2)) == settled(2)
    with pytest.raises(LocalProtocolError, match="EMC-1802"):
        await issue(validator, round_root_item(root(2, b"\2"), ME, 1))


async def test_prune_of_one_validator_leaves_the_others_rows(parts: Parts, ledger: Ledger) -> None:
    row = RoundRow(2, bytes(32), bytes(32), bytes(32), 9, None)
    await ledger.write(lambda con: insert_round(con, OTHER, row))
    await ledger.write(lambda con: prune_bundles(con, ME, 99))
    set_clock(make_world(), 0)
    await prune(parts.validator)
    assert await ledger.read(lambda con: find_round(con, OTHER, 2)) == row


async def test_refusal_belongs_to_its_bundle(ledger: Ledger) -> None:
    hashes = [bytes([n]) * 32 for n in (2, 1)]
    first = await ledger.write(lambda con: insert_bundle(con, ME, 4, hashes[0], b"s", 5))
    both = await ledger.write(lambda con: insert_bundle(con, ME, 4, hashes[1], b"s", 6))
    assert (first, both) == ([hashes[0]], hashes)
    await ledger.write(lambda con: set_refusal(con, ME, 4, hashes[0], "EMC-1822", "why"))
    rows = await ledger.read(lambda con: list_bundles(con, ME, 4))
    assert [(row.bundle_hash, row.code) for row in rows] == [(hashes[0], "EMC-1822"), (hashes[1], "")]


def number_id(number: int) -> bytes:
    return number.to_bytes(16, "big")


async def test_settled_calls_by_the_thousands_are_found_and_no_others(ledger: Ledger) -> None:
    numbers = range(0, 20_000, 2)
    ids = b"".join(map(number_id, numbers))
    assert len(ids) > 2 * PIECE_BYTES
    await ledger.write(lambda con: insert_settled_calls(con, ME, 4, ids))

    def find(con: Connection) -> list[int]:
        asked = [-0, 1, 2, 8190, 8191, 8192, 8194, 19_998, 19_999, 50_000]
        return [number for number in asked if is_settled(con, ME, number_id(number), 3, 5)]

    assert await ledger.read(find) == [0, 2, 8190, 8192, 8194, 19_998]
    assert not await ledger.read(lambda con: is_settled(con, ME, number_id(2), 5, 9))
    assert not await ledger.read(lambda con: is_settled(con, OTHER, number_id(2), 3, 5))


async def test_settled_calls_are_read_where_an_asked_one_may_stand(ledger: Ledger) -> None:
    first = b"".join(map(number_id, range(10_000)))
    second = b"".join(map(number_id, range(20_000, 30_000)))
    await ledger.write(lambda con: insert_settled_calls(con, ME, 1, first))
    await ledger.write(lambda con: insert_settled_calls(con, ME, 2, second))

    def read(con: Connection, *asked: int) -> list[int]:
        ids = b"".join(map(number_id, asked))
        return [len(part) // 16 for part in iter_settled_calls(con, ME, 1, 2, ids)]

    assert await ledger.read(lambda con: read(con, 15_000)) == [0, 0]
    assert await ledger.read(lambda con: read(con, 5, 15_000)) == [4096, 0]
    assert await ledger.read(lambda con: read(con, 5, 9_999, 29_999)) == [4096 + 1808, 1808]
