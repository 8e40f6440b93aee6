"""The JSON-RPC methods over one chain: synchronous, run in the chain's worker thread.

Owns the mapping of names and parameters; the chain knows nothing of JSON. Invariant: whatever a
caller sends, the answer is a value or an RpcFault with one of Ethereum's codes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from eth.abc import BlockHeaderAPI

from emcd_devchain.codec import (
    data,
    invalid,
    quantity,
    read_address,
    read_data,
    read_object,
    read_quantity,
)
from emcd_devchain.evm import CallRequest, EvmChain
from emcd_devchain.fault import INVALID_PARAMS, LIMIT_EXCEEDED, METHOD_NOT_FOUND, SERVER_ERROR, RpcFault
from emcd_devchain.store import BlockRow, LogFilter
from emcd_devchain.transaction import decode_transaction
from emcd_devchain.view import show_block, show_log, show_receipt, show_tx
from emcd_devchain.vm import GAS_LIMIT, base_fee_of, decode_header

CLIENT_VERSION = "emcd-devchain/0.1/py-evm"
TIP_WEI = 1_000_000_000
MAX_LOGS = 10_000
MAX_FEE_HISTORY = 1024
_HEAD_TAGS = ("latest", "pending", "safe", "finalized")
"""There are no reorganisations, so the head is final; pending transactions show in no block."""

Method = Callable[..., Any]


class RpcMethods:
    """`methods` maps each JSON-RPC name to (function, least and most number of parameters)."""

    def __init__(self, chain: EvmChain) -> None:
        self._chain = chain
        self.methods: dict[str, tuple[Method, int, int]] = {
            "web3_clientVersion": (lambda: CLIENT_VERSION, 0, 0),
            "net_version": (lambda: str(chain.chain_id), 0, 0),
            "net_listening": (lambda: True, 0, 0),
            "eth_chainId": (lambda: quantity(chain.chain_id), 0, 0),
            "eth_syncing": (lambda: False, 0, 0),
            "eth_accounts": (list, 0, 0),
            "eth_blockNumber": (lambda: quantity(chain.head.block_number), 0, 0),
            "eth_getBlockByNumber": (self._get_block_by_number, 2, 2),
            "eth_getBlockByHash": (self._get_block_by_hash, 2, 2),
            "eth_call": (self._call, 1, 2),
            "eth_estimateGas": (self._estimate_gas, 1, 2),
            "eth_gasPrice": (lambda: quantity(self._next_base_fee() + TIP_WEI), 0, 0),
            "eth_maxPriorityFeePerGas": (lambda: quantity(TIP_WEI), 0, 0),
            "eth_feeHistory": (self._fee_history, 2, 3),
            "eth_getTransactionCount": (self._get_transaction_count, 1, 2),
            "eth_getBalance": (self._get_balance, 1, 2),
            "eth_getCode": (self._get_code, 1, 2),
            "eth_getStorageAt": (self._get_storage_at, 2, 3),
            "eth_sendRawTransaction": (self._send_raw, 1, 1),
            "eth_getTransactionByHash": (self._get_transaction, 1, 1),
            "eth_getTransactionReceipt": (self._get_receipt, 1, 1),
            "eth_getLogs": (self._get_logs, 1, 1),
        }

    def handle(self, method: str, params: Sequence[Any]) -> Any:
        """Run one method. Raises: RpcFault."""
        entry = self.methods.get(method)
        if entry is None:
            raise RpcFault(METHOD_NOT_FOUND, f"the method {method[:64]} does not exist/is not available")
        function, least, most = entry
        if not least <= len(params) <= most:
            raise RpcFault(INVALID_PARAMS, f"{method} takes {least} to {most} parameters, not {len(params)}")
        return function(*params)

    # Blocks

    def _find_row(self, which: Any) -> BlockRow | None:
        """The block of a number, a tag, a 32-byte hash or an EIP-1898 object."""
        store = self._chain.store
        if isinstance(which, dict):
            if set(which) - {"blockNumber", "blockHash", "requireCanonical"} or len(which) == 0:
                raise invalid("block identifier")
            if "blockHash" in which:
                return store.find_block_by_hash(read_data(which["blockHash"], "blockHash", 32))
            return self._find_row(which.get("blockNumber"))
        if which in _HEAD_TAGS:
            return store.find_block(self._chain.head.block_number)
        if which == "earliest":
            return store.find_block(0)
        if isinstance(which, str) and len(which) == 66:
            return store.find_block_by_hash(read_data(which, "block hash", 32))
        number = read_quantity(which, "block number")
        return store.find_block(number) if number < 2**63 else None

    def _header(self, which: Any) -> BlockHeaderAPI:
        if which in _HEAD_TAGS:
            return self._chain.head
        row = self._find_row(which)
        if row is None:
            raise RpcFault(SERVER_ERROR, "header not found")
        return decode_header(row.header)

    def _get_block_by_number(self, which: Any, full: Any) -> Any:
        return self._show_block(self._find_row(which), full)

    def _get_block_by_hash(self, block_hash: Any, full: Any) -> Any:
        return self._show_block(self._chain.store.find_block_by_hash(read_data(block_hash, "hash", 32)), full)

    def _show_block(self, row: BlockRow | None, full: Any) -> Any:
        if not isinstance(full, bool):
            raise invalid("the second parameter is not true or false")
        if row is None:
            return None
        store = self._chain.store
        txs: list[Any]
        if full:
            txs = [
                show_tx(decode_transaction(tx.raw, self._chain.chain_id), tx, row.hash)
                for tx in store.list_txs(row.number)
            ]
        else:
            txs = [data(tx_hash) for tx_hash in store.list_tx_hashes(row.number)]
        return show_block(row, decode_header(row.header), txs)

    # Calls

    def _request(self, raw: Any) -> CallRequest:
        table = read_object(raw, "call")
        payload = table.get("input", table.get("data", "0x"))
        gas = read_quantity(table["gas"], "gas") if table.get("gas") is not None else GAS_LIMIT
        price = table.get("gasPrice") or table.get("maxFeePerGas") or "0x0"
        return CallRequest(
            to=None if table.get("to") in (None, "0x", "") else read_address(table["to"], "to"),
            data=read_data(payload if payload is not None else "0x", "input"),
            sender=read_address(table.get("from") or "0x" + "00" * 20, "from"),
            value_wei=read_quantity(table.get("value") or "0x0", "value"),
            gas=min(gas, GAS_LIMIT),
            gas_price_wei=read_quantity(price, "gasPrice"),
        )

    def _call(self, raw: Any, which: Any = "latest") -> str:
        return data(self._chain.call(self._request(raw), self._header(which)))

    def _estimate_gas(self, raw: Any, which: Any = "latest") -> str:
        return quantity(self._chain.estimate_gas(self._request(raw), self._header(which)))

    # Accounts

    def _get_transaction_count(self, address: Any, which: Any = "latest") -> str:
        who = read_address(address)
        nonce = self._chain.state_at(self._header(which)).get_nonce(who)
        return quantity(self._chain.pool.next_nonce(who, nonce) if which == "pending" else nonce)

    def _get_balance(self, address: Any, which: Any = "latest") -> str:
        return quantity(self._chain.state_at(self._header(which)).get_balance(read_address(address)))

    def _get_code(self, address: Any, which: Any = "latest") -> str:
        return data(self._chain.state_at(self._header(which)).get_code(read_address(address)))

    def _get_storage_at(self, address: Any, slot: Any, which: Any = "latest") -> str:
        state = self._chain.state_at(self._header(which))
        value = state.get_storage(read_address(address), read_quantity(slot, "slot"))
        return data(value.to_bytes(32, "big"))

    # Fees

    def _next_base_fee(self) -> int:
        return base_fee_of(self._chain.next_header(0))

    def _fee_history(self, count: Any, newest: Any, percentiles: Any = None) -> dict[str, Any]:
        wanted = count if isinstance(count, int) else read_quantity(count, "block count")
        last = self._header(newest).block_number
        first = max(0, last - min(wanted, MAX_FEE_HISTORY) + 1)
        rows = [self._find_row(hex(n)) for n in range(first, last + 1)]
        headers = [decode_header(row.header) for row in rows if row is not None]
        after = self._find_row(hex(last + 1))
        next_fee = self._next_base_fee() if after is None else base_fee_of(decode_header(after.header))
        history: dict[str, Any] = {
            "oldestBlock": quantity(first),
            "baseFeePerGas": [quantity(base_fee_of(h)) for h in headers] + [quantity(next_fee)],
            "gasUsedRatio": [h.gas_used / h.gas_limit for h in headers],
            "baseFeePerBlobGas": ["0x1"] * (len(headers) + 1),
            "blobGasUsedRatio": [0.0] * len(headers),
        }
        if isinstance(percentiles, list) and percentiles:
            history["reward"] = [[quantity(TIP_WEI)] * len(percentiles) for _ in headers]
        return history

    # Transactions

    def _send_raw(self, raw: Any) -> str:
        return data(self._chain.send_raw(read_data(raw, "transaction")))

    def _get_transaction(self, tx_hash: Any) -> Any:
        wanted = read_data(tx_hash, "hash", 32)
        mined = self._chain.store.find_tx(wanted)
        if mined is None:
            pending = self._chain.pool.find(wanted)
            return None if pending is None else show_tx(pending, None, None)
        block = self._chain.store.find_block(mined.block)
        assert block is not None
        return show_tx(decode_transaction(mined.raw, self._chain.chain_id), mined, block.hash)

    def _get_receipt(self, tx_hash: Any) -> Any:
        store = self._chain.store
        mined = store.find_tx(read_data(tx_hash, "hash", 32))
        if mined is None:
            return None
        block = store.find_block(mined.block)
        assert block is not None
        logs = store.list_tx_logs(mined.block, mined.position)
        return show_receipt(decode_transaction(mined.raw, self._chain.chain_id), mined, block, logs)

    # Logs

    def _get_logs(self, raw: Any) -> list[Any]:
        table = read_object(raw, "filter")
        first, last = self._log_range(table)
        wanted = LogFilter(first, last, _alternatives(table.get("address"), 20), _topics(table.get("topics")))
        store = self._chain.store
        logs = store.list_logs(wanted, MAX_LOGS + 1)
        if len(logs) > MAX_LOGS:
            raise RpcFault(LIMIT_EXCEEDED, f"query returned more than {MAX_LOGS} results")
        blocks = {number: store.find_block(number) for number in {log.block for log in logs}}
        hashes = {number: store.list_tx_hashes(number) for number in blocks}
        shown = []
        for log in logs:
            block = blocks[log.block]
            assert block is not None
            shown.append(show_log(log, block, hashes[log.block][log.tx_position]))
        return shown

    def _log_range(self, table: dict[str, Any]) -> tuple[int, int]:
        if "blockHash" in table:
            if "fromBlock" in table or "toBlock" in table:
                raise invalid("blockHash excludes fromBlock and toBlock")
            row = self._chain.store.find_block_by_hash(read_data(table["blockHash"], "blockHash", 32))
            if row is None:
                raise RpcFault(SERVER_ERROR, "unknown block")
            return row.number, row.number
        bounds = [self._bound(table.get(name) or "latest") for name in ("fromBlock", "toBlock")]
        if bounds[0] > bounds[1]:
            raise RpcFault(INVALID_PARAMS, "invalid block range params")
        return bounds[0], bounds[1]

    def _bound(self, which: Any) -> int:
        if which in _HEAD_TAGS:
            return self._chain.head.block_number
        return 0 if which == "earliest" else min(read_quantity(which, "block number"), 2**62)


def _alternatives(value: Any, length: int) -> tuple[bytes, ...]:
    if value is None:
        return ()
    values = value if isinstance(value, list) else [value]
    if len(values) > 200:
        raise invalid("too many alternatives")
    return tuple(read_data(entry, "filter value", length) for entry in values)


def _topics(value: Any) -> tuple[tuple[bytes, ...], ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or len(value) > 4:
        raise invalid("topics is a list of at most four")
    return tuple(_alternatives(entry, 32) for entry in value)
