"""The quarters of an hour of each model, in the ledger: a day of them."""

from __future__ import annotations

from collections.abc import Iterable

from emcd.ledger import Connection
from emcd.scheduling.daybook import SLOT_MS, SLOTS, SlotRow


def upsert_slots(con: Connection, rows: Iterable[tuple[str, SlotRow]], now_ms: int) -> None:
    """Keep what changed, and drop what is older than a day. Idempotent: a row is the whole of its slot."""
    con.executemany(
        "INSERT INTO hub_model_slots VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET"
        " up_ms = excluded.up_ms, calls = excluded.calls, faults = excluded.faults",
        [(row.slot, model, row.up_ms, row.calls, row.faults) for model, row in rows],
    )
    con.execute("DELETE FROM hub_model_slots WHERE slot <= ?", (now_ms // SLOT_MS - SLOTS,))


def load_slots(con: Connection, now_ms: int) -> dict[str, list[SlotRow]]:
    """The last day of every model that was seen in it."""
    found: dict[str, list[SlotRow]] = {}
    for slot, model, up_ms, calls, faults in con.execute(
        "SELECT slot, model, up_ms, calls, faults FROM hub_model_slots WHERE slot > ? ORDER BY slot",
        (now_ms // SLOT_MS - SLOTS,),
    ):
        found.setdefault(model, []).append(SlotRow(slot, up_ms, calls, faults))
    return found
