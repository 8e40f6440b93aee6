"""Makes the ledger files of a release: rows in every table of node, validator and settler.

Run with the code of that release, not with this tree's:

    PYTHONPATH=RELEASE:RELEASE/plugins python make_ledgers.py FOLDER

The hub's (`hub-0.1.0.db.gz`) was made by a hub of that release that settled two rounds and was stopped
in the grace of the third; `hub-0.1.0.json` is its network.
"""

from __future__ import annotations

import gzip
import sqlite3
import sys
import tempfile
from pathlib import Path

import msgspec
import trio

from emcd import __version__
from emcd.accounting.suspension import Conduct
from emcd.ledger import Migration, open_ledger
from emcd.proto.hashing import keccak
from emcd.testing import make_key
from emcd_node.schema import MIGRATIONS as NODE
from emcd_settler.schema import MIGRATIONS as SETTLER
from emcd_validator.schema import MIGRATIONS as VALIDATOR

ME, OTHER = make_key("validator-1").address, make_key("node-1").address
HASH, SIGNATURE = keccak(b"vector"), bytes(range(65))
CONDUCT = msgspec.json.encode({OTHER: Conduct((3, 5), 1, 9)})
TOTALS = msgspec.msgpack.encode({OTHER: (7 * 10**18).to_bytes(32, "big")})
CORE = [
    ("sign_once", (ME, "round_root", "4", HASH, 1)),
    ("chain_outbox", (1, ME, "publish 4", OTHER, b"\1", bytes(32), "publish", 21_000, "confirmed", 3, HASH, 9, HASH,
                      20_000, "", "", 1, 2)),
    ("chain_attempts", (1, HASH, 1, b"\2", bytes(32), bytes(32), 5)),
    ("chain_cursors", ("hub", 9, HASH)),
]  # fmt: skip
ROWS = {
    "node": [
        ("node_receipts", (OTHER, bytes([n]) * 16, HASH, keccak(bytes([n])), b"f", b"r", n, HASH if n else None))
        for n in range(3)
    ]
    + [
        ("node_batches", (OTHER, HASH, b"b", HASH + keccak(b"x"), 4, None)),
        ("node_proofs", (OTHER, HASH, 1, b"p", 4)),
    ],
    "validator": [
        ("validator_rounds", (ME, 4, HASH, HASH, HASH, 9, None)),
        ("validator_leaves", (ME, HASH, 4)),
        ("validator_probes", (ME, 4, OTHER, 0, 5, 1, 9, b"leaf", b"", "judged", "m", b"{}", 200, "j", b"{}", bytes(16),
                              b"{}", b"r", "")),
        ("validator_items", (ME, 4, "vote", OTHER, b"k", b"d", SIGNATURE, 6)),
        ("validator_conflicts", (ME, 4, "vote", OTHER, HASH, b"d", SIGNATURE, 6)),
        ("validator_omissions", (ME, bytes([9]) * 16, 4, OTHER, b"{}", 7)),
        ("validator_bundles", (ME, 4, HASH, SIGNATURE, "", "", 8)),
        ("validator_settled", (ME, 4, HASH, HASH, 3, TOTALS, CONDUCT, 12, 1)),
        ("validator_settled_deposits", (ME, 2, 4)),
    ]
    + [("validator_settled_calls", (ME, bytes([n]) * 16, 4)) for n in range(1, 5)],
    "settler": [
        ("settler_rounds", (ME, 4, "confirmed", 1, 1, "", HASH, 9)),
        ("settler_attestations", (ME, 4, OTHER, HASH, HASH, bytes(32), SIGNATURE, 1)),
        ("settler_extractions", (ME, OTHER, bytes(32), OTHER, 4, 1, bytes(32), SIGNATURE, "claimed", 1, bytes(32), HASH,
                                 "", HASH, 9)),
    ],
}  # fmt: skip
STEPS: dict[str, tuple[Migration, ...]] = {"node": NODE, "validator": VALIDATOR, "settler": SETTLER}


async def make(kind: str, out: Path) -> None:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "ledger.db"
        async with open_ledger(path, {kind: STEPS[kind]}) as ledger:

            def fill(con: sqlite3.Connection) -> None:
                for table, row in CORE + ROWS[kind]:
                    con.execute(f"INSERT INTO {table} VALUES ({','.join('?' * len(row))})", row)

            await ledger.write(fill)
        with sqlite3.connect(path) as con:
            con.execute("PRAGMA journal_mode = DELETE")
        con.close()
        target = out / f"{kind}-{__version__}.db.gz"
        with gzip.GzipFile(target, "wb", mtime=0) as file:
            file.write(path.read_bytes())


if __name__ == "__main__":
    for each in STEPS:
        trio.run(make, each, Path(sys.argv[1]))
