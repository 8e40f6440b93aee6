"""A py-evm state in process: deploys artifacts, sends transactions as anyone, moves the clock.

No signatures, no blocks, no gas price: what a contract does is all that is tested. `fork()` copies
the state in microseconds, so that every test starts from one prepared network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import pytest
import rlp  # type: ignore[import-untyped]
from eth.abc import AtomicDatabaseAPI, ComputationAPI, SignedTransactionAPI
from eth.constants import BLANK_ROOT_HASH, CREATE_CONTRACT_ADDRESS, ZERO_HASH32
from eth.db.atomic import AtomicDB
from eth.vm.execution_context import ExecutionContext
from eth.vm.forks.cancun import CancunVM
from eth.vm.spoof import SpoofTransaction
from eth_abi.abi import decode, encode
from eth_typing import Address as RawAddress
from eth_typing import BlockNumber

from emcd.chain.contracts import Artifact, load_artifact
from emcd.proto.address import address_bytes, address_from_bytes
from emcd.proto.hashing import keccak
from emcd.types import Address

CHAIN_ID = 31_337
TX_GAS = 30_000_000
Abi = list[dict[str, Any]]


class Reverted(Exception):
    """The contract refused: the error's name and arguments; "Panic" and "Error" are Solidity's own."""

    def __init__(self, name: str, arguments: tuple[Any, ...]) -> None:
        super().__init__(f"{name}{arguments}")
        self.name = name
        self.arguments = arguments


def refused(error: str) -> pytest.RaisesExc[Reverted]:
    """For `with`: the contract refuses with that error."""
    return pytest.raises(Reverted, match=rf"^{error}\(")


@dataclass(frozen=True)
class Event:
    """A decoded log."""

    contract: Address
    name: str
    values: dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """What a transaction did; `result` as `Contract.view` returns it."""

    gas_used: int
    events: list[Event]
    result: Any

    def event(self, name: str) -> dict[str, Any]:
        """The one event of that name."""
        (found,) = [event.values for event in self.events if event.name == name]
        return found


@dataclass(frozen=True)
class Sent:
    """A transaction that a contract took."""

    contract: Address
    sender: Address
    name: str
    arguments: tuple[Any, ...]


class Evm:
    """One chain state with a settable clock. `sent`, while it is a list, takes every transaction."""

    def __init__(
        self, now_s: int, db: AtomicDatabaseAPI | None = None, root: bytes = BLANK_ROOT_HASH
    ) -> None:
        self._db = db if db is not None else AtomicDB()
        self.now_s = now_s
        self.block_number = 1
        self.abis: dict[Address, Abi] = {}
        self.sent: list[Sent] | None = None
        self.load: Callable[[str], Artifact] = load_artifact
        self._context = ExecutionContext(
            coinbase=RawAddress(bytes(20)),
            timestamp=now_s,
            block_number=BlockNumber(1),
            difficulty=0,
            mix_hash=ZERO_HASH32,
            gas_limit=TX_GAS,
            prev_hashes=(),
            chain_id=CHAIN_ID,
            base_fee_per_gas=0,
            excess_blob_gas=0,
        )
        self._state = CancunVM.get_state_class()(self._db, self._context, root)

    def fork(self) -> Evm:
        """A copy that goes its own way; this one must not send again afterwards."""
        self._state.persist()
        copy = Evm(self.now_s, self._db, self._state.state_root)
        copy.abis = dict(self.abis)
        copy.load = self.load
        copy.block_number = self.block_number
        return copy

    def move_to(self, now_s: int) -> None:
        self.now_s = now_s

    def next_address(self, sender: Address, ahead: int = 0) -> Address:
        """What CREATE gives `sender`, after `ahead` more transactions."""
        raw = RawAddress(address_bytes(sender))
        return address_from_bytes(keccak(rlp.encode([raw, self._state.get_nonce(raw) + ahead]))[12:])

    def deploy(self, sender: Address, name: str, *arguments: Any) -> Contract:
        """Create a contract from its artifact. Raises: Reverted."""
        artifact = self.load(name)
        inputs = [entry["inputs"] for entry in artifact.abi if entry["type"] == "constructor"]
        address = self.next_address(sender)
        data = artifact.creation_code + _encode(inputs[0] if inputs else [], arguments)
        self.abis[address] = artifact.abi
        outcome = self._send(sender, CREATE_CONTRACT_ADDRESS, data, artifact.abi, ())
        return Contract(self, address, artifact.abi, outcome.gas_used)

    def write_slot(self, address: Address, slot: int, value: int) -> None:
        """Overwrite a word of a contract's storage."""
        self._state.set_storage(RawAddress(address_bytes(address)), slot, value)
        self._state.lock_changes()

    def _send(
        self, sender: Address, to: bytes, data: bytes, abi: Abi, outputs: Any, *, keep: bool = True
    ) -> Outcome:
        self._context._timestamp = self.now_s
        self._context._block_number = BlockNumber(self.block_number)
        raw_sender = RawAddress(address_bytes(sender))
        unsigned = CancunVM.create_unsigned_transaction(
            nonce=self._state.get_nonce(raw_sender),
            gas_price=0,
            gas=TX_GAS,
            to=RawAddress(to),
            value=0,
            data=data,
        )
        snapshot = self._state.snapshot()
        done = self._state.apply_transaction(
            cast(SignedTransactionAPI, SpoofTransaction(unsigned, from_=raw_sender))
        )
        if done.is_error:
            self._state.revert(snapshot)
            raise self._refusal(done, abi)
        outcome = Outcome(
            _gas_used(done), list(self._events(done)), _decode(outputs, done.output) if outputs else None
        )
        if keep:
            self._state.commit(snapshot)
            self._state.lock_changes()
            self.block_number += 1
        else:
            self._state.revert(snapshot)
        return outcome

    def _events(self, done: ComputationAPI) -> Iterator[Event]:
        for raw_address, topics, data in done.get_log_entries():
            address = address_from_bytes(raw_address)
            for entry in self.abis.get(address, []):
                if entry["type"] == "event" and int.from_bytes(_selector_hash(entry), "big") == topics[0]:
                    yield Event(address, entry["name"], _event_values(entry, list(topics[1:]), data))

    def _refusal(self, done: ComputationAPI, abi: Abi) -> Reverted:
        output = bytes(done.output)
        every = [*abi, *(entry for other in self.abis.values() for entry in other), *_BUILT_IN]
        for entry in every:
            if entry["type"] == "error" and _selector_hash(entry)[:4] == output[:4]:
                values = decode([_type(item) for item in entry["inputs"]], output[4:])
                return Reverted(
                    entry["name"], tuple(_tidy(i, v) for i, v in zip(entry["inputs"], values, strict=True))
                )
        return Reverted(type(done.error).__name__, (str(done.error)[:200],))


class Contract:
    """A deployed contract. Structs come back as namespaces, several results as a namespace or tuple."""

    def __init__(self, evm: Evm, address: Address, abi: Abi, gas_used: int = 0) -> None:
        self.evm = evm
        self.address = address
        self.abi = abi
        self.gas_used = gas_used

    def on(self, evm: Evm) -> Contract:
        """The same contract in a fork."""
        return Contract(evm, self.address, self.abi, self.gas_used)

    def send(self, sender: Address, name: str, *arguments: Any) -> Outcome:
        """A transaction. Raises: Reverted."""
        outcome = self._run(sender, name, arguments, keep=True)
        if self.evm.sent is not None:
            self.evm.sent.append(Sent(self.address, sender, name, arguments))
        return outcome

    def view(self, name: str, *arguments: Any) -> Any:
        """A call that leaves no trace. Raises: Reverted."""
        return self._run(_READER, name, arguments, keep=False).result

    def encode(self, name: str, *arguments: Any) -> bytes:
        """The calldata of a function."""
        entry = self._function(name)
        return _selector_hash(entry)[:4] + _encode(entry["inputs"], arguments)

    def _function(self, name: str) -> dict[str, Any]:
        (entry,) = [item for item in self.abi if item["type"] == "function" and item["name"] == name]
        return entry

    def _run(self, sender: Address, name: str, arguments: tuple[Any, ...], *, keep: bool) -> Outcome:
        data, outputs = self.encode(name, *arguments), self._function(name)["outputs"]
        return self.evm._send(sender, address_bytes(self.address), data, self.abi, outputs, keep=keep)


_READER = address_from_bytes(keccak(b"reader")[12:])
_BUILT_IN: Abi = [
    {"type": "error", "name": "Error", "inputs": [{"name": "reason", "type": "string"}]},
    {"type": "error", "name": "Panic", "inputs": [{"name": "code", "type": "uint256"}]},
]


def _gas_used(done: ComputationAPI) -> int:
    used = TX_GAS - done.get_gas_remaining()
    return used - min(done.get_gas_refund(), used // 5)


def _type(item: dict[str, Any]) -> str:
    kind = str(item["type"])
    if kind.startswith("tuple"):
        return "(" + ",".join(_type(part) for part in item["components"]) + ")" + kind[5:]
    return kind


def _selector_hash(entry: dict[str, Any]) -> bytes:
    return keccak(f"{entry['name']}({','.join(_type(item) for item in entry['inputs'])})".encode())


def _encode(items: list[dict[str, Any]], arguments: tuple[Any, ...]) -> bytes:
    return encode([_type(item) for item in items], arguments)


def _decode(items: list[dict[str, Any]], data: bytes) -> Any:
    values = decode([_type(item) for item in items], data)
    tidy = [_tidy(item, value) for item, value in zip(items, values, strict=True)]
    if len(tidy) == 1:
        return tidy[0]
    if all(item["name"] for item in items):
        return SimpleNamespace(**{item["name"]: value for item, value in zip(items, tidy, strict=True)})
    return tuple(tidy)


def _tidy(item: dict[str, Any], value: Any) -> Any:
    kind = str(item["type"])
    if kind.endswith("]"):
        inner = {**item, "type": kind[: kind.rindex("[")]}
        return [_tidy(inner, part) for part in value]
    if kind == "tuple":
        return SimpleNamespace(
            **{part["name"]: _tidy(part, v) for part, v in zip(item["components"], value, strict=True)}
        )
    return address_from_bytes(bytes.fromhex(value[2:])) if kind == "address" else value


def _event_values(entry: dict[str, Any], topics: list[int], data: bytes) -> dict[str, Any]:
    plain = [item for item in entry["inputs"] if not item["indexed"]]
    values = iter(decode([_type(item) for item in plain], data))
    found: dict[str, Any] = {}
    for item in entry["inputs"]:
        if item["indexed"]:
            (value,) = decode([item["type"]], topics.pop(0).to_bytes(32, "big"))
        else:
            value = next(values)
        found[item["name"]] = _tidy(item, value)
    return found
