"""What all proxies share: encoding, calling at a block, decoding."""

from __future__ import annotations

from typing import Any

from emcd.chain.abi import DecodeError, EventAbi, load_contract
from emcd.chain.blocks import BlockRef
from emcd.chain.call import Call
from emcd.chain.rpc import Rpc, RpcRefused
from emcd.errors import RecoverableError
from emcd.types import Address


class Contract:
    """One deployed contract."""

    def __init__(self, rpc: Rpc, artifact: str, address: Address) -> None:
        self.address = address
        self.abi = load_contract(artifact)
        self._rpc = rpc

    async def view(self, function: str, *args: Any, at: BlockRef | None = None) -> tuple[Any, ...]:
        """Call a view at a block (by hash, so a reorganisation can't swap it), or at the head.

        Raises: RecoverableError EMC-1505 (the node has not, or no longer, that block), EMC-1514 (no
            such contract there), CallReverted EMC-1504.
        """
        entry = self.abi.functions[function]
        call = {"to": self.address, "input": "0x" + entry.encode(args).hex()}
        block: Any = "latest" if at is None else {"blockHash": "0x" + at.hash.hex(), "requireCanonical": True}
        try:
            answer = await self._rpc.call("eth_call", call, block)
        except RpcRefused as exc:
            if at is None:
                raise
            raise RecoverableError("EMC-1505", f"block {at.number} for {function}: {exc.message}") from exc
        where = "the head" if at is None else f"block {at.number}"
        try:
            data = bytes.fromhex(answer.removeprefix("0x"))
            if not data:
                raise RecoverableError("EMC-1514", f"{self.abi.name} at {self.address}, {where}")
            return entry.decode(data)
        except (DecodeError, AttributeError, ValueError) as exc:
            raise RecoverableError("EMC-1507", f"{self.abi.name}.{function} at {where}: {exc}") from exc

    async def view_one(self, function: str, *args: Any, at: BlockRef | None = None) -> Any:
        """A view with one result."""
        return (await self.view(function, *args, at=at))[0]

    def call(self, function: str, *args: Any) -> Call:
        """Calldata for a transaction. Raises: LocalProtocolError EMC-1508 when an argument does not fit."""
        return Call(
            self.address, self.abi.functions[function].encode(args), label=f"{self.abi.name}.{function}"
        )

    def find_event(self, topic: bytes) -> EventAbi | None:
        return self.abi.events.get(topic)
