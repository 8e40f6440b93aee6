"""Which keys were ever those of one validator: its rows stay under the name of the first.

Without it a key that was rotated and taken out of the configuration would take the ledger's memory
with it: what was settled, and what was signed.
"""

from __future__ import annotations

from collections.abc import Sequence

from emcd.ledger import Connection
from emcd.types import Address


def ensure_instance(con: Connection, addresses: Sequence[Address]) -> Address:
    """The name of the rows of who has these keys; every key is kept as its from now on. Idempotent.

    The first that is known counts, in the order of the configuration; else the first that has rows
    of a release that did not keep keys; else the first.
    """
    known = (_find_instance(con, address) for address in addresses)
    old = (address for address in addresses if _has_rows(con, address))
    instance = next((found for found in known if found is not None), None) or next(old, addresses[0])
    con.executemany(
        "INSERT INTO validator_keys VALUES (?, ?) ON CONFLICT DO NOTHING",
        [(address, instance) for address in addresses],
    )
    return instance


def _find_instance(con: Connection, address: Address) -> Address | None:
    row = con.execute("SELECT instance FROM validator_keys WHERE address = ?", (address,)).fetchone()
    return None if row is None else Address(row[0])


def _has_rows(con: Connection, address: Address) -> bool:
    row = con.execute(
        "SELECT EXISTS (SELECT 1 FROM validator_rounds WHERE instance = ?)"
        " OR EXISTS (SELECT 1 FROM validator_settled WHERE instance = ?)",
        (address, address),
    ).fetchone()
    return bool(row[0])
