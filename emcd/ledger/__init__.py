"""The daemon's memory: one SQLite file, one writer, group commit.

The only package that imports sqlite3 and sqlite_utils. What a query function needs of sqlite3
(Connection, Row, IntegrityError) is re-exported here. A query is a plain sync function
`def insert_x(con, ...)` passed to `Ledger.write` or `Ledger.read`.
"""

from __future__ import annotations

from sqlite3 import Connection, Cursor, IntegrityError, OperationalError, Row

from emcd.ledger.connection import open_reader
from emcd.ledger.database import Ledger, open_ledger
from emcd.ledger.files import LedgerFile, delete_file, describe_file, insert_file
from emcd.ledger.migration import Migration
from emcd.ledger.sign_once import SignOnce, sign_once

__all__ = [
    "Connection",
    "Cursor",
    "IntegrityError",
    "Ledger",
    "LedgerFile",
    "Migration",
    "OperationalError",
    "Row",
    "SignOnce",
    "delete_file",
    "describe_file",
    "insert_file",
    "open_ledger",
    "open_reader",
    "sign_once",
]
