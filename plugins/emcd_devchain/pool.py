"""Transactions that wait for a block. In memory; the store keeps the copy that survives.

Invariants: one transaction per sender and nonce; a replacement pays at least 10 % more; bounded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from eth_typing import Address

from emcd_devchain.fault import PoolRefused
from emcd_devchain.transaction import SignedTx

MAX_TRANSACTIONS = 4096
"""A devnet's whole traffic for minutes; each is at most 128 kB."""
MAX_PER_SENDER = 256


class Pool:
    """Pending transactions by sender and nonce."""

    def __init__(self) -> None:
        self._by_sender: dict[Address, dict[int, SignedTx]] = {}
        self._by_hash: dict[bytes, SignedTx] = {}

    def __len__(self) -> int:
        return len(self._by_hash)

    def find(self, tx_hash: bytes) -> SignedTx | None:
        return self._by_hash.get(tx_hash)

    def add(
        self, tx: SignedTx, next_nonce: int, balance_wei: int, gas_limit: int, intrinsic_gas: int
    ) -> SignedTx | None:
        """Take a transaction; returns the one that it replaces.

        Raises: PoolRefused with go-ethereum's sentence.
        """
        if tx.hash in self._by_hash:
            raise PoolRefused("already known")
        if tx.nonce < next_nonce:
            raise PoolRefused(f"nonce too low: next nonce {next_nonce}, tx nonce {tx.nonce}")
        if tx.tx.gas > gas_limit:
            raise PoolRefused("exceeds block gas limit")
        if tx.tx.gas < intrinsic_gas:
            raise PoolRefused(f"intrinsic gas too low: gas {tx.tx.gas}, minimum needed {intrinsic_gas}")
        if balance_wei < tx.cost_wei:
            raise PoolRefused(
                f"insufficient funds for gas * price + value: balance {balance_wei}, tx cost {tx.cost_wei}"
            )
        queue = self._by_sender.get(tx.sender, {})
        old = queue.get(tx.nonce)
        if old is not None:
            _require_replacement(old, tx)
            del self._by_hash[old.hash]
        elif len(self._by_hash) >= MAX_TRANSACTIONS or len(queue) >= MAX_PER_SENDER:
            raise PoolRefused("txpool is full")
        self._by_sender.setdefault(tx.sender, {})[tx.nonce] = tx
        self._by_hash[tx.hash] = tx
        return old

    def remove(self, tx: SignedTx) -> None:
        if self._by_hash.pop(tx.hash, None) is None:
            return
        queue = self._by_sender[tx.sender]
        del queue[tx.nonce]
        if not queue:
            del self._by_sender[tx.sender]

    def list_stale(self, nonce_of: Callable[[Address], int]) -> list[SignedTx]:
        """Transactions whose nonce another one has used."""
        return [
            tx
            for sender, queue in self._by_sender.items()
            for tx in queue.values()
            if tx.nonce < nonce_of(sender)
        ]

    def next_nonce(self, sender: Address, state_nonce: int) -> int:
        """The first nonce without a transaction in state or pool."""
        queue = self._by_sender.get(sender, {})
        while state_nonce in queue:
            state_nonce += 1
        return state_nonce

    def iter_ready(self, nonce_of: Callable[[Address], int], base_fee_wei: int) -> Iterator[SignedTx]:
        """Transactions that may be mined: the best payer first, each sender's in nonce order."""
        heads = {s: nonce_of(s) for s in self._by_sender}
        while True:
            ready = [
                tx
                for sender, nonce in heads.items()
                if (tx := self._by_sender.get(sender, {}).get(nonce)) is not None
                and tx.max_fee_wei >= base_fee_wei
            ]
            if not ready:
                return
            best = max(ready, key=lambda tx: tx.price_wei(base_fee_wei))
            heads[best.sender] += 1
            yield best


def _require_replacement(old: SignedTx, new: SignedTx) -> None:
    if new.max_fee_wei * 10 < old.max_fee_wei * 11 or new.max_tip_wei * 10 < old.max_tip_wei * 11:
        raise PoolRefused("replacement transaction underpriced")
