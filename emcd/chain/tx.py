"""Decisions about a transaction's life: fees, bumps, what to do next. Pure; the time is an argument.

Invariants: a fee never passes its ceiling; a replacement pays at least 10 % more on both fees, which
nodes ask for, and 12.5 % where the ceilings leave room; a nonce, once given to a transaction, is never
taken from it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Protocol

from emcd.chain.call import Call
from emcd.proto.hashing import keccak
from emcd.types import Address, Hash

GWEI = 10**9
LEAST_BUMP_BPS = 1_000
"""Nodes refuse a replacement that pays less than 10 % more."""
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
    """The most that an operator is ready to pay, and how patient he is. Fees are per gas."""

    ceiling_wei: int = 500 * GWEI
    tip_ceiling_wei: int = 50 * GWEI
    tip_floor_wei: int = GWEI
    bump_bps: int = 1_250
    bump_after_s: float = 30.0
    resend_after_s: float = 10.0
    max_transaction_cost_wei: int = 10**18
    """Gas limit times fee, of one transaction; 0: no such limit."""
    max_day_cost_wei: int = 5 * 10**18
    """The same of all transactions of the last 24 hours, what is spent and what is promised; 0: none."""

    def for_gas(self, gas: int) -> FeePolicy:
        """The policy for a transaction of this gas limit: its fee ceiling keeps the cost under the limit."""
        if not self.max_transaction_cost_wei or not gas:
            return self
        return replace(self, ceiling_wei=min(self.ceiling_wei, self.max_transaction_cost_wei // gas))


def compute_fees(base_fee_wei: int, tip_wei: int, policy: FeePolicy) -> Fees:
    """Fees that stay good for several full blocks: twice the base fee, and the tip, under the ceilings."""
    tip = min(max(tip_wei, policy.tip_floor_wei), policy.tip_ceiling_wei, policy.ceiling_wei)
    return Fees(min(2 * base_fee_wei + tip, policy.ceiling_wei), tip)


def compute_bump(old: Fees, market: Fees, policy: FeePolicy) -> Fees | None:
    """Fees for a replacement: the policy's step more, or the market's, whichever is more.

    Near a ceiling the step is what is left; None when that is less than nodes accept.
    """
    max_fee = min(max(_add_ceil(old.max_fee_wei, policy.bump_bps), market.max_fee_wei), policy.ceiling_wei)
    tip = max(_add_ceil(old.tip_wei, policy.bump_bps), market.tip_wei)
    tip = min(tip, policy.tip_ceiling_wei, max_fee)
    least_fee, least_tip = _add_ceil(old.max_fee_wei, LEAST_BUMP_BPS), _add_ceil(old.tip_wei, LEAST_BUMP_BPS)
    return Fees(max_fee, tip) if max_fee >= least_fee and tip >= least_tip else None


def _add_ceil(fee_wei: int, bps: int) -> int:
    return -(-fee_wei * (10_000 + bps) // 10_000)


def gas_limit_ceil(estimate: int) -> int:
    """The gas limit for an estimate, with a margin."""
    return -(-estimate * (100 + GAS_MARGIN_PER_CENT) // 100)


class Watch(StrEnum):
    """What to do with a transaction that has a nonce and is in no block."""

    WAIT = "wait"
    RESEND = "resend"
    BUMP = "bump"
    LOST = "lost"


@dataclass(frozen=True)
class Waiting:
    """What is known of a transaction that is in no block."""

    nonce: int
    chain_nonce: int
    """The sender's next nonce at a confirmed block: above `nonce` while none of our attempts is mined, it
    means that somebody else used the nonce."""
    since_sent_s: float
    """Since the newest attempt was last sent."""
    since_attempt_s: float
    """Since it was signed."""
    has_had_blocks: bool = True
    """Whether blocks were made since then that could have taken it."""
    is_too_low: bool = False
    """Whether its fee is below the base fee now, or a node called it too low."""


def decide_watch(waiting: Waiting, policy: FeePolicy) -> Watch:
    """Whether to wait, send the same bytes again, pay more, or give up.

    Paying more helps against a fee that is too low, not against a chain that stands still.
    """
    if waiting.chain_nonce > waiting.nonce:
        return Watch.LOST
    if waiting.since_attempt_s >= policy.bump_after_s and (waiting.has_had_blocks or waiting.is_too_low):
        return Watch.BUMP
    return Watch.RESEND if waiting.since_sent_s >= policy.resend_after_s else Watch.WAIT


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
