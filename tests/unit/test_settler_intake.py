"""How much of what hubs list a settler keeps, and whose."""

from __future__ import annotations

from pathlib import Path

import pytest

from emcd.ledger import Connection
from emcd.proto.messages import Extraction
from emcd.testing import make_key, temporary_ledger
from emcd.types import Address
from emcd_settler import extraction_row
from emcd_settler.extraction_row import MAX_OPEN_OF_WALLET, insert_request, list_open
from emcd_settler.role import SPEC

TO = make_key("recipient").address


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extraction_row, "MAX_OPEN", 5)
    monkeypatch.setattr(extraction_row, "MAX_OPEN_OF_HUB", 3)


def take(
    con: Connection,
    name: str,
    *,
    round_: int = 9,
    nonce: int = 0,
    hub: str = "a",
    empty: tuple[str, ...] = (),
) -> bool:
    extraction = Extraction(make_key(name).address, TO, round_, True, nonce, 10**9)
    nothing = {make_key(item).address for item in empty}
    return insert_request(con, "settler", extraction, bytes(65), 0, hub=hub, empty=nothing)


def held(con: Connection) -> set[Address]:
    return {row.wallet for row in list_open(con, "settler")}


async def test_intake_one_wallet_keeps_a_few_open(tmp_path: Path) -> None:
    async with temporary_ledger(tmp_path, {"settler": SPEC.migrations}) as ledger:
        taken = await ledger.write(lambda con: [take(con, "w", nonce=n, hub=str(n)) for n in range(6)])
        assert taken == [True] * MAX_OPEN_OF_WALLET + [False] * (6 - MAX_OPEN_OF_WALLET)


async def test_intake_one_hub_leaves_room_for_another(tmp_path: Path) -> None:
    async with temporary_ledger(tmp_path, {"settler": SPEC.migrations}) as ledger:
        taken = await ledger.write(lambda con: [take(con, f"w{n}") for n in range(5)])
        assert taken == [True, True, True, False, False]
        taken = await ledger.write(lambda con: [take(con, f"x{n}", hub="b") for n in range(3)])
        assert taken == [True, True, False]


async def test_intake_when_full_wallets_with_nothing_make_room_and_come_last(tmp_path: Path) -> None:
    async with temporary_ledger(tmp_path, {"settler": SPEC.migrations}) as ledger:
        await ledger.write(lambda con: [take(con, f"w{n}") for n in range(3)])
        assert not await ledger.write(lambda con: take(con, "v", empty=("v", "w1")))
        assert await ledger.write(lambda con: take(con, "v", empty=("w1",)))
        assert await ledger.read(held) == {make_key(name).address for name in ("w0", "w2", "v")}


async def test_intake_when_full_the_latest_round_makes_room_for_an_earlier_one(tmp_path: Path) -> None:
    async with temporary_ledger(tmp_path, {"settler": SPEC.migrations}) as ledger:
        await ledger.write(lambda con: [take(con, f"w{n}", round_=7 + n) for n in range(3)])
        assert not await ledger.write(lambda con: take(con, "v", round_=9))
        assert await ledger.write(lambda con: take(con, "v", round_=8))
        assert await ledger.read(held) == {make_key(name).address for name in ("w0", "w1", "v")}


async def test_intake_what_is_on_its_way_makes_no_room(tmp_path: Path) -> None:
    async with temporary_ledger(tmp_path, {"settler": SPEC.migrations}) as ledger:
        await ledger.write(lambda con: [take(con, f"w{n}") for n in range(3)])
        await ledger.write(
            lambda con: con.execute("UPDATE settler_extractions SET state = 'submitted'").close()
        )
        assert not await ledger.write(lambda con: take(con, "v", round_=1, empty=("w0",)))
