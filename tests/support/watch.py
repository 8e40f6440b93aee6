"""A table that a watcher of the token fills: what one account was paid, by block."""

from __future__ import annotations

from collections.abc import Sequence

from emcd.chain import ChainEvent
from emcd.ledger import Connection, Migration
from emcd.testing import make_key

TABLE = Migration(
    1, "paid", "CREATE TABLE test_paid (block INTEGER NOT NULL, amount INTEGER NOT NULL) STRICT"
)
TO = make_key("receiver").address


def apply(con: Connection, events: Sequence[ChainEvent]) -> None:
    paid = [(e.block, e.args["value"]) for e in events if e.name == "Transfer" and e.args["to"] == TO]
    con.executemany("INSERT INTO test_paid VALUES (?, ?)", paid)


def undo(con: Connection, number: int) -> None:
    con.execute("DELETE FROM test_paid WHERE block > ?", (number,))


def list_paid(con: Connection) -> list[int]:
    return [row[0] for row in con.execute("SELECT amount FROM test_paid ORDER BY block, rowid")]
