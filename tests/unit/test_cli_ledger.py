"""`emcd ledger`, `backup`, `restore` on a real file, without a daemon."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import click
import pytest
import trio

from emcd.cli.main import main
from emcd.ledger.core_schema import MIGRATIONS
from emcd.ledger.outbox_store import LedgerOutboxStore
from emcd.testing import temporary_ledger

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EMCD_DATA_DIR", str(tmp_path))
    monkeypatch.delenv("EMCD_CONFIG", raising=False)

    def invoke(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        out, err = capsys.readouterr()
        assert isinstance(caught.value.code, int)
        return caught.value.code, out, err

    return invoke


@pytest.fixture
def filled(tmp_path: Path) -> Path:
    async def fill() -> None:
        async with temporary_ledger(tmp_path) as ledger:
            store = LedgerOutboxStore(ledger)
            for number in range(3):
                await store.add(
                    "0xS",
                    f"k{number}",
                    to_address="0xT",
                    data=b"\xab",
                    value_wei=10**20,
                    gas=0,
                    label="x" * 60,
                )

    trio.run(fill)
    return tmp_path / "ledger.db"


@pytest.mark.usefixtures("filled")
def test_tables_lists_columns_and_rows(run: Run) -> None:
    code, out, _ = run("ledger", "tables", "--json")
    tables = {table["name"]: table for table in json.loads(out)}
    assert (code, tables["chain_outbox"]["rows"]) == (0, 3)
    assert tables["chain_attempts"]["references"] == ["outbox_id -> chain_outbox.id"]
    assert "chain_outbox (3 rows): id, sender" in run("ledger", "tables")[1]


@pytest.mark.usefixtures("filled")
def test_show_prints_wei_as_digits_and_bytes_as_hex(run: Run) -> None:
    _, out, _ = run("ledger", "show", "chain_outbox", "--limit", "2", "--json")
    rows = json.loads(out)
    assert [row["key"] for row in rows] == ["k2", "k1"]
    assert (rows[0]["value_wei"], rows[0]["data"]) == (str(10**20), "0xab")
    _, text, _ = run("ledger", "show", "chain_outbox", "--oldest")
    assert text.splitlines()[1].split()[2] == "k0"
    assert "x" * 45 + "..." in text and "x" * 46 not in text
    assert run("ledger", "show", "sign_once")[1] == "no rows\n"


@pytest.mark.usefixtures("filled")
def test_schema_and_migrations_are_printed(run: Run) -> None:
    assert "CREATE TABLE sign_once" in run("ledger", "schema")[1]
    one = run("ledger", "schema", "sign_once")[1]
    assert "sign_once_keeps_rows" in one and "chain_outbox" not in one
    numbers = [row["number"] for row in json.loads(run("ledger", "migrations", "--json")[1])]
    assert numbers == [step.number for step in MIGRATIONS]


@pytest.mark.usefixtures("filled")
@pytest.mark.parametrize("name", ["none", "chain_outbox; DROP TABLE sign_once", "sqlite_master"])
def test_unknown_table_is_refused(run: Run, name: str) -> None:
    code, _, err = run("ledger", "show", name)
    assert (code, err[:8]) == (1, "EMC-1214")


def test_no_ledger_is_named(run: Run) -> None:
    for command in (["ledger", "tables"], ["ledger", "--file", "x.db", "tables"], ["backup", "copy.db"]):
        code, _, err = run(*command)
        assert (code, err[:8]) == (1, "EMC-1213")


def test_backup_and_restore_round_trip(run: Run, filled: Path) -> None:
    code, out, _ = run("backup", "copy.db", "--json")
    assert (code, json.loads(out)["target"]) == (0, "copy.db")
    filled.unlink()
    code, out, err = run("restore", "copy.db", "--yes", "--json")
    assert code == 0, err
    assert json.loads(out)["kept_signatures"] == 0
    assert "chain_outbox (3 rows)" in run("ledger", "tables")[1]


def refuse(question: str, **_options: object) -> None:
    """Somebody who says no."""
    raise click.Abort


def test_restore_asks_and_no_changes_nothing(run: Run, filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("backup", "copy.db")
    before = filled.read_bytes()
    monkeypatch.setattr("click.confirm", refuse)
    code, _, err = run("restore", "copy.db")
    assert (code, err) == (130, "aborted\n")
    assert filled.read_bytes() == before
