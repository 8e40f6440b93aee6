"""Which of the nodes' signed batches prove the receipts of a round: millions of hashes as numbers.

A hash stands for itself by its first 40 bits and the number of its signer: a node could make two
of its own records look alike, and would lose by it; nobody can touch another's. Invariant: of a
receipt in several batches the one is taken that holds most receipts of the round.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING

from emcd.types import Address

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Numbers = npt.NDArray[np.uint64]

_SIGNER_BITS = 24
_UNKNOWN = (1 << _SIGNER_BITS) - 1
"""The signer of no batch."""
_HASH_BYTES = 32
_PORTION_BYTES = 1 << 20


class ReceiptPick:
    """Filled with batches, then asked for receipts, then for the batches that prove those taken."""

    def __init__(self) -> None:
        self._signers: dict[Address, int] = {}
        self._waiting = bytearray()
        self._done = 0  # batches whose hashes are in `_parts`
        self._parts: list[Numbers] = []
        self._batch_ids = array("q")
        self._batch_signers = array("I")
        self._sizes = array("I")
        self._sorted: Numbers | None = None
        self._wanted: list[Numbers] = []

    def add(self, batch_id: int, signer: Address, record_hashes: bytes) -> None:
        """A batch of receipts; `record_hashes` joined."""
        number = self._signers.setdefault(signer, len(self._signers))
        if number >= _UNKNOWN:
            return
        self._batch_ids.append(batch_id)
        self._batch_signers.append(number)
        self._sizes.append(len(record_hashes) // _HASH_BYTES)
        self._waiting += record_hashes
        if len(self._waiting) >= _PORTION_BYTES:
            self._settle()

    def key(self, receipts: Sequence[tuple[Address, bytes]]) -> Numbers:
        """What stands for each (node, receipt hash)."""
        import numpy as np

        signers = np.array([self._signers.get(node, _UNKNOWN) for node, _ in receipts], np.uint64)
        return _keys(b"".join([record_hash for _, record_hash in receipts]), signers)

    def find_proven(self, keys: Numbers) -> npt.NDArray[np.bool_]:
        """Of each: does it stand in a batch of that node? All batches are there."""
        import numpy as np

        if self._sorted is None:
            self._settle()
            self._sorted = np.sort(np.concatenate(self._parts)) if self._parts else np.empty(0, np.uint64)
        return _are_in(self._sorted, keys)

    def want(self, keys: Numbers) -> None:
        """These stand in the bundle."""
        self._wanted.append(keys)

    def pick(self) -> list[int]:
        """Ids of the batches to take, ascending."""
        import numpy as np

        self._settle()
        if not self._parts or not self._wanted:
            return []
        self._sorted = None
        keys = np.concatenate(self._parts)
        sizes = np.frombuffer(self._sizes, np.uint32)
        batches = np.repeat(np.arange(len(sizes), dtype=np.uint32), sizes)
        useful = _are_in(np.unique(np.concatenate(self._wanted)), keys)
        keys, batches = keys[useful], batches[useful]
        weights = np.bincount(batches, minlength=len(sizes)).astype(np.int32)
        order = np.lexsort((batches, -weights[batches], keys))
        keys, batches = keys[order], batches[order]
        first = np.ones(len(keys), bool)
        first[1:] = keys[1:] != keys[:-1]
        return sorted(self._batch_ids[number] for number in np.unique(batches[first]).tolist())

    def _settle(self) -> None:
        """Turn the hashes that wait into numbers."""
        import numpy as np

        if len(self._sizes) > self._done:
            signers = np.array(self._batch_signers[self._done :], np.uint64)
            self._parts.append(_keys(self._waiting, np.repeat(signers, self._sizes[self._done :])))
            self._done = len(self._sizes)
            self._waiting = bytearray()


def _keys(hashes: bytes | bytearray, signers: Numbers) -> Numbers:
    import numpy as np

    heads = np.frombuffer(hashes, dtype=">u8").reshape(-1, 4)[:, 0].astype(np.uint64)
    shift = np.uint64(_SIGNER_BITS)
    return ((heads >> shift) << shift) | signers


def _are_in(known: Numbers, asked: Numbers) -> npt.NDArray[np.bool_]:
    """Which of them are among known ones, which ascend."""
    import numpy as np

    if not len(known):
        return np.zeros(len(asked), bool)
    places = np.minimum(np.searchsorted(known, asked), len(known) - 1)
    return np.asarray(known[places] == asked)
