"""Backup under way, restore, and what a restore must not forget."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

import pytest

from emcd.errors import ConfigError, FatalError
from emcd.ledger import LedgerFile, SignOnce, delete_file, describe_file, insert_file, sign_once
from emcd.ledger import backup as backup_module
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


async def add_file(folder: Path, name: str, content: bytes) -> None:
    """A file that belongs to the ledger."""
    path = folder / "bundles" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    file = describe_file(folder, path)
    async with temporary_ledger(folder) as ledger:
        await ledger.write(lambda con: insert_file(con, file))


async def test_files_of_the_ledger_are_backed_up_and_put_back(tmp_path: Path) -> None:
    await add_file(tmp_path, "1.emcb", b"one")
    await add_file(tmp_path, "2.emcb", b"two")
    (tmp_path / "bundles" / "waste.emcb").write_bytes(b"no row names this")

    assert backup_file(tmp_path / "ledger.db", tmp_path / "copy.db") == 2
    copied = tmp_path / "copy.db.files" / "bundles"
    assert sorted(file.name for file in copied.iterdir()) == ["1.emcb", "2.emcb"]

    (tmp_path / "bundles" / "1.emcb").unlink()
    (tmp_path / "bundles" / "2.emcb").unlink()
    (tmp_path / "bundles" / "2.emcb").write_bytes(b"TWO")
    done = restore_file(tmp_path / "ledger.db", tmp_path / "copy.db")

    assert done.files == 2
    assert [(tmp_path / "bundles" / name).read_bytes() for name in ("1.emcb", "2.emcb")] == [b"one", b"two"]
    assert (tmp_path / "bundles" / "waste.emcb").exists()


async def test_backup_on_another_file_system_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await add_file(tmp_path, "1.emcb", b"one")

    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    backup_file(tmp_path / "ledger.db", tmp_path / "copy.db")

    assert (tmp_path / "copy.db.files" / "bundles" / "1.emcb").read_bytes() == b"one"


@pytest.mark.parametrize("content", [None, b"", b"onf", b"one and more"])
async def test_restore_of_a_missing_or_altered_file_changes_nothing(
    tmp_path: Path, content: bytes | None
) -> None:
    await add_file(tmp_path, "1.emcb", b"one")
    backup_file(tmp_path / "ledger.db", tmp_path / "copy.db")
    await sign(tmp_path, "7", bytes(32))
    before = (tmp_path / "ledger.db").read_bytes()
    file = tmp_path / "copy.db.files" / "bundles" / "1.emcb"
    file.unlink()
    (tmp_path / "bundles" / "1.emcb").unlink()
    if content is not None:
        file.write_bytes(content)

    with pytest.raises(ConfigError, match="EMC-1217"):
        restore_file(tmp_path / "ledger.db", tmp_path / "copy.db")

    assert (tmp_path / "ledger.db").read_bytes() == before


async def test_copy_without_its_folder_uses_the_files_in_their_places(tmp_path: Path) -> None:
    await add_file(tmp_path, "1.emcb", b"one")
    async with temporary_ledger(tmp_path) as ledger:
        await ledger.backup(tmp_path / "copy.db")

    assert restore_file(tmp_path / "ledger.db", tmp_path / "copy.db").files == 1


async def test_backup_begins_anew_when_a_file_was_replaced_under_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await add_file(tmp_path, "1.emcb", b"one")
    packed = tmp_path / "bundles" / "1.emcz"
    packed.write_bytes(b"packed")
    known = backup_module._list_files
    async with temporary_ledger(tmp_path) as ledger:

        def list_and_replace(path: Path) -> list[LedgerFile]:
            found = known(path)
            if (tmp_path / "bundles" / "1.emcb").exists():
                con = sqlite3.connect(ledger.path)
                delete_file(con, "bundles/1.emcb")
                insert_file(con, describe_file(tmp_path, packed))
                con.commit()
                con.close()
                (tmp_path / "bundles" / "1.emcb").unlink()
            return found

        monkeypatch.setattr(backup_module, "_list_files", list_and_replace)
        assert backup_file(ledger.path, tmp_path / "copy.db") == 1

    assert (tmp_path / "copy.db.files" / "bundles" / "1.emcz").read_bytes() == b"packed"


async def test_backup_of_a_ledger_whose_file_is_lost_is_refused(tmp_path: Path) -> None:
    await add_file(tmp_path, "1.emcb", b"one")
    (tmp_path / "bundles" / "1.emcb").unlink()

    with pytest.raises(ConfigError, match="EMC-1217"):
        backup_file(tmp_path / "ledger.db", tmp_path / "copy.db")

    assert not (tmp_path / "copy.db").exists()
    assert not (tmp_path / "copy.db.files").exists()


@pytest.mark.parametrize("path", ["/etc/passwd", "../outside", "bundles/../../outside"])
async def test_file_outside_the_folder_is_refused(tmp_path: Path, path: str) -> None:
    await sign(tmp_path, "1", bytes(32))
    edit(tmp_path / "ledger.db", f"INSERT INTO ledger_files VALUES ('{path}', 1, zeroblob(32))")

    with pytest.raises(ConfigError, match="EMC-1217"):
        backup_file(tmp_path / "ledger.db", tmp_path / "copy.db")


async def test_copy_with_a_broken_reference_is_not_restored(tmp_path: Path) -> None:
    await sign(tmp_path, "1", bytes(32))
    backup_file(tmp_path / "ledger.db", tmp_path / "copy.db")
    edit(
        tmp_path / "copy.db",
        "INSERT INTO chain_attempts VALUES (1, zeroblob(32), 77, x'', zeroblob(32), zeroblob(32), 1)",
    )

    with pytest.raises(ConfigError, match="EMC-1216"):
        restore_file(tmp_path / "ledger.db", tmp_path / "copy.db")
