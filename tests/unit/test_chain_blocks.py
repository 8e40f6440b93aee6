"""Blocks by time, on chains that a script makes."""

from __future__ import annotations

from bisect import bisect_right
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emcd.chain.blocks import BlockRef, fetch_block, fetch_head, find_block_at, parse_block
from emcd.errors import RecoverableError
from emcd.types import Hash


class ScriptedChain:
    """An Rpc over a list of timestamps."""

    def __init__(self, timestamps: list[int]) -> None:
        self.timestamps = timestamps
        self.requests = 0

    async def call(self, method: str, *params: Any) -> Any:
        assert method == "eth_getBlockByNumber"
        self.requests += 1
        number = len(self.timestamps) - 1 if params[0] == "latest" else int(params[0], 16)
        return raw_block(number, self.timestamps[number]) if number < len(self.timestamps) else None


def raw_block(number: int, timestamp_s: int) -> dict[str, str]:
    return {
        "number": hex(number),
        "hash": "0x" + (number + 1).to_bytes(32, "big").hex(),
        "timestamp": hex(timestamp_s),
        "parentHash": "0x" + number.to_bytes(32, "big").hex(),
    }


@given(
    st.lists(st.integers(0, 50), min_size=2, max_size=200).map(
        lambda gaps: [sum(gaps[: i + 1]) for i in range(len(gaps))]
    ),
    st.integers(-5, 10_000),
    st.integers(0, 250),
)
@settings(max_examples=150, deadline=None)
async def test_find_block_at_is_the_last_block_not_later(
    timestamps: list[int], time_s: int, first: int
) -> None:
    chain = ScriptedChain(timestamps)
    head = await fetch_head(chain)
    if time_s >= timestamps[-1]:
        expected = "EMC-1506"
    elif time_s < timestamps[0]:
        expected = "EMC-1505"
    else:
        block = await find_block_at(chain, time_s, head, first)
        assert block.number == bisect_right(timestamps, time_s) - 1
        return
    with pytest.raises(RecoverableError) as caught:
        await find_block_at(chain, time_s, head, first)
    assert caught.value.code == expected


async def test_find_block_at_steady_chain_needs_few_requests() -> None:
    chain = ScriptedChain(list(range(1000, 101_000)))
    head = await fetch_head(chain)
    chain.requests = 0
    assert (await find_block_at(chain, 51_234, head)).number == 50_234
    assert chain.requests <= 5


async def test_find_block_at_a_gap_in_time_stays_logarithmic() -> None:
    chain = ScriptedChain([*range(1000), *range(10**9, 10**9 + 100_000)])
    head = await fetch_head(chain)
    chain.requests = 0
    assert (await find_block_at(chain, 10**8, head)).number == 999
    assert chain.requests <= 40


async def test_fetch_block_missing_is_recoverable() -> None:
    with pytest.raises(RecoverableError) as caught:
        await fetch_block(ScriptedChain([1, 2]), 5)
    assert caught.value.code == "EMC-1505"


async def test_fetch_block_of_another_number_is_refused() -> None:
    class Liar(ScriptedChain):
        async def call(self, method: str, *params: Any) -> Any:
            return raw_block(7, 1)

    with pytest.raises(RecoverableError) as caught:
        await fetch_block(Liar([]), 5)
    assert caught.value.code == "EMC-1507"


@pytest.mark.parametrize(
    "raw",
    [
        None,
        "0x1",
        {},
        raw_block(1, 2) | {"hash": "0x12"},
        raw_block(1, 2) | {"hash": None},
        raw_block(1, 2) | {"timestamp": "soon"},
        raw_block(1, 2) | {"number": 1},
    ],
)
def test_parse_block_nonsense_is_recoverable(raw: object) -> None:
    with pytest.raises(RecoverableError) as caught:
        parse_block(raw)
    assert caught.value.code == "EMC-1507"


def test_parse_block_reads_the_reference() -> None:
    expected = BlockRef(1, Hash((2).to_bytes(32, "big")), 9, Hash((1).to_bytes(32, "big")))
    assert parse_block(raw_block(1, 9)) == expected
