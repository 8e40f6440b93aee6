"""The ledger against a model: what was acknowledged is there, what failed is not, through crashes.

A crash is simulated by copying the file and its WAL while writes are under way, as a killed process
would leave them, and opening the copy.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from emcd.ledger import Connection, IntegrityError, Ledger, Migration, SignOnce, open_ledger, sign_once
from emcd.money import MAX_WEI, decode_wei, encode_wei
from emcd.testing import make_key, temporary_ledger

COMPONENTS = {
    "x": [
        Migration(1, "values", "CREATE TABLE x_values (value INTEGER PRIMARY KEY, body TEXT NOT NULL) STRICT")
    ]
}


class Refused(Exception):
    """What a job raises on purpose."""


@dataclass
class Model:
    """What must, may and must not be in the ledger."""

    acknowledged: set[int] = field(default_factory=set)
    attempted: set[int] = field(default_factory=set)


def insert(con: Connection, value: int) -> None:
    con.execute("INSERT INTO x_values VALUES (?, 'body')", (value,))


def insert_many(con: Connection, values: Sequence[int]) -> None:
    marks = ",".join(["(?, 'body')"] * len(values))
    con.execute(f"INSERT INTO x_values VALUES {marks}", list(values))


def list_values(con: Connection) -> set[int]:
    return {row[0] for row in con.execute("SELECT value FROM x_values")}


async def do(ledger: Ledger, model: Model, kind: str, value: int) -> None:
    """One job of a kind; notes what its outcome says about the value."""

    def fail(con: Connection) -> None:
        insert(con, -value - 1)
        raise Refused

    try:
        if kind == "fail":
            await ledger.write(fail)
        elif kind == "cancel":
            model.attempted.add(value)
            with trio.move_on_after(0):
                await ledger.write(lambda con: insert(con, value))
                model.acknowledged.add(value)
        else:
            model.attempted.add(value)
            if kind == "bulk":
                await ledger.write_bulk(insert_many, value)
            else:
                await ledger.write(lambda con: insert(con, value))
            model.acknowledged.add(value)
    except Refused:
        assert kind == "fail"
    except IntegrityError:
        assert value in model.attempted  # a duplicate


async def require_crash_safe(path: Path, model: Model) -> None:
    """Open what a kill would leave now and compare it with the model."""
    acknowledged = set(model.acknowledged)
    with tempfile.TemporaryDirectory() as folder:
        for suffix in ("", "-wal"):
            source = path.with_name(path.name + suffix)
            if source.exists():
                shutil.copy(source, Path(folder) / source.name)
        attempted = set(model.attempted)
        async with open_ledger(Path(folder) / path.name, COMPONENTS) as copy:
            found = await copy.read(list_values)
    assert acknowledged <= found <= attempted


jobs = st.lists(
    st.tuples(st.sampled_from(["write", "bulk", "fail", "cancel"]), st.integers(0, 30)), max_size=25
)


@settings(max_examples=30, deadline=None)
@given(st.lists(jobs, min_size=1, max_size=3))
def test_ledger_keeps_what_it_acknowledged_and_nothing_that_failed(
    batches: list[list[tuple[str, int]]],
) -> None:
    async def main() -> None:
        model = Model()
        with tempfile.TemporaryDirectory() as folder:
            for batch in batches:
                async with temporary_ledger(Path(folder), COMPONENTS) as ledger:
                    async with trio.open_nursery() as nursery:
                        for kind, value in batch:
                            nursery.start_soon(do, ledger, model, kind, value)
                        nursery.start_soon(require_crash_safe, ledger.path, model)
                    found = await ledger.read(list_values)
                    assert model.acknowledged <= found <= model.attempted

    trio.run(main)


claims = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3)), min_size=1, max_size=30)


@settings(max_examples=30, deadline=None)
@given(st.lists(claims, min_size=1, max_size=3))
def test_sign_once_never_allows_two_digests_of_a_slot(runs: list[list[tuple[int, int]]]) -> None:
    signer = make_key("signer").address
    allowed: dict[int, set[int]] = {}
    new: list[int] = []

    async def sign(ledger: Ledger, slot: int, digest: int) -> None:
        said = await ledger.write(
            lambda con: sign_once(con, signer, "root", str(slot), digest.to_bytes(32, "big"))
        )
        if said is SignOnce.NEW:
            new.append(slot)
        if said is not SignOnce.CONFLICT:
            allowed.setdefault(slot, set()).add(digest)

    async def main() -> None:
        with tempfile.TemporaryDirectory() as folder:
            for run in runs:
                async with temporary_ledger(Path(folder)) as ledger, trio.open_nursery() as nursery:
                    for slot, digest in run:
                        nursery.start_soon(sign, ledger, slot, digest)

    trio.run(main)
    assert all(len(digests) == 1 for digests in allowed.values())
    assert sorted(new) == sorted(allowed)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, MAX_WEI // 64), max_size=40))
def test_wei_blobs_sum_exactly_and_sort_like_numbers(amounts: list[int]) -> None:
    async def main() -> None:
        with tempfile.TemporaryDirectory() as folder:
            async with temporary_ledger(Path(folder)) as ledger:
                blobs = [encode_wei(amount) for amount in amounts]

                def query(con: Connection) -> tuple[bytes, list[bytes]]:
                    con.execute("PRAGMA query_only = OFF")
                    con.execute("CREATE TEMP TABLE IF NOT EXISTS a (x BLOB)")
                    con.executemany("INSERT INTO a VALUES (?)", [(blob,) for blob in blobs])
                    total = con.execute("SELECT coalesce(wei_sum(x), zeroblob(32)) FROM a").fetchone()[0]
                    return total, [row[0] for row in con.execute("SELECT x FROM a ORDER BY x")]

                total, ordered = await ledger.write(query)
        assert decode_wei(total) == sum(amounts)
        assert [decode_wei(blob) for blob in ordered] == sorted(amounts)

    trio.run(main)
