"""The last reading of the network's parameters, so that a daemon can start without its chain.

Implements the store Protocol of `emcd.chain.parameters` without importing it. Documents are kept as
they were published: a newer program reads them by its own rules.
"""

from __future__ import annotations

from collections.abc import Sequence
from sqlite3 import Connection

from emcd.ledger.database import Ledger
from emcd.proto.parameter_schedule import PublishedVersion
from emcd.types import Address


class LedgerParameterStore:
    """`emcd.chain.parameters`' ParameterStore over the ledger."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    async def load(self, contract: Address) -> tuple[Sequence[PublishedVersion], int] | None:
        """The versions by number, and through which epoch they are final; None when nothing was kept."""

        def read(con: Connection) -> tuple[Sequence[PublishedVersion], int] | None:
            through = con.execute(
                "SELECT known_through_epoch FROM chain_parameters_read WHERE contract = ?", (contract,)
            ).fetchone()
            rows = con.execute(
                "SELECT number, from_epoch, block, rules_hash, document_hash, document"
                " FROM chain_parameters WHERE contract = ? ORDER BY number",
                (contract,),
            )
            return None if through is None else ([PublishedVersion(*row) for row in rows], through[0])

        return await self._ledger.read(read)

    async def save(
        self, contract: Address, versions: Sequence[PublishedVersion], known_through_epoch: int
    ) -> None:
        """Replace what was kept. Idempotent."""
        rows = [
            (contract, v.number, v.from_epoch, v.block_number, v.rules_hash, v.document_hash, v.document)
            for v in versions
        ]

        def write(con: Connection) -> None:
            con.execute("DELETE FROM chain_parameters WHERE contract = ?", (contract,))
            con.executemany("INSERT INTO chain_parameters VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
            con.execute(
                "INSERT INTO chain_parameters_read VALUES (?, ?)"
                " ON CONFLICT (contract) DO UPDATE SET known_through_epoch = excluded.known_through_epoch",
                (contract, known_through_epoch),
            )

        await self._ledger.write(write)
