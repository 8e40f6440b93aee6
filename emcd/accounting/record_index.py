"""The record hashes of a round's calls, and the call of a record by its hash.

Memory: 12 bytes a record beside the hashes. A look-up goes by the first 8 bytes, which a node can
grind to be another's: the whole hash decides.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from emcd.proto.bundle_column import U64, Rows
from emcd.proto.records import RecordKind
from emcd.types import Address

Places = npt.NDArray[np.int32]
"""Calls by their number, -1 for none."""


class RecordIndex:
    """The record hashes of all calls, by kind; finds the call of a record by its hash."""

    def __init__(
        self, forward: Rows, receipt: Rows, delivery: Rows, signer: dict[Address, int], node: U64
    ) -> None:
        """Args: `node` is the number of each call's node, `signer` the numbers of all nodes."""
        self.hashes = {
            int(RecordKind.FORWARD): forward,
            int(RecordKind.RECEIPT): receipt,
            int(RecordKind.DELIVERY): delivery,
        }
        self._signer = signer
        self._node = node
        self._sorted = {kind: _sort_heads(rows) for kind, rows in self.hashes.items()}
        """A missing receipt has hash zero, which is nobody's record: it is not among them."""

    def number_of(self, signer: Address) -> int:
        """The number of a node, -1 when it did none of the calls."""
        return self._signer.get(signer, -1)

    def find(self, kind: int, records: Rows, signers: npt.NDArray[np.int64]) -> Places:
        """The call of each record, -1 where it is none or not its signer's to sign.

        Args: `signers` are the numbers of those who signed the records.
        """
        heads, order = self._sorted[kind]
        if not len(heads):
            return np.full(len(records), -1, np.int32)
        wanted = _heads(records)
        order_of_search = np.argsort(wanted)  # neighbours are looked for together: a third of the time
        at = np.empty(len(wanted), np.int64)
        at[order_of_search] = np.searchsorted(heads, wanted[order_of_search])
        at = np.minimum(at, len(heads) - 1)
        found: Places = order[at].copy()
        same = (self.hashes[kind][found] == records).all(axis=1)
        for row in np.flatnonzero(~same & (heads[at] == wanted)).tolist():
            self._look_along(kind, records, row, int(at[row]), found, same)
        if kind == RecordKind.RECEIPT:
            same &= self._node[found].astype(np.int64) == signers
        found[~same] = -1
        return found

    def _look_along(
        self, kind: int, records: Rows, row: int, at: int, found: Places, same: npt.NDArray[np.bool_]
    ) -> None:
        """Another hash begins with the same 8 bytes: look at those behind it."""
        heads, order = self._sorted[kind]
        for position in range(at, len(heads)):
            if heads[position] != heads[at]:
                return
            if (self.hashes[kind][order[position]] == records[row]).all():
                found[row], same[row] = order[position], True
                return


def _heads(rows: Rows) -> U64:
    """The first 8 bytes of every hash as a number."""
    heads: U64 = np.ascontiguousarray(rows[:, :8]).view(">u8").reshape(len(rows)).astype(np.uint64)
    return heads


def _sort_heads(rows: Rows) -> tuple[U64, Places]:
    known = np.flatnonzero(rows.any(axis=1))
    heads = _heads(rows[known])
    order = np.argsort(heads, kind="stable")
    return heads[order], known[order].astype(np.int32)
