"""Bloom filters: what is in is found, what is not is told apart while there is room."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emcd.chain.bloom import TELLING_BITS, Bloom, item_bits
from emcd.chain.call import Log
from emcd.proto.address import address_bytes, address_from_bytes
from emcd.types import Hash

ADDRESSES = st.binary(min_size=20, max_size=20).map(address_from_bytes)
TOPICS = st.lists(st.binary(min_size=32, max_size=32), min_size=1, max_size=4).map(tuple)
ZERO = Hash(bytes(32))


def make_log(address: object, topics: tuple[bytes, ...]) -> Log:
    return Log(address, topics, b"", 1, ZERO, ZERO, 0)  # type: ignore[arg-type]


@given(st.lists(st.tuples(ADDRESSES, TOPICS), min_size=1, max_size=10))
def test_of_every_log_is_found_again(entries: list[tuple[object, tuple[bytes, ...]]]) -> None:
    logs = [make_log(address, topics) for address, topics in entries]
    bloom = Bloom.of(logs)
    for log in logs:
        assert bloom.may_hold(log.address, [b"other", log.topics[0]])
        assert bloom.covers(Bloom.of([log]))
    assert Bloom.from_hex("0x" + bloom.bits.to_bytes(256, "big").hex()) == bloom


def test_may_hold_needs_both_address_and_topic() -> None:
    address, other = (address_from_bytes(bytes([n]) * 20) for n in (1, 2))
    bloom = Bloom.of([make_log(address, (b"\x01" * 32,))])
    assert bloom.may_hold(address, [b"\x01" * 32])
    assert not bloom.may_hold(other, [b"\x01" * 32])
    assert not bloom.may_hold(address, [b"\x02" * 32])
    assert not Bloom(0).may_hold(address, [b"\x01" * 32])
    assert not Bloom(0).covers(Bloom(item_bits(address_bytes(address))))


def test_is_telling_while_few_bits_are_set() -> None:
    assert Bloom((1 << TELLING_BITS) - 1).is_telling
    assert not Bloom((1 << (TELLING_BITS + 1)) - 1).is_telling


@pytest.mark.parametrize("text", ["0x", "0x" + "00" * 255, "0x" + "zz" * 256])
def test_from_hex_refuses_what_is_no_filter(text: str) -> None:
    with pytest.raises(ValueError, match=r"bloom|hexadecimal"):
        Bloom.from_hex(text)
