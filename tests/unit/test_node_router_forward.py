"""A node countersigns the router only where the call came through it."""

from __future__ import annotations

import pytest

from emcd.clock import SystemClock
from emcd.errors import RemoteProtocolError
from emcd.proto.control import encode
from emcd.testing import make_key
from emcd.types import ZERO_ADDRESS
from emcd_node.call_server import CallServer
from tests.support.node_network import HUB_KEY, NODE_KEY, make_meta

ROUTER, OTHER = make_key("router").address, make_key("other").address


class Call:
    """A call that must not be answered."""

    body = b"{}"

    def __init__(self, router: str) -> None:
        self.meta = encode(make_meta(self.body, router=router))


class NoReceipts:
    def claim_call(self, call_id: bytes) -> None:
        raise AssertionError("the call was taken")


def make_server() -> CallServer:
    return CallServer(
        node=NODE_KEY.address,
        hub=HUB_KEY.address,
        models={},
        receipts=NoReceipts(),  # type: ignore[arg-type]
        clock=SystemClock(),
        max_parallel_calls=1,
        call_timeout_s=1,
    )


@pytest.mark.parametrize(
    ("named", "came_through"),
    [(OTHER, ROUTER), (ZERO_ADDRESS, ROUTER), (ROUTER, ZERO_ADDRESS)],
    ids=["another router", "none, through a router", "a router, from the hub"],
)
async def test_forward_that_names_another_router_than_its_peer_is_refused(
    named: str, came_through: str
) -> None:
    with pytest.raises(RemoteProtocolError, match="EMC-2015"):
        await make_server().serve(Call(named), came_through)  # type: ignore[arg-type]


@pytest.mark.parametrize("router", [ROUTER, ZERO_ADDRESS])
async def test_forward_that_names_the_peer_is_taken(router: str) -> None:
    with pytest.raises(AssertionError, match="the call was taken"):
        await make_server().serve(Call(router), router)  # type: ignore[arg-type]
