"""Everything a round is closed with, read from one snapshot of the ledger.

A call whose node's signed batch has not come yet waits for a later bundle, as long as it may be
carried, unless a validator's reveal names it: then the validators look for it in this one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from emcd.accounting.round_close import CallRecords, Evidence, SignedBatch
from emcd.ledger import Connection
from emcd.proto.bundle import RevealEntry
from emcd.proto.bundle_codec import Section, iter_section
from emcd.proto.params import NetworkParams
from emcd.proto.records import CallStatus, RecordKind
from emcd.types import Address
from emcd_hub.records.batch_row import iter_batches
from emcd_hub.records.call_row import (
    StoredCall,
    find_call,
    iter_calls_between,
    iter_carried_calls,
)
from emcd_hub.rounds.bundle_row import find_data
from emcd_hub.rounds.chain_row import list_deposits
from emcd_hub.rounds.evidence_row import list_commitments, list_reveals, list_statuses, list_votes

_BATCH_LOOK_BACK_MS = 1_000
NO_BATCH = "the node's signed batch has not come"


@dataclass(frozen=True)
class SettleInput:
    """Evidence of a round, and the calls that wait: (call_seq, round, reason)."""

    evidence: Evidence
    seqs: dict[bytes, StoredCall]
    waiting: tuple[tuple[int, int, str], ...]


def read_settle_input(
    con: Connection, index: int, params: NetworkParams, abandoned: Iterable[int]
) -> SettleInput:
    """Read it.

    Args:
        abandoned: closed rounds that came to nothing, whose calls go into this bundle.
    """
    calls = _read_calls(con, index, params, abandoned)
    batches = _read_batches(con, calls.values())
    proven = {
        (item.batch.signer, record_hash)
        for item in batches
        if item.batch.kind == RecordKind.RECEIPT
        for record_hash in item.record_hashes
    }
    reveals = list_reveals(con, index)
    named = _named_calls(reveals)
    waiting = []
    for call_id, call in list(calls.items()):
        if call_id not in named and _must_wait(call, index, params, proven):
            waiting.append((call.call_seq, call.delivery.round, NO_BATCH))
            del calls[call_id]
    evidence = Evidence(
        calls=[CallRecords(call.forward, call.receipt, call.delivery) for call in calls.values()],
        batches=batches,
        statuses=list_statuses(con, index),
        commitments=list_commitments(con, index),
        reveals=reveals,
        votes=list_votes(con, index),
        deposits=list_deposits(con, index),
    )
    return SettleInput(evidence, calls, tuple(waiting))


def _read_calls(
    con: Connection, index: int, params: NetworkParams, abandoned: Iterable[int]
) -> dict[bytes, StoredCall]:
    """The round's own calls, those that waited, and those of rounds that came to nothing."""
    own = iter_calls_between(con, params.round_start_ms(index), params.round_end_ms(index))
    calls = {call.forward.call_id: call for call in own}
    for call in iter_carried_calls(con):
        calls.setdefault(call.forward.call_id, call)
    for other in abandoned:
        data = find_data(con, other)
        for entry in iter_section(data, Section.CALLS) if data is not None else ():
            found = find_call(con, entry.forward.call_id)
            if found is not None:
                calls.setdefault(found.forward.call_id, found)
    oldest = index - params.carry_rounds
    return {key: call for key, call in calls.items() if oldest <= call.delivery.round <= index}


def _read_batches(con: Connection, calls: Iterable[StoredCall]) -> list[SignedBatch]:
    """The batches in which one of the calls' records stands."""
    wanted: set[bytes] = set()
    since_ms = 2**62
    for call in calls:
        wanted |= {call.delivery.forward_hash, call.delivery.receipt_hash, call.delivery.struct_hash()}
        since_ms = min(since_ms, call.forward.started_at_ms)
    if not wanted:
        return []
    return [
        SignedBatch(item.batch, item.signature, item.record_hashes)
        for item in iter_batches(con, since_ms - _BATCH_LOOK_BACK_MS)
        if not wanted.isdisjoint(item.record_hashes)
    ]


def _named_calls(reveals: Iterable[RevealEntry]) -> set[bytes]:
    return {probe.call_id for entry in reveals for probe in entry.probes}


def _must_wait(
    call: StoredCall, index: int, params: NetworkParams, proven: set[tuple[Address, bytes]]
) -> bool:
    delivery = call.delivery
    if call.receipt is None or not CallStatus(delivery.status).is_success:
        return False
    if index >= delivery.round + params.carry_rounds:
        return False
    return (call.forward.node, delivery.receipt_hash) not in proven
