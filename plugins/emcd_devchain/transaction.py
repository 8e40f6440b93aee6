"""Decoding and checking of signed transactions, apart from the chain's state.

Invariant: what `decode_transaction` returns is signed for this chain, by a low-s signature, with a
type that the chain mines (0 with EIP-155, 1, 2).
Source: EIP-155, EIP-2718, EIP-2930, EIP-1559, EIP-3860 (init code).
"""

from __future__ import annotations

from dataclasses import dataclass

import rlp  # type: ignore[import-untyped]
from eth.abc import SignedTransactionAPI
from eth.exceptions import UnrecognizedTransactionType
from eth.vm.forks.cancun.transactions import CancunTransactionBuilder
from eth_keys.exceptions import BadSignature
from eth_typing import Address
from eth_utils.exceptions import ValidationError

from emcd_devchain.fault import PoolRefused

MAX_RAW_BYTES = 128 * 1024
MAX_INITCODE_BYTES = 2 * 24_576
_MALFORMED = (
    rlp.exceptions.RLPException,
    ValidationError,
    UnrecognizedTransactionType,
    ValueError,
    TypeError,
)
_HALF_N = 0x7FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF5D576E7357A4501DDFE92F46681B20A0


@dataclass(frozen=True)
class SignedTx:
    """A transaction on its way into a block."""

    tx: SignedTransactionAPI
    raw: bytes
    hash: bytes
    sender: Address
    type_id: int
    max_fee_wei: int
    max_tip_wei: int

    @property
    def nonce(self) -> int:
        return self.tx.nonce

    @property
    def cost_wei(self) -> int:
        """What the sender must own for it to be taken."""
        return self.tx.value + self.tx.gas * self.max_fee_wei

    def price_wei(self, base_fee_wei: int) -> int:
        """The price per gas it pays in a block."""
        return min(self.max_fee_wei, base_fee_wei + self.max_tip_wei)


def decode_transaction(raw: bytes, chain_id: int) -> SignedTx:
    """Raises: PoolRefused."""
    if not raw or len(raw) > MAX_RAW_BYTES:
        raise PoolRefused("oversized data" if raw else "empty transaction")
    type_id = raw[0] if raw[0] < 0x80 else 0
    if raw[0] < 0x80 and type_id not in (1, 2):
        raise PoolRefused("transaction type not supported")
    try:
        tx = CancunTransactionBuilder.decode(raw)
        _require_fields(raw, type_id)
        found_chain = tx.chain_id
        if found_chain != chain_id:
            raise PoolRefused(
                "only replay-protected (EIP-155) transactions allowed over RPC"
                if found_chain is None
                else "invalid chain id for signer"
            )
        tx.validate()
        if not 0 < tx.s <= _HALF_N:
            raise PoolRefused("invalid transaction v, r, s values")
        sender = Address(bytes(tx.sender))
    except BadSignature as exc:
        raise PoolRefused("invalid sender") from exc
    except _MALFORMED as exc:
        raise PoolRefused(f"rlp: malformed transaction ({type(exc).__name__})") from exc
    if not tx.to and len(tx.data) > MAX_INITCODE_BYTES:
        raise PoolRefused("max initcode size exceeded")
    if tx.max_priority_fee_per_gas > tx.max_fee_per_gas:
        raise PoolRefused("max priority fee per gas higher than max fee per gas")
    return SignedTx(
        tx=tx,
        raw=raw,
        hash=bytes(tx.hash),
        sender=sender,
        type_id=type_id,
        max_fee_wei=tx.max_fee_per_gas,
        max_tip_wei=tx.max_priority_fee_per_gas,
    )


def _require_fields(raw: bytes, type_id: int) -> None:
    """The decoder takes an empty list for empty bytes; nobody signed that."""
    fields = rlp.decode(raw[1:] if type_id else raw)
    access_list = {1: 7, 2: 8}.get(type_id)
    if any(isinstance(field, list) != (index == access_list) for index, field in enumerate(fields)):
        raise PoolRefused("rlp: a list where bytes belong, or bytes for a list")


def compute_intrinsic_gas(
    data: bytes, is_create: bool, access_list: tuple[tuple[bytes, int], ...] = ()
) -> int:
    """Gas before the first instruction; `access_list` is (address, number of slots)."""
    zeros = data.count(0)
    gas = 21_000 + 4 * zeros + 16 * (len(data) - zeros)
    if is_create:
        gas += 32_000 + 2 * (-(-len(data) // 32))
    return gas + sum(2_400 + 1_900 * slots for _, slots in access_list)
