"""Which texts run together."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from emcd.inference.batch_queue import BatchLimits, BatchQueue, PendingCall


def _call(*lengths: int) -> PendingCall:
    return PendingCall([[1] * length for length in lengths])


def _queue(*calls: PendingCall, texts: int = 8, tokens: int = 100, run_tokens: int = 8) -> BatchQueue:
    queue = BatchQueue(BatchLimits(texts, tokens, run_tokens))
    for call in calls:
        queue.add(call)
    return queue


def test_take_nothing_waiting_is_empty() -> None:
    assert _queue().take() == []


def test_take_similar_lengths_run_together_shortest_first() -> None:
    queue = _queue(_call(10, 3, 8), _call(9))
    assert [text.tokens for text in queue.take()] == [8, 9, 10]
    assert [text.tokens for text in queue.take()] == [3]
    assert len(queue) == queue.waiting_tokens == 0


def test_take_a_dear_run_takes_more_padding_along() -> None:
    assert [text.tokens for text in _queue(_call(20, 12), run_tokens=2).take()] == [20]
    assert [text.tokens for text in _queue(_call(20, 12), run_tokens=20).take()] == [12, 20]


def test_take_leaves_out_what_would_lower_the_share_of_use() -> None:
    queue = _queue(_call(*[12] * 4, 9), run_tokens=4)
    assert [text.tokens for text in queue.take()] == [12] * 4  # with the fifth 57 of 64 places, not 48 of 52


def test_take_short_leader_does_not_draw_long_texts_into_padding() -> None:
    queue = _queue(_call(5), _call(40))
    assert [text.tokens for text in queue.take()] == [5]


def test_take_respects_texts_and_padded_tokens() -> None:
    queue = _queue(_call(*[10] * 20))
    assert len(queue.take()) == 8
    queue = _queue(_call(*[30] * 5))
    assert len(queue.take()) == 3


def test_take_text_above_the_token_bound_runs_alone() -> None:
    queue = _queue(_call(250, 249))
    assert [text.tokens for text in queue.take()] == [250]
    assert [text.tokens for text in queue.take()] == [249]


def test_take_small_call_waits_one_batch_behind_a_large_one() -> None:
    large, small = _call(*[50] * 40), _call(5)
    queue = _queue(large, small)
    assert {text.call for text in queue.take()} == {large}
    assert {text.call for text in queue.take()} == {small}


def test_drop_removes_only_what_still_waits() -> None:
    first, second = _call(5, 50), _call(6)
    queue = _queue(first, second)
    assert [text.tokens for text in queue.take()] == [50]
    queue.drop(first)
    assert queue.waiting_tokens == 6
    assert [text.call for text in queue.take()] == [second]
    queue.drop(first)
    assert queue.take() == []


@given(
    st.lists(st.lists(st.integers(1, 60), min_size=1, max_size=12), max_size=8),
    st.sets(st.integers(0, 7)),
    st.integers(1, 6),
)
def test_take_every_text_runs_once_within_limits(
    calls: list[list[int]], dropped: set[int], drop_after: int
) -> None:
    pending = [_call(*lengths) for lengths in calls]
    queue = _queue(*pending)
    taken: list[tuple[PendingCall, int]] = []
    steps = 0
    while batch := queue.take():
        steps += 1
        lengths = [text.tokens for text in batch]
        assert lengths == sorted(lengths)
        assert len(batch) * lengths[-1] + 8 <= sum(length + 8 for length in lengths)
        assert len(batch) == 1 or (len(batch) <= 8 and len(batch) * lengths[-1] <= 100)
        taken += [(text.call, text.position) for text in batch]
        if steps == drop_after:
            for index in dropped & set(range(len(pending))):
                queue.drop(pending[index])
    assert len(taken) == len(set(taken))
    assert queue.waiting_tokens == len(queue) == 0
    for index, call in enumerate(pending):
        if index not in dropped:
            assert {position for owner, position in taken if owner is call} == set(range(len(call.texts)))
