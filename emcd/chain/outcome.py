"""What becomes of a transaction that the outbox took on. Callers match all three.

A reorganisation deeper than the confirmations takes an outcome back: the outbox carries the transaction
on, and asking again gives None until there is an outcome once more.
"""

from __future__ import annotations

from dataclasses import dataclass

from emcd.chain.outbox_store import OutboxRow
from emcd.chain.tx import TxState
from emcd.types import Hash


@dataclass(frozen=True)
class Confirmed:
    """Mined, successful, and deep enough. `fee_wei` is what it cost; 0 where the node did not say."""

    tx_hash: Hash
    block: int
    gas_used: int
    fee_wei: int = 0


@dataclass(frozen=True)
class Failed:
    """The contract refused: on chain (`tx_hash` set) or already in the estimate.

    `error_name` is the contract's custom error, "Error", "Panic" or "".
    """

    error_name: str
    reason: str
    tx_hash: Hash | None = None


@dataclass(frozen=True)
class Replaced:
    """Another transaction of the key, not of this outbox, used the nonce: it was not sent."""

    nonce: int


TxOutcome = Confirmed | Failed | Replaced


def read_outcome(row: OutboxRow) -> TxOutcome | None:
    """The outcome of a row, or None while it is open."""
    match TxState(row.state):
        case TxState.CONFIRMED:
            assert row.tx_hash is not None
            assert row.block is not None
            return Confirmed(Hash(row.tx_hash), row.block, row.gas_used, row.fee_wei)
        case TxState.FAILED:
            return Failed(row.error_name, row.detail, None if row.tx_hash is None else Hash(row.tx_hash))
        case TxState.REPLACED:
            assert row.nonce is not None
            return Replaced(row.nonce)
        case _:
            return None
