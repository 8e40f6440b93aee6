"""A call to a node for a coroutine: open it by `async with`, read it as it comes.

Invariants: leaving the block before the end cancels the call at the node and throws away what it
still brings; no deadline of its own: the caller sets one around it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import trio

from emcd.errors import RecoverableError
from emcd.net.wake import WOKEN
from emcd.proto.tunnel_hub import HubCall

if TYPE_CHECKING:
    from emcd.net.tunnel_peer import TunnelPeer


class OutgoingCall(AsyncIterator[bytes]):
    """One call to a node. One reader at a time."""

    __slots__ = ("_body", "_call", "_meta", "_peer", "_task")

    def __init__(self, peer: TunnelPeer, meta: bytes, body: bytes) -> None:
        self._peer = peer
        self._meta = meta
        self._body = body
        self._call: HubCall | None = None
        self._task: trio.lowlevel.Task | None = None

    async def __aenter__(self) -> Self:
        """Raises: RecoverableError as `TunnelPeer.submit`."""
        await self._peer.room()
        self._call = self._peer.submit(self._meta, self._body, self._wake, on_data=self._wake)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._peer.drop(self._opened())

    @property
    def call_number(self) -> int:
        return self._opened().number

    @property
    def patient(self) -> bool:
        """Whether it waits while the connection is lost; else it is given up soon (EMC-1413)."""
        return self._opened().patient

    @patient.setter
    def patient(self, value: bool) -> None:
        self._opened().patient = value

    @property
    def owner(self) -> Any:
        """What `TunnelPeer.on_orphan` finds in `HubCall.owner`."""
        return self._opened().owner

    @owner.setter
    def owner(self, value: Any) -> None:
        self._opened().owner = value

    def stop(self) -> None:
        """Cancel the call at the node. What is under way still comes, until its END or ERROR."""
        self._peer.cancel(self._opened())

    async def head(self) -> bytes:
        """The answer's head. Raises: RecoverableError with the node's code, EMC-1412 or EMC-1413."""
        call = self._opened()
        while call.head is None:
            await self._wait(call)
        return call.head

    def chunks(self) -> AsyncIterator[bytes]:
        """The answer's body as it comes, until its end; where a piece begins means nothing.

        Raises as `head`, after what came.
        """
        return self

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        call = self._opened()
        while not (chunk := self._peer.take(call)):
            if call.end is not None:
                raise StopAsyncIteration
            await self._wait(call)
        return chunk

    async def end(self) -> bytes:
        """The node's last word, once it came; chunks that were not read are dropped."""
        async for _ in self:
            pass
        end = self._opened().end
        assert end is not None
        return end

    async def whole(self, max_bytes: int) -> tuple[bytes, bytes, bytes]:
        """Head, whole body and last word of an answer that is not streamed.

        Raises: RecoverableError as `head`, and EMC-1428 when the body is larger than `max_bytes`.
        """
        pieces, size = [], 0
        async for chunk in self:
            pieces.append(chunk)
            size += len(chunk)
            if size > max_bytes:
                raise RecoverableError("EMC-1428", f"an answer of more than {max_bytes} bytes")
        call = self._opened()
        assert call.head is not None
        assert call.end is not None
        return call.head, b"".join(pieces), call.end

    def _opened(self) -> HubCall:
        assert self._call is not None, "the call is opened by `async with`"
        return self._call

    async def _wait(self, call: HubCall) -> None:
        """Wait for more. Raises: the call's error."""
        if call.error is not None:
            raise type(call.error)(call.error.code, call.error.detail)
        self._task = trio.lowlevel.current_task()
        await trio.lowlevel.wait_task_rescheduled(self._abort)

    def _abort(self, _: object) -> trio.lowlevel.Abort:
        self._task = None
        return trio.lowlevel.Abort.SUCCEEDED

    def _wake(self, call: HubCall) -> None:
        if self._task is not None:
            task, self._task = self._task, None
            trio.lowlevel.reschedule(task, WOKEN)
