"""What routers say survives the wire and nothing else does; no router brings a node that has gone on."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from emcd.errors import RemoteProtocolError
from emcd.proto.control import (
    NoticeMessage,
    RelayGone,
    RelayLive,
    RelayMessage,
    RelayTaken,
    RoutedMeta,
    RouterStatusMessage,
    decode_control,
    decode_part,
    decode_router_control,
    encode,
)
from emcd.proto.messages import RouterStatus
from emcd.proto.params import MAX_CLOCK_SKEW_MS
from emcd.testing import make_key
from emcd_hub.nodes.newest import NewestStatus

ADDRESSES = st.sampled_from([make_key(name).address for name in "abc"])
TEXTS = st.text(max_size=20)
NUMBERS = st.integers(0, 2**32 - 1)
STATUSES = st.builds(
    RouterStatus,
    ADDRESSES,
    ADDRESSES,
    st.integers(0, 2**63),
    st.integers(0, 2**63),
    NUMBERS,
    NUMBERS,
    TEXTS,
    TEXTS,
)
MESSAGES: st.SearchStrategy[Any] = st.one_of(
    st.builds(RelayMessage, ADDRESSES, st.binary(max_size=50), NUMBERS),
    st.builds(RelayTaken, ADDRESSES, NUMBERS),
    st.builds(RelayGone, ADDRESSES, TEXTS, TEXTS, NUMBERS),
    st.builds(RelayLive, ADDRESSES, st.booleans(), NUMBERS),
    st.builds(RouterStatusMessage, STATUSES, st.binary(max_size=70)),
    st.builds(NoticeMessage, TEXTS, TEXTS),
)


@given(MESSAGES)
def test_message_of_a_router_round_trips(message: Any) -> None:
    assert decode_router_control(encode(message)) == message


@given(ADDRESSES, st.binary(max_size=200))
def test_call_of_a_router_carries_the_nodes_meta_untouched(node: Any, meta: bytes) -> None:
    routed = decode_part(encode(RoutedMeta(node, meta)), RoutedMeta)
    assert (routed.node, routed.meta) == (node, meta)


@given(st.binary(max_size=200))
def test_garbage_of_a_router_is_refused_with_a_number(data: bytes) -> None:
    for decode in (decode_router_control, lambda raw: decode_part(raw, RoutedMeta)):
        try:
            decode(data)
        except RemoteProtocolError as exc:
            assert exc.code == "EMC-1498"


@given(MESSAGES, st.data())
def test_message_with_a_byte_more_less_or_changed_is_another_or_none(message: Any, data: Any) -> None:
    raw = encode(message)
    at = data.draw(st.integers(0, len(raw) - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda value: value != raw[at]))
    for changed in (raw + b"\0", raw[:-1], raw[:at] + bytes([byte]) + raw[at + 1 :]):
        try:
            assert decode_router_control(changed) != message
        except RemoteProtocolError as exc:
            assert exc.code == "EMC-1498"


@pytest.mark.parametrize("kind", [RelayMessage, RelayTaken, RelayGone, RelayLive, RouterStatusMessage])
def test_node_can_say_nothing_that_only_routers_say(kind: type) -> None:
    tag = msgspec.inspect.type_info(kind).tag  # type: ignore[attr-defined]
    with pytest.raises(RemoteProtocolError, match="EMC-1498"):
        decode_control(msgspec.msgpack.encode({"type": tag}))


class Replays(RuleBasedStateMachine):
    """A node wanders between routers that keep, repeat and hold back what it signs.

    The node signs statuses with growing sequences; each goes to the router where it is then. Routers
    show the hub anything that they have, at any time. Wherever the hub believes the node to be by the
    newest status, nothing that the node signed before it may bring it anywhere.
    """

    def __init__(self) -> None:
        super().__init__()
        self.newest = NewestStatus()
        self.now_ms = 10**9
        self.sequence = 0
        self.kept: list[tuple[int, int]] = []
        self.believed = 0

    @rule(lag_ms=st.integers(-MAX_CLOCK_SKEW_MS, MAX_CLOCK_SKEW_MS))
    def sign(self, lag_ms: int) -> None:
        self.sequence += 1
        self.kept.append((self.sequence, self.now_ms + lag_ms))

    @precondition(lambda self: self.kept)
    @rule(data=st.data())
    def show(self, data: Any) -> None:
        """As the hub judges it: fresh by its own clock, and newer than all that it has believed."""
        sequence, sent_at_ms = data.draw(st.sampled_from(self.kept))
        fresh = abs(sent_at_ms - self.now_ms) <= MAX_CLOCK_SKEW_MS
        if fresh and self.newest.is_newer(make_key("a").address, sequence):
            assert sequence > self.believed
            self.newest.note(make_key("a").address, sequence, self.now_ms)
            self.believed = sequence

    @rule(passed_ms=st.integers(0, 3 * MAX_CLOCK_SKEW_MS))
    def wait(self, passed_ms: int) -> None:
        self.now_ms += passed_ms
        self.newest.forget(self.now_ms)

    @invariant()
    def newest_is_always_believed_when_it_is_fresh(self) -> None:
        if self.kept and self.kept[-1][0] > self.believed:
            assert self.newest.is_newer(make_key("a").address, self.kept[-1][0])


TestReplays = Replays.TestCase
