"""Periods, buckets, meters and limits of API keys: plain numbers and a time that is given."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emcd_hub.api.rate_header import format_duration, list_rate_headers
from emcd_hub.billing.admission import Barred, admit
from emcd_hub.billing.book import AccountBook, Refused, Reservation
from emcd_hub.billing.bucket import MINUTE_MS, Bucket
from emcd_hub.billing.key_limits import KeyLimits
from emcd_hub.billing.key_meter import KeyMeter, Spent
from emcd_hub.billing.keys import ApiKey
from emcd_hub.billing.period import HOUR_MS, Period, period_end_ms, period_start_ms

NOW = 1_800_000_000_000


def at_ms(year: int, month: int, day: int, hour: int = 0, minute: int = 0, second: int = 0) -> int:
    return int(datetime(year, month, day, hour, minute, second, tzinfo=UTC).timestamp()) * 1000


def make_key(**limits: object) -> ApiKey:
    key = ApiKey("key_1", "a", bytes(32), "emc_sk_x", KeyLimits(**limits) if limits else None)  # type: ignore[arg-type]
    key.meter.fit(key.limits, NOW)
    return key


# --- periods -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("period", "start", "end"),
    [
        (Period.HOUR, (2028, 2, 29, 23), (2028, 3, 1, 0)),
        (Period.DAY, (2028, 2, 29), (2028, 3, 1)),
        (Period.WEEK, (2028, 2, 28), (2028, 3, 6)),
        (Period.MONTH, (2028, 2, 1), (2028, 3, 1)),
    ],
)
def test_period_lies_between_utc_boundaries(
    period: Period, start: tuple[int, ...], end: tuple[int, ...]
) -> None:
    inside = at_ms(2028, 2, 29, 23, 59, 59) + 999
    assert period_start_ms(period, inside) == at_ms(*start)
    assert period_end_ms(period, inside) == at_ms(*end)
    assert period_start_ms(period, at_ms(*end)) == at_ms(*end)
    assert period_start_ms(period, at_ms(*end) - 1) == at_ms(*start)


def test_budget_for_ever_has_no_end_and_december_ends_in_january() -> None:
    assert period_start_ms(Period.NONE, NOW) == 0
    assert period_end_ms(Period.NONE, NOW) is None
    assert period_end_ms(Period.MONTH, at_ms(2029, 12, 31)) == at_ms(2030, 1, 1)


@given(
    st.integers(0, 4_000_000_000_000), st.sampled_from([Period.HOUR, Period.DAY, Period.WEEK, Period.MONTH])
)
def test_every_time_is_in_its_period(time_ms: int, period: Period) -> None:
    start, end = period_start_ms(period, time_ms), period_end_ms(period, time_ms)
    assert end is not None
    assert start <= time_ms < end
    assert start % HOUR_MS == 0
    assert period_start_ms(period, end) == end
    if period is Period.WEEK:
        assert (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=start)).weekday() == 0


# --- buckets -----------------------------------------------------------------


def test_bucket_lets_a_minutes_worth_through_at_once_and_then_one_at_a_time() -> None:
    bucket = Bucket(60, NOW)
    for _ in range(60):
        assert bucket.wait_ms(1, NOW) == 0
        bucket.use(1, NOW)
    assert bucket.wait_ms(1, NOW) == 1000
    assert bucket.wait_ms(1, NOW + 999) == 1
    assert bucket.wait_ms(1, NOW + 1000) == 0
    assert bucket.wait_ms(10, NOW + 1000) == 9000
    assert bucket.empty_in_ms(NOW + 1000) == 59_000


def test_what_is_held_does_not_leak_and_what_it_did_not_use_comes_back_at_once() -> None:
    bucket = Bucket(1000, NOW)
    bucket.hold(900)
    later = NOW + 10 * MINUTE_MS
    assert bucket.wait_ms(101, later) > 0
    assert bucket.left_floor(later) == 100
    bucket.use(50, later)
    bucket.let_go(900)
    assert bucket.left_floor(later) == 950


def test_call_that_needs_more_than_fits_takes_the_whole_bucket_and_leaves_a_debt() -> None:
    bucket = Bucket(100, NOW)
    assert bucket.fitting(5000) == 100
    bucket.hold(100)
    bucket.use(300, NOW)
    bucket.let_go(100)
    assert bucket.left_floor(NOW) == 0
    assert bucket.wait_ms(1, NOW) == 120_600
    assert bucket.wait_ms(100, NOW + 3 * MINUTE_MS) == 0


def test_clock_that_goes_back_lets_nothing_out_and_stops_nothing_for_long() -> None:
    bucket = Bucket(60, NOW)
    bucket.use(60, NOW)
    assert bucket.wait_ms(1, NOW - 1_000_000) == 1000
    assert bucket.wait_ms(1, NOW - 1_000_000 + 1000) == 0


@given(st.integers(1, 50), st.lists(st.tuples(st.integers(0, 20_000), st.integers(1, 60)), max_size=60))
def test_never_more_than_limit_times_minutes_plus_one_goes_through(
    limit: int, calls: list[tuple[int, int]]
) -> None:
    bucket, now, taken = Bucket(limit, NOW), NOW, []
    for passed, wanted in calls:
        now += passed
        count = bucket.fitting(wanted)
        if bucket.wait_ms(count, now) == 0:
            bucket.use(count, now)
            taken.append((now, count))
    for index, (since, _) in enumerate(taken):
        for until, _ in taken[index:]:
            through = sum(count for when, count in taken if since <= when <= until)
            assert through * MINUTE_MS <= limit * (MINUTE_MS + until - since)


@given(st.integers(1, 1000), st.integers(1, 1000), st.integers(0, 100_000), st.integers(1, 1000))
def test_waiting_as_long_as_it_says_is_enough_and_a_moment_less_is_not(
    limit: int, used: int, passed: int, wanted: int
) -> None:
    bucket = Bucket(limit, NOW)
    bucket.use(used, NOW)
    count, now = bucket.fitting(wanted), NOW + passed
    wait_ms = bucket.wait_ms(count, now)
    if wait_ms:
        assert bucket.wait_ms(count, now + wait_ms - 1) == 1
        assert bucket.wait_ms(count, now + wait_ms) == 0


# --- meters ------------------------------------------------------------------


def test_spent_is_kept_for_every_period_and_falls_with_its_end() -> None:
    meter = KeyMeter()
    began = at_ms(2029, 5, 31, 23, 30)
    meter.load(Spent(1, 12, 123, 1234, 12345), began, began)
    meter.spend(1000, began + 1000)
    found = [meter.spent_micro(period, began) for period in (Period.HOUR, Period.DAY, Period.WEEK)]
    assert found == [1001, 1012, 1123]
    assert meter.spent_micro(Period.MONTH, began) == 2234
    june = began + HOUR_MS
    assert meter.spent_micro(Period.HOUR, june) == meter.spent_micro(Period.DAY, june) == 0
    assert meter.spent_micro(Period.MONTH, june) == 0
    assert meter.spent_micro(Period.WEEK, june) == 1123
    assert meter.spent_micro(Period.NONE, june) == 13345


def test_charge_taken_back_after_its_period_leaves_the_new_one_alone() -> None:
    meter = KeyMeter()
    end = at_ms(2029, 6, 1)
    meter.load(Spent(), 0, end - 1)
    meter.spend(100, end - 1)
    meter.spend(7, end + 1)
    meter.take_back(100, end - 1)
    assert meter.spent_micro(Period.MONTH, end + 1) == meter.spent_micro(Period.HOUR, end + 1) == 7
    assert meter.spent_micro(Period.NONE, end + 1) == 7


def test_limits_set_while_calls_run_know_of_them() -> None:
    book = AccountBook()
    book.load("a", 1000, 0)
    key = make_key()
    first = book.reserve(key, 300, 300, NOW)
    assert isinstance(first, Reservation)
    key.limits = KeyLimits(budget_micro=500)
    assert book.reserve(key, 201, 201, NOW) is Refused.HELD_BY_KEY
    assert isinstance(book.reserve(key, 200, 200, NOW), Reservation)
    key.limits = KeyLimits(budget_micro=100)
    assert book.extend(first, 400, NOW) == 300
    assert book.settle(first, 300, NOW).total_micro == 300
    assert book.reserve(key, 1, 1, NOW) is Refused.OVER_BUDGET


def test_budget_that_begins_anew_lets_the_next_call_through() -> None:
    book = AccountBook()
    book.load("a", 1000, 0)
    key = make_key(budget_micro=100, period=Period.DAY)
    held = book.reserve(key, 100, 100, NOW)
    assert isinstance(held, Reservation)
    book.settle(held, 60, NOW)
    assert book.reserve(key, 41, 41, NOW) is Refused.OVER_BUDGET
    tomorrow = period_end_ms(Period.DAY, NOW)
    assert tomorrow is not None
    assert book.reserve(key, 41, 41, tomorrow - 1) is Refused.OVER_BUDGET
    assert isinstance(book.reserve(key, 100, 100, tomorrow), Reservation)


def test_call_in_flight_over_the_boundary_is_charged_to_the_period_of_its_end() -> None:
    book = AccountBook()
    book.load("a", 1000, 0)
    key = make_key(budget_micro=100, period=Period.HOUR)
    held = book.reserve(key, 70, 70, NOW)
    assert isinstance(held, Reservation)
    later = NOW + HOUR_MS
    assert book.reserve(key, 31, 31, later) is Refused.HELD_BY_KEY
    book.settle(held, 70, later)
    assert book.reserve(key, 31, 31, later) is Refused.OVER_BUDGET
    assert isinstance(book.reserve(key, 30, 30, later), Reservation)


def test_stream_is_extended_within_account_and_budget_whichever_is_less() -> None:
    book = AccountBook()
    account = book.load("a", 1000, 0)
    key = make_key(budget_micro=100)
    held = book.reserve(key, 500, 10, NOW)
    assert isinstance(held, Reservation)
    assert held.amount_micro == 10
    assert book.extend(held, 60, NOW) == 60
    assert book.extend(held, 500, NOW) == 100
    book.undo_vault("a", 0)
    account.granted_micro = 120
    key.limits = KeyLimits(budget_micro=1000)
    assert book.extend(held, 500, NOW) == 120


def test_tokens_are_held_by_the_bound_and_corrected_by_the_usage() -> None:
    book = AccountBook()
    book.load("a", 1000, 0)
    key = make_key(tokens_per_minute=1000)
    first = book.reserve(key, 1, 1, NOW, 700)
    assert isinstance(first, Reservation)
    assert book.reserve(key, 1, 1, NOW, 301) is Refused.OVER_TOKENS
    book.settle(first, 1, NOW, 20)
    second = book.reserve(key, 1, 1, NOW, 980)
    assert isinstance(second, Reservation)
    book.release(second)
    third = book.reserve(key, 1, 1, NOW, 980)
    assert isinstance(third, Reservation)
    book.settle(third, 1, NOW)
    assert book.reserve(key, 1, 1, NOW, 1) is Refused.OVER_TOKENS


def test_limit_of_tokens_that_comes_and_goes_leaves_nothing_behind() -> None:
    book = AccountBook()
    book.load("a", 1000, 0)
    key = make_key(tokens_per_minute=100)
    held = book.reserve(key, 1, 1, NOW, 60)
    assert isinstance(held, Reservation)
    key.meter.fit(None, NOW)
    key.meter.fit(KeyLimits(tokens_per_minute=100), NOW)
    book.settle(held, 1, NOW, 5)
    assert key.meter.tokens is not None
    assert key.meter.tokens.left_floor(NOW) == 100


# --- admission ---------------------------------------------------------------


def test_call_is_barred_for_each_limit_and_counted_only_when_it_begins() -> None:
    key = make_key(models=("llama*", "bge"), requests_per_minute=2, parallel_calls=1, tokens_per_minute=10)
    limits, meter = key.limits, key.meter
    assert limits is not None
    assert meter.requests is not None
    assert meter.tokens is not None
    assert admit(limits, meter, "gpt", NOW) is Barred.MODEL
    meter.calls = 1
    assert admit(limits, meter, "bge", NOW) is Barred.PARALLEL
    meter.calls = 0
    meter.tokens.use(10, NOW)
    assert admit(limits, meter, "bge", NOW) is Barred.TOKENS
    assert meter.requests.left_floor(NOW) == 2
    later = NOW + MINUTE_MS
    assert admit(limits, meter, "llama-3", later) is None
    assert admit(limits, meter, "bge", later) is None
    assert admit(limits, meter, "bge", later) is Barred.REQUESTS
    assert admit(limits, meter, "bge", later + 30_000) is None


@pytest.mark.parametrize(
    ("models", "model", "allowed"),
    [
        ((), "any", True),
        (("a",), "a", True),
        (("a",), "ab", False),
        (("a*",), "ab", True),
        (("a*",), "a", True),
        (("a*",), "ba", False),
        (("x", "*"), "anything", True),
        (("A",), "a", False),
    ],
)
def test_models_are_allowed_by_name_or_beginning(models: tuple[str, ...], model: str, allowed: bool) -> None:
    assert KeyLimits(models=models).allows(model) is allowed


@pytest.mark.parametrize(
    ("field", "limits"),
    [
        ("models", {"models": ("a*b",)}),
        ("models", {"models": ("",)}),
        ("models", {"models": ("a\n",)}),
        ("models", {"models": ("m",) * 65}),
        ("models", {"models": ("m" * 257,)}),
        ("expires_at_ms", {"expires_at_ms": 0}),
        ("requests_per_minute", {"requests_per_minute": 0}),
        ("tokens_per_minute", {"tokens_per_minute": -1}),
        ("parallel_calls", {"parallel_calls": 10**7}),
        ("budget_micro", {"budget_micro": -1}),
        ("budget_micro", {"budget_micro": 10**16}),
        ("period", {"period": Period.DAY}),
    ],
)
def test_limit_out_of_bounds_is_named(field: str, limits: dict[str, object]) -> None:
    fault = KeyLimits(**limits).find_fault()  # type: ignore[arg-type]
    assert fault is not None
    assert fault[0] == field


def test_budget_of_nothing_is_a_budget() -> None:
    assert KeyLimits(budget_micro=0).find_fault() is None
    book = AccountBook()
    book.load("a", 10, 0)
    assert book.reserve(make_key(budget_micro=0), 1, 1, NOW) is Refused.OVER_BUDGET


# --- headers -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("ms", "text"),
    [
        (0, "0s"), (17, "17ms"), (1000, "1s"), (1500, "1.5s"), (60_000, "1m0s"), (361_000, "6m1s"),
        (3_600_000, "1h0m0s"), (1001, "1.001s"),
    ],
)  # fmt: skip
def test_durations_are_written_as_openai_writes_them(ms: int, text: str) -> None:
    assert format_duration(ms) == text


def test_headers_are_there_for_the_limits_there_are() -> None:
    assert list_rate_headers(make_key(budget_micro=1).meter, NOW) == []
    meter = make_key(requests_per_minute=60, tokens_per_minute=1000).meter
    assert meter.requests is not None
    assert meter.tokens is not None
    meter.requests.use(3, NOW)
    meter.tokens.hold(250)
    assert dict(list_rate_headers(meter, NOW)) == {
        b"x-ratelimit-limit-requests": b"60",
        b"x-ratelimit-remaining-requests": b"57",
        b"x-ratelimit-reset-requests": b"3s",
        b"x-ratelimit-limit-tokens": b"1000",
        b"x-ratelimit-remaining-tokens": b"750",
        b"x-ratelimit-reset-tokens": b"15s",
    }
