"""A contract call that somebody is to send: where to, with what. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from emcd.proto.address import address_from_bytes
from emcd.types import Address, Hash


@dataclass(frozen=True)
class Call:
    """Calldata for a contract, or (without `to`) the code of a new one. `label` is for people."""

    to: Address | None
    data: bytes
    value_wei: int = 0
    label: str = ""

    def params(self, sender: Address | None = None) -> dict[str, str]:
        """The object of eth_call and eth_estimateGas."""
        table = {"input": "0x" + self.data.hex(), "value": hex(self.value_wei)}
        if self.to is not None:
            table["to"] = self.to
        if sender is not None:
            table["from"] = sender
        return table


@dataclass(frozen=True)
class Log:
    """One event as a receipt or eth_getLogs gives it."""

    address: Address
    topics: tuple[bytes, ...]
    data: bytes
    block: int
    block_hash: Hash
    tx_hash: Hash
    position: int


@dataclass(frozen=True)
class TxReceipt:
    """What became of a mined transaction."""

    tx_hash: Hash
    block: int
    block_hash: Hash
    succeeded: bool
    gas_used: int
    contract: Address | None
    logs: tuple[Log, ...]
    fee_wei: int = 0
    """What it cost; 0 where the node does not say."""


_PLACE_BITS, _PRICE_BITS = 63, 128
"""More is no number of a block, no amount of gas and no price of it."""


def parse_log(raw: Any) -> Log:
    """Raises: KeyError, TypeError, ValueError when it is no log."""
    return Log(
        address=address_from_bytes(_bytes(raw["address"], 20)),
        topics=tuple(_bytes(t, 32) for t in raw["topics"]),
        data=_bytes(raw["data"]),
        block=_number(raw["blockNumber"]),
        block_hash=Hash(_bytes(raw["blockHash"], 32)),
        tx_hash=Hash(_bytes(raw["transactionHash"], 32)),
        position=_number(raw["logIndex"]),
    )


def parse_receipt(raw: Any) -> TxReceipt:
    """Raises: KeyError, TypeError, ValueError when it is no receipt."""
    contract = raw.get("contractAddress")
    gas_used = _number(raw["gasUsed"])
    return TxReceipt(
        tx_hash=Hash(_bytes(raw["transactionHash"], 32)),
        block=_number(raw["blockNumber"]),
        block_hash=Hash(_bytes(raw["blockHash"], 32)),
        succeeded=int(raw["status"], 16) == 1,
        gas_used=gas_used,
        contract=None if contract is None else address_from_bytes(_bytes(contract, 20)),
        logs=tuple(parse_log(log) for log in raw["logs"]),
        fee_wei=gas_used * _number(raw.get("effectiveGasPrice") or "0x0", _PRICE_BITS),
    )


def _number(value: Any, bits: int = _PLACE_BITS) -> int:
    number = int(value, 16)
    if not 0 <= number < 1 << bits:
        raise ValueError(f"{value:.80} is out of range")
    return number


def _bytes(value: Any, length: int | None = None) -> bytes:
    if not isinstance(value, str) or not value.startswith("0x"):
        raise TypeError(f"{value!r:.40} is not a byte string")
    raw = bytes.fromhex(value[2:])
    if length is not None and len(raw) != length:
        raise ValueError(f"{value:.80} is not {length} bytes")
    return raw
