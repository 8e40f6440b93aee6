"""Speed, quantiles, and the book of a day."""

from __future__ import annotations

import random

import pytest

from emcd.scheduling.daybook import DAY_MS, SLOT_MS, SLOTS, DayBook, SlotRow
from emcd.scheduling.sketch import HALVE_AT, LEAST, QuantileSketch
from emcd.scheduling.speed import USUAL_TOKENS, Speed

NOW = 1_700_000_000_000 // SLOT_MS * SLOT_MS


def test_speed_of_nothing_is_not_known() -> None:
    speed = Speed()
    assert (speed.first_s, speed.tokens_per_s, speed.slowness) == (None, None, 0.0)
    speed.add(0.0, None, 0)
    assert (speed.first_s, speed.tokens_per_s, speed.slowness) == (None, None, 0.0)


def test_speed_counts_tokens_after_the_first_by_the_time_after_it() -> None:
    speed = Speed()
    speed.add(seconds=2.5, first_s=0.5, tokens=101)
    assert (speed.first_s, speed.tokens_per_s) == (0.5, 50.0)
    assert speed.slowness == 0.5 + USUAL_TOKENS / 50


def test_speed_follows_what_is_measured_of_late() -> None:
    speed = Speed()
    for _ in range(50):
        speed.add(1.0, None, 100)
    for _ in range(50):
        speed.add(1.0, None, 10)
    assert speed.tokens_per_s == pytest.approx(10, abs=1)


def test_sketch_without_numbers_tells_nothing() -> None:
    assert QuantileSketch().quantile(0.5) is None


@pytest.mark.parametrize("value", [0.0, -1.0, LEAST, 1e-9, 1e12])
def test_sketch_takes_numbers_beyond_its_range(value: float) -> None:
    sketch = QuantileSketch()
    sketch.add(value)
    assert sketch.quantile(0.5) is not None


def test_sketch_is_right_to_six_percent_and_of_late() -> None:
    sketch, draw = QuantileSketch(), random.Random(1)
    for _ in range(50_000):
        sketch.add(100 + draw.random())
    numbers = [draw.lognormvariate(0, 1) for _ in range(50_000)]
    for number in numbers:
        sketch.add(number)
    recent = sorted(numbers[-HALVE_AT:])
    for share in (0.1, 0.5, 0.95):
        assert sketch.quantile(share) == pytest.approx(recent[int(share * len(recent))], rel=0.15)
    assert sketch.total < HALVE_AT


def watched(book: DayBook, start_ms: int, seconds: int, *, is_up: bool) -> int:
    for second in range(1, seconds + 1):
        book.look(start_ms + 1000 * second, is_up=is_up)
    return start_ms + 1000 * seconds


def test_uptime_is_the_share_of_watched_time() -> None:
    book = DayBook(NOW)
    assert book.uptime(NOW) == 0.0
    now = watched(book, NOW, 300, is_up=True)
    assert book.uptime(now) == 1.0
    now = watched(book, now, 100, is_up=False)
    assert book.uptime(now) == 0.75


def test_time_that_nobody_watched_counts_as_down() -> None:
    book = DayBook(NOW)
    now = watched(book, NOW, 600, is_up=True)
    book.look(now + 600_000, is_up=True)
    assert book.uptime(now + 600_000) == 0.5
    book.look(NOW, is_up=True)
    assert book.uptime(now + 600_000) == 0.5


def test_day_comes_back_from_what_was_kept() -> None:
    book = DayBook(NOW)
    now = watched(book, NOW, 600, is_up=True)
    book.count(now, 10, 3)
    kept = book.take_changes()
    assert kept == [SlotRow(NOW // SLOT_MS, 600_000, 10, 3)]
    assert book.take_changes() == []
    again = DayBook(now, kept)
    assert (again.calls, again.faults, again.uptime(now), again.since_ms(now)) == (10, 3, 1.0, NOW)


def test_day_forgets_what_is_older_and_stays_bounded() -> None:
    book = DayBook(NOW)
    for slot in range(3 * SLOTS):
        at = NOW + slot * SLOT_MS
        book.look(at, is_up=True)
        book.look(at + 1000, is_up=True)
        book.count(at + 1000, 2, 1)
    assert len(book._slots) == SLOTS
    assert (book.calls, book.faults) == (2 * SLOTS, SLOTS)
    end = NOW + 3 * DAY_MS
    assert book.since_ms(end) == end - DAY_MS
    assert book.uptime(end) == pytest.approx(1000 / SLOT_MS, rel=0.02)
    assert not book.is_empty(end)
    assert book.is_empty(end + DAY_MS)
    assert DayBook(end + DAY_MS, book.take_changes()).calls == 0
