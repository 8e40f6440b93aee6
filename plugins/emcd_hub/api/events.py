"""A wallet's state as server-sent events: whole at first, then again whenever it changed.

Owns the subscribers. Every event holds the whole state, so a reader that missed some has missed
nothing; its id is a hash of the state, and who comes back with the id of what stands gets nothing
twice. Invariants: subscribers are bounded, in all and a wallet; a state is read once for all that
wait for it, at most twice a second; a reader that stalls is cut by the listener; `close` ends all.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec
import trio
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from emcd.bus import Bus
from emcd.errors import RecoverableError
from emcd.events import REWARDS, ROUND_STATE
from emcd.types import Address
from emcd_hub.api.error import ApiError, overloaded
from emcd_hub.api.page import refuse

HEARTBEAT_S = 15.0
LEAST_GAP_S = 0.5
MAX_PER_WALLET = 8
RETRY_MS = 2000

Read = Callable[[Address], Awaitable[dict[str, Any]]]
_encode = msgspec.json.Encoder().encode


@dataclass
class _Wallet:
    """What its subscribers share. `state` was read at `read_at`."""

    state: bytes = b""
    read_at: float = -1e9
    lock: trio.Lock = field(default_factory=trio.Lock)


class WalletEvents:
    """All streams of one hub."""

    def __init__(self, *, read: Read, bus: Bus, poll_s: float, max_subscribers: int) -> None:
        """
        Args:
            read: a wallet's state now.
            poll_s: how often to look without a doorbell: some moves are the clock's alone.
        """
        self._read = read
        self._bus = bus
        self._poll_s = poll_s
        self._max = max_subscribers
        self._seats: Counter[Address] = Counter()
        self._wallets: dict[Address, _Wallet] = {}
        self._closed = trio.Event()

    @property
    def subscribers(self) -> int:
        return self._seats.total()

    def open(self, wallet: Address, last_id: str) -> Response:
        """The stream as a response."""
        return _Stream(self, wallet, last_id)

    def close(self) -> None:
        """End all streams: the hub stops."""
        self._closed.set()

    async def serve(self, wallet: Address, last_id: str, send: Send) -> None:
        """Send the state and its changes until the hub stops. Cancellation: the client has left.

        Raises: ApiError 429, 503 before anything is sent.
        """
        if self._seats[wallet] >= MAX_PER_WALLET:
            raise ApiError("EMC-1758", "too many streams of this wallet are open", 429, retry_after_s=60)
        if self.subscribers >= self._max or self._closed.is_set():
            raise overloaded("too many streams are open", 60)
        self._seats[wallet] += 1
        self._wallets.setdefault(wallet, _Wallet())
        broken: OSError | None = None
        try:
            async with trio.open_nursery() as nursery:
                bell = _Bell()
                await nursery.start(self._listen_rounds, bell)
                await nursery.start(self._listen_rewards, bell, wallet)
                nursery.start_soon(self._listen_close, bell)
                try:
                    await self._run(wallet, last_id, bell, send)
                except OSError as exc:
                    broken = exc
                nursery.cancel_scope.cancel()
            if broken is not None:
                raise broken
        finally:
            self._seats[wallet] -= 1
            if not self._seats[wallet]:
                del self._seats[wallet], self._wallets[wallet]

    async def _run(self, wallet: Address, last_id: str, bell: _Bell, send: Send) -> None:
        headers = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-store")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await _piece(send, f"retry: {RETRY_MS}\n\n".encode())
        sent, quiet_since = last_id, trio.current_time()
        while not self._closed.is_set():
            state = await self._fetch(wallet, bell.rung_at)
            state_id = hashlib.sha256(state).hexdigest()[:16]
            if state and state_id != sent:
                await _piece(send, f"id: {state_id}\nevent: state\ndata: ".encode() + state + b"\n\n")
                sent, quiet_since = state_id, trio.current_time()
            elif trio.current_time() - quiet_since >= HEARTBEAT_S:
                await _piece(send, b": still here\n\n")
                quiet_since = trio.current_time()
            await bell.wait(min(self._poll_s, HEARTBEAT_S))
        await send({"type": "http.response.body", "body": b""})

    async def _fetch(self, wallet: Address, not_before: float) -> bytes:
        """The state as it was then or later; one that can't be read just now is what it was."""
        shared = self._wallets[wallet]
        async with shared.lock:
            if shared.read_at <= not_before:
                await trio.sleep(max(0.0, shared.read_at + LEAST_GAP_S - trio.current_time()))
                read_at = trio.current_time()
                try:
                    shared.state = _encode(await self._read(wallet))
                except RecoverableError:
                    return shared.state
                shared.read_at = read_at
            return shared.state

    async def _listen_rounds(
        self, bell: _Bell, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        with self._bus.subscribe(ROUND_STATE) as moves:
            task_status.started()
            async for _ in moves:
                bell.ring()

    async def _listen_rewards(
        self, bell: _Bell, wallet: Address, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        with self._bus.subscribe(REWARDS) as changes:
            task_status.started()
            async for change in changes:
                if change.wallet == wallet:
                    bell.ring()

    async def _listen_close(self, bell: _Bell) -> None:
        await self._closed.wait()
        bell.ring()


class _Bell:
    """Rung when there may be news; `rung_at` is when it rang last, or when a wait ended without it."""

    def __init__(self) -> None:
        self.rung_at = trio.current_time()
        self._event = trio.Event()

    def ring(self) -> None:
        self._event.set()

    async def wait(self, seconds: float) -> None:
        with trio.move_on_after(seconds):
            await self._event.wait()
        self._event = trio.Event()
        self.rung_at = trio.current_time()


class _Stream(Response):
    """A response that goes on."""

    def __init__(self, events: WalletEvents, wallet: Address, last_id: str) -> None:
        self._events = events
        self._wallet = wallet
        self._last_id = last_id
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._events.serve(self._wallet, self._last_id, send)
        except ApiError as exc:
            await refuse(exc)(scope, receive, send)


async def _piece(send: Send, data: bytes) -> None:
    await send({"type": "http.response.body", "body": data, "more_body": True})
