"""The audit's part on calls and batches, group by group.

What the columns of a group say is checked all at once; a row that is doubtful is judged by
`call_rule.require_call`, which names what is wrong. Memory: a group, and 40 bytes a signed record.
"""

from __future__ import annotations

from collections.abc import Callable, Container

import numpy as np

from emcd.accounting.batch_cover import BatchCover
from emcd.accounting.call_check import CallCheck
from emcd.accounting.call_index import CallIdIndex
from emcd.accounting.call_sum import CallSums
from emcd.accounting.consequence import UnequalRecord, tell_batch, tell_call
from emcd.accounting.tally import CallTally
from emcd.accounting.terms import RoundTerms
from emcd.errors import RemoteProtocolError
from emcd.proto.address import address_bytes, hex_hash
from emcd.proto.bundle_calls import CallGroup, GroupHashes, hash_group
from emcd.proto.bundle_codec import BundleFault, BundleReader, Section, describe_key
from emcd.proto.bundle_table import iter_records
from emcd.types import Address

Progress = Callable[[int, int], None]


def audit_calls(
    terms: RoundTerms, reader: BundleReader, settled: Container[bytes] | None, progress: Progress | None
) -> CallTally:
    """Check all calls and batches. Raises: BundleFault naming the first that is wrong."""
    return _CallAudit(terms, reader, settled).run(progress)


class _CallAudit:
    def __init__(self, terms: RoundTerms, reader: BundleReader, settled: Container[bytes] | None) -> None:
        self._terms = terms
        self._groups = reader.groups
        self._settled = settled
        self._directory = self._groups.directory
        self._hub = address_bytes(terms.hub)
        self._check = CallCheck(terms)
        probed = {probe.call_id for entry in reader.items(Section.REVEALS) for probe in entry.probes}
        self._sums = CallSums(terms, probed)
        entries, calls = self._groups.iter_batches(), self._groups.calls
        try:
            self._cover = BatchCover(terms, entries, self._groups.signers, calls)
        except BundleFault:
            raise
        except RemoteProtocolError as exc:
            raise BundleFault(exc.code, Section.BATCHES, self._groups.batches, "", exc.detail) from exc

    def run(self, progress: Progress | None) -> CallTally:
        for first, group, places in self._groups.iter_groups():
            hashes = hash_group(group, self._directory, self._hub)
            self._require_rules(first, group, hashes)
            self._require_unsettled(first, group, hashes)
            proven, row, detail = self._cover.place(group, places, hashes)
            if row >= 0:
                raise self._fault("EMC-1912", first, group, hashes, row, detail)
            counts = proven & self._check.may_count(group)
            self._sums.add(group.node, group.vault_micro, counts)
            named = self._sums.find_probed(group).tolist()
            self._sums.keep_probed(group, named, hashes, self._directory, proven, counts)
            if progress is not None:
                progress(first + len(group), self._groups.calls)
        for index, entry in enumerate(self._groups.iter_batches()):
            try:
                self._cover.require_whole(index, entry)
            except RemoteProtocolError as exc:
                name, effect = describe_key(Section.BATCHES, entry), self._tell_batch(index, entry.signer)
                raise UnequalRecord(exc.code, Section.BATCHES, index, name, exc.detail, effect) from exc
        return self._sums.finish(self._groups.signers[1:])

    def _require_rules(self, first: int, group: CallGroup, hashes: GroupHashes) -> None:
        doubtful = np.flatnonzero(self._check.flag(group, self._directory))
        if not len(doubtful):
            return
        part = GroupHashes(hashes.forward[doubtful], hashes.receipt[doubtful], hashes.delivery[doubtful])
        records = iter_records(group.take(doubtful), part, self._directory, self._terms.hub)
        for position, record in enumerate(records):
            try:
                self._check.require(record, part, position)
            except RemoteProtocolError as exc:
                row = int(doubtful[position])
                raise self._fault(exc.code, first, group, hashes, row, exc.detail) from exc

    def _require_unsettled(self, first: int, group: CallGroup, hashes: GroupHashes) -> None:
        if self._settled is None:
            return
        if isinstance(self._settled, CallIdIndex):
            row = self._settled.find_first(group.call_id)
        else:
            ids = group.call_id.tobytes()
            settled = (n for n in range(len(group)) if ids[16 * n : 16 * n + 16] in self._settled)
            row = next(settled, -1)
        if row >= 0:
            raise self._fault("EMC-1915", first, group, hashes, row, "an earlier bundle has paid this call")

    def _fault(
        self, code: str, first: int, group: CallGroup, hashes: GroupHashes, row: int, detail: str
    ) -> UnequalRecord:
        own = GroupHashes(
            *(part[row : row + 1] for part in (hashes.forward, hashes.receipt, hashes.delivery))
        )
        one = group.take(slice(row, row + 1))
        record = next(iter_records(one, own, self._directory, self._terms.hub))
        effect = tell_call(code, self._terms, record)
        name = hex_hash(group.call_id[row].tobytes())
        return UnequalRecord(code, Section.CALLS, first + row, name, detail, effect)

    def _tell_batch(self, index: int, signer: Address) -> str:
        """What the calls with a record in a batch would earn, by node: the groups are read once more."""
        start, end = int(self._groups.offsets[index]), int(self._groups.offsets[index + 1])
        earned: dict[Address, int] = {}
        calls = 0
        for _, group, places in self._groups.iter_groups():
            columns = (places.forward, places.receipt, places.delivery)
            stands = np.any([(column > start) & (column <= end) for column in columns], axis=0)
            rows = np.flatnonzero(stands & self._check.may_count(group))
            calls += int(stands.sum())
            for node, micro in zip(group.node[rows].tolist(), group.vault_micro[rows].tolist(), strict=True):
                name = self._groups.signers[node + 1]
                earned[name] = earned.get(name, 0) + micro
        return tell_batch(signer, earned, calls)
