"""Which calls are counted again, and when: a share of them, and all whose numbers don't fit together.

Owns the queue between the calls' path and the thread that counts. Invariants: a call never waits for
this; the queue is bounded by jobs and bytes, and what does not fit is left out and numbered; a call is
offered only when its row is on disk.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import structlog
import trio

from emcd.clock import Clock
from emcd.ledger import Ledger
from emcd.metrics import counter
from emcd.proto.openai_shape import Endpoint, UpstreamRequest
from emcd.proto.records import CallStatus
from emcd.types import Address
from emcd_hub.calls.held import Held
from emcd_hub.calls.recorder import Settled
from emcd_hub.counts.count_row import CountRow, DriftRow, load_drifts, write_counts
from emcd_hub.counts.drift import add_count, is_answer_over, is_prompt_over, is_systematic
from emcd_hub.counts.token_counter import CountJob, TokenCounter
from emcd_hub.records.withheld import OVERCLAIM

MAX_JOBS = 256
MAX_BYTES = 32 * 1024 * 1024
MAX_SUMS = 65_536
_AT_ONCE = 32
_ID_BYTES = 40
"""What a token id costs in memory."""
_COUNTED = counter(
    "emcd_hub_calls_counted_total",
    "Calls whose tokens were counted again, by what came of it.",
    ("outcome",),
)
_TOKENS = counter(
    "emcd_hub_tokens_compared_total",
    "Tokens of calls that the hub counted, too: as nodes claimed them, and as it counted them.",
    ("part", "by"),
)


class _Offered(NamedTuple):
    row: CountRow
    job: CountJob
    size: int


class CountDesk:
    """The counting of one hub."""

    def __init__(
        self,
        *,
        models_dir: Path,
        share: float,
        ledger: Ledger,
        clock: Clock,
        draw: Callable[[], float],
        log: structlog.stdlib.BoundLogger,
    ) -> None:
        """
        Args:
            share: of the calls that nothing is odd about, from 0 to 1; draw: a random number from 0 to 1.
        """
        self._counter = TokenCounter(models_dir)
        self._share = share
        self._ledger = ledger
        self._clock = clock
        self._draw = draw
        self._log = log
        self._send, self._receive = trio.open_memory_channel[_Offered](MAX_JOBS)
        self._limiter = trio.CapacityLimiter(1)
        self._bytes = 0
        self._sums: dict[tuple[Address, bytes], DriftRow] = {}
        self._warned: set[tuple[Address, bytes]] = set()
        self._said = ""

    async def load(self) -> None:
        """Read the sums of earlier runs. Once, before calls."""
        rows = await self._ledger.read(load_drifts)
        self._sums = {(row.node, bytes(row.model_hash)): row for row in rows}

    def find(self, node: Address, model_hash: bytes) -> DriftRow | None:
        """The sums of a node's calls of a model."""
        return self._sums.get((node, model_hash))

    def offer(self, request: UpstreamRequest, settled: Settled) -> None:
        """A call with evidence is on disk. Never waits."""
        call, receipt = settled.call, settled.receipt
        held = call.held
        if held is None or receipt is None or call.info.checked is None or not _is_finished(settled):
            return
        if request.inputs > 1 and request.endpoint is not Endpoint.EMBEDDINGS:
            return  # its texts are several answers
        claimed = (receipt.input_tokens, receipt.output_tokens)
        odd = request.endpoint is not Endpoint.EMBEDDINGS and _is_odd(claimed, held)
        delivery, forward = settled.delivery, call.forward
        if not odd and (
            self._draw() >= self._share
            or self._counter.is_missing(call.info.model_hash, delivery.finished_at_ms)
        ):
            return
        row = CountRow(
            forward.call_id, delivery.finished_at_ms, forward.node, call.info.model_hash,
            "odd" if odd else "share", *claimed, held.prompt_tokens, held.tokens, None, None, held.pieces, None,
        )  # fmt: skip
        ids = None if held.tokens is None else held.ids
        job = CountJob(request.endpoint, call.info.model_hash, request.body, ids, held.texts)
        size = len(request.body) + held.size + _ID_BYTES * len(ids or ())
        if self._bytes + size > MAX_BYTES:
            _COUNTED.labels("left_out").inc()
            return
        try:
            self._send.send_nowait(_Offered(row, job, size))
        except trio.WouldBlock:
            _COUNTED.labels("left_out").inc()
            return
        self._bytes += size

    async def run(self) -> None:
        """Count what was offered, for ever. Raises: FatalError when the ledger fails."""
        async for offered in self._receive:
            rows = [await self._count(offered)]
            while len(rows) < _AT_ONCE:
                try:
                    rows.append(await self._count(self._receive.receive_nowait()))
                except trio.WouldBlock:
                    break
            await self._keep([row for row in rows if row is not None])

    async def _count(self, offered: _Offered) -> CountRow | None:
        """The whole row; None for one that says nothing."""
        now_ms = self._clock.now_ms()
        counted = await trio.to_thread.run_sync(
            self._counter.count, offered.job, now_ms, limiter=self._limiter
        )
        self._bytes -= offered.size
        if self._counter.problem != self._said:
            self._said = self._counter.problem
            self._log.warning("tokens of a model can't be counted", code="EMC-1795", detail=self._said[:200])
        row = offered.row
        if counted.prompt_tokens is None and row.why != "odd":
            _COUNTED.labels("no_tokenizer").inc()
            return None
        return row._replace(
            counted_prompt=counted.prompt_tokens, counted=counted.tokens, spelled=counted.spelled
        )

    async def _keep(self, rows: list[CountRow]) -> None:
        if not rows:
            return
        changed: dict[tuple[Address, bytes], DriftRow] = {}
        for row in rows:
            key = (row.node, row.model_hash)
            sums = self._sums.get(key) or DriftRow(row.node, row.model_hash)
            self._sums[key] = changed[key] = add_count(sums, row)
            _note(row)
        while len(self._sums) > MAX_SUMS:
            del self._sums[next(iter(self._sums))]
        drifts, now_ms = list(changed.values()), self._clock.now_ms()
        await self._ledger.write(lambda con: write_counts(con, rows, drifts, now_ms))
        for key, sums in changed.items():
            if is_systematic(sums) and key not in self._warned:
                self._warned.add(key)
                self._log.warning(
                    "a node claims more tokens than its answers hold",
                    node=sums.node, model=sums.model_hash.hex(), calls=sums.calls,
                    prompts_over=sums.prompts_over, answers_over=sums.answers_over, unspelled=sums.unspelled,
                )  # fmt: skip


def _is_finished(settled: Settled) -> bool:
    """Whether a call came to its end: of one that the credits cut, both sides only guess the tokens."""
    if settled.status is CallStatus.CAPPED:
        return settled.row.fault.startswith(OVERCLAIM)
    return settled.status is CallStatus.OK


def _is_odd(claimed: tuple[int, int], held: Held) -> bool:
    """Whether a call's numbers don't fit together: ids that are missing, or other than claimed, or too many."""
    return claimed != (held.prompt_tokens, held.tokens) or claimed[1] > held.size


def _note(row: CountRow) -> None:
    if row.spelled is False:
        outcome = "unspelled"
    elif is_prompt_over(row):
        outcome = "prompt_over"
    elif is_answer_over(row):
        outcome = "answer_over"
    else:
        outcome = "odd" if row.why == "odd" else "fits"
    _COUNTED.labels(outcome).inc()
    if row.counted_prompt is not None and row.counted is not None:
        for part, claimed, counted in (
            ("prompt", row.claimed_prompt, row.counted_prompt),
            ("answer", row.claimed, row.counted),
        ):
            _TOKENS.labels(part, "claimed").inc(claimed)
            _TOKENS.labels(part, "counted").inc(counted)
