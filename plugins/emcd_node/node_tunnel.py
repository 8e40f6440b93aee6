"""One tunnel's life, to the hub or to a router: statuses and batches out, proofs and notices in.

Invariants: what the hub says is checked before it is kept; a call that comes through a router must
name that router, and one that comes from the hub itself none; a tunnel on trial beside another
takes no batches away from it; a tunnel that a newer one has taken over from says nothing more of
itself and finishes its calls.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import trio

from emcd.clock import Clock
from emcd.errors import ProtocolError, RecoverableError, RemoteProtocolError
from emcd.net.tunnel import IncomingCall, TunnelLimits, TunnelLink, run_tunnel
from emcd.proto.batch_proof import read_batch_proof
from emcd.proto.control import (
    Accepted,
    BatchProofMessage,
    NoticeMessage,
    ProofMessage,
    StatusRequest,
    decode_control,
)
from emcd.proto.eip712 import Domain
from emcd.proto.signing import Signer
from emcd.types import ZERO_ADDRESS
from emcd_node.call_server import CallServer
from emcd_node.heartbeat import Heartbeat
from emcd_node.hub_proofs import HubProofs
from emcd_node.receipt_book import ReceiptBook
from emcd_node.router_choice import Way

ROUTER_LIMITS = TunnelLimits(handshake_s=4.0, ping_interval_s=2.0, ping_timeout_s=3.0, resume_s=2.0)
"""A router that died is found out, and another one taken, within ten seconds."""

NOT_TAKEN = "EMC-1409"


@dataclass(frozen=True)
class Desk:
    """What a node does, whoever asks: the same for all its tunnels."""

    key: Signer
    domain: Domain
    clock: Clock
    calls: CallServer
    receipts: ReceiptBook
    proofs: HubProofs
    heartbeat: Heartbeat
    status_interval_s: Callable[[], float]
    log: Any


class NodeTunnel:
    """One connection; `run` returns when it is over, and `code` says why."""

    def __init__(
        self, way: Way, desk: Desk, ssl_context: ssl.SSLContext | None, *, on_trial: bool = False
    ) -> None:
        self.way = way
        self.link: TunnelLink | None = None
        self.code = ""
        self.complaint = ""
        self.notice = ""
        self.began = trio.current_time()
        self.settled = trio.Event()
        """It stands, or never will."""
        self.accepted = trio.Event()
        """The hub has taken the node: its own handshake, or a router's word."""
        self.over = trio.Event()
        self.scope = trio.CancelScope()
        self._on_trial = on_trial
        self._router = way.address if way.is_router else ZERO_ADDRESS
        self._desk = desk
        self._ssl_context = ssl_context
        self._drain = trio.Event()
        self._news = trio.Event()
        self._is_current = True
        self._begin_anew = False

    @property
    def name(self) -> str:
        """Who is at the other end, in words."""
        return f"router {self.way.address}" if self.way.is_router else "the hub"

    async def run(self) -> None:
        """Dial, and stay until the tunnel ends."""
        desk = self._desk
        try:
            with self.scope:
                async with trio.open_nursery() as nursery:
                    await self._run_in(nursery)
                    nursery.cancel_scope.cancel()
        finally:
            self.link = None
            self.settled.set()
            self.over.set()
        desk.log.info("node.tunnel_over", peer=self.way.address, code=self.code)

    def leave(self) -> None:
        """Take no new calls, finish those in flight, and end."""
        self._drain.set()

    def give_up(self) -> None:
        """The router has not brought the node to the hub in time."""
        self.code = NOT_TAKEN
        self.complaint = f"{self.name} does not bring the node to its hub"
        self.scope.cancel()

    def begin(self) -> None:
        """It is the current one now."""
        if self._on_trial:
            self._on_trial = False
            self._news.set()

    def retire(self) -> None:
        """A newer tunnel has taken over."""
        self._is_current = False
        self._news.set()

    def announce(self) -> None:
        """Send a status now."""
        self._news.set()

    async def _run_in(self, nursery: trio.Nursery) -> None:
        desk = self._desk

        def on_link(link: TunnelLink) -> None:
            self.link = link
            self.began = trio.current_time()
            desk.log.info("node.hub_connected", peer=link.hub, router=self._router)
            nursery.start_soon(self._report, link)
            if not self.way.is_router:
                self.accepted.set()
            self.settled.set()

        try:
            await run_tunnel(
                self.way.url,
                key=desk.key,
                domain=desk.domain,
                hub_address=self.way.address,
                on_call=self._serve,
                on_control=self._take_control,
                ssl_context=self._ssl_context,
                limits=ROUTER_LIMITS if self.way.is_router else None,
                drain=self._drain,
                clock=desk.clock,
                on_error=self._report_error,
                task_status=_Started(on_link),
            )
            self.complaint = f"{self.name} took its leave"
        except (RecoverableError, RemoteProtocolError) as exc:
            self.code = exc.code
            self.complaint = f"no connection to {self.name}: {exc}"
            desk.log.warning("node.hub_lost", code=exc.code, detail=exc.detail, peer=self.way.address)

    async def _report(self, link: TunnelLink) -> None:
        """Statuses and batches, from the beginning whenever a router's hub has forgotten the node."""
        desk, send = self._desk, link.send_control
        try:
            self._begin_anew, batches_due = True, False
            while self._is_current:
                self._news = trio.Event()
                if self._begin_anew:
                    self._begin_anew, batches_due = False, True
                    desk.heartbeat.reset()
                await send(desk.heartbeat.make())
                if batches_due and not self._on_trial:
                    batches_due = False
                    await desk.receipts.attach(send)
                with trio.move_on_after(desk.status_interval_s()):
                    await self._news.wait()
        except RecoverableError:
            return  # lost: another is dialled
        finally:
            desk.receipts.detach(send)

    async def _serve(self, call: IncomingCall) -> None:
        await self._desk.calls.serve(call, self._router)

    async def _take_control(self, message: bytes) -> None:
        control = decode_control(message)
        if isinstance(control, ProofMessage):
            await self._desk.proofs.take(control)
        elif isinstance(control, BatchProofMessage):
            await self._desk.proofs.take(read_batch_proof(control))
        elif isinstance(control, NoticeMessage):
            self.notice = f"{self.name} says {control.code[:16]}: {control.detail[:300]}"
            self._desk.log.warning("node.hub_notice", code=control.code[:16], detail=control.detail[:300])
        elif isinstance(control, StatusRequest) and self.way.is_router:
            self._begin_anew = True
            self._news.set()
        elif isinstance(control, Accepted) and self.way.is_router:
            self.accepted.set()
        else:
            raise RemoteProtocolError("EMC-2009", f"a {type(control).__name__}")

    def _report_error(self, exc: BaseException) -> None:
        if isinstance(exc, ProtocolError):
            self._desk.log.warning("node.hub_message_refused", code=exc.code, detail=exc.detail)
        else:
            self._desk.log.error("node.handler_failed", exc_info=exc)


class _Started:
    """A task status that hands the value on."""

    def __init__(self, on_link: Callable[[TunnelLink], None]) -> None:
        self._on_link = on_link

    def started(self, value: TunnelLink | None = None) -> None:
        assert value is not None
        self._on_link(value)
