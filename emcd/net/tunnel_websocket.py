"""The WebSocket under a tunnel (RFC 6455): its upgrade, and its frames in and out.

The upgrade is websockets' own, sans-IO. The frames are parsed here, since a tunnel sends nothing but
whole binary messages, pings and a farewell: the parser of a general library costs five times what a
message costs here, and ten times the memory while the tunnel is idle. No extensions, so no zlib.
"""

from __future__ import annotations

import logging
import re
import secrets
import struct
from typing import Final

from websockets.client import ClientProtocol
from websockets.exceptions import InvalidHandshake
from websockets.http11 import Request
from websockets.protocol import OPEN
from websockets.server import ServerProtocol
from websockets.uri import parse_uri

try:
    from websockets.speedups import apply_mask
except ImportError:  # a platform without the compiled part
    from websockets.utils import apply_mask

from emcd.errors import RemoteProtocolError
from emcd.net.tunnel_socket import TunnelSocket
from emcd.proto.tunnel import MESSAGE_BYTES

BINARY: Final = 2
CLOSE: Final = 8
PING: Final = 9
PONG: Final = 10
_CONTINUATION: Final = 0
_TEXT: Final = 1
_CONTROL_BYTES = 125
_FRAGMENTS_MAX = 64
_HEAD_BYTES = 8 * 1024
_STATUS = re.compile(rb"HTTP/1\.1 ([0-9]{3}) ")
_logger = logging.getLogger("emcd.net.websocket")
_logger.addHandler(logging.NullHandler())
_logger.propagate = False


class WebSocketError(RemoteProtocolError):
    """The peer's bytes are no WebSocket frames. `close_code` is the RFC's."""

    def __init__(self, close_code: int, detail: str) -> None:
        super().__init__("EMC-1417", detail)
        self.close_code = close_code


class UpgradeError(Exception):
    """There is no WebSocket here. `status` is the HTTP status, 0 where there was none."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status


class FrameReader:
    """Splits what comes into messages and control frames."""

    __slots__ = ("_fragments", "_have", "_is_masked", "_message_bytes", "_need", "_pieces")

    def __init__(self, is_masked: bool) -> None:
        self._is_masked = is_masked
        self._pieces: list[bytes] = []
        self._have = 0
        self._need = 0
        self._fragments: list[bytes] | None = None
        self._message_bytes = 0

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        """What is complete now: opcode and payload; messages are whole, and BINARY.

        Raises: RemoteProtocolError EMC-1420 for text, EMC-1417 (WebSocketError); then nothing more
            can be read.
        """
        if self._pieces:
            self._pieces.append(data)
            self._have += len(data)
            if self._have < self._need:
                return []
            data = b"".join(self._pieces)
        self._need = 0
        found: list[tuple[int, bytes]] = []
        at, size = 0, len(data)
        while size - at >= 2:
            first, second = data[at], data[at + 1]
            length, start = second & 0x7F, at + 2
            if length >= 126:
                start += 2 if length == 126 else 8
                if start > size:
                    break
                length = int.from_bytes(data[at + 2 : start], "big")
            self._check(first, second, length)
            if self._is_masked:
                start += 4
            end = start + length
            if end > size:
                self._need = end - at
                break
            payload = data[start:end]
            if self._is_masked and payload:
                payload = apply_mask(payload, data[start - 4 : start])
            at = end
            if first == 0x80 | BINARY:
                found.append((BINARY, payload))
            else:
                self._add(first, payload, found)
        rest = data[at:]
        self._pieces, self._have = [rest] if rest else [], len(rest)
        return found

    def _check(self, first: int, second: int, length: int) -> None:
        """A frame's head, before its payload is waited for."""
        opcode = first & 0x0F
        if first & 0x70:
            raise WebSocketError(1002, "reserved bits must be 0")
        if bool(second & 0x80) is not self._is_masked:
            raise WebSocketError(1002, "incorrect masking")
        if opcode in (PING, PONG, CLOSE):
            if length > _CONTROL_BYTES or not first & 0x80:
                raise WebSocketError(1002, "a control frame is too long, or in pieces")
        elif opcode == _TEXT:
            raise RemoteProtocolError("EMC-1420", "a text message")
        elif opcode == _CONTINUATION:
            if self._fragments is None:
                raise WebSocketError(1002, "unexpected continuation frame")
            if len(self._fragments) > _FRAGMENTS_MAX:
                raise WebSocketError(1009, "too many fragments")
            length += self._message_bytes
        elif opcode != BINARY:
            raise WebSocketError(1002, "invalid opcode")
        elif self._fragments is not None:
            raise WebSocketError(1002, "expected a continuation frame")
        if length > MESSAGE_BYTES:
            raise WebSocketError(1009, f"a message of {length} bytes")

    def _add(self, first: int, payload: bytes, found: list[tuple[int, bytes]]) -> None:
        opcode = first & 0x0F
        if opcode not in (BINARY, _CONTINUATION):
            found.append((opcode, payload))
            return
        fragments = self._fragments = [*(self._fragments or []), payload]
        self._message_bytes += len(payload)
        if first & 0x80:
            found.append((BINARY, b"".join(fragments)))
            self._fragments, self._message_bytes = None, 0


def encode(opcode: int, payload: bytes, is_masked: bool) -> bytes:
    """One frame, whole."""
    length = len(payload)
    flag = 0x80 if is_masked else 0
    if length < 126:
        head = bytes((0x80 | opcode, flag | length))
    elif length < 65536:
        head = struct.pack("!BBH", 0x80 | opcode, flag | 126, length)
    else:
        head = struct.pack("!BBQ", 0x80 | opcode, flag | 127, length)
    if not is_masked:
        return head + payload
    mask = secrets.token_bytes(4)
    return b"".join((head, mask, apply_mask(payload, mask) if payload else b""))


def encode_close(code: int, reason: str, is_masked: bool) -> bytes:
    """A farewell; the reason is cut to what fits."""
    text = reason.encode()[: _CONTROL_BYTES - 2].decode("utf-8", "ignore").encode()
    return encode(CLOSE, code.to_bytes(2, "big") + text, is_masked)


def decode_close(payload: bytes) -> tuple[int, str]:
    """Code and reason of a farewell; 1005 where there is none."""
    if len(payload) < 2:
        return 1005, ""
    return int.from_bytes(payload[:2], "big"), payload[2:].decode("utf-8", "replace")


async def accept_upgrade(stream: TunnelSocket, refusal: tuple[int, str] | None) -> bytes:
    """The server's side of the upgrade; `refusal` is a status and a text to answer instead.

    Returns: the bytes that came behind the request. Raises: UpgradeError; OSError.
    """
    head, rest = await _read_head(stream)
    protocol = ServerProtocol(origins=[None], logger=_logger)  # a browser's page has no business here
    protocol.receive_data(head)
    events = protocol.events_received()
    if events:
        assert isinstance(events[0], Request)
        response = protocol.reject(*refusal) if refusal else protocol.accept(events[0])
        protocol.send_response(response)
    answer = b"".join(protocol.data_to_send())
    if answer:
        stream.send(answer)
        await stream.drain()
    if protocol.state is not OPEN:
        raise UpgradeError(refusal[0] if refusal else 400, "refused")
    return rest


async def request_upgrade(stream: TunnelSocket, url: str) -> bytes:
    """The client's side of the upgrade. Redirects are refused.

    Returns: the bytes that came behind the answer. Raises: UpgradeError; OSError.
    """
    protocol = ClientProtocol(parse_uri(url), logger=_logger)
    protocol.send_request(protocol.connect())
    stream.send(b"".join(protocol.data_to_send()))
    await stream.drain()
    head, rest = await _read_head(stream)
    status = _STATUS.match(head)
    if status is None or status[1] != b"101":
        raise UpgradeError(int(status[1]) if status else 0, "the answer is no WebSocket upgrade")
    protocol.receive_data(head)
    if isinstance(protocol.handshake_exc, InvalidHandshake) or protocol.state is not OPEN:
        raise UpgradeError(0, f"the answer is no WebSocket upgrade: {protocol.handshake_exc}")
    return rest


async def _read_head(stream: TunnelSocket) -> tuple[bytes, bytes]:
    """A request's or an answer's head with its blank line, and what came behind it."""
    data = b""
    while (end := data.find(b"\r\n\r\n")) < 0:
        if len(data) > _HEAD_BYTES:
            raise UpgradeError(0, "the head is too long")
        more = await stream.receive()
        if not more:
            raise UpgradeError(0, "the connection was closed before the upgrade")
        data += more
    return data[: end + 4], data[end + 4 :]
