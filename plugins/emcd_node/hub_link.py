"""The node's standing connection to its hub: dialled, kept, dialled again.

Owns the tunnel's life and what is said over it beside calls: statuses out, batches out, proofs and
notices in. Invariants: one tunnel at a time; a pause between dials grows, with jitter, and is
longest when a newer tunnel of the same key took over, since two nodes with one key would drive
each other out for ever; what the hub says is checked before it is kept.
"""

from __future__ import annotations

import random
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import trio

from emcd.clock import Clock
from emcd.errors import ProtocolError, RecoverableError, RemoteProtocolError
from emcd.net.tunnel import IncomingCall, TunnelLink, run_tunnel
from emcd.proto.control import NoticeMessage, ProofMessage, decode_control
from emcd.proto.eip712 import Domain
from emcd.proto.signing import Signer
from emcd.types import Address
from emcd_node.call_server import CallServer
from emcd_node.heartbeat import Heartbeat
from emcd_node.hub_proofs import HubProofs
from emcd_node.receipt_book import ReceiptBook

_FIRST_PAUSE_S = 0.2
_STEADY_S = 10.0
"""A connection that lived this long ends the growth of the pause."""
_REPLACED = "EMC-1410"
_REPLACED_FACTOR = 10

_jitter = random.SystemRandom()


@dataclass(frozen=True)
class LinkSettings:
    """Where the hub is, and how often it hears from us."""

    url: str
    hub: Address
    ssl_context: ssl.SSLContext | None
    status_interval_s: Callable[[], float]
    reconnect_max_s: float


class HubLink:
    """Keeps one node connected to one hub; `run` returns after `leave`."""

    def __init__(
        self,
        settings: LinkSettings,
        *,
        key: Signer,
        domain: Domain,
        clock: Clock,
        calls: CallServer,
        receipts: ReceiptBook,
        proofs: HubProofs,
        heartbeat: Heartbeat,
        log: Any,
    ) -> None:
        self._settings = settings
        self._key = key
        self._domain = domain
        self._clock = clock
        self._calls = calls
        self._receipts = receipts
        self._proofs = proofs
        self._heartbeat = heartbeat
        self._log = log
        self._leaving = trio.Event()
        self._left = trio.Event()
        self._news = trio.Event()
        self._link: TunnelLink | None = None
        self.complaint = "not connected to the hub yet"
        self.notice = ""

    async def run(self) -> None:
        """Stay connected until `leave`."""
        async with trio.open_nursery() as nursery:
            pause_s = _FIRST_PAUSE_S
            while not self._leaving.is_set():
                began = trio.current_time()
                factor = await self._connect_once(nursery)
                if self._leaving.is_set():
                    break
                if trio.current_time() - began >= _STEADY_S:
                    pause_s = _FIRST_PAUSE_S
                with trio.move_on_after(factor * _jitter.uniform(pause_s / 2, pause_s)):
                    await self._leaving.wait()
                pause_s = min(2 * pause_s, self._settings.reconnect_max_s)
            self._left.set()

    async def leave(self) -> None:
        """Say goodbye to the hub once the calls in flight are done; waits until that is so."""
        self._leaving.set()
        await self._left.wait()

    def announce(self) -> None:
        """Send a status now: something changed."""
        self._news.set()

    async def _connect_once(self, nursery: trio.Nursery) -> float:
        """One connection's life. Returns: by how much the pause after it is longer than usual."""
        settings = self._settings
        factor = 1.0
        try:
            await run_tunnel(
                settings.url,
                key=self._key,
                domain=self._domain,
                hub_address=settings.hub,
                on_call=self._serve,
                on_control=self._take_control,
                ssl_context=settings.ssl_context,
                drain=self._leaving,
                clock=self._clock,
                on_error=self._report,
                task_status=_Started(lambda link: self._on_link(link, nursery)),
            )
            self.complaint = "the hub took its leave"
        except (RecoverableError, RemoteProtocolError) as exc:
            self.complaint = f"no connection to the hub: {exc}"
            factor = _REPLACED_FACTOR if exc.code == _REPLACED else 1.0
            self._log.warning("node.hub_lost", code=exc.code, detail=exc.detail)
        finally:
            self._link = None
            self._news.set()
        return factor

    def _on_link(self, link: TunnelLink, nursery: trio.Nursery) -> None:
        self._link = link
        self.complaint = self.notice = ""
        self._log.info("node.hub_connected", hub=link.hub)
        nursery.start_soon(self._report_to, link)

    async def _report_to(self, link: TunnelLink) -> None:
        """Statuses and batches for as long as one tunnel lives."""
        self._heartbeat.reset()
        try:
            self._news = trio.Event()
            await link.send_control(self._heartbeat.make())
            await self._receipts.attach(link.send_control)
            while self._link is link:
                with trio.move_on_after(self._settings.status_interval_s()):
                    await self._news.wait()
                self._news = trio.Event()
                if self._link is link:
                    await link.send_control(self._heartbeat.make())
        except RecoverableError:
            return  # lost: `run` dials again
        finally:
            self._receipts.detach(link.send_control)

    async def _serve(self, call: IncomingCall) -> None:
        await self._calls.serve(call)

    async def _take_control(self, message: bytes) -> None:
        control = decode_control(message)
        if isinstance(control, ProofMessage):
            await self._proofs.take(control)
        elif isinstance(control, NoticeMessage):
            self.notice = f"the hub says {control.code[:16]}: {control.detail[:300]}"
            self._log.warning("node.hub_notice", code=control.code[:16], detail=control.detail[:300])
        else:
            raise RemoteProtocolError("EMC-2009", f"a {type(control).__name__}")

    def _report(self, exc: BaseException) -> None:
        if isinstance(exc, ProtocolError):
            self._log.warning("node.hub_message_refused", code=exc.code, detail=exc.detail)
        else:
            self._log.error("node.handler_failed", exc_info=exc)


class _Started:
    """A task status that hands the value on."""

    def __init__(self, on_link: Callable[[TunnelLink], None]) -> None:
        self._on_link = on_link

    def started(self, value: TunnelLink | None = None) -> None:
        assert value is not None
        self._on_link(value)
