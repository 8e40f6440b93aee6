"""The numbering of a session's messages: nothing is lost, nothing comes twice, lies end it."""

from __future__ import annotations

import pytest

from emcd.errors import RemoteProtocolError
from emcd.proto.tunnel_resume import (
    ACK_BYTES,
    ACK_MESSAGES,
    HEADER,
    KEPT_BYTES,
    KEPT_MESSAGES,
    MessageLog,
)


def test_log_message_that_the_peer_has_is_kept_no_longer() -> None:
    ours, theirs = MessageLog(), MessageLog()
    assert theirs.accept(ours.stamp(b"one"))
    assert theirs.accept(ours.stamp(b"two"))
    assert ours.kept_bytes == 6
    assert ours.accept(theirs.stamp(b"answer"))
    assert (ours.kept_bytes, ours.acked, ours.sent) == (0, 2, 2)


def test_log_acknowledgement_alone_has_no_number() -> None:
    ours, theirs = MessageLog(), MessageLog()
    theirs.accept(ours.stamp(b"one"))
    told = [theirs.has_untold]
    assert not ours.accept(theirs.ack())
    assert [*told, theirs.has_untold] == [True, False]
    assert (ours.received, ours.acked) == (0, 1)


def test_log_resumed_sends_what_is_missing_and_nothing_else() -> None:
    ours, theirs = MessageLog(), MessageLog()
    messages = [ours.stamp(b"%d" % number) for number in range(5)]
    for message in messages[:2]:
        theirs.accept(message)
    again = ours.resume(theirs.received)
    assert again == [b"2", b"3", b"4"]
    for frames in again:
        assert theirs.accept(ours.stamp_again(frames))
    assert theirs.received == ours.sent == 5
    assert ours.resume(theirs.received) == []
    assert ours.kept_bytes == 0


def test_log_resumed_twice_still_has_what_the_peer_has_not() -> None:
    ours, theirs = MessageLog(), MessageLog()
    ours.stamp(b"one")
    ours.stamp(b"two")
    theirs.accept(ours.stamp_again(ours.resume(0)[0]))
    assert ours.resume(theirs.received) == [b"two"]


def test_log_messages_sent_again_tell_what_came_meanwhile() -> None:
    ours, theirs = MessageLog(), MessageLog()
    ours.stamp(b"one")
    (again,) = ours.resume(0)
    ours.accept(theirs.stamp(b"theirs"))
    assert not theirs.accept(ours.ack())
    assert theirs.accept(ours.stamp_again(again))
    assert theirs.acked == 1


@pytest.mark.parametrize("claimed", [3, 2**63])
def test_log_peer_that_has_what_was_never_sent_is_refused(claimed: int) -> None:
    log = MessageLog()
    log.stamp(b"one")
    log.stamp(b"two")
    with pytest.raises(RemoteProtocolError, match="EMC-1416"):
        log.resume(claimed)
    with pytest.raises(RemoteProtocolError, match="EMC-1421"):
        log.accept(HEADER.pack(claimed))
    assert (log.kept_bytes, log.acked) == (6, 0)


def test_log_peer_that_wants_what_it_had_is_refused() -> None:
    log = MessageLog()
    log.stamp(b"one")
    log.accept(HEADER.pack(1))
    with pytest.raises(RemoteProtocolError, match="EMC-1416"):
        log.resume(0)
    with pytest.raises(RemoteProtocolError, match="EMC-1421"):
        log.accept(HEADER.pack(0))


@pytest.mark.parametrize("message", [b"", b"\0", bytes(HEADER.size - 1)])
def test_log_message_without_its_header_is_refused(message: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match="EMC-1420"):
        MessageLog().accept(message)


@pytest.mark.parametrize(("size", "count"), [(KEPT_BYTES // 4, 4), (1, KEPT_MESSAGES)])
def test_log_full_until_the_peer_acknowledges(size: int, count: int) -> None:
    log = MessageLog()
    for _ in range(count):
        assert not log.is_full
        log.stamp(bytes(size))
    assert log.is_full
    log.accept(HEADER.pack(1))
    assert not log.is_full


@pytest.mark.parametrize(("size", "count"), [(1, ACK_MESSAGES), (ACK_BYTES // 2, 2)])
def test_log_acknowledgement_is_due_before_the_peer_is_full(size: int, count: int) -> None:
    ours, theirs = MessageLog(), MessageLog()
    for _ in range(count):
        assert not theirs.is_ack_due
        theirs.accept(ours.stamp(bytes(size)))
    assert theirs.is_ack_due
    theirs.ack()
    assert not theirs.is_ack_due
