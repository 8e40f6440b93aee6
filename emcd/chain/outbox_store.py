"""What the outbox needs of a ledger. The ledger implements it without knowing this package.

Every method is one durable transaction, and idempotent: after a crash, or a cancellation whose
write was made all the same, calling it again is right.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class OutboxRow(Protocol):
    """One wanted transaction. `state` is a `TxState` value; times are UTC milliseconds."""

    @property
    def key(self) -> str: ...
    @property
    def to_address(self) -> str: ...
    @property
    def data(self) -> bytes: ...
    @property
    def value_wei(self) -> int: ...
    @property
    def label(self) -> str: ...
    @property
    def gas(self) -> int:
        """The gas limit; 0 until it is known."""
        ...

    @property
    def state(self) -> str: ...
    @property
    def nonce(self) -> int | None: ...
    @property
    def tx_hash(self) -> bytes | None:
        """The attempt that was mined."""
        ...

    @property
    def block(self) -> int | None: ...
    @property
    def block_hash(self) -> bytes | None: ...
    @property
    def gas_used(self) -> int: ...
    @property
    def fee_wei(self) -> int:
        """What the mined attempt cost; 0 while unknown."""
        ...

    @property
    def error_name(self) -> str: ...
    @property
    def detail(self) -> str: ...


class AttemptRow(Protocol):
    """One signed version of a transaction; all of a key have the same nonce."""

    @property
    def tx_hash(self) -> bytes: ...
    @property
    def raw(self) -> bytes: ...
    @property
    def max_fee_wei(self) -> int: ...
    @property
    def tip_wei(self) -> int: ...
    @property
    def signed_at_ms(self) -> int: ...


class OutboxStore(Protocol):
    """Transactions of any number of senders; keys are unique per sender."""

    async def add(
        self, sender: str, key: str, *, to_address: str, data: bytes, value_wei: int, gas: int, label: str
    ) -> OutboxRow:
        """Insert an intent, or find the row that stands under the key; returns the row that stands."""
        ...

    async def find(self, sender: str, key: str) -> OutboxRow | None: ...

    async def list_open(self, sender: str) -> Sequence[OutboxRow]:
        """Rows that are not final, in the order they were added."""
        ...

    async def list_settled(self, sender: str, depth: int) -> Sequence[OutboxRow]:
        """Final rows that have a nonce and a block, newest block first: those of the sender's last `depth`
        blocks with such a row in them, counted by number from the newest.
        """
        ...

    async def assign(self, sender: str, key: str, *, least_nonce: int, gas: int) -> OutboxRow:
        """Give a row its nonce: the least above all that this sender's rows have, not below `least_nonce`.

        A row that has one keeps it; its gas changes by `add_attempt` alone. The state becomes "ready".
        """
        ...

    async def add_attempt(
        self,
        sender: str,
        key: str,
        *,
        tx_hash: bytes,
        raw: bytes,
        max_fee_wei: int,
        tip_wei: int,
        gas: int = 0,
    ) -> None:
        """Store signed bytes; `gas`, if given, becomes the row's gas limit in the same transaction."""
        ...

    async def list_attempts(self, sender: str, key: str) -> Sequence[AttemptRow]:
        """Oldest first."""
        ...

    async def set_state(
        self,
        sender: str,
        key: str,
        state: str,
        *,
        tx_hash: bytes | None = None,
        block: int | None = None,
        block_hash: bytes | None = None,
        gas_used: int = 0,
        fee_wei: int = 0,
        error_name: str = "",
        detail: str = "",
    ) -> None: ...

    async def reopen(self, sender: str, key: str, *, detail: str) -> None:
        """Take a final state back, of a row that has a nonce: it becomes "ready" with that nonce."""
        ...

    async def fetch_promised_wei(self, sender: str, *, within_ms: int, besides: str) -> int:
        """What the sender's transactions signed within the last `within_ms` have cost, or may cost at most
        while they are open; the one of the key `besides` is not counted.
        """
        ...
