"""What is remembered of a verdict: its numbers, and how its node drifts below the thresholds.

Of own probes alone: a peer's probes are its to sum up. That a node drifts strikes nobody; that its free
sampling looks odd makes it get probes at temperature 0, which can.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from emcd.accounting.drift import Drift, advance_drift, advance_pool
from emcd.accounting.token_check import ProbeKind
from emcd.ledger import Connection
from emcd.types import Address
from emcd_validator.judge import Judgement, Numbers
from emcd_validator.metrics import DRIFTS, STATISTICS
from emcd_validator.queries.verdicts import (
    DriftRow,
    VerdictRow,
    find_drift,
    insert_verdict,
    keep_drift,
    list_suspects,
)

if TYPE_CHECKING:
    from emcd_validator.validator import Validator

_encode = msgspec.json.Encoder(order="sorted").encode
_drift_decoder = msgspec.json.Decoder(Drift)


def write_numbers(numbers: Numbers | None) -> str:
    """As JSON; "" for a verdict without any."""
    return "" if numbers is None else _encode(numbers).decode()


def read_numbers(text: str) -> Numbers | None:
    return msgspec.json.decode(text, type=Numbers) if text else None


def record_judgement(con: Connection, instance: Address, row: VerdictRow, numbers: Numbers | None) -> bool:
    """Keep a verdict and advance its node's sums. Returns: False when it was kept before."""
    if not insert_verdict(con, instance, row):
        return False
    if numbers is not None and row.part == "probe" and numbers.values:
        before = read_drift(find_drift(con, instance, row.node, row.model_hash))
        after = advance(before, numbers)
        if after.is_drifting and not before.is_drifting:
            DRIFTS.inc()
        state = _encode(after).decode()
        drift = DriftRow(row.node, row.model_hash, state, after.is_drifting, after.is_suspect, row.round)
        keep_drift(con, instance, drift)
    return True


def read_drift(state: str | None) -> Drift:
    """The running sums of a row; new ones without."""
    return Drift() if state is None else _drift_decoder.decode(state)


def advance(before: Drift, numbers: Numbers) -> Drift:
    """The sums after one more answer: of d (or the distance of vectors), of m, and of a free sampler."""
    distance = next((name for name in ("d", "l2") if name in numbers.taus), None)
    after = before
    if distance is not None:
        tokens = _share(numbers, "m") if "m" in numbers.taus else None
        after = advance_drift(before, d_share=_share(numbers, distance), m_share=tokens)
    if numbers.kind is ProbeKind.FREE and numbers.z_variance > 0:
        after = advance_pool(after, numbers.z_sum, numbers.z_variance)
    return after


def make_row(
    judgement: Judgement,
    *,
    round_index: int,
    part: str,
    node: Address,
    slot: int,
    call_id: bytes,
    model_hash: bytes,
    at_ms: int,
) -> VerdictRow:
    """A verdict as the ledger keeps it."""
    return VerdictRow(
        round=round_index,
        part=part,
        node=node,
        call_id=call_id,
        slot=slot,
        model_hash=model_hash,
        kind="" if judgement.numbers is None else judgement.numbers.kind.value,
        verdict=int(judgement.verdict),
        statistic_e12=judgement.statistic_e12,
        reason=judgement.reason,
        blame=judgement.blame.value,
        numbers=write_numbers(judgement.numbers),
        judged_at_ms=at_ms,
    )


async def keep_judgement(
    validator: Validator,
    judgement: Judgement,
    *,
    round_index: int,
    part: str,
    node: Address,
    slot: int,
    call_id: bytes,
    model_hash: bytes,
) -> None:
    """Keep a verdict, once. Args: `part`: probe, vote, recheck or task."""
    row = make_row(
        judgement,
        round_index=round_index,
        part=part,
        node=node,
        slot=slot,
        call_id=call_id,
        model_hash=model_hash,
        at_ms=validator.now_ms(),
    )
    await validator.write(lambda con: record_judgement(con, validator.address, row, judgement.numbers))
    note_statistics(judgement)


async def fetch_suspects(validator: Validator) -> frozenset[tuple[Address, bytes]]:
    """Nodes and model hashes whose free sampling looks odd: they get probes at temperature 0."""
    return await validator.read(lambda con: list_suspects(con, validator.address))


def note_statistics(judgement: Judgement) -> None:
    """Show a verdict's statistics, as shares of their thresholds, in the metrics."""
    numbers = judgement.numbers
    if numbers is None:
        return
    for name in numbers.taus:
        STATISTICS.labels(numbers.kind.value, name).observe(_share(numbers, name))


def _share(numbers: Numbers, name: str) -> float:
    return numbers.values[name] / max(1, numbers.taus[name])
