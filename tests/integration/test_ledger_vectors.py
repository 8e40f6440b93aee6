"""Ledgers of released versions: they migrate, keep their content, close and audit."""

from __future__ import annotations

import gzip
import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from emcd.accounting.audit import audit_bundle
from emcd.accounting.suspension import Conduct
from emcd.ledger import Migration, open_ledger
from emcd.proto.bundle_codec import decode_bundle
from emcd.proto.network import Deployment
from emcd.proto.params import NetworkParams
from emcd.testing import make_key
from emcd_hub.rounds.bundle_row import find_base, find_facts
from emcd_hub.rounds.chain_row import void_publication
from emcd_hub.rounds.view_row import find_view
from emcd_hub.schema import MIGRATIONS as HUB
from emcd_node.schema import MIGRATIONS as NODE
from emcd_settler.schema import MIGRATIONS as SETTLER
from emcd_validator.queries.bundles import find_settled
from emcd_validator.queries.settled_calls import is_settled
from emcd_validator.schema import MIGRATIONS as VALIDATOR
from tests.support.hub_ledger import FilledHub, filled_hub

VECTORS = Path(__file__).parent.parent / "vectors" / "ledger"
STEPS: dict[str, tuple[Migration, ...]] = {
    "hub": HUB, "node": NODE, "settler": SETTLER, "validator": VALIDATOR
}  # fmt: skip
REPLACED = {"validator_settled_calls"}
NAMES = ("hub-0.1.0.db.gz", "node-0.1.0.db.gz", "settler-0.1.0.db.gz", "validator-0.1.0.db.gz")
FILES = [VECTORS / name for name in NAMES]


def unpack(file: Path, folder: Path) -> Path:
    target = folder / "ledger.db"
    target.write_bytes(gzip.decompress(file.read_bytes()))
    return target


def read_tables(path: Path) -> dict[str, list[dict[str, Any]]]:
    con = sqlite3.connect(path)
    con.row_factory = sqlite3.Row
    names = [row[0] for row in con.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    found = {name: [dict(row) for row in con.execute(f"SELECT * FROM {name}")] for name in names}
    con.close()
    return found


def test_every_vector_is_of_a_role_and_small() -> None:
    assert sorted(VECTORS.glob("*.db.gz")) == FILES
    assert {file.name.partition("-")[0] for file in FILES} == set(STEPS)
    assert all(file.stat().st_size < 200_000 for file in FILES)
    assert {path.suffix for path in VECTORS.iterdir() if path.is_file()} == {".gz", ".json", ".py"}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
async def test_ledger_of_a_release_migrates_and_keeps_its_rows(file: Path, tmp_path: Path) -> None:
    kind = file.name.partition("-")[0]
    path = unpack(file, tmp_path)
    before = read_tables(path)
    assert all(before[name] for name in before if name.startswith(f"{kind}_") and kind != "hub")

    async with open_ledger(path, {kind: STEPS[kind]}) as ledger:
        assert ledger.migrated.copy is not None
        assert await ledger.read(lambda con: con.execute("PRAGMA integrity_check").fetchone()[0]) == "ok"
        assert await ledger.read(lambda con: con.execute("PRAGMA foreign_key_check").fetchall()) == []
    after = read_tables(path)

    for name, rows in before.items():
        if name in REPLACED or name == "ledger_migrations":
            continue
        kept = [{column: row[column] for column in rows[0]} for row in after[name]] if rows else []
        assert kept == rows, name


async def test_validator_of_a_release_knows_what_it_settled(tmp_path: Path) -> None:
    path = unpack(VECTORS / "validator-0.1.0.db.gz", tmp_path)
    me, node = make_key("validator-1").address, make_key("node-1").address

    async with open_ledger(path, {"validator": VALIDATOR}) as ledger:
        known = [bytes([number]) * 16 for number in range(6)]
        found = await ledger.read(lambda con: [is_settled(con, me, item, 0, 9) for item in known])
        settled = await ledger.read(lambda con: find_settled(con, me, 4))

    assert found == [False, True, True, True, True, False]
    assert settled is not None
    assert settled.totals == {node: 7 * 10**18}
    assert settled.conduct == {node: Conduct((3, 5), 1, 9)}


def read_network() -> tuple[Deployment, list[int], int]:
    """The hub's network; parameters that the release did not know have their defaults."""
    table = json.loads((VECTORS / "hub-0.1.0.json").read_bytes())
    known = table["deployment"]
    numbers = {name: value for name, value in known["params"].items() if isinstance(value, int)}
    deployment = Deployment(
        chain_id=known["chain_id"],
        token=known["token"],
        parameters=make_key("contract 4").address,
        staking=known["staking"],
        distributor=known["distributor"],
        vault=known["vault"],
        deployed_block=known["deployed_block"],
        params=NetworkParams(**numbers),
    )
    return deployment, table["closed"], table["open"]


async def close_open_round(hub: FilledHub, index: int) -> None:
    hub.set_round(index + 2)
    view = await hub.ledger.read(lambda con: find_view(con, index))
    assert view is not None
    await hub.closer.close(view)


async def test_hub_of_a_release_goes_on_with_its_rounds(tmp_path: Path) -> None:
    path = unpack(VECTORS / "hub-0.1.0.db.gz", tmp_path)
    rows = {row["round"]: row for row in read_tables(path)["hub_bundles"]}
    deployment, closed, index = read_network()

    async with filled_hub(tmp_path, deployment=deployment) as hub:
        await close_open_round(hub, index)
        old = await hub.ledger.read(lambda con: find_facts(con, closed[-1]))
        base = await hub.ledger.read(lambda con: find_base(con, closed[-1]))
        assert await hub.count("hub_bundles", "length(data) > 0") == 0
        data = await hub.read_bundle(index)
        first_format = await hub.read_bundle(closed[-1])

    assert old is not None
    assert base is not None
    assert old.bundle_hash == rows[closed[-1]]["bundle_hash"]
    assert first_format.startswith(b"EMCDBDL1")
    outcome = audit_bundle(data)
    assert outcome.ok, outcome.difference
    bundle = decode_bundle(data)
    assert (bundle.header.previous_round, bundle.header.previous_bundle_hash) == (old.round, old.bundle_hash)
    assert bundle.totals == base.totals
    assert [len(bundle.calls), len(bundle.reveals), len(bundle.statuses)] == [4, 4, 2]
    assert all(call.receipt_ref is not None for call in bundle.calls)
    assert any(any(entry.reward_wei) for entry in bundle.results)


async def test_hub_of_a_release_carries_the_calls_of_an_old_round_that_came_to_nothing(
    tmp_path: Path,
) -> None:
    unpack(VECTORS / "hub-0.1.0.db.gz", tmp_path)
    deployment, closed, index = read_network()

    async with filled_hub(tmp_path, deployment=deployment) as hub:
        old = await hub.ledger.read(lambda con: find_facts(con, closed[-1]))
        assert old is not None
        await hub.publish(old, void=True)
        await hub.ledger.write(lambda con: void_publication(con, old.round, old.round + 2))
        await close_open_round(hub, index)
        bundle = decode_bundle(await hub.read_bundle(index))

    assert bundle.header.previous_round == closed[0]
    assert len(bundle.calls) == 4 + old.calls


async def test_archive_of_a_first_format_round_keeps_its_bytes(tmp_path: Path) -> None:
    unpack(VECTORS / "hub-0.1.0.db.gz", tmp_path)
    deployment, closed, _ = read_network()

    async with filled_hub(tmp_path, deployment=deployment) as hub:
        before = [await hub.read_bundle(index) for index in closed]
        await hub.pass_to(closed[-1] + 40)
        while await hub.archivist.step():
            pass
        after = [await hub.read_bundle(index) for index in closed]
        assert await hub.count("hub_calls", f"round <= {closed[-1]}") == 0

    assert before == after
