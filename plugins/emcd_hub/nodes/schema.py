"""The ledger's part of routing: what `/api/models` tells of the last day."""

from __future__ import annotations

from emcd.ledger import Migration

MODEL_SLOTS = Migration(
    8,
    "how long each model was up and how its calls went, by the quarter of an hour, for a day",
    """
    CREATE TABLE hub_model_slots (
        slot INTEGER NOT NULL,
        model TEXT NOT NULL,
        up_ms INTEGER NOT NULL,
        calls INTEGER NOT NULL,
        faults INTEGER NOT NULL,
        PRIMARY KEY (slot, model)
    ) STRICT, WITHOUT ROWID;
    """,
)
