"""The chain's own SQLite file: state nodes, blocks, transactions, receipts, logs, pool.

Invariants: a block and every state node it made are one SQLite transaction, so after kill -9 it
is wholly there or not at all; state nodes are never deleted, so every past state can be read.
One thread at a time uses a store; the caller sees to that.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from emcd.errors import ConfigError

SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE node (hash BLOB PRIMARY KEY, value BLOB NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE block (
  number INTEGER PRIMARY KEY, hash BLOB NOT NULL UNIQUE, timestamp_s INTEGER NOT NULL, header BLOB NOT NULL
) STRICT;
CREATE TABLE tx (
  block INTEGER NOT NULL REFERENCES block (number), position INTEGER NOT NULL, hash BLOB NOT NULL UNIQUE,
  raw BLOB NOT NULL, status INTEGER NOT NULL, gas_used INTEGER NOT NULL, cumulative_gas INTEGER NOT NULL,
  gas_price BLOB NOT NULL, contract BLOB, bloom BLOB NOT NULL,
  PRIMARY KEY (block, position)
) STRICT, WITHOUT ROWID;
CREATE TABLE log (
  block INTEGER NOT NULL, position INTEGER NOT NULL, tx_position INTEGER NOT NULL, address BLOB NOT NULL,
  topic0 BLOB, topic1 BLOB, topic2 BLOB, topic3 BLOB, data BLOB NOT NULL,
  PRIMARY KEY (block, position)
) STRICT, WITHOUT ROWID;
CREATE INDEX log_address ON log (address, topic0, block);
CREATE INDEX log_topic ON log (topic0, block);
CREATE TABLE pool (hash BLOB PRIMARY KEY, arrived INTEGER NOT NULL, raw BLOB NOT NULL) STRICT, WITHOUT ROWID;
"""
_CACHE_NODES = 50_000


class BlockRow(NamedTuple):
    number: int
    hash: bytes
    timestamp_s: int
    header: bytes


class TxRow(NamedTuple):
    """A mined transaction with its receipt; `gas_price` is the price paid, 32 bytes."""

    block: int
    position: int
    hash: bytes
    raw: bytes
    status: int
    gas_used: int
    cumulative_gas: int
    gas_price: bytes
    contract: bytes | None
    bloom: bytes


class LogRow(NamedTuple):
    block: int
    position: int
    tx_position: int
    address: bytes
    topic0: bytes | None
    topic1: bytes | None
    topic2: bytes | None
    topic3: bytes | None
    data: bytes

    @property
    def topics(self) -> list[bytes]:
        return [t for t in (self.topic0, self.topic1, self.topic2, self.topic3) if t is not None]


class LogFilter(NamedTuple):
    """What eth_getLogs asks; an empty set of alternatives matches everything."""

    first: int
    last: int
    addresses: tuple[bytes, ...] = ()
    topics: tuple[tuple[bytes, ...], ...] = ()


class ChainStore:
    """Opens or creates the file; a file of another chain or program version is refused."""

    def __init__(self, file: Path, chain_id: int) -> None:
        new = not file.exists()
        file.parent.mkdir(parents=True, exist_ok=True)
        self._con = sqlite3.connect(file, isolation_level=None, check_same_thread=False, timeout=0.2)
        self._cache = _NodeCache()
        self._fresh: dict[bytes, bytes] = {}
        try:
            self._prepare(file, chain_id, new)
        except BaseException:
            self._con.close()
            raise

    def _prepare(self, file: Path, chain_id: int, new: bool) -> None:
        if new:
            file.chmod(0o600)
        self._con.execute("PRAGMA locking_mode = EXCLUSIVE")
        try:
            self._con.execute("PRAGMA journal_mode = WAL")
            self._con.execute("PRAGMA synchronous = FULL")
            version = self._con.execute("PRAGMA user_version").fetchone()[0]
            if version == 0:
                self._create(chain_id)
        except sqlite3.DatabaseError as exc:
            locked = "locked" in str(exc)
            raise ConfigError("EMC-2203" if locked else "EMC-2202", f"{file}: {exc}") from exc
        if version not in (0, SCHEMA_VERSION):
            raise ConfigError(
                "EMC-2202", f"{file} has format {version}, this program writes {SCHEMA_VERSION}"
            )
        found = self._con.execute("SELECT value FROM meta WHERE key = 'chain_id'").fetchone()[0]
        if found != str(chain_id):
            raise ConfigError("EMC-2201", f"{file} holds chain {found}, not {chain_id}")

    def _create(self, chain_id: int) -> None:
        self._con.executescript(
            f"BEGIN IMMEDIATE; {_SCHEMA} INSERT INTO meta VALUES ('chain_id', '{int(chain_id)}');"
            f"PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;"
        )

    def close(self) -> None:
        self._con.close()

    # State nodes: written by the EVM into memory, to disk with their block.

    def get_node(self, key: bytes) -> bytes:
        """Raises: KeyError."""
        value = self._fresh.get(key)
        if value is None:
            value = self._cache.get(key)
        if value is None:
            row = self._con.execute("SELECT value FROM node WHERE hash = ?", (key,)).fetchone()
            if row is None:
                raise KeyError(key)
            value = row[0]
            self._cache.put(key, value)
        return value

    def put_node(self, key: bytes, value: bytes) -> None:
        self._fresh[key] = value

    def discard_fresh(self) -> None:
        """Forget the nodes of a block that was given up."""
        self._fresh.clear()

    # Blocks

    def add_block(self, block: BlockRow, txs: Sequence[TxRow], logs: Sequence[LogRow]) -> None:
        """Write a block, its state nodes, and the removal of its transactions from the pool."""
        con = self._con
        con.execute("BEGIN IMMEDIATE")
        try:
            con.executemany("INSERT OR IGNORE INTO node VALUES (?, ?)", self._fresh.items())
            con.execute("INSERT INTO block VALUES (?, ?, ?, ?)", block)
            con.executemany("INSERT INTO tx VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", txs)
            con.executemany("INSERT INTO log VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", logs)
            con.executemany("DELETE FROM pool WHERE hash = ?", ((tx.hash,) for tx in txs))
            con.execute("COMMIT")
        except BaseException:
            if con.in_transaction:
                con.execute("ROLLBACK")
            raise
        for key, value in self._fresh.items():
            self._cache.put(key, value)
        self._fresh.clear()

    def find_head(self) -> BlockRow | None:
        return self._find_block("SELECT * FROM block ORDER BY number DESC LIMIT 1")

    def find_block(self, number: int) -> BlockRow | None:
        return self._find_block("SELECT * FROM block WHERE number = ?", number)

    def find_block_by_hash(self, block_hash: bytes) -> BlockRow | None:
        return self._find_block("SELECT * FROM block WHERE hash = ?", block_hash)

    def _find_block(self, sql: str, *args: int | bytes) -> BlockRow | None:
        row = self._con.execute(sql, args).fetchone()
        return None if row is None else BlockRow(*row)

    def list_ancestor_hashes(self, number: int, count: int = 256) -> Iterator[bytes]:
        """Hashes of the blocks below `number`, newest first."""
        rows = self._con.execute(
            "SELECT hash FROM block WHERE number < ? ORDER BY number DESC LIMIT ?", (number, count)
        )
        return iter([row[0] for row in rows.fetchall()])

    # Transactions and logs

    def find_tx(self, tx_hash: bytes) -> TxRow | None:
        row = self._con.execute("SELECT * FROM tx WHERE hash = ?", (tx_hash,)).fetchone()
        return None if row is None else TxRow(*row)

    def list_txs(self, block: int) -> list[TxRow]:
        rows = self._con.execute("SELECT * FROM tx WHERE block = ? ORDER BY position", (block,))
        return [TxRow(*row) for row in rows]

    def list_tx_hashes(self, block: int) -> list[bytes]:
        return [
            r[0] for r in self._con.execute("SELECT hash FROM tx WHERE block = ? ORDER BY position", (block,))
        ]

    def list_tx_logs(self, block: int, tx_position: int) -> list[LogRow]:
        rows = self._con.execute(
            "SELECT * FROM log WHERE block = ? AND tx_position = ? ORDER BY position", (block, tx_position)
        )
        return [LogRow(*row) for row in rows]

    def list_logs(self, wanted: LogFilter, limit: int) -> list[LogRow]:
        """At most `limit` logs, oldest first."""
        where = ["block BETWEEN ? AND ?"]
        args: list[int | bytes] = [wanted.first, wanted.last]
        columns = (("address", wanted.addresses), *((f"topic{i}", t) for i, t in enumerate(wanted.topics)))
        for column, alternatives in columns:
            if alternatives:
                where.append(f"{column} IN ({','.join('?' * len(alternatives))})")
                args.extend(alternatives)
        if len(wanted.topics) and not wanted.topics[-1]:
            where.append(f"topic{len(wanted.topics) - 1} IS NOT NULL")
        sql = f"SELECT * FROM log WHERE {' AND '.join(where)} ORDER BY block, position LIMIT ?"
        return [LogRow(*row) for row in self._con.execute(sql, (*args, limit))]

    # Pool

    def add_pooled(self, tx_hash: bytes, raw: bytes, replaces: bytes | None) -> None:
        with self._transaction():
            if replaces is not None:
                self._con.execute("DELETE FROM pool WHERE hash = ?", (replaces,))
            self._con.execute(
                "INSERT OR IGNORE INTO pool VALUES (?, (SELECT coalesce(max(arrived), 0) + 1 FROM pool), ?)",
                (tx_hash, raw),
            )

    def remove_pooled(self, tx_hashes: Iterable[bytes]) -> None:
        with self._transaction():
            self._con.executemany("DELETE FROM pool WHERE hash = ?", ((h,) for h in tx_hashes))

    def list_pooled(self) -> list[bytes]:
        return [row[0] for row in self._con.execute("SELECT raw FROM pool ORDER BY arrived")]

    def _transaction(self) -> _Transaction:
        return _Transaction(self._con)


class _Transaction:
    def __init__(self, con: sqlite3.Connection) -> None:
        self._con = con

    def __enter__(self) -> None:
        self._con.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: object, *_: object) -> None:
        self._con.execute("COMMIT" if kind is None else "ROLLBACK")


class _NodeCache:
    """Two generations of nodes: bounded, no bookkeeping on a hit in the young one."""

    def __init__(self) -> None:
        self._young: dict[bytes, bytes] = {}
        self._old: dict[bytes, bytes] = {}

    def get(self, key: bytes) -> bytes | None:
        value = self._young.get(key)
        if value is None:
            value = self._old.get(key)
            if value is not None:
                self.put(key, value)
        return value

    def put(self, key: bytes, value: bytes) -> None:
        if len(self._young) >= _CACHE_NODES:
            self._old, self._young = self._young, {}
        self._young[key] = value
