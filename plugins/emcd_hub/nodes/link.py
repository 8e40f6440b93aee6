"""What the hub needs of a node's connection; `emcd.net.tunnel` has it, tests have their own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from emcd.types import Address


class OutgoingCall(Protocol):
    """One call at a node. Every wait raises RecoverableError EMC-14xx when the node fails or is lost."""

    async def head(self) -> bytes: ...

    def chunks(self) -> AsyncIterator[bytes]: ...

    async def end(self) -> bytes: ...

    async def whole(self, max_bytes: int) -> tuple[bytes, bytes, bytes]: ...


class NodeLink(Protocol):
    """One live tunnel."""

    address: Address

    def call(self, meta: bytes, body: bytes) -> AbstractAsyncContextManager[OutgoingCall]:
        """Leaving the block before the node's END cancels the call at the node."""
        ...

    async def send_control(self, message: bytes) -> None: ...

    def controls(self) -> AsyncIterator[bytes]: ...
