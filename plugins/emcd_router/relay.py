"""One call from a hub to a node, through here: admitted, passed on piece by piece, ended as it ended.

Invariants: nothing of a call is kept but the piece in hand, so a reader that is slow holds up its
own call and no other; a call's last word is the node's, untouched, since its receipt is over exactly
what passed; a call that the hub has cancelled is cancelled at the node at once, and what is under way
still passes, with its receipt, within `STOP_S`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import trio

from emcd.errors import EmcdError, RecoverableError
from emcd.net.tunnel import IncomingCall, TunnelPeer
from emcd.proto.control import RoutedMeta, decode_part
from emcd.proto.tunnel import PIECE_BYTES
from emcd.proto.tunnel_hub import HubCall
from emcd.types import Address
from emcd_router.metrics import CALLS
from emcd_router.upstream import Nodes

STOP_S = 1.5


class CallRelay:
    """Relays the calls of all hubs."""

    def __init__(self, nodes: Nodes) -> None:
        self._nodes = nodes

    async def serve(self, hub: Address, call: IncomingCall) -> None:
        """Relay one call to its end.

        Raises: RecoverableError EMC-2301, EMC-2302 (no room), EMC-2303 (no such node), and what the
            node's tunnel raises; RemoteProtocolError EMC-1498. The tunnel tells the hub the code.
        Cancellation: the hub's; the call is cancelled at the node.
        """
        end = "ok"
        try:
            meta = decode_part(call.meta, RoutedMeta)
            node = self._nodes.find(meta.node, hub)
            if node is None:
                raise RecoverableError("EMC-2303", f"{meta.node} is not here")
            with node.room.hold(len(call.body)) as release:
                await node.room.enter()
                try:
                    await _Passage(call, node.peer, meta.meta, release).run()
                finally:
                    node.room.leave()
        except EmcdError as exc:
            end = exc.code
            raise
        except trio.Cancelled:
            end = "cancelled"
            raise
        finally:
            CALLS.labels(hub, end).inc()


class _Passage:
    """One call under way; cancelled, it goes on where it was."""

    def __init__(
        self, call: IncomingCall, peer: TunnelPeer, meta: bytes, release: Callable[[], None]
    ) -> None:
        """Raises: RecoverableError EMC-14xx when the node's tunnel takes no call now."""
        self._call = call
        self._peer = peer
        self._woken = trio.Event()
        self._begun = False
        self._left = b""
        self._release = release
        self._out = peer.submit(meta, call.body, self._wake, max_bytes=0, on_data=self._wake)
        self._note_body()

    async def run(self) -> None:
        """Pass the call on to its end. Raises: RecoverableError with the node's code, or EMC-14xx."""
        out = self._out
        try:
            await self._pass_on()
        except trio.Cancelled:
            self._peer.cancel(out)
            with trio.move_on_after(STOP_S, shield=True), suppress(EmcdError):
                await self._pass_on()
            raise
        finally:
            if out.end is None and out.error is None:
                self._peer.drop(out)
            out.on_data = None  # else the two hold each other until the collector comes

    async def _pass_on(self) -> None:
        """What has not passed yet. A piece is sent whole or, when that is cancelled, not at all."""
        call, out = self._call, self._out
        while True:
            self._note_body()
            if out.head is not None and not self._begun:
                if out.end is not None:
                    self._left = self._left or self._peer.take(out)
                    await call.answer(out.head, self._left, out.end)
                    return
                await call.start(out.head)
                self._begun = True
            if self._begun:
                await self._pass_pieces()
            if out.error is not None:
                raise RecoverableError(out.error.code, out.error.detail)
            if out.end is not None:
                await call.finish(out.end)
                return
            self._woken = trio.Event()
            await self._woken.wait()

    async def _pass_pieces(self) -> None:
        while self._left or (data := self._peer.take(self._out)):
            self._left = self._left or data
            self._out.patient = True  # the hub's client may have seen some of it
            await self._call.send(self._left[:PIECE_BYTES])
            self._left = self._left[PIECE_BYTES:]

    def _note_body(self) -> None:
        """Once the node has the body, there is room for others."""
        if self._out.body_left is None:
            self._call.release_body()
            self._release()

    def _wake(self, _: HubCall) -> None:
        self._woken.set()
