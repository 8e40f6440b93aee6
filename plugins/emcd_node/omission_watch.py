"""Looks whether the hub's bundles carry this node's calls, and files those that they leave out.

Order: a round is sealed, its bundle is looked at, calls that are missing are filed with the
validators, and every later bundle is looked at until it carries them. Invariants: rounds are
looked at in order, once; what is found is on disk before it is filed; a call is missing only when
the node's batch had gone out before the bundle was closed; nothing is asked of anybody while
nothing is expected.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import trio

from emcd.accounting.credits import compute_node_credits_floor
from emcd.clock import Clock
from emcd.errors import EmcdError, FatalError
from emcd.ledger import Connection, Ledger
from emcd.metrics import gauge
from emcd.proto.params import NetworkParams
from emcd.services import ParametersInForce
from emcd.types import Address
from emcd_node.directory import Directory
from emcd_node.filing import Filer
from emcd_node.hub_pages import HubPages, RoundWord
from emcd_node.omission_row import (
    CallState,
    ExpectedCall,
    count_states,
    find_last_checked,
    find_oldest_open,
    insert_checked,
    list_claims,
    list_expected,
    reset_skipped,
    set_carried,
    set_filed,
    set_lost,
    set_missing,
)

MAX_FILED = 256
"""What a validator keeps of one node."""
SCANNED_CALLS = 20_000
"""A bundle of so many calls is always looked through; a larger one when the hub's numbers differ."""
POLLS_PER_ROUND = 15
_CALLS = gauge("emcd_node_calls_by_state", "Calls on their way into a bundle, by state.", ("node", "state"))


class OmissionWatch:
    """The watch of one node over its hub's bundles."""

    def __init__(
        self,
        *,
        node: Address,
        params: NetworkParams,
        parameters: ParametersInForce,
        ledger: Ledger,
        clock: Clock,
        pages: HubPages,
        directory: Directory,
        filer: Filer,
        log: Any,
    ) -> None:
        """`params`: for the clock alone; numbers that may change come from `parameters`."""
        self._node = node
        self._params = params
        self._parameters = parameters
        self._ledger = ledger
        self._clock = clock
        self._pages = pages
        self._directory = directory
        self._filer = filer
        self._log = log
        self.complaint = ""

    async def run(self) -> None:
        """Look until cancelled; what may pass is tried again."""
        pause_s = min(60.0, max(0.3, self._params.round_s / POLLS_PER_ROUND))
        told = ""
        while True:
            try:
                await self.step()
                told = ""
            except FatalError:
                raise
            except EmcdError as exc:
                if exc.code != told:
                    self._log.warning("node.bundles_unchecked", code=exc.code, detail=exc.detail)
                told = exc.code
            await trio.sleep(pause_s)

    async def step(self) -> None:
        """Look at every bundle that is due, then file. Raises: RecoverableError (hub or chain away)."""
        try:
            while (index := await self._find_due()) is not None and await self._check(index):
                pass
        finally:
            await self._expire()
            await self._tell()
        await self._file()

    # ------------------------------------------------------------------ bundles

    async def _find_due(self) -> int | None:
        """The next round to look at; None when none is closed, or nothing is expected of any."""
        newest = self._round() - 2

        def read(con: Connection) -> tuple[int | None, int | None]:
            return find_last_checked(con, self._node), find_oldest_open(con, self._node)

        last, oldest = await self._ledger.read(read)
        if oldest is None:
            return None
        first = max(oldest, newest - self._carry_rounds(), 0)
        index = first if last is None else max(first, last + 1)
        return index if index <= newest else None

    async def _check(self, index: int) -> bool:
        """Look at one round's bundle. Returns: whether the next one may be looked at."""
        base = await self._directory.fetch_hub(self._round())
        word = await self._pages.find_word(base, index)
        if word is None:
            if self._round() - 2 - index < self._carry_rounds() // 2:
                return False
            await self._ledger.write(lambda con: insert_checked(con, self._node, index, None, None))
            return True
        expected = await self._list_expected(word.previous_round, index)
        if not expected or (word.calls > SCANNED_CALLS and self._agrees(index, word, expected)):
            hashes = [call.forward_hash for call in expected]
            await self._keep(index, None, word.previous_round, hashes, [])
            return True
        scanned = await self._pages.scan(base, index)
        if scanned is None:
            return False
        carried = [call for call in expected if call.call_id in scanned.call_ids]
        due_ms = self._params.grace_end_ms(index)
        missing = [
            call
            for call in expected
            if call.call_id not in scanned.call_ids
            and call.batch_sent_at_ms is not None
            and call.batch_sent_at_ms < due_ms
        ]
        self._report(index, carried, missing, scanned.unproven)
        await self._keep(
            index,
            scanned.bundle_hash,
            scanned.previous_round,
            [call.forward_hash for call in carried],
            [call.forward_hash for call in missing],
        )
        return True

    async def _list_expected(self, previous_round: int, index: int) -> list[ExpectedCall]:
        """What must stand in a bundle that builds on `previous_round`; nothing is written but resets."""

        def read(con: Connection) -> list[ExpectedCall]:
            reset_skipped(con, self._node, previous_round, index)
            return list_expected(con, self._node, index)

        return await self._ledger.write(read)

    def _agrees(self, index: int, word: RoundWord, expected: Sequence[ExpectedCall]) -> bool:
        """Whether the hub's credits of this node are what its own book says."""
        params = self._parameters.schedule.params_at(index)
        vault_micro = sum(call.vault_micro for call in expected)
        return word.credits_micro == compute_node_credits_floor(params, vault_micro, word.passed)

    async def _keep(
        self,
        index: int,
        bundle_hash: bytes | None,
        previous_round: int,
        carried: Sequence[bytes],
        missing: Sequence[bytes],
    ) -> None:
        def write(con: Connection) -> None:
            set_carried(con, self._node, carried, index)
            set_missing(con, self._node, missing)
            insert_checked(con, self._node, index, bundle_hash, previous_round)

        await self._ledger.write(write)

    def _report(
        self,
        index: int,
        carried: Sequence[ExpectedCall],
        missing: Sequence[ExpectedCall],
        unproven: frozenset[bytes],
    ) -> None:
        if missing:
            self._log.error("node.calls_missing", code="EMC-2030", round=index, count=len(missing))
        late = [call for call in carried if call.state is not CallState.EXPECTED]
        if late:
            self._log.info("node.omissions_carried", round=index, count=len(late))
        unpaid = [call for call in carried if call.call_id in unproven]
        if unpaid:
            self._log.error("node.calls_unproven", code="EMC-2030", round=index, count=len(unpaid))

    # ------------------------------------------------------------------ filing

    async def _file(self) -> None:
        claims = await self._ledger.read(lambda con: list_claims(con, self._node, MAX_FILED))
        if not claims:
            return
        validators = await self._directory.fetch_validators(self._round())
        counts = await self._filer.file(claims, validators)
        fresh = {
            claim.forward_hash: counts[claim.forward_hash]
            for claim in claims
            if counts[claim.forward_hash] > claim.filed_with
        }

        def write(con: Connection) -> None:
            for forward_hash, count in fresh.items():
                set_filed(con, self._node, forward_hash, count)

        if fresh:
            await self._ledger.write(write)
            self._log.warning("node.omissions_filed", count=len(fresh), validators=max(fresh.values()))
            await self._tell()
        if refusals := self._filer.list_refusals():
            self._log.warning("node.filing_refused", code="EMC-2033", detail="; ".join(refusals)[:400])

    async def _expire(self) -> None:
        before = self._round() - 2 - self._carry_rounds()
        lost = await self._ledger.write(partial(set_lost, instance=self._node, before_round=before))
        if lost:
            self._log.error("node.calls_lost", code="EMC-2030", count=lost)

    async def _tell(self) -> None:
        counts = await self._ledger.read(lambda con: count_states(con, self._node))
        for state in CallState:
            _CALLS.labels(self._node, state.value).set(counts.get(state, 0))
        open_calls = counts.get(CallState.MISSING, 0) + counts.get(CallState.FILED, 0)
        self.complaint = (
            f"the hub's bundles lack {open_calls} calls, see `emcd node omissions`" if open_calls else ""
        )

    def _round(self) -> int:
        return self._params.round_at(self._clock.now_ms())

    def _carry_rounds(self) -> int:
        return self._parameters.schedule.newest.parameters.params.carry_rounds
