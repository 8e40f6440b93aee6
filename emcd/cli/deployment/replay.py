"""The contracts once more, in an EVM of this process, at the addresses that they have on the chain.

What a constructor leaves behind follows from its code, its arguments, its address and the chain's id
alone; so the code at an address is right exactly if it is byte for byte what is made here, immutables
included, and every view answers as it does here. The same rehearsal tells the gas of contracts whose
predecessors are not on the chain yet. py-evm is imported when a replay begins (1 s). Blocking.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from emcd.chain import Revert
from emcd.chain.revert import decode_revert
from emcd.proto.address import address_bytes
from emcd.proto.hashing import keccak
from emcd.recursion import cap_recursion
from emcd.types import Address, Hash

GAS = 60_000_000
"""More than any chain allows for one transaction: what is too dear is reported, not run into."""

_CREATE_GAS, _ZERO_BYTE_GAS, _BYTE_GAS, _INITCODE_WORD_GAS = 53_000, 4, 16, 2
"""What a creating transaction costs before its first instruction. Source: EIP-2, EIP-2028, EIP-3860."""


@dataclass(frozen=True)
class Created:
    """A contract as the rehearsal made it."""

    address: Address
    creation_hash: Hash
    runtime: bytes
    gas: int


class ConstructorRefused(Exception):
    """A constructor reverted; `reason` says why."""

    def __init__(self, reason: Revert) -> None:
        super().__init__(reason.text)
        self.reason = reason


class Replay:
    """An empty chain with a clock, on which contracts are made where they belong."""

    def __init__(self, chain_id: int, time_s: int, block: int = 1) -> None:
        from eth.constants import BLANK_ROOT_HASH, ZERO_HASH32
        from eth.db.atomic import AtomicDB
        from eth.vm.execution_context import ExecutionContext
        from eth.vm.forks.cancun import CancunVM
        from eth_typing import Address as RawAddress
        from eth_typing import BlockNumber

        cap_recursion()
        context = ExecutionContext(
            coinbase=RawAddress(bytes(20)),
            timestamp=time_s,
            block_number=BlockNumber(block),
            difficulty=0,
            mix_hash=ZERO_HASH32,
            gas_limit=GAS,
            prev_hashes=(),
            chain_id=chain_id,
            base_fee_per_gas=0,
            excess_blob_gas=0,
        )
        self._state = CancunVM.get_state_class()(AtomicDB(), context, BLANK_ROOT_HASH)

    def create(self, address: Address, sender: Address, code: bytes) -> Created:
        """Run creation code with its arguments. Raises: ConstructorRefused."""
        done, used = self._run(b"", sender, code, address)
        if done.is_error:
            raise ConstructorRefused(_reason(done))
        zeros = code.count(0)
        intrinsic = (
            _CREATE_GAS
            + _ZERO_BYTE_GAS * zeros
            + _BYTE_GAS * (len(code) - zeros)
            + _INITCODE_WORD_GAS * (-(-len(code) // 32))
        )
        return Created(address, keccak(code), bytes(done.output), intrinsic + used)

    def view(self, address: Address, data: bytes) -> bytes | None:
        """What a call returns; None when it reverts. Nothing of it stays."""
        from eth_typing import Address as RawAddress

        snapshot = self._state.snapshot()
        code = self._state.get_code(RawAddress(address_bytes(address)))
        done, _ = self._run(data, address, code, None, address)
        self._state.revert(snapshot)
        return None if done.is_error else bytes(done.output)

    def _run(
        self, data: bytes, sender: Address, code: bytes, create: Address | None, to: Address | None = None
    ) -> tuple[Any, int]:
        from eth.constants import CREATE_CONTRACT_ADDRESS
        from eth.vm.forks.cancun.transaction_context import CancunTransactionContext
        from eth.vm.message import Message
        from eth_typing import Address as RawAddress

        origin = RawAddress(address_bytes(sender))
        place: Any = None if create is None else RawAddress(address_bytes(create))
        message = Message(
            gas=GAS,
            to=CREATE_CONTRACT_ADDRESS if to is None else RawAddress(address_bytes(to)),
            sender=origin,
            value=0,
            data=data,
            code=code,
            create_address=place,
        )
        context = CancunTransactionContext(gas_price=0, origin=origin)
        run = self._state.computation_class
        apply = run.apply_message if create is None else run.apply_create_message
        done = apply(self._state, message, context)
        self._state.clear_transient_storage()
        return done, GAS - done.get_gas_remaining()


def _reason(done: Any) -> Revert:
    said = type(done.error).__name__
    return decode_revert(bytes(done.output), "" if said == "Revert" else f"{said}: {done.error}")
