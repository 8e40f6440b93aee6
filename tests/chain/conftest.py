"""Contract tests start from one prepared network, forked for each."""

from __future__ import annotations

import pytest

from tests.support.contract_network import Network, build_network


@pytest.fixture(scope="session")
def prepared_network() -> Network:
    return build_network()


@pytest.fixture
def network(prepared_network: Network) -> Network:
    """Four founding validators of equal stake, an hour before genesis."""
    return prepared_network.fork()


@pytest.fixture
def running(network: Network) -> Network:
    """The same, at the start of round 0."""
    network.to_round(0)
    return network
