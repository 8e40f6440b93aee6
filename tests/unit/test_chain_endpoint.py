"""The order in which RPC endpoints are asked."""

from __future__ import annotations

import pytest

from emcd.chain.endpoint import (
    LIE_PAUSE_S,
    MAX_LIE_PAUSE_S,
    MAX_PAUSE_S,
    VERIFY_EVERY_S,
    EndpointPool,
)


def test_order_healthy_endpoints_keep_the_configs_order() -> None:
    assert [e.url for e in EndpointPool(("a", "b", "c")).order(0.0)] == ["a", "b", "c"]


def test_order_a_failed_endpoint_goes_last_until_its_pause_is_over() -> None:
    pool = EndpointPool(("a", "b"))
    pool.failed(pool.endpoints[0], 0.0, "down")
    assert [e.url for e in pool.order(0.5)] == ["b", "a"]
    assert [e.url for e in pool.order(1.5)] == ["a", "b"]


def test_failed_pause_doubles_up_to_the_bound() -> None:
    pool = EndpointPool(("a",))
    pauses = []
    for _ in range(10):
        pool.failed(pool.endpoints[0], 100.0, "down")
        pauses.append(pool.endpoints[0].retry_at - 100.0)
    assert pauses[:3] == [1.0, 2.0, 4.0]
    assert pauses[-1] == MAX_PAUSE_S


def test_failed_endpoint_must_show_its_chain_again() -> None:
    pool = EndpointPool(("a",))
    pool.endpoints[0].checked_at = 100.0
    assert not pool.endpoints[0].needs_check(101.0)
    pool.failed(pool.endpoints[0], 101.0, "down")
    assert pool.endpoints[0].needs_check(101.0)


def test_chain_id_is_asked_again_after_a_while() -> None:
    endpoint = EndpointPool(("a",)).endpoints[0]
    assert endpoint.needs_check(0.0)
    endpoint.checked_at = 100.0
    assert not endpoint.needs_check(100.0 + VERIFY_EVERY_S)
    assert endpoint.needs_check(100.1 + VERIFY_EVERY_S)


def test_answered_forgets_the_failures() -> None:
    pool = EndpointPool(("a", "b"))
    pool.failed(pool.endpoints[0], 0.0, "down")
    pool.answered(pool.endpoints[0])
    assert [e.url for e in pool.order(0.0)] == ["a", "b"]
    assert pool.endpoints[0].last_error == ""


def test_caught_endpoint_goes_last_for_twice_as_long_each_time() -> None:
    pool = EndpointPool(("a", "b"))
    first = pool.endpoints[0]
    rests = []
    now = 0.0
    for _ in range(10):
        pool.caught(first, now, "said 7")
        rests.append(first.retry_at - now)
        now = first.retry_at + 1
    assert rests[:3] == [LIE_PAUSE_S, 2 * LIE_PAUSE_S, 4 * LIE_PAUSE_S]
    assert rests[-1] == MAX_LIE_PAUSE_S
    assert pool.problem == "a: said 7"


def test_caught_endpoint_is_believed_again_after_its_rest_only() -> None:
    pool = EndpointPool(("a", "b"))
    first = pool.endpoints[0]
    pool.caught(first, 0.0, "said 7")
    pool.answered(first)
    pool.agreed(first, LIE_PAUSE_S - 1)
    assert [e.url for e in pool.order(1.0)] == ["b", "a"]
    assert pool.problem and not pool.list_suspects(LIE_PAUSE_S - 1)
    assert pool.list_suspects(LIE_PAUSE_S) == [first]
    pool.agreed(first, LIE_PAUSE_S)
    assert pool.problem == ""


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://mainnet.example/v3/0123secret", "https://mainnet.example"),
        ("https://user:secret@node.example:8545/?key=secret", "https://node.example:8545"),
        ("http://[::1]:8545", "http://[::1]:8545"),
    ],
)
def test_shown_url_has_no_key(url: str, shown: str) -> None:
    assert EndpointPool((url,)).endpoints[0].shown == shown


def test_shown_urls_of_one_host_are_numbered() -> None:
    pool = EndpointPool(("https://one.example/a", "https://one.example/b", "https://two.example"))
    assert len({e.shown for e in pool.endpoints}) == 3


def test_pool_without_urls_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        EndpointPool(())
