"""Four validators through whole rounds, over real sockets, with the real model.

The hub and the chain are doubles that sign and close rounds with the real code; what they lie
about is what a test says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import trio

from emcd.inference.minilm import ModelFiles
from emcd.proto.bundle import ProbeResult
from emcd.proto.json_form import from_json
from emcd.proto.messages import RoundRoot, Verdict
from emcd.proto.signing import recover
from emcd.testing import make_key
from emcd.types import Address
from tests.support.inference_model import fp32_files, int8_files
from tests.support.validator_net import ROUND_S, Net, engine, running_net
from tests.support.validator_world import HUB, KEY_NAMES, FakeHub

__all__ = ["fp32_files", "int8_files"]


def require_attested(net: Net, name: str, index: int, page: Any) -> RoundRoot:
    root = from_json(RoundRoot, page["round_root"])
    signature = bytes.fromhex(page["signature"][2:])
    signer = recover(net.chain.deployment.distributor_domain, root, signature)
    assert signer == make_key(name).address
    assert root.round == index
    return root


def own_results(page: Any) -> set[str]:
    """The signatures of validator-1 on results."""
    mine = make_key("validator-1").address
    return {item["signature"] for item in page["results"] if item["results"]["validator"] == mine}


async def test_validators_judge_convict_and_attest_a_round(
    tmp_path: Path, nursery: trio.Nursery, fp32_files: ModelFiles, int8_files: ModelFiles
) -> None:
    honest, cheat = await engine(nursery, fp32_files), await engine(nursery, int8_files)
    async with running_net(tmp_path, [honest, cheat, honest]) as net:
        net.hub.nodes[2].online = False
        index = await net.find_round(lambda closed: bool(closed.result.strikes))
        closed, roots = net.hub.closed[index], set()
        for name in KEY_NAMES:
            _, page = await net.wait_decision(name, index)
            roots.add(require_attested(net, name, index, page).bundle_hash)
        assert roots == {closed.bundle_hash}
        assert not closed.left_out
        probes = [probe for entry in closed.bundle.reveals for probe in entry.probes]
        first, second, third = (node.key.address for node in net.hub.nodes)
        assert judged(probes, first) <= {Verdict.PASS}
        assert judged(probes, second) == {Verdict.GROSS}
        assert judged(probes, third) <= {Verdict.OFFLINE}
        assert {strike.node for strike in closed.result.strikes} == {second}
        reasons = {row.node: row.reason for row in closed.bundle.results}
        assert reasons[second] == "verdict"
        assert reasons[third] == "offline"
        assert all(reasons[make_key(name).address] == "" for name in KEY_NAMES)


def judged(probes: Sequence[ProbeResult], node: Address) -> set[Verdict]:
    """What was said of a node; a busy machine may answer some probe too late, which is nobody's cheating."""
    return {Verdict(probe.verdict) for probe in probes if probe.node == node} - {Verdict.ERROR}


async def test_hub_that_shows_one_validator_another_bundle_is_found_by_all(
    tmp_path: Path, nursery: trio.Nursery, fp32_files: ModelFiles, int8_files: ModelFiles
) -> None:
    cheat = await engine(nursery, int8_files)

    def lie(hub: FakeHub) -> None:
        hub.other_evidence = lambda index, evidence: replace(evidence, votes=())

    async with running_net(tmp_path, [cheat], prepare=lie, urls={"validator-4": "/alt"}) as net:
        status, page = await net.wait_decision("validator-4", net.index)
        assert status == 404
        assert page["code"] in ("EMC-1822", "EMC-1808"), page  # its own audit, or a peer's seal came first
        for name in KEY_NAMES[:3]:
            status, page = await net.wait_decision(name, net.index)
            # whoever hears of the other seal before it decided knows that the hub lies
            assert status == 200 or page["code"] == "EMC-1808", page
        with trio.fail_after(ROUND_S * 4):
            while len((await net.fetch("validator-1", f"/seals/{net.index}"))[1]["seals"]) < 2:
                await trio.sleep(0.1)
        epoch = net.chain.deployment.params.epoch_of(net.index)
        orders = [await net.wait_orders(name, epoch) for name in KEY_NAMES]
        assert all(found == orders[0] for found in orders)
        assert [(order.node, order.bps, order.epoch) for order in orders[0]] == [(HUB.address, 5_000, epoch)]


async def test_validator_killed_again_and_again_signs_once_and_attests(
    tmp_path: Path, nursery: trio.Nursery, fp32_files: ModelFiles
) -> None:
    honest = await engine(nursery, fp32_files)
    async with running_net(tmp_path, [honest] * 3) as net:
        params, victim = net.chain.deployment.params, net.validators["validator-1"]
        start_ms, end_ms = params.round_start_ms(net.index), params.round_end_ms(net.index)
        grace_end_ms = params.grace_end_ms(net.index)
        commitment = await net.fetch("validator-1", f"/commitments/{net.index}")
        results_ms, reveal_ms = end_ms + ROUND_S * 150, end_ms + ROUND_S * 220
        for at_ms in (start_ms + 900, start_ms + 1800, end_ms + 50, results_ms, reveal_ms):
            await victim.restart_at(at_ms)
        await net.wait_until(end_ms + ROUND_S * 300)
        said = (await net.fetch("validator-2", f"/results/{net.index}"))[1]
        for at_ms in (end_ms + ROUND_S * 350, end_ms + ROUND_S * 500, grace_end_ms + 20):
            await victim.restart_at(at_ms)
        status, page = await net.fetch("validator-1", f"/results/{net.index}")
        assert own_results(said) <= own_results(page)
        assert len(own_results(page)) == 1
        assert await net.fetch("validator-1", f"/commitments/{net.index}") == commitment
        status, page = await net.wait_decision("validator-1", net.index)
        assert status == 200, page
        root = require_attested(net, "validator-1", net.index, page)
        assert root.bundle_hash == net.hub.closed[net.index].bundle_hash
        bodies = [body for _, body in net.hub.requests]
        assert len(bodies) == len(set(bodies))
        revealed = {entry.reveal.validator for entry in net.hub.closed[net.index].bundle.reveals}
        assert make_key("validator-1").address in revealed
        assert (await net.fetch("validator-2", "/offences"))[1] == {"offences": []}
