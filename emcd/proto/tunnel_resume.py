"""What makes a tunnel session outlive its connection: numbered messages and their acknowledgement.

Every message begins with a u64: how many numbered messages of the peer have come so far. A message
with frames is numbered, by its place in the session; one without is an acknowledgement and nothing
else. Who sends keeps a message until the peer has it. After a reconnect both say what they have, the
rest is sent again, and nothing comes twice. Pure; one log for each side of a session.

Invariants: what is kept is bounded (`is_full`: the sender waits); an acknowledgement of what was
never sent, or that goes back, raises RemoteProtocolError and the session is over.
"""

from __future__ import annotations

import struct
from collections import deque

from emcd.errors import RemoteProtocolError

HEADER = struct.Struct("!Q")
KEPT_BYTES = 4 * 1024 * 1024
KEPT_MESSAGES = 8192
ACK_BYTES = 64 * 1024
ACK_MESSAGES = 32
"""How much may come before the peer is told, where no message of ours tells it anyway."""


class MessageLog:
    """Numbers what one side of a session sends, and counts what it gets."""

    __slots__ = ("_kept", "_told", "_untold_bytes", "acked", "kept_bytes", "received", "sent")

    def __init__(self) -> None:
        self._kept: deque[bytes] = deque()
        self._told = 0
        self._untold_bytes = 0
        self.kept_bytes = 0
        self.sent = 0
        self.acked = 0
        self.received = 0

    @property
    def is_full(self) -> bool:
        """Whether the peer must acknowledge something before more is sent."""
        return self.kept_bytes >= KEPT_BYTES or len(self._kept) >= KEPT_MESSAGES

    @property
    def is_ack_due(self) -> bool:
        """Whether the peer should be told what came, with a message of its own if need be."""
        return self.received - self._told >= ACK_MESSAGES or self._untold_bytes >= ACK_BYTES

    @property
    def has_untold(self) -> bool:
        """Whether anything came that the peer was not told of."""
        return self.received != self._told

    def stamp(self, frames: bytes) -> bytes:
        """The next numbered message."""
        self._kept.append(frames)
        self.kept_bytes += len(frames)
        self.sent += 1
        return self.ack() + frames

    def ack(self) -> bytes:
        """The acknowledgement alone, which is a message too."""
        self._told = self.received
        self._untold_bytes = 0
        return HEADER.pack(self._told)

    def accept(self, message: bytes) -> bool:
        """Take a message; its frames begin behind the HEADER.

        Returns: whether it has any.
        Raises: RemoteProtocolError EMC-1420, EMC-1421.
        """
        if len(message) < HEADER.size:
            raise RemoteProtocolError("EMC-1420", "a message's header is cut")
        acked = HEADER.unpack_from(message)[0]
        if acked != self.acked:
            self._forget(acked)
        if len(message) == HEADER.size:
            return False
        self.received += 1
        self._untold_bytes += len(message)
        return True

    def resume(self, peer_received: int) -> list[bytes]:
        """The frames of what the peer does not have, in order: to be sent first on a new connection.

        Raises: RemoteProtocolError EMC-1416 when it says to have what it can't have.
        """
        self.require_resumable(peer_received)
        self._forget(peer_received)
        return list(self._kept)

    def stamp_again(self, frames: bytes) -> bytes:
        """A message that has its number already, with what has come until now."""
        return self.ack() + frames

    def require_resumable(self, peer_received: int) -> None:
        """Raises: RemoteProtocolError EMC-1416 when the peer says to have what it can't have."""
        if not self.acked <= peer_received <= self.sent:
            raise RemoteProtocolError(
                "EMC-1416", f"the peer has {peer_received} messages, of {self.acked} to {self.sent}"
            )

    def _forget(self, acked: int) -> None:
        """Drop what the peer has."""
        if not self.acked < acked <= self.sent and acked != self.acked:
            raise RemoteProtocolError("EMC-1421", f"{acked} messages acknowledged, {self.sent} were sent")
        kept = self._kept
        for _ in range(acked - self.acked):
            self.kept_bytes -= len(kept.popleft())
        self.acked = acked
