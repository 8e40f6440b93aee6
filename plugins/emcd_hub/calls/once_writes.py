"""Idempotency keys whose call is being written: whoever waits for the row may leave before the row is there.

Invariant: a key stays here until the ledger has said what became of its row.
"""

from __future__ import annotations

from collections.abc import Callable

from emcd.proto.openai_shape import Once

Ended = Callable[[Exception | None, None], None]


class OnceWrites:
    """The keys of one hub. Of each there is one row at a time, since one request is at work."""

    def __init__(self) -> None:
        self._then: dict[bytes, list[Callable[[], None]]] = {}

    def add(self, once: Once, ended: Ended) -> Ended:
        """A key's row goes to the ledger. Returns: what the ledger has to call; it calls `ended`."""
        waiting = self._then.setdefault(once.key_hash, [])

        def settle(error: Exception | None, value: None) -> None:
            del self._then[once.key_hash]
            ended(error, value)
            for then in waiting:
                then()

        return settle

    def after(self, once: Once, then: Callable[[], None]) -> None:
        """Do something when no row of the key is under way: now, or when the ledger has answered."""
        waiting = self._then.get(once.key_hash)
        if waiting is None:
            then()
        else:
            waiting.append(then)
