"""Blocks, transactions, receipts and logs in the shapes that JSON-RPC clients expect. Pure."""

from __future__ import annotations

from typing import Any

from eth.vm.forks.cancun.blocks import CancunBlockHeader

from emcd_devchain.codec import data, quantity, show_address
from emcd_devchain.store import BlockRow, LogRow, TxRow
from emcd_devchain.transaction import SignedTx
from emcd_devchain.vm import base_fee_of

_EMPTY_UNCLES = "0x1dcc4de8dec75d7aab85b567b6ccd41ad312451b948a7413f0a142fd40d49347"


def show_block(row: BlockRow, header: CancunBlockHeader, transactions: list[Any]) -> dict[str, Any]:
    """`transactions` are hashes or objects, as asked."""
    return {
        "number": quantity(row.number),
        "hash": data(row.hash),
        "parentHash": data(header.parent_hash),
        "nonce": data(header.nonce),
        "sha3Uncles": _EMPTY_UNCLES,
        "logsBloom": data(header.bloom.to_bytes(256, "big")),
        "transactionsRoot": data(header.transaction_root),
        "stateRoot": data(header.state_root),
        "receiptsRoot": data(header.receipt_root),
        "withdrawalsRoot": data(header.withdrawals_root or b""),
        "miner": show_address(header.coinbase),
        "difficulty": "0x0",
        "totalDifficulty": "0x0",
        "extraData": data(header.extra_data),
        "size": quantity(len(row.header)),
        "gasLimit": quantity(header.gas_limit),
        "gasUsed": quantity(header.gas_used),
        "timestamp": quantity(row.timestamp_s),
        "mixHash": data(header.mix_hash),
        "baseFeePerGas": quantity(base_fee_of(header)),
        "blobGasUsed": quantity(header.blob_gas_used),
        "excessBlobGas": quantity(header.excess_blob_gas),
        "parentBeaconBlockRoot": data(header.parent_beacon_block_root or b""),
        "uncles": [],
        "withdrawals": [],
        "transactions": transactions,
    }


def show_tx(tx: SignedTx, mined: TxRow | None, block_hash: bytes | None) -> dict[str, Any]:
    """A transaction, pending where `mined` is None."""
    inner = tx.tx
    y_parity = inner.y_parity
    shown: dict[str, Any] = {
        "hash": data(tx.hash),
        "type": quantity(tx.type_id),
        "from": show_address(tx.sender),
        "to": show_address(inner.to) if inner.to else None,
        "nonce": quantity(tx.nonce),
        "gas": quantity(inner.gas),
        "value": quantity(inner.value),
        "input": data(inner.data),
        "chainId": quantity(inner.chain_id or 0),
        "r": quantity(inner.r),
        "s": quantity(inner.s),
        "blockHash": None if block_hash is None else data(block_hash),
        "blockNumber": None if mined is None else quantity(mined.block),
        "transactionIndex": None if mined is None else quantity(mined.position),
    }
    paid = tx.max_fee_wei if mined is None else int.from_bytes(mined.gas_price, "big")
    shown["gasPrice"] = quantity(paid)
    if tx.type_id == 0:
        return shown | {"v": quantity((inner.chain_id or 0) * 2 + 35 + y_parity)}
    shown |= {"v": quantity(y_parity), "yParity": quantity(y_parity)}
    shown["accessList"] = [
        {"address": show_address(a), "storageKeys": [data(s.to_bytes(32, "big")) for s in slots]}
        for a, slots in inner.access_list
    ]
    if tx.type_id == 2:
        shown |= {"maxFeePerGas": quantity(tx.max_fee_wei), "maxPriorityFeePerGas": quantity(tx.max_tip_wei)}
    return shown


def show_receipt(tx: SignedTx, mined: TxRow, block: BlockRow, logs: list[LogRow]) -> dict[str, Any]:
    return {
        "transactionHash": data(mined.hash),
        "transactionIndex": quantity(mined.position),
        "blockHash": data(block.hash),
        "blockNumber": quantity(mined.block),
        "from": show_address(tx.sender),
        "to": show_address(tx.tx.to) if tx.tx.to else None,
        "cumulativeGasUsed": quantity(mined.cumulative_gas),
        "gasUsed": quantity(mined.gas_used),
        "effectiveGasPrice": quantity(int.from_bytes(mined.gas_price, "big")),
        "contractAddress": None if mined.contract is None else show_address(mined.contract),
        "logs": [show_log(log, block, mined.hash) for log in logs],
        "logsBloom": data(mined.bloom),
        "status": quantity(mined.status),
        "type": quantity(tx.type_id),
    }


def show_log(log: LogRow, block: BlockRow, tx_hash: bytes) -> dict[str, Any]:
    return {
        "address": show_address(log.address),
        "topics": [data(topic) for topic in log.topics],
        "data": data(log.data),
        "blockNumber": quantity(log.block),
        "blockHash": data(block.hash),
        "blockTimestamp": quantity(block.timestamp_s),
        "transactionHash": data(tx_hash),
        "transactionIndex": quantity(log.tx_position),
        "logIndex": quantity(log.position),
        "removed": False,
    }
