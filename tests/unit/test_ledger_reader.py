"""Reading: snapshot, time limit, no writing, exact sums of wei."""

from __future__ import annotations

import sqlite3
import threading

import pytest
import trio

from emcd.errors import RecoverableError
from emcd.ledger import Connection, Ledger, OperationalError
from emcd.money import MAX_WEI, decode_wei, encode_wei

SLOW = (
    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 1000000000) SELECT count(*) FROM n"
)


def sum_wei(con: Connection, amounts: list[int | None]) -> int:
    rows = " UNION ALL ".join(["SELECT ? AS a"] * len(amounts))
    blobs = [None if amount is None else encode_wei(amount) for amount in amounts]
    return decode_wei(con.execute(f"SELECT wei_sum(a) FROM ({rows})", blobs).fetchone()[0])


async def test_read_too_long_is_interrupted(ledger: Ledger) -> None:
    with pytest.raises(RecoverableError, match="EMC-1207"):
        await ledger.read(lambda con: con.execute(SLOW).fetchone(), timeout_s=0.02)
    assert await ledger.read(lambda con: con.execute("SELECT 1").fetchone()[0]) == 1


async def test_read_cancelled_returns_at_once_and_frees_its_connection(ledger: Ledger) -> None:
    with trio.fail_after(5):
        for _ in range(8):
            with trio.move_on_after(0.01):
                await ledger.read(lambda con: con.execute(SLOW).fetchone(), timeout_s=60)
        assert await ledger.read(lambda con: con.execute("SELECT 1").fetchone()[0]) == 1


async def test_read_can_not_write(ledger: Ledger) -> None:
    with pytest.raises(OperationalError, match="readonly"):
        await ledger.read(lambda con: con.execute("CREATE TABLE x (a)"))


async def test_read_sees_one_snapshot(ledger: Ledger) -> None:
    began, written = threading.Event(), threading.Event()

    def count_twice(con: Connection) -> tuple[int, int]:
        query = "SELECT count(*) FROM chain_cursors"
        first = con.execute(query).fetchone()[0]
        began.set()
        written.wait(5)
        return first, con.execute(query).fetchone()[0]

    async with trio.open_nursery() as nursery:

        async def write() -> None:
            await trio.to_thread.run_sync(began.wait)
            await ledger.write(
                lambda con: con.execute("INSERT INTO chain_cursors VALUES ('a', 1, ?)", (bytes(32),))
            )
            written.set()

        nursery.start_soon(write)
        assert await ledger.read(count_twice) == (0, 0)


async def test_wei_sum_beyond_64_bits_is_exact(ledger: Ledger) -> None:
    amounts = [2**200 + 1, 2**63, None, 5]
    assert await ledger.read(lambda con: sum_wei(con, amounts)) == 2**200 + 2**63 + 6


async def test_wei_sum_of_nothing_is_null_like_sum(ledger: Ledger) -> None:
    query = "SELECT wei_sum(x), coalesce(wei_sum(x), zeroblob(32)) FROM (SELECT 1 AS x WHERE 0)"
    row = await ledger.read(lambda con: con.execute(query).fetchone())
    assert tuple(row) == (None, bytes(32))


async def test_wei_sum_overflow_is_an_error(ledger: Ledger) -> None:
    with pytest.raises(sqlite3.DataError):
        await ledger.read(lambda con: sum_wei(con, [MAX_WEI, 1]))


async def test_wei_sum_of_another_width_is_an_error(ledger: Ledger) -> None:
    with pytest.raises(OperationalError):
        await ledger.read(lambda con: con.execute("SELECT wei_sum(x'01')").fetchone())


async def test_wei_text_prints_digits(ledger: Ledger) -> None:
    blob = encode_wei(12345678901234567890123)
    row = await ledger.read(lambda con: con.execute("SELECT wei_text(?), wei_text(NULL)", (blob,)).fetchone())
    assert tuple(row) == ("12345678901234567890123", None)
