"""Backup under way, restore, and what a restore must not forget."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from emcd.errors import ConfigError, FatalError
from emcd.ledger import SignOnce, sign_once
from emcd.ledger.backup import backup_file, restore_file
from emcd.testing import make_key, temporary_ledger

SIGNER = make_key("validator").address


async def sign(folder: Path, slot: str, digest: bytes) -> SignOnce:
    async with temporary_ledger(folder) as ledger:
        return await ledger.write(lambda con: sign_once(con, SIGNER, "root", slot, digest))


def edit(path: Path, sql: str) -> None:
    con = sqlite3.connect(path)
    con.execute(sql)
    con.commit()
    con.close()


async def test_backup_beside_a_running_daemon_is_whole(tmp_path: Path) -> None:
    async with temporary_ledger(tmp_path) as ledger:
        await ledger.write(lambda con: sign_once(con, SIGNER, "root", "1", bytes(32)))
        backup_file(ledger.path, tmp_path / "copy.db")
        await ledger.backup(tmp_path / "second.db")
    for copy in ("copy.db", "second.db"):
        con = sqlite3.connect(tmp_path / copy)
        assert con.execute("SELECT count(*) FROM sign_once").fetchone() == (1,)
        con.close()
        assert (tmp_path / copy).stat().st_mode & 0o777 == 0o600


async def test_backup_never_overwrites(tmp_path: Path) -> None:
    await sign(tmp_path, "1", bytes(32))
    (tmp_path / "copy.db").write_text("precious")
    with pytest.raises(ConfigError, match="EMC-1215"):
        backup_file(tmp_path / "ledger.db", tmp_path / "copy.db")
    assert (tmp_path / "copy.db").read_text() == "precious"


def test_backup_without_a_ledger_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="EMC-1213"):
        backup_file(tmp_path / "ledger.db", tmp_path / "copy.db")


async def test_restore_keeps_what_was_signed_since(tmp_path: Path) -> None:
    await sign(tmp_path, "1", b"\x01" * 32)
    backup_file(tmp_path / "ledger.db", tmp_path / "copy.db")
    await sign(tmp_path, "2", b"\x02" * 32)
    edit(tmp_path / "ledger.db", "INSERT INTO chain_cursors VALUES ('later', 1, zeroblob(32))")
    done = restore_file(tmp_path / "ledger.db", tmp_path / "copy.db")
    assert done.kept_signatures == 1
    assert done.replaced is not None and done.replaced.is_file()
    assert await sign(tmp_path, "2", b"\x03" * 32) is SignOnce.CONFLICT
    assert await sign(tmp_path, "1", b"\x01" * 32) is SignOnce.SAME
    con = sqlite3.connect(tmp_path / "ledger.db")
    assert con.execute("SELECT count(*) FROM chain_cursors").fetchone() == (0,)
    con.close()


async def test_restore_without_a_present_ledger_puts_the_copy_there(tmp_path: Path) -> None:
    await sign(tmp_path, "1", b"\x01" * 32)
    backup_file(tmp_path / "ledger.db", tmp_path / "copy.db")
    done = restore_file(tmp_path / "new" / "ledger.db", tmp_path / "copy.db")
    assert (done.replaced, done.kept_signatures) == (None, 0)
    assert await sign(tmp_path / "new", "1", b"\x02" * 32) is SignOnce.CONFLICT


async def test_restore_copy_that_contradicts_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    await sign(tmp_path, "1", b"\x01" * 32)
    await sign(tmp_path / "other", "1", b"\x02" * 32)
    with pytest.raises(ConfigError, match=r"EMC-1216.*contradict"):
        restore_file(tmp_path / "ledger.db", tmp_path / "other" / "ledger.db")
    assert await sign(tmp_path, "1", b"\x01" * 32) is SignOnce.SAME


async def test_restore_under_a_running_daemon_is_refused(tmp_path: Path) -> None:
    async with temporary_ledger(tmp_path) as ledger:
        backup_file(ledger.path, tmp_path / "copy.db")
        with pytest.raises(FatalError, match="EMC-1201"):
            restore_file(ledger.path, tmp_path / "copy.db")


@pytest.mark.parametrize("damage", ["garbage", "empty", "foreign", "cut"])
async def test_restore_damaged_copy_is_refused(tmp_path: Path, damage: str) -> None:
    await sign(tmp_path, "1", b"\x01" * 32)
    copy = tmp_path / "copy.db"
    if damage == "garbage":
        copy.write_bytes(b"x" * 10_000)
    elif damage == "empty":
        copy.write_bytes(b"")
    elif damage == "foreign":
        edit(copy, "CREATE TABLE something (a)")
    else:
        backup_file(tmp_path / "ledger.db", copy)
        copy.write_bytes(copy.read_bytes()[: 4096 * 2])
    with pytest.raises(ConfigError, match="EMC-1216"):
        restore_file(tmp_path / "ledger.db", copy)
    assert await sign(tmp_path, "1", b"\x01" * 32) is SignOnce.SAME
