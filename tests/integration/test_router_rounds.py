"""A round whose calls went through a router: its bundle names the router, and its audit agrees."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import trio

from emcd.accounting.audit import audit_bundle
from emcd.accounting.expectation import Expectation
from emcd.ledger import open_ledger
from emcd.net.http_client import request
from emcd.proto.address import parse_hash
from emcd.proto.bundle_codec import decode_bundle
from emcd.proto.openai import Endpoint
from emcd.proto.records import parse_call_id
from emcd.types import ZERO_ADDRESS
from emcd_node.schema import MIGRATIONS
from emcd_router.config import HubRef
from tests.support.hub_rounds import StubChain, quick_deployment, running_validators
from tests.support.hub_world import HUB_KEY, MODEL, HubWorld, node_key, post, running_world
from tests.support.made_node import running_made_node
from tests.support.router_world import ROUTER_KEYS, start_router


async def fetch_bundle(world: HubWorld, index: int) -> tuple[bytes, bytes]:
    """Bundle and hash of a round, once it is closed."""
    with trio.fail_after(30):
        while True:
            answer = await request(
                "GET", f"{world.url}/api/rounds/{index}/bundle", timeout_s=10, max_bytes=1 << 26
            )
            if answer.status == 200:
                return answer.body, parse_hash(answer.headers["x-emc-bundle-hash"])
            await trio.sleep(0.05)


async def test_bundle_of_a_round_with_a_router_audits_clean_and_names_it(tmp_path: Path) -> None:
    deployment = quick_deployment(2)
    params, chain, router_key = deployment.params, StubChain(deployment), ROUTER_KEYS[0]
    routed, direct = node_key(0), node_key(1)
    chain.nodes = [routed.address, direct.address]
    settings: dict[str, Any] = {
        "collect_poll_s": 0.1, "registry_poll_s": 0.2, "admit": "staked", "allowed_nodes": (),
        "allowed_routers": (router_key.address,),
    }  # fmt: skip
    async with (
        running_validators(chain),
        running_world(tmp_path, deployment=deployment, chain=chain, **settings) as world,
        open_ledger(tmp_path / "nodes.db", {"node": MIGRATIONS}) as ledger,
        trio.open_nursery() as nursery,
    ):
        port = world.role.ports["tunnel"]
        router = await start_router(
            nursery, ledger, router_key, HubRef(f"ws://127.0.0.1:{port}", HUB_KEY.address)
        )
        await world.until(lambda: world.plane.routers.list_sessions())
        async with (
            running_made_node(ledger, routed, [router.way], status_interval_s=0.2),
            running_made_node(ledger, direct, direct_port=port, status_interval_s=0.2),
        ):
            await world.until(lambda: len(world.plane.board.candidates(Endpoint.EMBEDDINGS, MODEL)) == 2)
            index = params.round_at(chain.clock.now_ms()) + 1
            while params.round_at(chain.clock.now_ms()) < index:
                await trio.sleep(0.02)
            through = {}
            for node, expected in ((routed, router_key.address), (direct, ZERO_ADDRESS)):
                answer = await post(
                    world, {"model": MODEL, "input": "hi", "provider": {"only": [node.address]}}
                )
                assert answer.status == 200
                through[parse_call_id(answer.headers["x-emc-call-id"])] = expected
            data, bundle_hash = await fetch_bundle(world, index)
            validators = await chain.fetch_validator_set(0, at=await chain.head())
        nursery.cancel_scope.cancel()
    expected_round = Expectation(
        bundle_hash=bundle_hash, round=index, hub=HUB_KEY.address, chain_id=deployment.chain_id,
        staking=deployment.staking, distributor=deployment.distributor, params=params,
        prices=(deployment.prices,), validators=validators,
    )  # fmt: skip
    outcome = audit_bundle(data, expected_round)
    assert outcome.ok, outcome.difference
    calls = {call.forward.call_id: call for call in decode_bundle(data).calls}
    assert {call_id: calls[call_id].forward.router for call_id in through} == through
    assert all(calls[call_id].receipt_ref is not None for call_id in through)
