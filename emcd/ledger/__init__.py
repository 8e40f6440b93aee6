"""The daemon's memory: one SQLite file, one writer, group commit.

The only package that imports sqlite3 and sqlite_utils. What a query function needs of sqlite3
(Connection, Row, IntegrityError) is re-exported here. A query is a plain sync function
`def insert_x(con, ...)` passed to `Ledger.write` or `Ledger.read`.
"""

from __future__ import annotations

from sqlite3 import Connection, IntegrityError, OperationalError, Row

from emcd.ledger.database import Ledger, open_ledger
from emcd.ledger.migration import Migration
from emcd.ledger.sign_once import SignOnce, sign_once

__all__ = [
    "Connection",
    "IntegrityError",
    "Ledger",
    "Migration",
    "OperationalError",
    "Row",
    "SignOnce",
    "open_ledger",
    "sign_once",
]
