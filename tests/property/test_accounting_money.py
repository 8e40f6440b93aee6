"""Money that is split, issued and added up is neither made nor lost."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from emcd.accounting.emission import CAP_WEI, cumulative_wei, issue_wei
from emcd.accounting.event_stream import PassingStream, count_cut
from emcd.accounting.price import affordable_output_tokens_floor, charge_call_ceil, reservation_ceil
from emcd.accounting.settlement import split_rewards
from emcd.accounting.verdict import NumericClass, judge
from emcd.proto.address import address_bytes, address_from_bytes
from emcd.proto.messages import Verdict
from emcd.proto.openai_shape import Endpoint
from emcd.proto.params import ModelPrice
from emcd.types import Address
from tests.support import second_implementation as second

ADDRESSES = st.binary(min_size=20, max_size=20).map(address_from_bytes)
WEIGHTS = st.dictionaries(
    ADDRESSES, st.one_of(st.just(0), st.integers(0, 5), st.integers(0, 2**400)), max_size=30
)
ISSUES = st.one_of(st.integers(0, 10), st.integers(0, 10**26))
ROUNDS = st.integers(0, 10_100_000)
PRICES = st.builds(ModelPrice, st.integers(0, 10**12), st.integers(0, 10**12), st.integers(0, 10**6))
TOKENS = st.integers(0, 10**7)
STREAM_EVENTS = [
    b'data: {"choices":[{"index":0}]}\n\n',
    b': "choices"\n\n',
    b'event: x\ndata: {"choices":[]}\n\n',
    b'data: {"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2}}\n\n',
    b'data: {"choices":[1],"usage":null}\n\n',
    b'data: {"error":null,"choices":[1]}\n\n',
    b'data: {"error":{"message":"x"}}\n\n',
    b'data: {"type":"response.output_text.delta","delta":"[DONE]"}\n\n',
    b'data: {"type":"response.completed","response":{"usage":{"input_tokens":3,"output_tokens":4}}}\n\n',
    b"data: [DONE]\n\n",
]


@given(ISSUES, WEIGHTS)
def test_split_parts_sum_to_the_whole(issue: int, weights: dict[Address, int]) -> None:
    parts = split_rewards(issue, weights)

    assert sum(parts.values()) == (issue if any(weights.values()) else 0)
    assert parts.keys() == weights.keys()
    assert all(parts[address] == 0 for address, weight in weights.items() if weight == 0)


@given(ISSUES, WEIGHTS)
def test_split_parts_are_within_one_wei_of_the_share(issue: int, weights: dict[Address, int]) -> None:
    total = sum(weights.values())
    for address, part in split_rewards(issue, weights).items():
        assert abs(part * total - issue * weights[address]) < max(total, 1)


@given(ISSUES, WEIGHTS, st.randoms(use_true_random=False))
def test_split_does_not_depend_on_the_order(issue: int, weights: dict[Address, int], random: Any) -> None:
    items = list(weights.items())
    random.shuffle(items)
    assert split_rewards(issue, dict(items)) == split_rewards(issue, weights)


@given(ISSUES, st.sets(ADDRESSES, min_size=1, max_size=20), st.integers(1, 2**300))
def test_split_equal_weights_ties_go_to_the_lower_addresses(
    issue: int, addresses: set[Address], weight: int
) -> None:
    parts = split_rewards(issue, dict.fromkeys(addresses, weight))
    ordered = [parts[address] for address in sorted(addresses, key=address_bytes)]
    assert ordered == sorted(ordered, reverse=True)
    assert ordered[0] - ordered[-1] <= 1


@given(st.integers(0, 10**20), st.dictionaries(ADDRESSES, st.integers(0, 10**30), max_size=8))
def test_split_equals_the_second_implementation(issue: int, weights: dict[Address, int]) -> None:
    assert split_rewards(issue, weights) == second.rewards(issue, weights)


@given(ROUNDS, st.integers(0, 2000))
def test_cumulative_never_falls_and_stays_under_the_cap(index: int, more: int) -> None:
    assert 0 <= cumulative_wei(index) <= cumulative_wei(index + more) <= CAP_WEI


@given(ROUNDS)
def test_cumulative_is_the_sum_of_the_issues(index: int) -> None:
    assert cumulative_wei(index) - cumulative_wei(index - 1) == issue_wei(index)


@given(ROUNDS)
def test_issue_falls_but_for_one_wei_of_rounding(index: int) -> None:
    assert issue_wei(index + 1) <= issue_wei(index) + 1


@given(ROUNDS)
def test_issue_equals_the_second_implementation(index: int) -> None:
    assert issue_wei(index) == second.issue_wei(index)


@given(PRICES, TOKENS, TOKENS, TOKENS)
def test_charge_more_tokens_never_cost_less(price: ModelPrice, inputs: int, outputs: int, more: int) -> None:
    assert charge_call_ceil(price, inputs, outputs) <= charge_call_ceil(price, inputs + more, outputs)
    assert charge_call_ceil(price, inputs, outputs) <= reservation_ceil(price, inputs + more, outputs)
    assert charge_call_ceil(price, inputs, outputs) >= price.minimum_micro


@given(PRICES, st.integers(0, 10**12), TOKENS)
def test_affordable_tokens_fit_the_budget_and_one_more_does_not(
    price: ModelPrice, budget: int, inputs: int
) -> None:
    tokens = affordable_output_tokens_floor(price, budget, inputs)
    if tokens < 0:
        assert charge_call_ceil(price, inputs, 0) > budget
    elif price.output_micro_per_mtok:
        assert charge_call_ceil(price, inputs, tokens) <= budget < charge_call_ceil(price, inputs, tokens + 1)


@given(st.sampled_from(Endpoint), st.lists(st.binary(max_size=200)))
def test_passing_stream_survives_garbage(endpoint: Endpoint, chunks: list[bytes]) -> None:
    stream = PassingStream(endpoint)
    for chunk in chunks:
        stream.feed(b"data: " + chunk)
    stream.end()
    usage = count_cut(endpoint, b"".join(chunks), stream.meter.usage, stream.meter.produced)
    assert usage.input_tokens >= 0 and usage.output_tokens >= 0


@given(
    st.sampled_from([Endpoint.CHAT, Endpoint.RESPONSES]),
    st.lists(st.sampled_from(STREAM_EVENTS), max_size=12),
    st.lists(st.integers(1, 40), max_size=30),
)
def test_passing_stream_counts_the_same_however_it_is_cut(
    endpoint: Endpoint, events: list[bytes], cuts: list[int]
) -> None:
    data = b"".join(events)
    whole, cut = PassingStream(endpoint), PassingStream(endpoint)
    for event in events:
        whole.feed(event)
    at = 0
    for size in [*cuts, len(data)]:
        cut.feed(data[at : at + size])
        at += size
    for stream in (whole, cut):
        stream.end()
    one, other = whole.meter, cut.meter
    assert (one.usage, one.produced, one.ended, one.failed) == (
        other.usage,
        other.produced,
        other.ended,
        other.failed,
    )


@given(
    st.sampled_from(NumericClass),
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**64 - 1),
    st.integers(0, 10**12),
)
def test_judge_is_harsher_with_distance_and_milder_with_spread(
    numeric_class: NumericClass, one: int, two: int, spread: int
) -> None:
    order = {Verdict.PASS: 0, Verdict.CLASS: 1, Verdict.FAIL: 2, Verdict.GROSS: 3}
    low, high = sorted((one, two))
    assert order[judge(numeric_class, low)] <= order[judge(numeric_class, high)]
    assert order[judge(numeric_class, high, spread_e12=spread)] <= order[judge(numeric_class, high)]
