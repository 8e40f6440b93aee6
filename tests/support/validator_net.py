"""Four validators over real sockets with the real model; hub and chain are doubles that sign with the real code."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
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
from emcd.proto.messages import Slash
from emcd.proto.params import ModelStanding
from emcd.testing import make_key, temporary_ledger
from emcd_validator.config import ValidatorConfig
from emcd_validator.judge_embedding import Vectors
from emcd_validator.role import SPEC, ValidatorRole
from tests.support.inference_model import shared_models_dir
from tests.support.round_world import SealedBundle
from tests.support.validator_world import (
    KEY_NAMES,
    MODEL_HASH,
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

Corrupt = Callable[[ValidatorRole], None]

ROUND_S = 8


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

    async def find_round(self, wanted: Callable[[SealedBundle], bool]) -> int:
        """The first round, of four, whose bundle all validators signed and is as wanted.

        On a busy machine a probe may come too late in a round as short as this.
        """
        for index in range(self.index, self.index + 4):
            for name in KEY_NAMES:
                status, page = await self.wait_decision(name, index)
                assert status == 200, page
            if wanted(self.hub.closed[index]):
                return index
        raise AssertionError("four rounds, and none as wanted")

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

    def __init__(self, net: Net, name: str, config: ValidatorConfig, corrupt: Corrupt) -> None:
        self.net, self.name, self.config, self.corrupt = net, name, config, corrupt
        self.scope = trio.CancelScope()

    async def start(self) -> None:
        self.scope = trio.CancelScope()
        await self.net.nursery.start(self._run)

    async def _run(self, *, task_status: trio.TaskStatus[None]) -> None:
        net = self.net
        with self.scope:
            async with trio.open_nursery() as nursery:
                role = await start_validator(
                    nursery, self.config, self.name, net.ledger, net.chain, net.folder, self.corrupt
                )
                self.role = role
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
    corrupt: Mapping[str, Corrupt] | None = None,
) -> AsyncIterator[Net]:
    """Args: `corrupt` changes a validator between its set-up and its start, by name."""
    enforced = (("0x" + MODEL_HASH.hex(), int(ModelStanding.ENFORCED)),)
    deployment = make_deployment(next_genesis_s(ROUND_S, 1.5), ROUND_S, models=enforced)
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
            change = (corrupt or {}).get(name, lambda role: None)
            net.validators[name] = Restartable(net, name, config, change)
            await net.validators[name].start()
        net.index = max(0, deployment.params.round_at(chain.clock.now_ms()) + 1)
        yield net
        nursery.cancel_scope.cancel()
