"""A call's wait for credits that calls in flight hold: a moment, in line, and then no more."""

from __future__ import annotations

import trio

from emcd_hub.billing.book import AccountBook, Refused
from emcd_hub.billing.keys import ApiKey
from emcd_hub.billing.line import Place, leave


class CreditWait:
    """One call's. `close` must be called whatever happens."""

    def __init__(self, book: AccountBook, key: ApiKey, wait_s: float) -> None:
        self._book = book
        self._key = key
        self._until = trio.current_time() + wait_s
        self._woken = trio.Event()
        self.place = Place(self._wake)
        self.is_over = False
        """The next try is the last: it takes what is free without regard to the line."""

    async def wait(self, refused: Refused) -> None:
        """Stand in line until another try is worth it, or the moment is over."""
        self._book.join(self.place, self._key, refused)
        with trio.move_on_at(self._until) as scope:
            await self._woken.wait()
        self._woken = trio.Event()
        self.is_over = scope.cancelled_caught

    def close(self) -> None:
        """Leave the line."""
        leave(self.place)

    def _wake(self) -> None:
        self._woken.set()
