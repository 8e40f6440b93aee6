"""The failure limiter: buckets fill, refill, and never grow beyond their bound."""

from __future__ import annotations

from emcd.net.ratelimit import FailureLimiter, source_key


def test_limiter_failures_up_to_the_bound_then_refuses() -> None:
    limiter = FailureLimiter(failures=3, window_s=60)
    for _ in range(3):
        assert limiter.check_allowed("1.2.3.4", 0)
        limiter.add_failure("1.2.3.4", 0)
    assert not limiter.check_allowed("1.2.3.4", 0)
    assert limiter.check_allowed("1.2.3.5", 0)


def test_limiter_after_its_window_allows_again() -> None:
    limiter = FailureLimiter(failures=3, window_s=60)
    for _ in range(9):
        limiter.add_failure("1.2.3.4", 0)
    assert not limiter.check_allowed("1.2.3.4", 19)
    assert limiter.check_allowed("1.2.3.4", 20)
    assert limiter.check_allowed("1.2.3.4", 61)
    assert len(limiter) == 0


def test_limiter_without_failures_keeps_nothing() -> None:
    limiter = FailureLimiter()
    for number in range(1000):
        assert limiter.check_allowed(f"10.0.{number // 256}.{number % 256}", 0)
    assert len(limiter) == 0


def test_limiter_many_sources_stays_bounded() -> None:
    limiter = FailureLimiter(failures=1, sources=100)
    for number in range(1000):
        limiter.add_failure(f"10.0.{number // 256}.{number % 256}", 0)
    assert len(limiter) == 100
    assert not limiter.check_allowed("10.0.3.231", 0)
    assert limiter.check_allowed("10.0.0.0", 0)


def test_source_key_ipv6_is_its_network() -> None:
    assert source_key("2001:db8:1:2:3::4") == source_key("2001:db8:1:2:ffff::9") == "2001:db8:1:2::/64"
    assert source_key("fe80::1%eth0") == "fe80::/64"
    assert source_key("::ffff:10.0.0.1") == source_key("10.0.0.1")
    assert len(source_key("x" * 1000)) == 64
