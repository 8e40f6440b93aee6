"""How hub and node prove their keys to each other before the first frame. Sans-IO, pure.

Hub: Hello (its address, a nonce). Node: checks the address against its pin, then Proof (address,
role, own nonce, expiry, signature over both addresses and both nonces). Hub: checks it, then Welcome
(expiry, its own signature with the nonces in its order). A nonce is 32 fresh bytes of whoever has to
be convinced, so a recorded proof fits no other connection; sender, receiver and role are signed, so it
fits no other party and no other direction. Time and nonces are arguments.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec

from emcd.errors import LocalProtocolError, RemoteProtocolError
from emcd.proto.address import parse_address
from emcd.proto.eip712 import Domain
from emcd.proto.messages import TunnelAuth
from emcd.proto.signing import Signer, require_signer
from emcd.types import Address, ParticipantRole

VERSION = 1
VALID_MS = 60_000
SKEW_MS = 30_000
HANDSHAKE_BYTES = 1024
_NONCE_BYTES = 32

T = TypeVar("T", bound=msgspec.Struct)


class Hello(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Hub to node."""

    version: int
    hub: str
    nonce: bytes


class Proof(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Node to hub."""

    version: int
    node: str
    role: int
    nonce: bytes
    expires_at_ms: int
    signature: bytes


class Welcome(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Hub to node."""

    expires_at_ms: int
    signature: bytes


class HubHandshake:
    """The hub's side: `hello`, then `check` the answer, then `welcome`."""

    def __init__(self, key: Signer, domain: Domain, nonce: bytes) -> None:
        self._key = key
        self._domain = domain
        self._nonce = _require_own_nonce(nonce)
        self._node: tuple[Address, ParticipantRole, bytes] | None = None

    def hello(self) -> bytes:
        return msgspec.msgpack.encode(Hello(VERSION, self._key.address, self._nonce))

    def check(
        self, message: bytes, now_ms: int, roles: frozenset[ParticipantRole]
    ) -> tuple[Address, ParticipantRole]:
        """Who the node is.

        Raises: RemoteProtocolError EMC-1402 malformed, 1404 not signed by it for this connection,
            1405 expired or valid for too long, 1406 a role that has no place here.
        """
        proof = _decode(message, Proof)
        node = _require_address(proof.node)
        _require_nonce(proof.nonce, self._nonce)
        _require_fresh(proof.expires_at_ms, now_ms)
        if proof.role not in set(roles):
            raise RemoteProtocolError("EMC-1406", f"role {proof.role}", 403)
        struct = TunnelAuth(
            node, self._key.address, proof.nonce, self._nonce, proof.expires_at_ms, proof.role
        )
        _require_signed(self._domain, struct, proof.signature, node)
        self._node = (node, ParticipantRole(proof.role), proof.nonce)
        return node, ParticipantRole(proof.role)

    def welcome(self, now_ms: int) -> bytes:
        """Raises: LocalProtocolError EMC-1402 before `check`."""
        if self._node is None:
            raise LocalProtocolError("EMC-1402", "a welcome for nobody")
        node, _, nonce = self._node
        expires = now_ms + VALID_MS
        struct = TunnelAuth(self._key.address, node, self._nonce, nonce, expires, int(ParticipantRole.HUB))
        return msgspec.msgpack.encode(Welcome(expires, self._key.sign(self._domain, struct)))


class NodeHandshake:
    """The node's side: `prove` on the hub's hello, then `check` its welcome."""

    def __init__(
        self, key: Signer, domain: Domain, nonce: bytes, role: ParticipantRole, hub: Address | None
    ) -> None:
        self._key = key
        self._domain = domain
        self._nonce = _require_own_nonce(nonce)
        self._role = role
        self._pinned = hub
        self._hub: tuple[Address, bytes] | None = None

    def prove(self, hello: bytes, now_ms: int) -> bytes:
        """The node's proof, signed only for the pinned hub.

        Raises: RemoteProtocolError EMC-1402 malformed or another version, 1403 another hub.
        """
        message = _decode(hello, Hello)
        hub = _require_address(message.hub)
        if self._pinned is not None and hub != self._pinned:
            raise RemoteProtocolError("EMC-1403", f"{hub} answers, {self._pinned} is expected")
        _require_nonce(message.nonce, self._nonce)
        self._hub = (hub, message.nonce)
        expires = now_ms + VALID_MS
        struct = TunnelAuth(self._key.address, hub, self._nonce, message.nonce, expires, int(self._role))
        signature = self._key.sign(self._domain, struct)
        return msgspec.msgpack.encode(
            Proof(VERSION, self._key.address, int(self._role), self._nonce, expires, signature)
        )

    def check(self, welcome: bytes, now_ms: int) -> Address:
        """The hub's proven address. Raises: RemoteProtocolError EMC-1402, 1404, 1405."""
        if self._hub is None:
            raise LocalProtocolError("EMC-1402", "a welcome before the hello")
        hub, nonce = self._hub
        message = _decode(welcome, Welcome)
        _require_fresh(message.expires_at_ms, now_ms)
        struct = TunnelAuth(
            hub, self._key.address, nonce, self._nonce, message.expires_at_ms, int(ParticipantRole.HUB)
        )
        _require_signed(self._domain, struct, message.signature, hub)
        return hub


def _decode(message: bytes, kind: type[T]) -> T:
    if len(message) > HANDSHAKE_BYTES:
        raise RemoteProtocolError("EMC-1402", f"{kind.__name__} of {len(message)} bytes")
    try:
        decoded = msgspec.msgpack.decode(message, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise RemoteProtocolError("EMC-1402", f"{kind.__name__}: {exc}") from exc
    version = getattr(decoded, "version", VERSION)
    if version != VERSION:
        raise RemoteProtocolError("EMC-1402", f"version {version}, this side speaks {VERSION}")
    return decoded


def _require_address(text: str) -> Address:
    try:
        return parse_address(text)
    except RemoteProtocolError as exc:
        raise RemoteProtocolError("EMC-1402", exc.detail) from exc


def _require_own_nonce(nonce: bytes) -> bytes:
    if len(nonce) != _NONCE_BYTES:
        raise LocalProtocolError("EMC-1402", "a nonce is 32 bytes")
    return nonce


def _require_nonce(theirs: bytes, ours: bytes) -> None:
    if len(theirs) != _NONCE_BYTES or theirs == ours:
        raise RemoteProtocolError("EMC-1402", "the nonce is not 32 bytes of the peer's own")


def _require_fresh(expires_at_ms: int, now_ms: int) -> None:
    if not now_ms - SKEW_MS < expires_at_ms <= now_ms + VALID_MS + SKEW_MS:
        raise RemoteProtocolError("EMC-1405", f"expires {expires_at_ms - now_ms} ms from now", 401)


def _require_signed(domain: Domain, struct: TunnelAuth, signature: bytes, expected: Address) -> None:
    try:
        require_signer(domain, struct, signature, expected)
    except (RemoteProtocolError, LocalProtocolError) as exc:
        raise RemoteProtocolError("EMC-1404", exc.detail, 401) from exc
