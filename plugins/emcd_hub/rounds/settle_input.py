"""Everything a round is closed with, streamed from one snapshot of the ledger.

A call whose node's signed batch has not come yet waits for a later bundle, as long as it may be
carried, unless a validator's reveal names it: then the validators look for it in this one. In
memory are numbers (a call's id, its row and a part of its receipt's hash: 40 bytes a call), never
the records of all calls. Calls of the round, and of other rounds that bring many, have their
batches scanned by time; those of which there are few, or that began long ago, look for theirs.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING

from emcd.accounting.round_close import CallRecords, Evidence, SignedBatch
from emcd.ledger import Connection
from emcd.proto.params import NetworkParams
from emcd.proto.records import CallStatus, RecordKind
from emcd.types import ZERO_HASH, Address
from emcd_hub.records.batch_row import (
    JoinedBatch,
    find_batch_id,
    iter_batches_by_id,
    iter_hub_batches,
    iter_receipt_hashes,
)
from emcd_hub.records.call_row import (
    SettledCall,
    fetch_calls,
    iter_call_keys,
    iter_call_keys_in,
    iter_carried_keys,
)
from emcd_hub.rounds.chain_row import list_deposits
from emcd_hub.rounds.evidence_row import list_commitments, list_reveals, list_statuses, list_votes
from emcd_hub.rounds.receipt_pick import ReceiptPick

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from emcd_hub.rounds.receipt_pick import Numbers

    Flags = npt.NDArray[np.bool_]

NO_BATCH = "the node's signed batch has not come"
CHUNK_CALLS = 4096
FEW_CALLS = 200
"""A round that brings no more has its batches looked up one by one."""
LONG_CALL_MS = 600_000
"""How long before its round a call may have begun, for its batches to be found by the round's time."""
_HUB_BATCH_LATE_MS = 120_000
_NEVER_MS = 1 << 62
_HUB_KINDS = (RecordKind.FORWARD, RecordKind.DELIVERY)


class SettleInput:
    """Evidence of a round, `deposits` the purchases in it; `waiting` has (call_seq, round, reason) of the calls read."""

    def __init__(
        self,
        con: Connection,
        hub: Address,
        index: int,
        params: NetworkParams,
        abandoned: Sequence[tuple[int, Iterable[bytes]]],
    ) -> None:
        """
        Args:
            abandoned: closed rounds that came to nothing, with the ids of their calls, joined in
                pieces: these go into this bundle.
        """
        self._con = con
        self._hub = hub
        self._index = index
        self._params = params
        self._rounds = tuple(number for number, _ in abandoned)
        self._order, found = _list_calls(con, index, params, [ids for _, ids in abandoned])
        self.count = len(self._order)
        self._scanned = {number for number, calls in found.items() if calls > FEW_CALLS} | {index}
        self._scanned_since_ms = {
            number: params.round_start_ms(number) - LONG_CALL_MS for number in self._scanned
        }
        self.deposits = list_deposits(con, index, self._rounds)
        self._pick = ReceiptPick()
        self._single: set[int] = set()
        self.waiting: list[tuple[int, int, str]] = []

    def evidence(self) -> Evidence:
        """To be read once: calls first, batches after the last of them."""
        con, index = self._con, self._index
        for batch_id, signer, hashes in iter_receipt_hashes(con, self._since_ms()):
            self._pick.add(batch_id, signer, hashes)
        reveals = list_reveals(con, index)
        named = frozenset(probe.call_id for entry in reveals for probe in entry.probes)
        return Evidence(
            calls=self._iter_calls(named),
            batches=self._iter_batches(),
            statuses=list_statuses(con, index),
            commitments=list_commitments(con, index),
            reveals=reveals,
            votes=list_votes(con, index),
            deposits=self.deposits,
        )

    def _since_ms(self) -> int:
        return min(self._scanned_since_ms.values())

    def _iter_calls(self, named: frozenset[bytes]) -> Iterator[CallRecords]:
        for start in range(0, len(self._order), CHUNK_CALLS):
            calls = fetch_calls(self._con, self._order[start : start + CHUNK_CALLS].tolist())
            keys = self._pick.key([_receipt_key(call) for call in calls])
            taken = self._find_proven(calls, keys)
            for number, call in enumerate(calls):
                if not taken[number]:
                    taken[number] = call.forward.call_id in named or not self._may_wait(call)
                if taken[number]:
                    self._want(call)
                else:
                    self.waiting.append((call.call_seq, call.delivery.round, NO_BATCH))
            self._pick.want(keys[taken])
            for call, is_taken in zip(calls, taken.tolist(), strict=True):
                if is_taken:
                    yield CallRecords(call.forward, call.receipt, call.delivery)

    def _may_wait(self, call: SettledCall) -> bool:
        delivery = call.delivery
        if call.receipt is None or not CallStatus(delivery.status).is_success:
            return False
        return self._index < delivery.round + self._params.carry_rounds

    def _find_proven(self, calls: Sequence[SettledCall], keys: Numbers) -> Flags:
        """Of each call, whether its node's batch has come."""
        found = self._pick.find_proven(keys)
        if not found.all():
            for number, call in enumerate(calls):
                if not found[number] and call.receipt is not None and not self._is_scanned(call):
                    record_hash = call.delivery.receipt_hash
                    found[number] = self._find(call, RecordKind.RECEIPT, record_hash) is not None
        return found

    def _want(self, call: SettledCall) -> None:
        """It stands in the bundle: remember its batches, where they are not found by their time."""
        if self._is_scanned(call):
            return
        wanted = [
            (RecordKind.FORWARD, call.delivery.forward_hash),
            (RecordKind.DELIVERY, call.delivery.struct_hash()),
        ]
        if call.receipt is not None:
            wanted.append((RecordKind.RECEIPT, call.delivery.receipt_hash))
        for kind, record_hash in wanted:
            batch_id = self._find(call, kind, record_hash)
            if batch_id is not None:
                self._single.add(batch_id)

    def _is_scanned(self, call: SettledCall) -> bool:
        return call.forward.started_at_ms >= self._scanned_since_ms.get(call.delivery.round, _NEVER_MS)

    def _find(self, call: SettledCall, kind: RecordKind, record_hash: bytes) -> int | None:
        forward, delivery = call.forward, call.delivery
        signer = forward.node if kind is RecordKind.RECEIPT else self._hub
        made_at_ms = forward.started_at_ms if kind is RecordKind.FORWARD else delivery.finished_at_ms
        return find_batch_id(self._con, signer, kind, record_hash, made_at_ms)

    def _iter_batches(self) -> Iterator[SignedBatch]:
        """Those in which a taken call's record may stand; the builder drops what it does not need."""
        params = self._params
        done: set[int] = set()
        for index in sorted(self._scanned):
            since_ms = self._scanned_since_ms[index]
            until_ms = params.round_end_ms(index) + _HUB_BATCH_LATE_MS
            for batch_id, item in iter_hub_batches(self._con, self._hub, _HUB_KINDS, since_ms, until_ms):
                if batch_id not in done:
                    done.add(batch_id)
                    yield _signed(item)
        others = sorted((self._single | set(self._pick.pick())) - done)
        for item in iter_batches_by_id(self._con, others):
            yield _signed(item)


def _signed(item: JoinedBatch) -> SignedBatch:
    return SignedBatch(item.batch, item.signature, item.record_hashes)


def _receipt_key(call: SettledCall) -> tuple[Address, bytes]:
    return call.forward.node, (ZERO_HASH if call.receipt is None else call.delivery.receipt_hash)


def _list_calls(
    con: Connection, index: int, params: NetworkParams, abandoned: Iterable[Iterable[bytes]]
) -> tuple[npt.NDArray[np.int64], Counter[int]]:
    """Rows of the round's own calls, of those that waited, and of those of rounds that came to nothing.

    Returns: call_seq in the order of the call ids, each once; how many there are by round.
    """
    import numpy as np

    oldest = max(0, index - params.carry_rounds)
    sources = chain(
        iter_call_keys(con, params.round_start_ms(index), params.round_end_ms(index)),
        iter_carried_keys(con),
        (part for pieces in abandoned for piece in pieces for part in iter_call_keys_in(con, piece)),
    )
    ids, seqs, rounds = bytearray(), array("q"), array("q")
    for part in sources:
        if part:
            some_ids, some_seqs, some_rounds = zip(*part, strict=True)
            ids += b"".join(some_ids)
            seqs.extend(some_seqs)
            rounds.extend(some_rounds)
    found = np.frombuffer(rounds, np.int64)
    halves = np.frombuffer(ids, dtype=">u8").reshape(-1, 2)
    kept = np.flatnonzero((oldest <= found) & (found <= index))
    order = kept[np.lexsort((halves[kept, 1], halves[kept, 0]))]
    first = np.ones(len(order), bool)
    first[1:] = (halves[order[1:]] != halves[order[:-1]]).any(axis=1)
    chosen = order[first]
    numbers, counts = np.unique(found[chosen], return_counts=True)
    by_round = Counter(dict(zip(numbers.tolist(), counts.tolist(), strict=True)))
    return np.frombuffer(seqs, np.int64)[chosen], by_round
