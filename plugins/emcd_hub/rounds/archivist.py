"""Lets old rounds leave the ledger: their records stay in their bundles, which are packed.

A round at a time, oldest first: pack the bundle and list its owners, say so in the ledger, then
delete its calls and batches in small transactions with pauses between them. Invariants: a call is
deleted only when it stands in a bundle whose packed bytes were read back and have the sealed hash;
a batch goes only when no call is left that a bundle not archived yet may hold and that it may prove;
what an account was charged stays (hub_usage); a crash at any point is gone on from.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import structlog
import trio

from emcd.bundle_file import run_somewhere
from emcd.clock import Clock
from emcd.errors import EmcdError, FatalError
from emcd.ledger import Connection, IntegrityError, Ledger
from emcd.proto.params import NetworkParams
from emcd.services import ParametersInForce
from emcd_hub.metrics import ARCHIVED_ROUND
from emcd_hub.records.batch_row import delete_batches
from emcd_hub.records.call_row import delete_calls, find_first_finish, list_owners
from emcd_hub.rounds.archive import archive_bundle, iter_portions, read_ids
from emcd_hub.rounds.archive_row import (
    delete_results,
    delete_statements,
    drop_totals,
    find_archive_state,
    find_last_closed,
    find_next_closed,
    insert_archived,
    insert_lost,
    set_emptied,
    take_bundles,
    take_owners,
)
from emcd_hub.rounds.bundle_folder import BundleFolder
from emcd_hub.rounds.bundle_row import BundleFacts, BundleFile, find_bundle_file, find_facts, list_facts
from emcd_hub.rounds.chain_row import list_publications
from emcd_hub.rounds.old_bundle import is_old, list_old_call_ids
from emcd_hub.rounds.retention import Retention, is_archivable, longest, open_round
from emcd_hub.rounds.state import cover_rounds, find_tips, latest_publications

DELETED_AT_ONCE = 256
"""Rows of one transaction: a few milliseconds, which a call that commits with it may have to wait."""
PAUSE_S = 0.02
BATCH_MARGIN_MS = 3_600_000
"""Batches of forwards come before their calls end: those of a call this long are kept with it."""
PAGES_AT_ONCE = 256
FREE_SHARE = 5
"""Pages go back to the file system when more than one in so many is free."""
POLL_SHARE = 20
READ_TIMEOUT_S = 120.0


class Archivist:
    """The archive of one hub."""

    def __init__(
        self,
        *,
        params: NetworkParams,
        parameters: ParametersInForce,
        ledger: Ledger,
        folder: BundleFolder,
        clock: Clock,
        terms: Retention,
        log: structlog.stdlib.BoundLogger,
    ) -> None:
        """
        Args:
            params: whose clock is meant.
        """
        self._params = params
        self._parameters = parameters
        self._ledger = ledger
        self._folder = folder
        self._clock = clock
        self._terms = terms
        self._log = log

    async def run(self) -> None:
        """Archive what is old enough, for ever. What fails is tried again: nothing waits for it."""
        while True:
            try:
                while await self.step():
                    pass
                await self.prune()
            except FatalError:
                raise
            except (EmcdError, OSError, IntegrityError) as exc:
                code = getattr(exc, "code", "EMC-1755")
                self._log.warning("the archive is delayed", code=code, detail=str(exc)[:300])
            await trio.sleep(max(1.0, self._params.round_s / POLL_SHARE))

    async def step(self) -> bool:
        """Archive the oldest round that may be, or go on with one. Returns: whether there was one."""
        state = await self._ledger.read(find_archive_state)
        if not state.emptied:
            await self._empty(state.round)
            return True
        found = await self._find_due(state.round)
        if found is None:
            return False
        facts, file = found
        now_ms = self._clock.now_ms()
        if file is None:
            self._log.error("a round has no bundle file", code="EMC-1755", round=facts.round)
            await self._ledger.write(lambda con: insert_lost(con, facts.round, now_ms))
            return True
        archived = await run_somewhere(
            archive_bundle, self._ledger.path, self._folder.root, file, facts.bundle_hash,
            size_bytes=file.size_bytes,
        )  # fmt: skip
        await self._ledger.write(lambda con: insert_archived(con, file, archived, now_ms))
        await self._remove([file.path])
        await self._empty(facts.round)
        return True

    async def prune(self) -> None:
        """Let go what is kept for some time only, and give free pages back."""
        now_ms, params = self._clock.now_ms(), self._params
        state = await self._ledger.read(find_archive_state)
        archived_below = state.round + 1 if state.emptied else state.round

        def bound(at_ms: int) -> int:
            return min(archived_below, params.round_at(at_ms))

        gone = await self._ledger.write(lambda con: take_owners(con, bound(now_ms - self._terms.calls_ms)))
        if self._terms.bundles_rounds:
            below = min(archived_below, params.round_at(now_ms) - self._terms.bundles_rounds)
            gone += await self._ledger.write(lambda con: take_bundles(con, below))
        await self._remove(gone)
        tips = find_tips(await self._ledger.read(lambda con: list_publications(con, 0)), now_ms // 1000)
        await self._ledger.write(lambda con: drop_totals(con, min(archived_below, tips[1])))
        results_below = bound(now_ms - self._terms.results_ms)
        await self._ledger.write(lambda con: delete_statements(con, results_below))
        await self._repeat(lambda con: delete_results(con, results_below, DELETED_AT_ONCE))
        await self._repeat(_give_pages_back)

    async def _find_due(self, after: int) -> tuple[BundleFacts, BundleFile | None] | None:
        """The oldest closed round that is not archived, when it may be."""
        clock_round = self._params.round_at(self._clock.now_ms())
        now_s = self._clock.now_ms() // 1000
        rules = self._longest()
        reach = 4 * (rules.void_after_rounds + rules.carry_rounds) + 64

        def read(con: Connection) -> tuple[BundleFacts, BundleFile | None] | None:
            index = find_next_closed(con, after)
            if index is None:
                return None
            near = {item.round: item for item in list_facts(con, reach, below=index + reach)}
            publications = latest_publications(list_publications(con, index))
            payer = {**cover_rounds(near, publications), **publications}.get(index)
            is_paid = payer is not None and not payer.is_void and payer.active_at_s <= now_s
            current = open_round(clock_round, find_last_closed(con))
            if not is_archivable(index, current, rules, is_paid=is_paid):
                return None
            facts = find_facts(con, index)
            assert facts is not None
            return facts, find_bundle_file(con, index)

        return await self._ledger.read(read, timeout_s=READ_TIMEOUT_S)

    async def _empty(self, index: int) -> None:
        """Delete an archived round's calls, then what its bundle holds too."""
        file = await self._ledger.read(lambda con: find_bundle_file(con, index))
        ids = b"" if file is None else await trio.to_thread.run_sync(self._read_ids, file)
        deleted = 0
        for part in iter_portions(ids):
            rows = await self._ledger.read(partial(list_owners, call_ids=part), timeout_s=READ_TIMEOUT_S)
            for start in range(0, len(rows), DELETED_AT_ONCE):
                seqs = [seq for _, seq, _ in rows[start : start + DELETED_AT_ONCE]]
                deleted += await self._ledger.write(partial(delete_calls, call_seqs=seqs))
                await trio.sleep(PAUSE_S)
        before_ms = await self._find_batches_end_ms(index)
        await self._repeat(lambda con: delete_batches(con, before_ms, DELETED_AT_ONCE))
        await self._ledger.write(lambda con: set_emptied(con, index))
        ARCHIVED_ROUND.set(index)
        self._log.info("round archived", round=index, calls=deleted)

    async def _find_batches_end_ms(self, index: int) -> int:
        """Before which time batches may go: before the calls of later rounds, and before those left of earlier ones.

        A bundle after this one may hold a call of the `carry_rounds` before it; what is left of rounds
        older than that stands in no bundle, and keeps nothing.
        """
        start_ms = self._params.round_start_ms
        since_ms = start_ms(index + 1 - self._longest().carry_rounds)
        first_ms = await self._ledger.read(lambda con: find_first_finish(con, since_ms))
        return min(start_ms(index), start_ms(index) if first_ms is None else first_ms) - BATCH_MARGIN_MS

    def _longest(self) -> NetworkParams:
        return longest(version.parameters.params for version in self._parameters.schedule.versions)

    def _read_ids(self, file: BundleFile) -> bytes:
        with self._folder.opened(file) as data:
            return list_old_call_ids(data) if is_old(data) else read_ids(data)

    async def _repeat(self, step: Callable[[Connection], int]) -> None:
        """Write until nothing is left to do, with pauses."""
        while True:
            if not await self._ledger.write(step):
                return
            await trio.sleep(PAUSE_S)

    async def _remove(self, paths: list[str]) -> None:
        for path in paths:
            await trio.to_thread.run_sync(partial(Path.unlink, self._folder.locate(path), missing_ok=True))


def _give_pages_back(con: Connection) -> int:
    """Shorten the file by some free pages, when there are many. Returns: whether it did anything."""
    (free,) = con.execute("PRAGMA freelist_count").fetchone()
    (pages,) = con.execute("PRAGMA page_count").fetchone()
    (mode,) = con.execute("PRAGMA auto_vacuum").fetchone()
    if mode != 2 or free * FREE_SHARE < pages or free < PAGES_AT_ONCE:
        return 0
    con.execute(f"PRAGMA incremental_vacuum({PAGES_AT_ONCE})").fetchall()
    return 1
