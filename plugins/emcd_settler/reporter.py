"""Tells the hubs how a claim stands: sent under which transaction, or why it is not.

What is told follows from the row alone, and a row remembers what was told last, so a crash repeats
at most one report. Invariant: a hub that does not listen stops nothing.
"""

from __future__ import annotations

from emcd.accounting.payout import ExtractionState
from emcd.clock import Clock
from emcd.keys import SigningKey
from emcd.ledger import Ledger
from emcd.proto.address import hex_hash
from emcd.proto.eip712 import Domain
from emcd.proto.json_form import to_json
from emcd.proto.settler_report import MAX_TEXT, ReportKind, SettlerReport
from emcd.types import ZERO_HASH
from emcd_settler.extraction_row import ExtractionRow, list_unreported, set_reported
from emcd_settler.hub_group import HubGroup

LOOK_BACK_MS = 3_600_000
MAX_AT_ONCE = 64
"""Reports in one step: the rest is told in the next."""
PAUSE_STEPS = 10
"""How many steps a hub that does not listen is left alone."""


def make_report(row: ExtractionRow) -> tuple[ReportKind, str, bytes] | None:
    """What a hub should know of a request; None while there is nothing to tell. Pure."""
    match row.state:
        case ExtractionState.SUBMITTED if row.tx_hash is not None:
            return ReportKind.SUBMITTED, "", row.tx_hash
        case ExtractionState.REQUESTED | ExtractionState.SYNCHRONISED if row.reason:
            kind = ReportKind.FAILED if row.attempt else ReportKind.HELD
            return kind, row.reason[:MAX_TEXT], ZERO_HASH
        case ExtractionState.REFUSED:
            return ReportKind.FAILED, row.reason[:MAX_TEXT], ZERO_HASH
        case _:
            return None


class Reporter:
    """`step` tells what was not told yet."""

    def __init__(
        self,
        *,
        instance: str,
        domain: Domain,
        key: SigningKey,
        ledger: Ledger,
        clock: Clock,
        hubs: HubGroup,
    ) -> None:
        self._instance = instance
        self._domain = domain
        self._key = key
        self._ledger = ledger
        self._clock = clock
        self._hubs = hubs
        self._pause = 0

    async def step(self) -> None:
        """Cancellation: at any point; a report may then be repeated."""
        since_ms = self._clock.now_ms() - LOOK_BACK_MS
        rows = await self._ledger.read(lambda con: list_unreported(con, self._instance, since_ms))
        waiting = [
            row for row in rows if (said := make_report(row)) is not None and row.reported != _name(said)
        ]
        if self._pause > 0:
            self._pause -= 1
            return
        for row in waiting[:MAX_AT_ONCE]:
            if not await self._report(row):
                self._pause = PAUSE_STEPS
                return

    async def _report(self, row: ExtractionRow) -> bool:
        said = make_report(row)
        assert said is not None
        kind, text, tx_hash = said
        report = SettlerReport(
            self._key.address,
            row.wallet,
            row.extraction.nonce,
            int(kind),
            text,
            tx_hash,
            self._clock.now_ms(),
        )
        signature = self._key.sign(self._domain, report)
        document = {"report": to_json(report), "signature": hex_hash(signature)}
        if not await self._hubs.report(document):
            return False
        name = _name(said)
        await self._ledger.write(lambda con: set_reported(con, self._instance, row, name))
        return True


def _name(said: tuple[ReportKind, str, bytes]) -> str:
    kind, text, tx_hash = said
    return f"{kind.value}:{tx_hash.hex()}:{text}"
