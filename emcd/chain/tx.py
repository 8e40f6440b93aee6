"""Decisions about a transaction's life: fees, bumps, what to do next. Pure; the time is an argument.

Invariants: a fee never passes its ceiling; a replacement pays at least 12.5 % more on both fees
(nodes ask for 10); a nonce, once given to a transaction, is never taken from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from emcd.chain.call import Call
from emcd.proto.hashing import keccak
from emcd.types import Address, Hash

GWEI = 10**9
BUMP_NUMERATOR, BUMP_DENOMINATOR = 9, 8
"""12.5 %, rounded up."""
GAS_MARGIN_PER_CENT = 25
"""A contract may take another branch in the block it is mined in than in the estimate's."""


class TxState(StrEnum):
    """Where a transaction stands. Its row moves along this list; a reorganisation moves it back."""

    INTENT = "intent"
    """Wanted; no nonce yet."""
    READY = "ready"
    """Nonce, gas and fees are fixed; signed attempts may exist; maybe sent."""
    MINED = "mined"
    """In a block, not yet deep enough."""
    CONFIRMED = "confirmed"
    FAILED = "failed"
    """Reverted on chain, or refused before it got a nonce."""
    REPLACED = "replaced"
    """Its nonce was used by a transaction that is not ours."""

    @property
    def is_final(self) -> bool:
        return self in (TxState.CONFIRMED, TxState.FAILED, TxState.REPLACED)


@dataclass(frozen=True)
class Fees:
    """EIP-1559 fees per gas."""

    max_fee_wei: int
    tip_wei: int


@dataclass(frozen=True)
class FeePolicy:
    """The most that an operator is ready to pay, and how patient he is."""

    ceiling_wei: int = 500 * GWEI
    tip_ceiling_wei: int = 50 * GWEI
    tip_floor_wei: int = GWEI
    bump_after_s: float = 30.0
    resend_after_s: float = 10.0


def compute_fees(base_fee_wei: int, tip_wei: int, policy: FeePolicy) -> Fees:
    """Fees that stay good for several full blocks: twice the base fee, and the tip, under the ceilings."""
    tip = min(max(tip_wei, policy.tip_floor_wei), policy.tip_ceiling_wei, policy.ceiling_wei)
    return Fees(min(2 * base_fee_wei + tip, policy.ceiling_wei), tip)


def compute_bump(old: Fees, market: Fees, policy: FeePolicy) -> Fees | None:
    """Fees for a replacement: 12.5 % more or the market's, whichever is more; None at the ceiling."""
    max_fee = max(_bump_ceil(old.max_fee_wei), market.max_fee_wei)
    tip = max(_bump_ceil(old.tip_wei), min(market.tip_wei, max_fee))
    if max_fee > policy.ceiling_wei or tip > policy.tip_ceiling_wei:
        return None
    return Fees(max(max_fee, tip), tip)


def _bump_ceil(fee_wei: int) -> int:
    return -(-fee_wei * BUMP_NUMERATOR // BUMP_DENOMINATOR)


def gas_limit_ceil(estimate: int) -> int:
    """The gas limit for an estimate, with a margin."""
    return -(-estimate * (100 + GAS_MARGIN_PER_CENT) // 100)


class Watch(StrEnum):
    """What to do with a transaction that has a nonce and is in no block."""

    WAIT = "wait"
    RESEND = "resend"
    BUMP = "bump"
    LOST = "lost"


def decide_watch(
    *, nonce: int, chain_nonce: int, since_sent_s: float, since_attempt_s: float, policy: FeePolicy
) -> Watch:
    """Whether to wait, send the same bytes again, pay more, or give up.

    Args:
        chain_nonce: the sender's next nonce at a confirmed block; above `nonce` while none of our
            attempts is mined means that somebody else used the nonce.
        since_sent_s: since the newest attempt was last sent; `since_attempt_s`: since it was signed.
    """
    if chain_nonce > nonce:
        return Watch.LOST
    if since_attempt_s >= policy.bump_after_s:
        return Watch.BUMP
    return Watch.RESEND if since_sent_s >= policy.resend_after_s else Watch.WAIT


class TxSigner(Protocol):
    """A key that sends transactions (`emcd.keys.SigningKey`)."""

    @property
    def address(self) -> Address: ...

    def sign_digest(self, message_digest: Hash) -> bytes: ...


def sign_transaction(
    key: TxSigner, chain_id: int, nonce: int, call: Call, gas: int, fees: Fees
) -> tuple[Hash, bytes]:
    """Sign a type-2 transaction. Returns: (hash, raw bytes); the same input gives the same bytes."""
    from eth_account.typed_transactions.dynamic_fee_transaction import (
        DynamicFeeTransaction,
    )  # 0.6 s to import

    fields = {
        "type": "0x2",
        "chainId": chain_id,
        "nonce": nonce,
        "to": call.to or b"",
        "data": call.data,
        "value": call.value_wei,
        "gas": gas,
        "maxFeePerGas": fees.max_fee_wei,
        "maxPriorityFeePerGas": fees.tip_wei,
        "accessList": (),
    }
    transaction = DynamicFeeTransaction.from_dict(fields)
    signature = key.sign_digest(Hash(bytes(transaction.hash())))
    transaction.dictionary |= {
        "r": int.from_bytes(signature[:32], "big"),
        "s": int.from_bytes(signature[32:64], "big"),
        "v": signature[64] - 27,
    }
    raw = b"\x02" + bytes(transaction.payload())
    return keccak(raw), raw
