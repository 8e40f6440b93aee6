"""The order in which RPC endpoints are asked."""

from __future__ import annotations

import pytest

from emcd.chain.endpoint import MAX_PAUSE_S, EndpointPool


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
    pool.endpoints[0].verified = True
    pool.failed(pool.endpoints[0], 0.0, "down")
    assert not pool.endpoints[0].verified


def test_succeeded_forgets_the_failures() -> None:
    pool = EndpointPool(("a", "b"))
    pool.failed(pool.endpoints[0], 0.0, "down")
    pool.succeeded(pool.endpoints[0])
    assert [e.url for e in pool.order(0.0)] == ["a", "b"]


def test_pool_without_urls_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        EndpointPool(())
