"""What the hub needs of a node's connection; `emcd.net.tunnel` has it, tests have their own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from emcd.proto.tunnel_hub import HubCall
from emcd.types import Address


class OutgoingCall(Protocol):
    """One call at a node. Every wait raises RecoverableError EMC-14xx when the node fails or is lost.

    Attributes:
        patient: wait for a lost tunnel to be resumed, instead of giving up soon.
    """

    patient: bool

    async def head(self) -> bytes: ...

    def chunks(self) -> AsyncIterator[bytes]: ...

    async def end(self) -> bytes: ...

    async def whole(self, max_bytes: int) -> tuple[bytes, bytes, bytes]: ...

    def stop(self) -> None:
        """Cancel the call at the node; what is under way still comes, up to its END."""
        ...


class NodeLink(Protocol):
    """One live tunnel."""

    address: Address
    on_live: Callable[[bool], None] | None
    """Called when the node is out of reach for now, and when it is there again."""

    @property
    def live(self) -> bool:
        """Whether it can be reached now; while it can't, its session may be resumed."""
        ...

    def call(self, meta: bytes, body: bytes) -> AbstractAsyncContextManager[OutgoingCall]:
        """Leaving the block before the node's END cancels the call at the node."""
        ...

    def submit(
        self,
        meta: bytes,
        body: bytes,
        on_end: Callable[[HubCall], None],
        *,
        max_bytes: int,
        on_data: Callable[[HubCall], None] | None = None,
    ) -> HubCall:
        """Begin a call that no task waits for: `on_end` is called once, when it ended or was lost.

        Raises: RecoverableError EMC-14xx when it can't go out now.
        """
        ...

    def cancel(self, call: HubCall) -> None:
        """Stop it at the node; `on_end` still comes."""
        ...

    def drop(self, call: HubCall) -> None:
        """Nobody waits for it any more: `on_end` never comes."""
        ...

    async def send_control(self, message: bytes) -> None: ...

    def controls(self) -> AsyncIterator[bytes]: ...
