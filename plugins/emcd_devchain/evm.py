"""The chain: its head, its pool, mining, and reads at any block.

Owns the store and the pool. Invariants: timestamps grow strictly; a block is stored before the
head moves; a read never writes. Plain synchronous code for one thread at a time.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import rlp  # type: ignore[import-untyped]
from eth.abc import BlockHeaderAPI, ComputationAPI, ReceiptAPI
from eth.constants import BLANK_ROOT_HASH, CREATE_CONTRACT_ADDRESS
from eth.db.trie import make_trie_root_and_nodes
from eth.vm.message import Message
from eth_typing import Address
from eth_utils.exceptions import ValidationError

from emcd.proto.hashing import keccak
from emcd_devchain.fault import EXECUTION_REVERTED, SERVER_ERROR, PoolRefused, RpcFault
from emcd_devchain.pool import Pool
from emcd_devchain.store import BlockRow, ChainStore, LogRow, TxRow
from emcd_devchain.transaction import SignedTx, compute_intrinsic_gas, decode_transaction
from emcd_devchain.vm import (
    GAS_LIMIT,
    INITIAL_BASE_FEE_WEI,
    DevState,
    DevVM,
    NodeDb,
    base_fee_of,
    decode_header,
)

FEE_RECIPIENT = Address(bytes(19) + b"\x01")
"""Tips go to the precompile at address 1: nobody's."""
_ESTIMATE_SLACK_PER_MILLE = 15
_KEPT_ANSWERS = 256
"""Every role's questions of a round; an answer is a few kilobytes at most in practice."""


NOBODY = Address(bytes(20))


@dataclass(frozen=True)
class CallRequest:
    """What eth_call and eth_estimateGas run."""

    to: Address | None
    data: bytes = b""
    sender: Address = NOBODY
    value_wei: int = 0
    gas: int = GAS_LIMIT
    gas_price_wei: int = 0


class EvmChain:
    """A chain in a file. `entropy` gives 32 bytes a block, so that block hashes can't be foreseen."""

    def __init__(
        self, store: ChainStore, chain_id: int, entropy: Callable[[int], bytes] = os.urandom
    ) -> None:
        self.store = store
        self.chain_id = chain_id
        self.pool = Pool()
        self._entropy = entropy
        self._answers: dict[tuple[bytes, CallRequest], bytes] = {}
        self._db = NodeDb(store)
        head = store.find_head()
        self._head: BlockHeaderAPI | None = None if head is None else decode_header(head.header)
        if head is not None:
            self._refill_pool()

    @property
    def head(self) -> BlockHeaderAPI:
        if self._head is None:
            raise RpcFault(SERVER_ERROR, "the chain has no genesis block")
        return self._head

    @property
    def has_genesis(self) -> bool:
        return self._head is not None

    def create_genesis(self, timestamp_s: int, balances_wei: Mapping[Address, int]) -> None:
        """Write block 0 with these balances."""
        if self._head is not None:
            raise ValueError("the chain has a genesis block already")
        blank = DevVM.create_genesis_header(
            gas_limit=GAS_LIMIT, timestamp=timestamp_s, state_root=BLANK_ROOT_HASH
        )
        state = self._vm(blank).state
        for address, balance in balances_wei.items():
            state.set_balance(address, balance)
        state.persist()
        header = DevVM.create_genesis_header(
            gas_limit=GAS_LIMIT,
            timestamp=timestamp_s,
            state_root=state.state_root,
            base_fee_per_gas=INITIAL_BASE_FEE_WEI,
            mix_hash=self._entropy(32),
        )
        self._store_block(header, (), ())

    # Writing

    def send_raw(self, raw: bytes) -> bytes:
        """Take a signed transaction into the pool and the file; returns its hash.

        Raises: PoolRefused.
        """
        tx = decode_transaction(raw, self.chain_id)
        if self.store.find_tx(tx.hash) is not None:
            raise PoolRefused("already known")
        replaced = self._pool_tx(tx)
        self.store.add_pooled(tx.hash, raw, None if replaced is None else replaced.hash)
        return tx.hash

    def _pool_tx(self, tx: SignedTx) -> SignedTx | None:
        state = self.state_at(self.head)
        access = tuple((bytes(address), len(slots)) for address, slots in tx.tx.access_list)
        return self.pool.add(
            tx,
            next_nonce=state.get_nonce(tx.sender),
            balance_wei=state.get_balance(tx.sender),
            gas_limit=GAS_LIMIT,
            intrinsic_gas=compute_intrinsic_gas(tx.tx.data, not tx.tx.to, access),
        )

    def _refill_pool(self) -> None:
        refused = []
        for raw in self.store.list_pooled():
            tx = decode_transaction(raw, self.chain_id)
            try:
                self._pool_tx(tx)
            except PoolRefused:
                refused.append(tx.hash)
        if refused:
            self.store.remove_pooled(refused)

    def mine(self, timestamp_s: int) -> BlockHeaderAPI:
        """Add a block with what the pool can give; its time is later than its parent's."""
        header = self.next_header(timestamp_s)
        if not len(self.pool):
            return self._store_block(header.copy(state_root=self.head.state_root), (), ())
        try:
            return self._mine_pool(header)
        except BaseException:
            self.store.discard_fresh()
            raise

    def next_header(self, timestamp_s: int) -> BlockHeaderAPI:
        parent = self.head
        header: BlockHeaderAPI = DevVM.create_header_from_parent(
            parent,
            timestamp=max(timestamp_s, parent.timestamp + 1),
            gas_limit=GAS_LIMIT,
            coinbase=FEE_RECIPIENT,
            mix_hash=self._entropy(32),
            extra_data=b"emcd",
        )
        return header

    def _mine_pool(self, header: BlockHeaderAPI) -> BlockHeaderAPI:
        vm = self._vm(header)
        base_fee = base_fee_of(header)
        done: list[tuple[SignedTx, ReceiptAPI, ComputationAPI, int]] = []
        nonces = self.state_at(self.head)
        for tx in list(self.pool.iter_ready(nonces.get_nonce, base_fee)):
            try:
                receipt, computation = vm.apply_transaction(header, tx.tx)
            except ValidationError:  # raised before anything changes: no room, no money, nonce behind a gap
                continue
            done.append((tx, receipt, computation, receipt.gas_used - header.gas_used))
            header = vm.add_receipt_to_header(header, receipt)
        vm.state.persist()
        header = header.copy(
            state_root=vm.state.state_root,
            transaction_root=make_trie_root_and_nodes(tuple(d[0].tx for d in done))[0],
            receipt_root=make_trie_root_and_nodes(tuple(d[1] for d in done))[0],
        )
        txs = [_tx_row(header, i, tx, receipt, c, used) for i, (tx, receipt, c, used) in enumerate(done)]
        stored = self._store_block(header, txs, _log_rows(header.block_number, [d[1] for d in done]))
        for tx, *_ in done:
            self.pool.remove(tx)
        self._drop_unminable()
        return stored

    def _drop_unminable(self) -> None:
        """Forget what can't be mined any more: another transaction has used the nonce."""
        state = self.state_at(self.head)
        stale = self.pool.list_stale(state.get_nonce)
        for tx in stale:
            self.pool.remove(tx)
        if stale:
            self.store.remove_pooled(tx.hash for tx in stale)

    def _store_block(
        self, header: BlockHeaderAPI, txs: Sequence[TxRow], logs: Sequence[LogRow]
    ) -> BlockHeaderAPI:
        row = BlockRow(header.block_number, bytes(header.hash), header.timestamp, rlp.encode(header))
        self.store.add_block(row, txs, logs)
        self._head = header
        return header

    # Reading

    def state_at(self, header: BlockHeaderAPI) -> DevState:
        """The state after a block, in that block's context. Throw it away after use."""
        state = self._vm(header).state
        assert isinstance(state, DevState)
        return state

    def _vm(self, header: BlockHeaderAPI) -> DevVM:
        return DevVM(header, self.store, self._db, self.chain_id)

    def execute(self, request: CallRequest, header: BlockHeaderAPI) -> ComputationAPI:
        """Run a call on the state after a block; nothing is kept."""
        state = self.state_at(header)
        state.lock_changes()
        intrinsic = compute_intrinsic_gas(request.data, request.to is None)
        if request.gas < intrinsic:
            raise RpcFault(SERVER_ERROR, f"intrinsic gas too low: have {request.gas}, want {intrinsic}")
        if state.get_balance(request.sender) < request.value_wei:
            raise RpcFault(SERVER_ERROR, "insufficient funds for gas * price + value")
        context = state.get_transaction_context_class()(
            gas_price=request.gas_price_wei, origin=request.sender
        )
        message = _message(state, request, request.gas - intrinsic)
        state.mark_address_warm(request.sender)
        state.mark_address_warm(message.storage_address)
        run = state.computation_class.apply_message
        if request.to is None:
            state.increment_nonce(request.sender)
            run = state.computation_class.apply_create_message
        return run(state, message, context)

    def call(self, request: CallRequest, header: BlockHeaderAPI) -> bytes:
        """The result; remembered, since several roles ask the same of the same block.

        Raises: RpcFault when it reverts or fails.
        """
        key = (bytes(header.hash), request)
        known = self._answers.get(key)
        if known is None:
            computation = self.execute(request, header)
            require_success(computation)
            known = bytes(computation.output)
            if len(self._answers) >= _KEPT_ANSWERS:
                del self._answers[next(iter(self._answers))]
            self._answers[key] = known
        return known

    def estimate_gas(self, request: CallRequest, header: BlockHeaderAPI) -> int:
        """The least gas limit that works, at most 1.5 % over it. Raises: RpcFault."""
        full = self.execute(request, header)
        require_success(full)
        used = request.gas - full.get_gas_remaining()
        if self._works(request, header, used):
            return used
        guess = min(request.gas, (used + 2_300) * 64 // 63)
        low, high = used, request.gas
        if self._works(request, header, guess):
            high = guess
        else:
            low = guess
        while (high - low) * 1000 > high * _ESTIMATE_SLACK_PER_MILLE:
            middle = min((low + high) // 2, low * 2)
            if self._works(request, header, middle):
                high = middle
            else:
                low = middle
        return high

    def _works(self, request: CallRequest, header: BlockHeaderAPI, gas: int) -> bool:
        smaller = CallRequest(
            request.to, request.data, request.sender, request.value_wei, gas, request.gas_price_wei
        )
        return not self.execute(smaller, header).is_error


def require_success(computation: ComputationAPI) -> None:
    """Raises: RpcFault in the form that go-ethereum gives, with the revert data."""
    if computation.is_success:
        return
    output = bytes(computation.output)
    if type(computation.error).__name__ == "Revert":
        raise RpcFault(EXECUTION_REVERTED, "execution reverted" + _reason(output), "0x" + output.hex())
    raise RpcFault(SERVER_ERROR, f"{computation.error!s}" or type(computation.error).__name__)


def _reason(output: bytes) -> str:
    if output[:4] != bytes.fromhex("08c379a0") or len(output) < 68:
        return ""
    length = int.from_bytes(output[36:68], "big")
    return ": " + output[68 : 68 + min(length, 1024)].decode("utf-8", "replace")


def _message(state: DevState, request: CallRequest, gas: int) -> Message:
    if request.to is None:
        sender_nonce = state.get_nonce(request.sender)
        return Message(
            gas=gas,
            to=CREATE_CONTRACT_ADDRESS,
            sender=request.sender,
            value=request.value_wei,
            data=b"",
            code=request.data,
            create_address=_create_address(request.sender, sender_nonce),
        )
    return Message(
        gas=gas,
        to=request.to,
        sender=request.sender,
        value=request.value_wei,
        data=request.data,
        code=state.get_code(request.to),
    )


def _create_address(sender: Address, nonce: int) -> Address:
    return Address(keccak(rlp.encode([sender, nonce]))[12:])


def _tx_row(
    header: BlockHeaderAPI,
    position: int,
    tx: SignedTx,
    receipt: ReceiptAPI,
    computation: ComputationAPI,
    used: int,
) -> TxRow:
    return TxRow(
        block=header.block_number,
        position=position,
        hash=tx.hash,
        raw=tx.raw,
        status=int(computation.is_success),
        gas_used=used,
        cumulative_gas=receipt.gas_used,
        gas_price=tx.price_wei(base_fee_of(header)).to_bytes(32, "big"),
        contract=None if tx.tx.to else _create_address(tx.sender, tx.nonce),
        bloom=receipt.bloom.to_bytes(256, "big"),
    )


def _log_rows(block: int, receipts: list[ReceiptAPI]) -> list[LogRow]:
    rows: list[LogRow] = []
    for tx_position, receipt in enumerate(receipts):
        for log in receipt.logs:
            topics: list[bytes | None] = [t.to_bytes(32, "big") for t in log.topics]
            topic0, topic1, topic2, topic3 = topics + [None] * (4 - len(topics))
            address = bytes(log.address)
            row = LogRow(
                block, len(rows), tx_position, address, topic0, topic1, topic2, topic3, bytes(log.data)
            )
            rows.append(row)
    return rows
