"""Columns against records: the same hashes, the same judgement, the same sums; one encoding."""

from __future__ import annotations

from random import Random
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from emcd.accounting.call_check import CallCheck
from emcd.accounting.call_rule import CallStanding, check_standing, hash_call, require_call
from emcd.accounting.call_sum import CallSums
from emcd.accounting.price import charge_call_ceil, price_of
from emcd.accounting.tally import NodeTally
from emcd.accounting.terms import RoundTerms
from emcd.errors import RemoteProtocolError
from emcd.proto.address import address_bytes, address_from_bytes
from emcd.proto.bundle_calls import (
    Directory,
    hash_group,
    pack_group,
    unpack_group,
)
from emcd.proto.bundle_column import ColumnReader, fold_difference, pack_numbers, unfold_difference
from emcd.proto.bundle_table import CallRow, CallTable, FirstUse, iter_records
from emcd.proto.eip712 import Domain
from emcd.proto.hashing import keccak
from emcd.proto.params import ModelPrice, PriceTable, devnet_params
from emcd.proto.records import Delivery, Forward, Receipt
from emcd.types import ZERO_ADDRESS, ZERO_HASH
from tests.support.round_world import GENESIS_S, STAKING, address_of

TOP = (1 << 64) - 1
HUB = address_of("hub")
NODES = [address_of(f"node-{n}") for n in range(4)]
ROUTERS = [ZERO_ADDRESS, address_of("router-1"), address_of("router-2")]
MODELS = [keccak(b"model %d" % n) for n in range(3)]
PARAMS = devnet_params(GENESIS_S)
ROUND = 20
DEAR = "0x" + MODELS[1].hex()
PRICES = {
    1: PriceTable(
        1, ModelPrice(10_000_000_000, 20_000_000_000, 10_000), ((DEAR, ModelPrice((1 << 63) - 1, 0, 0)),)
    ),
    4: PriceTable(4, ModelPrice(0, 7, (1 << 63) - 1)),
}
TERMS = RoundTerms(ROUND, HUB, Domain(1, STAKING), bytes(32), PARAMS, PRICES, {}, {}, (9, 18))
START, END = TERMS.start_ms, TERMS.end_ms

uint64 = st.one_of(st.integers(0, TOP), st.integers(0, 3), st.sampled_from([TOP, 1 << 63, 1 << 32, 200]))
seeds = st.integers(0, TOP)
ROWS = 24


def make_record(draw: Random, number: int) -> CallRow:
    """Any call that our types can hold; often nearly right."""

    def at() -> int:
        near = [
            START,
            END,
            START - 1,
            PARAMS.round_start_ms(8),
            PARAMS.round_start_ms(7),
            GENESIS_S * 1000 - 1,
            TOP,
        ]
        return draw.choice(
            [draw.getrandbits(64), draw.randint(START - 400_000, END + 400_000), draw.choice(near)]
        )

    def tokens() -> int:
        return draw.choice([draw.getrandbits(64), draw.randint(0, 5000), draw.randint(0, 5000), 0])

    def clipped(value: int) -> int:
        return min(TOP, max(0, value))

    started = draw.choice([at(), draw.randint(START, END)])
    forward = Forward(
        number.to_bytes(16, "big"), HUB, draw.choice(ROUTERS), draw.choice(NODES), draw.randbytes(32),
        draw.choice(MODELS), draw.choice([1, 4, 4, 1, 2, (1 << 32) - 1]), started,
    )  # fmt: skip
    receipt = None
    if draw.random() < 0.8:
        began = clipped(started + draw.choice([0, 1, -30_000, -30_001, 30_000]))
        http = draw.choice([200, 200, 299, 300, 199, 65535])
        receipt = Receipt(
            forward.struct_hash(), draw.randbytes(32), http, tokens(), tokens(), began,
            draw.choice([at(), began, clipped(began + draw.randint(-2, 40_000))]),
        )  # fmt: skip
    finished = draw.choice(
        [at(), clipped(started + draw.randint(0, 9000)), clipped(started + draw.randint(0, 9000))]
    )
    credits = draw.choice([0, tokens(), tokens()])
    if receipt is not None and draw.random() < 0.7:
        table = PRICES.get(forward.price_version, PRICES[1])
        due = charge_call_ceil(
            price_of(table, forward.model_hash), receipt.input_tokens, receipt.output_tokens
        )
        credits = clipped(due + draw.choice([0, 0, 0, 1, -1]))
    vault = draw.choice([0, credits, credits, clipped(credits + 1), credits // 2])
    body = receipt.response_hash if receipt and draw.random() < 0.5 else draw.randbytes(32)
    own_round = PARAMS.round_at(finished)
    delivery = Delivery(
        forward.struct_hash(), ZERO_HASH if receipt is None else receipt.struct_hash(), body,
        draw.choice([0, 0, 0, 0, 1, 2, 3, 4, 5, 255]), credits, vault,
        clipped(draw.choice([own_round, own_round, own_round, ROUND])), finished,
    )  # fmt: skip
    return forward, receipt, delivery


def make_rows(seed: int, count: int = ROWS) -> list[CallRow]:
    draw = Random(seed)
    return [make_record(draw, number) for number in range(count)]


def columns(rows: Any) -> tuple[Any, Directory]:
    table = CallTable()
    group, _ = table.make_columns(rows)
    return group, table.directory


@settings(max_examples=25, deadline=None)
@given(seeds)
def test_group_hashes_are_those_of_the_records(seed: int) -> None:
    rows = make_rows(seed)
    group, directory = columns(rows)
    own = hash_group(group, directory, address_bytes(HUB))
    found = [
        tuple(part[n].tobytes() for part in (own.forward, own.receipt, own.delivery))
        for n in range(len(rows))
    ]
    assert found == [tuple(hash_call(*row)) for row in rows]


@settings(max_examples=25, deadline=None)
@given(seeds)
def test_group_encodes_and_decodes_to_the_same_records(seed: int) -> None:
    rows = make_rows(seed)
    group, directory = columns(rows)
    content = pack_group(group)
    again = unpack_group(content, len(rows))

    assert pack_group(again) == content
    own = hash_group(again, directory, address_bytes(HUB))
    assert list(iter_records(again, own, directory, HUB)) == list(rows)


@settings(max_examples=150, deadline=None)
@given(seeds, st.data())
def test_group_that_decodes_encodes_to_the_same_bytes(seed: int, data: Any) -> None:
    """Whatever a liar changes in a frame, it is another content or none."""
    rows = make_rows(seed)
    rows = rows[: seed % 5 + 1]
    content = bytearray(pack_group(columns(rows)[0]))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at] = data.draw(st.one_of(st.integers(0, 255), st.integers(0, 3)))
    try:
        group = unpack_group(bytes(content), len(rows))
    except RemoteProtocolError as exc:
        assert exc.code == "EMC-1902"
        return
    assert pack_group(group) == bytes(content)


def is_too_large(row: CallRow) -> bool:
    """Tokens times price can't be told in 64 bits: the rule itself must look."""
    forward, receipt, _ = row
    if receipt is None:
        return False
    price = price_of(PRICES[forward.price_version], forward.model_hash)
    return receipt.input_tokens > (1 << 62) // max(1, price.input_micro_per_mtok) or (
        receipt.output_tokens > (1 << 62) // max(1, price.output_micro_per_mtok)
    )


@settings(max_examples=100, deadline=None)
@given(seeds)
def test_group_is_judged_as_the_rule_judges_every_call(seed: int) -> None:
    rows = make_rows(seed)
    group, directory = columns(rows)
    check = CallCheck(TERMS)
    flagged = check.flag(group, directory).tolist()
    fine = [n for n in range(len(rows)) if not flagged[n]]
    may_count = check.may_count(group.take(np.array(fine, np.int64))).tolist() if fine else []

    for row, is_flagged in zip(rows, flagged, strict=True):
        try:
            require_call(TERMS, *row, hash_call(*row))
            refused = False
        except RemoteProtocolError:
            refused = True
        assert is_flagged or not refused
        assert refused or not is_flagged or is_too_large(row), "flagged for nothing"
    for n, counts in zip(fine, may_count, strict=True):
        assert counts == (check_standing(*rows[n], is_proven=True) is CallStanding.COUNTS)


@settings(max_examples=25, deadline=None)
@given(seeds, st.data())
def test_group_sums_are_exact(seed: int, data: Any) -> None:
    rows = make_rows(seed)
    rows = [row for row in rows if PARAMS.round_at(row[2].finished_at_ms) == row[2].round <= ROUND]
    counts = [data.draw(st.booleans()) for _ in rows]
    sums = CallSums(TERMS, set())
    table = CallTable()
    for start in range(0, len(rows), 5):
        group, _ = table.make_columns(rows[start : start + 5])
        sums.add(group.node, group.vault_micro, np.array(counts[start : start + 5], np.bool_))
    names = [address_from_bytes(row.tobytes()) for row in table.directory.nodes]

    tally = sums.finish(names)

    wanted: dict[Any, NodeTally] = {}
    for (forward, _, delivery), earns in zip(rows, counts, strict=True):
        node = wanted.setdefault(forward.node, NodeTally())
        node.calls += 1
        node.counted_calls += earns
        node.vault_micro += delivery.vault_micro * earns
    assert tally.nodes == wanted
    assert tally.vault_micro == sum(row[2].vault_micro for row in rows)
    assert (tally.calls, tally.counted_calls) == (len(rows), sum(counts))


@given(st.lists(uint64, max_size=40), st.integers(0, 64))
def test_column_round_trips_and_anything_else_is_refused(values: list[int], cut: int) -> None:
    packed = pack_numbers(np.array(values, np.uint64))
    take = ColumnReader(packed)
    assert take.numbers("x", len(values)).tolist() == values
    take.require_end()


@given(st.lists(st.tuples(uint64, uint64), max_size=40))
def test_column_differences_unfold_to_what_was_folded(pairs: list[tuple[int, int]]) -> None:
    values, base = (np.array([pair[n] for pair in pairs], np.uint64) for n in (0, 1))
    assert unfold_difference(fold_difference(values, base), base).tolist() == values.tolist()


@given(st.lists(st.lists(st.integers(0, 60), max_size=20), max_size=6))
def test_first_use_numbers_in_the_order_of_first_sight(parts: list[list[int]]) -> None:
    use = FirstUse()
    seen: list[int] = []
    for part in parts:
        found = use.renumber(np.array(part, np.uint64)).tolist()
        seen += [item for item in dict.fromkeys(part) if item not in seen]
        assert found == [seen.index(item) for item in part]
    assert use.order == seen
