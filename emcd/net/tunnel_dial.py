"""How a node reaches its hub: TCP, TLS, WebSocket, and the proof of both keys.

Invariants: nothing is signed for a hub that is not the pinned one; off loopback only wss, with the
chain and the name verified; redirects are not followed; every step has a deadline.
"""

from __future__ import annotations

import secrets
import socket
import ssl
from dataclasses import dataclass

import trio

from emcd.clock import Clock
from emcd.errors import ConfigError, EmcdError, RecoverableError, RemoteProtocolError
from emcd.net.tls import client_context
from emcd.net.tunnel_link import Link, TunnelLimits
from emcd.net.tunnel_socket import PlainSocket, TlsSocket, TunnelSocket
from emcd.net.tunnel_websocket import UpgradeError, request_upgrade
from emcd.net.url_guard import Target, is_loopback, parse_target
from emcd.proto.eip712 import Domain
from emcd.proto.signing import Signer
from emcd.proto.tunnel_auth import NodeHandshake, Resume
from emcd.types import Address, ParticipantRole


@dataclass(frozen=True)
class Dialer:
    """Opens connections to one hub, for one key."""

    url: str
    target: Target
    key: Signer
    domain: Domain
    hub_address: Address | None
    role: ParticipantRole
    ssl_context: ssl.SSLContext | None
    limits: TunnelLimits
    clock: Clock

    async def dial(self, resume: Resume, nursery: trio.Nursery) -> tuple[Link, NodeHandshake, Address]:
        """A proven connection, what the hub said of the session, and who the hub is.

        Raises: RecoverableError EMC-1401, 1409, 1411, 1412, 1415; RemoteProtocolError EMC-1402 to
            1408, 1416.
        """
        link = await self._connect(nursery)
        nonce = secrets.token_bytes(32)
        handshake = NodeHandshake(self.key, self.domain, nonce, self.role, self.hub_address, resume)
        try:
            with trio.move_on_after(self.limits.handshake_s):
                await link.say(handshake.prove(await link.hear(), self.clock.now_ms()))
                return link, handshake, handshake.check(await link.hear(), self.clock.now_ms())
            raise RecoverableError("EMC-1401", f"no handshake within {self.limits.handshake_s} s")
        except EmcdError as exc:
            link.end(exc)
            await link.say_goodbye()
            raise
        except OSError as exc:
            link.end(RecoverableError("EMC-1412", str(exc)))
            await link.say_goodbye()
            raise RecoverableError("EMC-1412", f"during the handshake: {exc}") from exc
        except BaseException:
            link.end(None)
            await link.say_goodbye()
            raise

    async def _connect(self, nursery: trio.Nursery) -> Link:
        """TCP, TLS and the upgrade. Raises: RecoverableError EMC-1409, 1411; RemoteProtocolError EMC-1408."""
        stream: TunnelSocket | None = None
        link: Link | None = None
        target = self.target
        try:
            with trio.fail_after(self.limits.handshake_s):
                tcp = await trio.open_tcp_stream(target.host, target.port)
                sock = socket.socket(fileno=tcp.socket.detach())
                stream = PlainSocket(sock)
                if target.tls:
                    context = self.ssl_context or client_context()
                    stream = tls = TlsSocket(sock, context, server_side=False, server_name=target.host)
                    await tls.shake_hands()
                rest = await request_upgrade(stream, self.url)
            link = Link(stream, rest, self.limits, nursery, is_client=True)
        except UpgradeError as exc:
            raise _refused(exc) from exc
        except trio.TooSlowError as exc:
            raise RecoverableError("EMC-1411", f"{target.shown}: no answer in time") from exc
        except OSError as exc:
            raise RecoverableError("EMC-1411", f"{target.shown}: {exc.__cause__ or exc}") from exc
        finally:
            if link is None and stream is not None:
                stream.close()
        return link


def require_target(url: str, hub_address: Address | None) -> Target:
    """Raises: ConfigError EMC-1320, EMC-1414 off loopback without TLS or a pinned hub."""
    target = parse_target(url, ("ws", "wss"))
    if not is_loopback(target.host):
        if not target.tls:
            raise ConfigError("EMC-1414", f"{target.shown} is neither wss nor on loopback")
        if hub_address is None:
            raise ConfigError("EMC-1414", f"no hub address is pinned for {target.shown}")
    return target


def _refused(exc: UpgradeError) -> EmcdError:
    if exc.status == 429:
        return RemoteProtocolError("EMC-1408", "the hub does not listen to this address for now", 429)
    if exc.status == 503:
        return RecoverableError("EMC-1409", "the hub is full or leaving")
    return RecoverableError("EMC-1411", f"no tunnel here: {exc}")
