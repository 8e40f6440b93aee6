"""The chain's file."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from emcd.errors import ConfigError
from emcd_devchain.store import BlockRow, ChainStore, LogFilter, LogRow, TxRow

A, B, T = b"\xaa" * 20, b"\xbb" * 20, b"\x01" * 32


def block(number: int) -> BlockRow:
    return BlockRow(number, number.to_bytes(32, "big"), 1000 + number, b"header")


def tx(number: int, position: int = 0) -> TxRow:
    tx_hash = (number * 1000 + position).to_bytes(32, "big")
    return TxRow(number, position, tx_hash, b"raw", 1, 21_000, 21_000, bytes(32), None, bytes(256))


def log(number: int, position: int, address: bytes, *topics: bytes) -> LogRow:
    padded = [*topics, *[None] * (4 - len(topics))]
    return LogRow(number, position, 0, address, *padded, b"data")


@pytest.fixture
def store(tmp_path: Path):
    opened = ChainStore(tmp_path / "chain.sqlite", 5)
    yield opened
    opened.close()


def test_add_block_is_found_with_everything_of_it(store: ChainStore) -> None:
    store.put_node(b"k" * 32, b"v")
    store.add_block(block(0), [tx(0)], [log(0, 0, A, T)])
    assert store.find_head() == block(0) == store.find_block(0) == store.find_block_by_hash(bytes(32))
    assert store.find_tx(tx(0).hash) == tx(0)
    assert store.list_tx_logs(0, 0) == [log(0, 0, A, T)]
    assert store.get_node(b"k" * 32) == b"v"


def test_add_block_that_fails_leaves_nothing(store: ChainStore) -> None:
    store.add_block(block(0), [tx(0)], [])
    store.put_node(b"k" * 32, b"v")
    with pytest.raises(sqlite3.IntegrityError):
        store.add_block(block(1), [tx(1), tx(0)], [])
    store.discard_fresh()
    assert store.find_head() == block(0)
    assert store.find_tx(tx(1).hash) is None
    with pytest.raises(KeyError):
        store.get_node(b"k" * 32)


def test_list_logs_filters_by_address_topics_and_range(store: ChainStore) -> None:
    logs = [log(0, 0, A, T), log(0, 1, B, T, B + bytes(12)), log(0, 2, A)]
    store.add_block(block(0), [tx(0)], logs)
    store.add_block(block(1), [tx(1)], [log(1, 0, A, T)])

    def found(*args: object) -> list[tuple[int, int]]:
        return [(row.block, row.position) for row in store.list_logs(LogFilter(*args), 100)]  # type: ignore[arg-type]

    assert found(0, 9) == [(0, 0), (0, 1), (0, 2), (1, 0)]
    assert found(1, 1) == [(1, 0)]
    assert found(0, 9, (A,)) == [(0, 0), (0, 2), (1, 0)]
    assert found(0, 9, (), ((T,),)) == [(0, 0), (0, 1), (1, 0)]
    assert found(0, 9, (A, B), ((T,), ())) == [(0, 1)]
    assert found(0, 9, (), ((), (B + bytes(12), T))) == [(0, 1)]
    assert len(store.list_logs(LogFilter(0, 9), 2)) == 2


def test_list_ancestor_hashes_newest_first(store: ChainStore) -> None:
    for number in range(4):
        store.add_block(block(number), [], [])
    assert list(store.list_ancestor_hashes(3)) == [block(n).hash for n in (2, 1, 0)]


def test_pool_keeps_arrival_and_block_removes_what_it_mined(store: ChainStore) -> None:
    mined = tx(0)
    store.add_pooled(b"\x07" * 32, b"waits", None)
    store.add_pooled(mined.hash, b"goes", None)
    store.add_pooled(b"\x08" * 32, b"better", b"\x07" * 32)
    assert store.list_pooled() == [b"goes", b"better"]
    store.add_block(block(0), [mined], [])
    assert store.list_pooled() == [b"better"]


def test_open_file_of_another_chain_is_refused(tmp_path: Path) -> None:
    ChainStore(tmp_path / "chain.sqlite", 5).close()
    with pytest.raises(ConfigError) as caught:
        ChainStore(tmp_path / "chain.sqlite", 6)
    assert caught.value.code == "EMC-2201"


def test_open_twice_is_refused(tmp_path: Path, store: ChainStore) -> None:
    with pytest.raises(ConfigError) as caught:
        ChainStore(tmp_path / "chain.sqlite", 5)
    assert caught.value.code == "EMC-2203"


def test_open_file_of_another_format_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "chain.sqlite"
    ChainStore(file, 5).close()
    con = sqlite3.connect(file)
    con.execute("PRAGMA user_version = 99")
    con.close()
    with pytest.raises(ConfigError) as caught:
        ChainStore(file, 5)
    assert caught.value.code == "EMC-2202"


def test_open_no_database_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "chain.sqlite"
    file.write_text("hello " * 1000)
    with pytest.raises(ConfigError) as caught:
        ChainStore(file, 5)
    assert caught.value.code == "EMC-2202"


def test_create_file_is_private(tmp_path: Path, store: ChainStore) -> None:
    assert (tmp_path / "chain.sqlite").stat().st_mode & 0o077 == 0
