"""The ids of the calls of many bundles, as compact as they come: 16 bytes each."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from emcd.proto.bundle_column import Rows, as_strings

ID_BYTES = 16


class CallIdIndex:
    """A container of call ids that the audit asks for whole groups at once."""

    def __init__(self, columns: Iterable[bytes]) -> None:
        """Args: `columns` as `read_call_ids` gives them: ascending ids of one bundle, joined."""
        self._columns: list[npt.NDArray[np.bytes_]] = [
            as_strings(np.frombuffer(column, np.uint8).reshape(-1, ID_BYTES)) for column in columns if column
        ]

    def __contains__(self, call_id: object) -> bool:
        if not isinstance(call_id, bytes) or len(call_id) != ID_BYTES:
            return False
        return self.find_first(np.frombuffer(call_id, np.uint8).reshape(1, ID_BYTES)) == 0

    def __len__(self) -> int:
        return sum(map(len, self._columns))

    def find_first(self, call_ids: Rows) -> int:
        """The first of these ids that is here, by its row; -1 when none is. Args: uint8 [n, 16]."""
        wanted = as_strings(call_ids)
        known = np.zeros(len(wanted), np.bool_)
        for column in self._columns:
            at = np.minimum(np.searchsorted(column, wanted), len(column) - 1)
            known |= column[at] == wanted
        rows = np.flatnonzero(known)
        return int(rows[0]) if len(rows) else -1
