"""The chain's outbox and event cursors in the ledger.

Implements the store and sink Protocols of `emcd.chain` without importing it. Every method is one
durable transaction, and idempotent. Invariants: a key keeps its content and its nonce for ever; two
rows of one sender never share a nonce; a final state changes by `reopen` alone; a cursor is written in
the transaction that writes the effects of its events.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from sqlite3 import Connection, Row
from typing import Any

from emcd.errors import LocalProtocolError
from emcd.ledger.database import Ledger
from emcd.money import decode_wei, encode_wei
from emcd.types import Wei

CURSORS_KEPT = 256
"""How far back a watcher can find the block it shares with a reorganised chain."""

_FINAL = "('confirmed', 'failed', 'replaced')"
_NOW_MS = "CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER)"


@dataclass(frozen=True)
class StoredTx:
    """One wanted transaction."""

    key: str
    to_address: str
    data: bytes
    value_wei: Wei
    label: str
    gas: int
    state: str
    nonce: int | None
    tx_hash: bytes | None
    block: int | None
    block_hash: bytes | None
    gas_used: int
    fee_wei: Wei
    error_name: str
    detail: str


@dataclass(frozen=True)
class StoredAttempt:
    """One signed version of a transaction."""

    tx_hash: bytes
    raw: bytes
    max_fee_wei: Wei
    tip_wei: Wei
    signed_at_ms: int


class LedgerOutboxStore:
    """`emcd.chain`'s OutboxStore over the ledger."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    async def add(
        self, sender: str, key: str, *, to_address: str, data: bytes, value_wei: int, gas: int, label: str
    ) -> StoredTx:
        """Insert an intent, or find the row that stands under the key; returns the row that stands."""

        def insert(con: Connection) -> StoredTx:
            con.execute(
                "INSERT INTO chain_outbox (sender, key, to_address, data, value_wei, gas, label, "
                "state, created_at_ms, updated_at_ms) "
                f"VALUES (?, ?, ?, ?, ?, ?, ?, 'intent', {_NOW_MS}, {_NOW_MS}) ON CONFLICT DO NOTHING",
                (sender, key, to_address, data, encode_wei(value_wei), gas, label),
            )
            return _get_tx(con, sender, key)

        return await self._ledger.write(insert)

    async def find(self, sender: str, key: str) -> StoredTx | None:
        """The row of a key, or None."""
        return await self._ledger.read(lambda con: _find_tx(con, sender, key))

    async def list_open(self, sender: str) -> list[StoredTx]:
        """Rows that are not final, in the order they were added."""
        rows = await self._ledger.read(
            lambda con: con.execute(
                f"SELECT * FROM chain_outbox WHERE sender = ? AND state NOT IN {_FINAL} ORDER BY id",
                (sender,),
            ).fetchall()
        )
        return [_to_tx(row) for row in rows]

    async def list_settled(self, sender: str, depth: int) -> list[StoredTx]:
        """Final rows with a nonce, of the last `depth` blocks that have one, the newest block first."""
        rows = await self._ledger.read(
            lambda con: con.execute(
                f"SELECT * FROM chain_outbox WHERE sender = ?1 AND state IN {_FINAL} AND nonce IS NOT NULL "
                f"AND block > (SELECT max(block) FROM chain_outbox WHERE sender = ?1 AND state IN {_FINAL} "
                "AND nonce IS NOT NULL) - ?2 ORDER BY block DESC, nonce DESC",
                (sender, depth),
            ).fetchall()
        )
        return [_to_tx(row) for row in rows]

    async def assign(self, sender: str, key: str, *, least_nonce: int, gas: int) -> StoredTx:
        """Give a row its nonce: above all of this sender's, not below `least_nonce`; once."""

        def update(con: Connection) -> StoredTx:
            con.execute(
                "UPDATE chain_outbox SET state = 'ready', gas = ?, "
                "nonce = max(?, (SELECT coalesce(max(nonce) + 1, 0) FROM chain_outbox WHERE sender = ?)), "
                f"updated_at_ms = {_NOW_MS} WHERE sender = ? AND key = ? AND nonce IS NULL "
                f"AND state NOT IN {_FINAL}",
                (gas, least_nonce, sender, sender, key),
            )
            return _get_tx(con, sender, key)

        return await self._ledger.write(update)

    async def add_attempt(
        self,
        sender: str,
        key: str,
        *,
        tx_hash: bytes,
        raw: bytes,
        max_fee_wei: int,
        tip_wei: int,
        gas: int = 0,
    ) -> None:
        """Store signed bytes before they are sent, and with them the row's new gas limit if one is given.

        The same again does nothing.
        """

        def insert(con: Connection) -> None:
            con.execute(
                "INSERT INTO chain_attempts (tx_hash, outbox_id, raw, max_fee_wei, tip_wei, signed_at_ms) "
                f"SELECT ?, id, ?, ?, ?, {_NOW_MS} FROM chain_outbox WHERE sender = ? AND key = ? "
                "ON CONFLICT DO NOTHING",
                (tx_hash, raw, encode_wei(max_fee_wei), encode_wei(tip_wei), sender, key),
            )
            if gas:
                con.execute(
                    f"UPDATE chain_outbox SET gas = ?, updated_at_ms = {_NOW_MS} "
                    f"WHERE sender = ? AND key = ? AND state NOT IN {_FINAL}",
                    (gas, sender, key),
                )

        await self._ledger.write(insert)

    async def list_attempts(self, sender: str, key: str) -> list[StoredAttempt]:
        """Every signed version, oldest first."""
        rows = await self._ledger.read(
            lambda con: con.execute(
                "SELECT a.* FROM chain_attempts a JOIN chain_outbox o ON o.id = a.outbox_id "
                "WHERE o.sender = ? AND o.key = ? ORDER BY a.id",
                (sender, key),
            ).fetchall()
        )
        return [
            StoredAttempt(
                row["tx_hash"],
                row["raw"],
                decode_wei(row["max_fee_wei"]),
                decode_wei(row["tip_wei"]),
                row["signed_at_ms"],
            )
            for row in rows
        ]

    async def set_state(
        self,
        sender: str,
        key: str,
        state: str,
        *,
        tx_hash: bytes | None = None,
        block: int | None = None,
        block_hash: bytes | None = None,
        gas_used: int = 0,
        fee_wei: int = 0,
        error_name: str = "",
        detail: str = "",
    ) -> None:
        """Move a row that is not final; on a final one nothing happens."""

        def update(con: Connection) -> None:
            con.execute(
                "UPDATE chain_outbox SET state = ?, tx_hash = ?, block = ?, block_hash = ?, gas_used = ?, "
                f"fee_wei = ?, error_name = ?, detail = ?, updated_at_ms = {_NOW_MS} "
                f"WHERE sender = ? AND key = ? AND state NOT IN {_FINAL}",
                (
                    state,
                    tx_hash,
                    block,
                    block_hash,
                    gas_used,
                    encode_wei(fee_wei) if fee_wei else None,
                    error_name,
                    detail,
                    sender,
                    key,
                ),
            )

        await self._ledger.write(update)

    async def reopen(self, sender: str, key: str, *, detail: str) -> None:
        """Take a final state back, of a row that has a nonce; on any other nothing happens."""

        def update(con: Connection) -> None:
            con.execute(
                "UPDATE chain_outbox SET state = 'ready', tx_hash = NULL, block = NULL, block_hash = NULL, "
                "gas_used = 0, fee_wei = NULL, error_name = '', detail = ?, "
                f"updated_at_ms = {_NOW_MS} "
                f"WHERE sender = ? AND key = ? AND state IN {_FINAL} AND nonce IS NOT NULL",
                (detail, sender, key),
            )

        await self._ledger.write(update)

    async def fetch_promised_wei(self, sender: str, *, within_ms: int, besides: str) -> int:
        """What was spent, or may be at most, on transactions signed within the last `within_ms`."""
        rows = await self._ledger.read(
            lambda con: con.execute(
                "SELECT o.id, o.gas, o.state, o.fee_wei, max(a.max_fee_wei) AS max_fee_wei "
                "FROM chain_attempts a JOIN chain_outbox o ON o.id = a.outbox_id "
                f"WHERE a.signed_at_ms > {_NOW_MS} - ? AND o.sender = ? AND o.key <> ? GROUP BY o.id",
                (within_ms, sender, besides),
            ).fetchall()
        )
        return sum(_promised_wei(row) for row in rows)


class LedgerEventSink:
    """`emcd.chain`'s EventSink: a watcher's events and its cursor in one transaction.

    `apply_events(con, events)` writes the effects; `undo_above(con, number)` undoes every effect
    from blocks above `number` (-1: all). Both are plain query functions.
    """

    def __init__(
        self,
        ledger: Ledger,
        name: str,
        apply_events: Callable[[Connection, Sequence[Any]], None],
        undo_above: Callable[[Connection, int], None],
    ) -> None:
        self._ledger = ledger
        self._name = name
        self._apply = apply_events
        self._undo = undo_above

    async def load_cursors(self) -> list[tuple[int, bytes]]:
        """Saved (block number, block hash), ascending, at most 256."""
        rows = await self._ledger.read(
            lambda con: con.execute(
                "SELECT number, block_hash FROM chain_cursors WHERE name = ? ORDER BY number", (self._name,)
            ).fetchall()
        )
        return [(row["number"], row["block_hash"]) for row in rows]

    async def apply(self, events: Sequence[Any], number: int, block_hash: bytes) -> None:
        """Write the events' effects and the cursor.

        Raises: LocalProtocolError EMC-1210 when a cursor stands at or above `number` already, with
        another hash: these events, or others in their place, were applied before.
        """

        def write(con: Connection) -> None:
            newest = con.execute(
                "SELECT number, block_hash FROM chain_cursors WHERE name = ? ORDER BY number DESC LIMIT 1",
                (self._name,),
            ).fetchone()
            if newest is not None and newest["number"] >= number:
                if (newest["number"], newest["block_hash"]) == (number, block_hash):
                    return  # a cancelled write that had committed all the same
                raise LocalProtocolError("EMC-1210", f"{self._name} is at block {newest['number']} already")
            self._apply(con, events)
            con.execute(
                "INSERT INTO chain_cursors (name, number, block_hash) VALUES (?, ?, ?)",
                (self._name, number, block_hash),
            )
            con.execute(
                "DELETE FROM chain_cursors WHERE name = ?1 AND number < (SELECT number FROM chain_cursors "
                "WHERE name = ?1 ORDER BY number DESC LIMIT 1 OFFSET ?2)",
                (self._name, CURSORS_KEPT - 1),
            )

        await self._ledger.write(write)

    async def rollback(self, number: int) -> None:
        """Undo every effect from blocks above `number` and drop their cursors; -1 undoes all."""

        def write(con: Connection) -> None:
            self._undo(con, number)
            con.execute("DELETE FROM chain_cursors WHERE name = ? AND number > ?", (self._name, number))

        await self._ledger.write(write)


def _find_tx(con: Connection, sender: str, key: str) -> StoredTx | None:
    row = con.execute("SELECT * FROM chain_outbox WHERE sender = ? AND key = ?", (sender, key)).fetchone()
    return None if row is None else _to_tx(row)


def _get_tx(con: Connection, sender: str, key: str) -> StoredTx:
    found = _find_tx(con, sender, key)
    if found is None:
        raise LocalProtocolError("EMC-1211", f"the outbox of {sender} has no transaction {key}")
    return found


def _promised_wei(row: Row) -> int:
    if row["fee_wei"] is not None:
        return decode_wei(row["fee_wei"])
    if row["state"] == "replaced":
        return 0
    return int(row["gas"]) * decode_wei(row["max_fee_wei"])


def _to_tx(row: Row) -> StoredTx:
    return StoredTx(
        key=row["key"],
        to_address=row["to_address"],
        data=row["data"],
        value_wei=decode_wei(row["value_wei"]),
        label=row["label"],
        gas=row["gas"],
        state=row["state"],
        nonce=row["nonce"],
        tx_hash=row["tx_hash"],
        block=row["block"],
        block_hash=row["block_hash"],
        gas_used=row["gas_used"],
        fee_wei=Wei(0) if row["fee_wei"] is None else decode_wei(row["fee_wei"]),
        error_name=row["error_name"],
        detail=row["detail"],
    )
