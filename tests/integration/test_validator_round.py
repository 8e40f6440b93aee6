"""Four validators through whole rounds, over real sockets, with the real model.

The hub and the chain are doubles that sign and close rounds with the real code; what they lie
about is what a test says.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import trio

from emcd.config import Listen
from emcd.inference.embedder import Embedder, EmbedResult
from emcd.inference.minilm import MINILM_MANIFEST, ModelFiles
from emcd.ledger import Ledger
from emcd.net.http_client import request
from emcd.proto.json_form import from_json
from emcd.proto.messages import RoundRoot, Slash, Verdict
from emcd.proto.signing import recover
from emcd.testing import make_key, temporary_ledger
from emcd_validator.config import ValidatorConfig
from emcd_validator.judge import Vectors
from emcd_validator.role import SPEC
from tests.support.inference_model import fp32_files, int8_files, shared_models_dir
from tests.support.validator_world import (
    HUB,
    KEY_NAMES,
    Embed,
    FakeChain,
    FakeHub,
    FakeNode,
    make_config,
    make_deployment,
    next_genesis_s,
    running_hub,
    start_validator,
)

__all__ = ["fp32_files", "int8_files"]

ROUND_S = 4


@dataclass
class Net:
    """What a test looks at."""

    chain: FakeChain
    hub: FakeHub
    ledger: Ledger
    folder: Path
    nursery: trio.Nursery
    validators: dict[str, Restartable] = field(default_factory=dict)
    index: int = 0
    """The first round to which everybody committed."""

    def endpoint(self, name: str) -> str:
        return self.chain.endpoints[make_key(name).address]

    async def wait_until(self, at_ms: int) -> None:
        await trio.sleep(max(0.0, (at_ms - self.chain.clock.now_ms()) / 1000))

    async def fetch(self, name: str, path: str) -> tuple[int, Any]:
        answer = await request("GET", self.endpoint(name) + path)
        return answer.status, answer.json()

    async def wait_orders(self, name: str, epoch: int) -> list[Slash]:
        """The orders to slash that a validator signed, as soon as there is one."""
        with trio.fail_after(ROUND_S * 4):
            while True:
                _, page = await self.fetch(name, f"/slashes/{epoch}")
                if page["slashes"]:
                    return [from_json(Slash, item["slash"]) for item in page["slashes"]]
                await trio.sleep(0.1)

    async def wait_decision(self, name: str, index: int) -> tuple[int, Any]:
        """The validator's attestation of a round, or its refusal, as served."""
        with trio.fail_after(ROUND_S * 4):
            while True:
                status, page = await self.fetch(name, f"/attestations/{index}")
                if status == 200 or page["code"] != "EMC-1801":
                    return status, page
                await trio.sleep(0.1)


async def engine(nursery: trio.Nursery, files: ModelFiles) -> Embed:
    embedder = Embedder(files, MINILM_MANIFEST)
    await nursery.start(embedder.run)

    async def embed(texts: Sequence[str]) -> tuple[Vectors, int]:
        result = await embedder.embed(texts)
        assert isinstance(result, EmbedResult)
        return tuple(map(tuple, result.vectors.tolist())), sum(result.token_counts)

    return embed


class Restartable:
    """A validator that can be killed and started anew on its ledger and port."""

    def __init__(self, net: Net, name: str, config: ValidatorConfig) -> None:
        self.net, self.name, self.config = net, name, config
        self.scope = trio.CancelScope()

    async def start(self) -> None:
        self.scope = trio.CancelScope()
        await self.net.nursery.start(self._run)

    async def _run(self, *, task_status: trio.TaskStatus[None]) -> None:
        net = self.net
        with self.scope:
            async with trio.open_nursery() as nursery:
                role = await start_validator(
                    nursery, self.config, self.name, net.ledger, net.chain, net.folder
                )
                self.config = replace(self.config, listen=Listen("127.0.0.1", role.port))
                task_status.started()

    async def restart_at(self, at_ms: int) -> None:
        await self.net.wait_until(at_ms)
        self.scope.cancel()
        await trio.sleep(0.05)
        await self.start()


@asynccontextmanager
async def running_net(
    tmp_path: Path,
    embeds: Sequence[Embed],
    *,
    prepare: Callable[[FakeHub], None] = lambda hub: None,
    urls: dict[str, str] | None = None,
) -> AsyncIterator[Net]:
    deployment = make_deployment(next_genesis_s(ROUND_S, 1.5), ROUND_S)
    nodes = [FakeNode(make_key(f"node-{i}"), embed) for i, embed in enumerate(embeds)]
    addresses = {make_key(name).address: "" for name in KEY_NAMES}
    chain = FakeChain(deployment, addresses, [node.key.address for node in nodes])
    hub = FakeHub(deployment, chain, nodes)
    prepare(hub)
    async with (
        temporary_ledger(tmp_path, {"validator": SPEC.migrations}) as ledger,
        running_hub(hub),
        trio.open_nursery() as nursery,
    ):
        net = Net(chain, hub, ledger, tmp_path, nursery)
        for name in KEY_NAMES:
            config = make_config(name, hub.url + (urls or {}).get(name, ""), tmp_path, shared_models_dir())
            net.validators[name] = Restartable(net, name, config)
            await net.validators[name].start()
        net.index = max(0, deployment.params.round_at(chain.clock.now_ms()) + 1)
        yield net
        nursery.cancel_scope.cancel()


def require_attested(net: Net, name: str, index: int, page: Any) -> RoundRoot:
    root = from_json(RoundRoot, page["round_root"])
    signature = bytes.fromhex(page["signature"][2:])
    signer = recover(net.chain.deployment.distributor_domain, root, signature)
    assert signer == make_key(name).address
    assert root.round == index
    return root


async def test_validators_judge_convict_and_attest_a_round(
    tmp_path: Path, nursery: trio.Nursery, fp32_files: ModelFiles, int8_files: ModelFiles
) -> None:
    honest, cheat = await engine(nursery, fp32_files), await engine(nursery, int8_files)
    async with running_net(tmp_path, [honest, cheat, honest]) as net:
        net.hub.nodes[2].online = False
        roots = set()
        for name in KEY_NAMES:
            status, page = await net.wait_decision(name, net.index)
            assert status == 200, page
            roots.add(require_attested(net, name, net.index, page).bundle_hash)
        closed = net.hub.closed[net.index]
        assert roots == {closed.bundle_hash}
        assert not closed.left_out
        probes = [probe for entry in closed.bundle.reveals for probe in entry.probes]
        verdicts = {(probe.node, probe.slot): Verdict(probe.verdict) for probe in probes}
        first, second, third = (node.key.address for node in net.hub.nodes)
        assert {verdicts[first, slot] for slot in (0, 1)} == {Verdict.PASS}
        assert {verdicts[second, slot] for slot in (0, 1)} == {Verdict.GROSS}
        assert {verdicts[third, slot] for slot in (0, 1)} == {Verdict.OFFLINE}
        assert [strike.node for strike in closed.result.strikes] == [second, second]
        reasons = {row.node: row.reason for row in closed.bundle.results}
        assert reasons[second] == "verdict"
        assert reasons[third] == "offline"
        assert all(reasons[make_key(name).address] == "" for name in KEY_NAMES)


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
        for at_ms in (start_ms + 900, start_ms + 1800, end_ms + 50, end_ms + 1500, grace_end_ms + 20):
            await victim.restart_at(at_ms)
        assert await net.fetch("validator-1", f"/commitments/{net.index}") == commitment
        status, page = await net.wait_decision("validator-1", net.index)
        assert status == 200, page
        root = require_attested(net, "validator-1", net.index, page)
        assert root.bundle_hash == net.hub.closed[net.index].bundle_hash
        bodies = [body for _, body in net.hub.requests]
        assert len(bodies) == len(set(bodies))
        revealed = {entry.reveal.validator for entry in net.hub.closed[net.index].bundle.reveals}
        assert make_key("validator-1").address in revealed
