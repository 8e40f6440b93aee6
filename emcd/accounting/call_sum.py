"""Sums columns of calls into a `CallTally`: exact integers, whatever the columns hold."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import numpy.typing as npt

from emcd.accounting.tally import CallTally, NodeTally, ProbedCall
from emcd.accounting.terms import RoundTerms
from emcd.proto.address import address_from_bytes
from emcd.proto.bundle_calls import CallGroup, Directory, GroupHashes, Mask
from emcd.proto.bundle_column import U64, as_strings, rows_of
from emcd.types import Address

_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)
_Counts = npt.NDArray[np.int64]


class CallSums:
    """Adds up groups of calls."""

    def __init__(self, terms: RoundTerms, probed_ids: Collection[bytes]) -> None:
        self._terms = terms
        self._probed_ids = np.sort(as_strings(rows_of(sorted(probed_ids), 16))) if probed_ids else None
        self._calls = np.zeros(0, np.int64)
        self._counted = np.zeros(0, np.int64)
        self._vault_high = np.zeros(0, np.int64)
        self._vault_low = np.zeros(0, np.int64)
        self._vault_all = 0
        self.probed: dict[bytes, ProbedCall] = {}

    def add(self, nodes: U64, vault_micro: U64, counts: Mask) -> None:
        """Count calls.

        Args: `nodes` numbers of the directory, `counts` those that earn.
        """
        size = max(len(self._calls), int(nodes.max()) + 1) if len(nodes) else len(self._calls)
        node = nodes.astype(np.int64)
        earns = node[counts]
        vault = vault_micro[counts]
        self._calls = _added(self._calls, np.bincount(node, minlength=size))
        self._counted = _added(self._counted, np.bincount(earns, minlength=size))
        for name, half in (("_vault_high", vault >> _SHIFT), ("_vault_low", vault & _LOW)):
            sums = np.zeros(size, np.int64)
            np.add.at(sums, earns, half.astype(np.int64))
            setattr(self, name, _added(getattr(self, name), sums))
        self._vault_all += (int((vault_micro >> _SHIFT).sum()) << 32) + int((vault_micro & _LOW).sum())

    def find_probed(self, group: CallGroup) -> npt.NDArray[np.int64]:
        """The rows of a group that a reveal names and that finished in the round."""
        if self._probed_ids is None:
            return np.zeros(0, np.int64)
        ids = as_strings(group.call_id)
        at = np.minimum(np.searchsorted(self._probed_ids, ids), len(self._probed_ids) - 1)
        return np.flatnonzero((self._probed_ids[at] == ids) & (group.round == self._terms.round))

    def keep_probed(
        self,
        group: CallGroup,
        rows: Sequence[int],
        hashes: GroupHashes,
        directory: Directory,
        proven: Mask,
        counts: Mask,
    ) -> None:
        """Keep these calls whole; the masks are of the group."""
        for row in rows:
            self.probed[group.call_id[row].tobytes()] = ProbedCall(
                address_from_bytes(directory.nodes[int(group.node[row])].tobytes()),
                address_from_bytes(directory.routers[int(group.router[row])].tobytes()),
                directory.models[int(group.model[row])].tobytes(),
                group.request_hash[row].tobytes(),
                group.response_hash[row].tobytes(),
                hashes.receipt[row].tobytes(),
                int(group.started_at_ms[row]),
                bool(proven[row]),
                bool(counts[row]),
            )

    def finish(self, nodes: Sequence[Address]) -> CallTally:
        """The sums by address; the list says what the numbers mean."""
        columns = (self._calls, self._counted, self._vault_high, self._vault_low)
        rows = zip(*(column.tolist() for column in columns), strict=True)
        return CallTally(
            {
                nodes[number]: NodeTally(calls, counted, (high << 32) + low)
                for number, (calls, counted, high, low) in enumerate(rows)
                if calls
            },
            self.probed,
            int(self._calls.sum()),
            int(self._counted.sum()),
            self._vault_all,
        )


def _added(sums: _Counts, more: _Counts) -> _Counts:
    """The sum of two columns, the longer one's length."""
    if len(sums) < len(more):
        sums = np.concatenate((sums, np.zeros(len(more) - len(sums), np.int64)))
    sums[: len(more)] += more
    return sums
