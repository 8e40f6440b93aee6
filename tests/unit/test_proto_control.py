"""Control messages from a peer that are none: always the peer's fault, never ours."""

from __future__ import annotations

import msgspec
import pytest

from emcd.errors import RemoteProtocolError
from emcd.proto.control import CallMeta, NoticeMessage, ResponseHead, decode_control, decode_part, encode

BAD_TEXT = b"\xff\xfe\xfd"


def test_control_text_that_is_not_utf8_is_the_peers_fault() -> None:
    raw = encode(NoticeMessage("EMC-1", "abc")).replace(b"abc", BAD_TEXT)
    with pytest.raises(RemoteProtocolError, match="EMC-1498"):
        decode_control(raw)


def test_part_text_that_is_not_utf8_is_the_peers_fault() -> None:
    raw = encode(ResponseHead(200, "abc")).replace(b"abc", BAD_TEXT)
    with pytest.raises(RemoteProtocolError, match="EMC-1498"):
        decode_part(raw, ResponseHead)


@pytest.mark.parametrize("raw", [b"\x91" * 100_000, msgspec.msgpack.encode({"type": BAD_TEXT})])
def test_deep_or_strange_messages_are_the_peers_fault(raw: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match="EMC-1498"):
        decode_control(raw)
    with pytest.raises(RemoteProtocolError, match="EMC-1498"):
        decode_part(raw, CallMeta)
