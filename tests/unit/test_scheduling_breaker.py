"""When a node is left alone, and how it comes back."""

from __future__ import annotations

from emcd.scheduling.breaker import FIRST_S, LONGEST_S, ROW, WINDOW, Breaker, BreakerState


def broken(now: float = 0.0) -> Breaker:
    breaker = Breaker()
    for _ in range(ROW):
        breaker.fault(now, 0.0)
    return breaker


def test_breaker_opens_by_a_row_of_faults_and_not_before() -> None:
    breaker = Breaker()
    for _ in range(ROW - 1):
        assert not breaker.fault(0.0, 0.0)
    breaker.success()
    for _ in range(ROW - 1):
        assert not breaker.fault(0.0, 0.0)
    assert breaker.state is BreakerState.CLOSED
    assert breaker.fault(0.0, 0.0)
    assert breaker.state is BreakerState.OPEN


def test_breaker_opens_when_half_of_the_last_calls_failed() -> None:
    breaker = Breaker()
    outcomes = 0
    while breaker.state is BreakerState.CLOSED:
        breaker.success() if outcomes % 2 else breaker.fault(0.0, 0.0)
        outcomes += 1
    assert outcomes == WINDOW - 1


def test_soft_faults_count_in_a_row_and_with_others_but_not_in_the_window() -> None:
    breaker = Breaker()
    for number in range(1000):
        breaker.success() if number % ROW == 0 else breaker.fault(0.0, 0.0, soft=True)
        assert breaker.state is BreakerState.CLOSED
    breaker.success()
    for number in range(ROW):
        assert breaker.state is BreakerState.CLOSED
        breaker.fault(0.0, 0.0, soft=number % 2 == 0)
    assert breaker.state is BreakerState.OPEN
    breaker.poll(FIRST_S)
    assert breaker.fault(FIRST_S, 0.0, soft=True)
    assert breaker.state is BreakerState.OPEN


def test_breaker_stays_closed_at_a_fault_in_three() -> None:
    breaker = Breaker()
    for number in range(1000):
        breaker.fault(0.0, 0.0) if number % 3 == 0 else breaker.success()
        assert breaker.state is BreakerState.CLOSED


def test_breaker_comes_back_by_one_good_call() -> None:
    breaker = broken()
    assert not breaker.poll(FIRST_S - 0.01)
    assert not breaker.success(), "a call that began before says nothing of now"
    assert breaker.poll(FIRST_S)
    assert breaker.state is BreakerState.HALF_OPEN
    assert breaker.success()
    assert breaker.state is BreakerState.CLOSED


def test_breaker_pauses_twice_as_long_each_time_up_to_the_longest() -> None:
    breaker = broken()
    now, pauses = 0.0, [breaker.reopens_at]
    for _ in range(9):
        now = breaker.reopens_at
        assert breaker.poll(now)
        assert breaker.fault(now, 0.0)
        pauses.append(breaker.reopens_at - now)
    assert pauses == [1, 2, 4, 8, 16, 32, LONGEST_S, LONGEST_S, LONGEST_S, LONGEST_S]


def test_faults_of_calls_from_before_do_not_lengthen_the_pause() -> None:
    breaker = broken()
    until = breaker.reopens_at
    for _ in range(50):
        assert not breaker.fault(0.5, 1.0)
    assert breaker.reopens_at == until


def test_jitter_lengthens_a_pause_by_a_quarter_at_most() -> None:
    breaker = Breaker()
    for _ in range(ROW):
        breaker.fault(10.0, 1.0)
    assert breaker.reopens_at == 10.0 + FIRST_S * 1.25


def test_breaker_forgets_its_past_after_a_window_of_good_calls() -> None:
    breaker = broken()
    breaker.poll(FIRST_S)
    breaker.success()
    for _ in range(WINDOW - 1):
        breaker.success()
    for _ in range(ROW):
        breaker.fault(100.0, 0.0)
    assert breaker.reopens_at == 102.0
    breaker.poll(200.0)
    breaker.success()
    for _ in range(WINDOW):
        breaker.success()
    for _ in range(ROW):
        breaker.fault(300.0, 0.0)
    assert breaker.reopens_at == 301.0
