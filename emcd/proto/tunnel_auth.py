"""How hub and node prove their keys to each other before the first frame. Sans-IO, pure.

Hub: Hello (its address, a nonce). Node: checks the address against its pin, then Proof (address,
role, own nonce, expiry, signature over both addresses and both nonces). Hub: checks it, then Welcome
(expiry, its own signature with the nonces in its order). A nonce is 32 fresh bytes of whoever has to
be convinced, so a recorded proof fits no other connection; sender, receiver and role are signed, so it
fits no other party and no other direction. Time and nonces are arguments.

A session outlives its connection. Who comes back runs the whole handshake anew and says in its proof
which session it resumes, for the how-manieth time, and how many messages of it have come; the welcome
says how many the hub has. Both are signed, folded into the sender's nonce: a session's name alone lets
nobody in, and whoever carries the messages cannot change what is resumed.
"""

from __future__ import annotations

from typing import NamedTuple, TypeVar

import msgspec

from emcd.errors import LocalProtocolError, RemoteProtocolError
from emcd.proto.address import parse_address
from emcd.proto.eip712 import Domain
from emcd.proto.hashing import keccak
from emcd.proto.messages import TunnelAuth
from emcd.proto.signing import Signer, require_signer
from emcd.types import Address, ParticipantRole

VERSION = 2
VALID_MS = 60_000
SKEW_MS = 30_000
HANDSHAKE_BYTES = 1024
_NONCE_BYTES = 32
SESSION_BYTES = 16
_COUNT_MAX = 2**63

T = TypeVar("T", bound=msgspec.Struct)


class Resume(NamedTuple):
    """What of a session goes on: its name, for the how-manieth time, and how many messages came."""

    session: bytes
    epoch: int
    received: int


FRESH = Resume(b"", 0, 0)


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
    session: bytes
    epoch: int
    received: int


class Welcome(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Hub to node."""

    expires_at_ms: int
    signature: bytes
    session: bytes
    received: int


class HubHandshake:
    """The hub's side: `hello`, then `check` the answer, then `welcome`."""

    def __init__(self, key: Signer, domain: Domain, nonce: bytes) -> None:
        self._key = key
        self._domain = domain
        self._nonce = _require_own_nonce(nonce)
        self._node: tuple[Address, bytes] | None = None
        self.resume = FRESH
        """What the node wants to go on with, once its proof is checked."""

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
        resume = _require_resume(Resume(proof.session, proof.epoch, proof.received))
        _require_fresh(proof.expires_at_ms, now_ms)
        if proof.role not in set(roles):
            raise RemoteProtocolError("EMC-1406", f"role {proof.role}", 403)
        bound = _bind(proof.nonce, resume)
        struct = TunnelAuth(node, self._key.address, bound, self._nonce, proof.expires_at_ms, proof.role)
        _require_signed(self._domain, struct, proof.signature, node)
        self._node = (node, proof.nonce)
        self.resume = resume
        return node, ParticipantRole(proof.role)

    def welcome(self, now_ms: int, session: bytes, received: int = 0) -> bytes:
        """The answer to a proof: the session that begins or goes on, and how many messages of it came.

        Raises: LocalProtocolError EMC-1402 before `check`.
        """
        if self._node is None or len(session) != SESSION_BYTES:
            raise LocalProtocolError("EMC-1402", "a welcome for nobody")
        node, nonce = self._node
        expires = now_ms + VALID_MS
        bound = _bind(self._nonce, Resume(session, self.resume.epoch, received))
        struct = TunnelAuth(self._key.address, node, bound, nonce, expires, int(ParticipantRole.HUB))
        signature = self._key.sign(self._domain, struct)
        return msgspec.msgpack.encode(Welcome(expires, signature, session, received))


class NodeHandshake:
    """The node's side: `prove` on the hub's hello, then `check` its welcome."""

    def __init__(
        self,
        key: Signer,
        domain: Domain,
        nonce: bytes,
        role: ParticipantRole,
        hub: Address | None,
        resume: Resume = FRESH,
    ) -> None:
        self._key = key
        self._domain = domain
        self._nonce = _require_own_nonce(nonce)
        self._role = role
        self._pinned = hub
        self._hub: tuple[Address, bytes] | None = None
        self._resume = resume
        self.session = b""
        self.received = 0
        """The session as the welcome names it, and how many of this side's messages the hub has."""

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
        bound, role = _bind(self._nonce, self._resume), int(self._role)
        struct = TunnelAuth(self._key.address, hub, bound, message.nonce, expires, role)
        signature = self._key.sign(self._domain, struct)
        return msgspec.msgpack.encode(
            Proof(VERSION, self._key.address, role, self._nonce, expires, signature, *self._resume)
        )

    def check(self, welcome: bytes, now_ms: int) -> Address:
        """The hub's proven address. Raises: RemoteProtocolError EMC-1402, 1404, 1405, 1416."""
        if self._hub is None:
            raise LocalProtocolError("EMC-1402", "a welcome before the hello")
        hub, nonce = self._hub
        message = _decode(welcome, Welcome)
        _require_fresh(message.expires_at_ms, now_ms)
        told = Resume(message.session, self._resume.epoch, message.received)
        if len(told.session) != SESSION_BYTES or not 0 <= told.received < _COUNT_MAX:
            raise RemoteProtocolError("EMC-1402", "the welcome names no session")
        bound, role = _bind(nonce, told), int(ParticipantRole.HUB)
        struct = TunnelAuth(hub, self._key.address, bound, self._nonce, message.expires_at_ms, role)
        _require_signed(self._domain, struct, message.signature, hub)
        if self._resume.session not in (b"", told.session):
            raise RemoteProtocolError("EMC-1416", "the hub goes on with another session")
        self.session, self.received = told.session, told.received
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


def _require_resume(resume: Resume) -> Resume:
    session, epoch, received = resume
    if not (0 <= epoch < _COUNT_MAX and 0 <= received < _COUNT_MAX):
        raise RemoteProtocolError("EMC-1402", "the proof's counts are out of range")
    if resume != FRESH and (len(session) != SESSION_BYTES or not epoch):
        raise RemoteProtocolError("EMC-1402", "the proof names no session")
    return resume


def _bind(nonce: bytes, resume: Resume) -> bytes:
    """The nonce that is signed: it stands for what is resumed as well."""
    session, epoch, received = resume
    return keccak(nonce + session + epoch.to_bytes(8, "big") + received.to_bytes(8, "big"))


def _require_fresh(expires_at_ms: int, now_ms: int) -> None:
    if not now_ms - SKEW_MS < expires_at_ms <= now_ms + VALID_MS + SKEW_MS:
        raise RemoteProtocolError("EMC-1405", f"expires {expires_at_ms - now_ms} ms from now", 401)


def _require_signed(domain: Domain, struct: TunnelAuth, signature: bytes, expected: Address) -> None:
    try:
        require_signer(domain, struct, signature, expected)
    except (RemoteProtocolError, LocalProtocolError) as exc:
        raise RemoteProtocolError("EMC-1404", exc.detail, 401) from exc
