"""A whole network in one process on a fast clock: real contracts, hub, node and validators.

The chain is the embedded EVM, mined by the wall clock; everything else talks over real sockets. Rounds
take `ROUND_S` seconds and an epoch `EPOCH_ROUNDS` of them, so that a change of parameters or of a key
comes into force within half a minute.
"""

from __future__ import annotations

import math
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import trio

from emcd.chain import Chain, ChainConfig
from emcd.chain.parameters import ParameterKeeper
from emcd.clock import SystemClock
from emcd.config import KeyFile, Listen
from emcd.keys import SigningKey
from emcd.ledger import Ledger, open_ledger
from emcd.ledger.parameter_store import LedgerParameterStore
from emcd.log import get_logger
from emcd.net.http_client import Response, request
from emcd.proto.messages import Binding
from emcd.proto.network import Deployment
from emcd.proto.params import NetworkParams, devnet_params
from emcd.role import Role
from emcd.services import HealthBoard, ParametersInForce, Services
from emcd.testing import AlwaysReady, make_context, make_key
from emcd.types import ParticipantRole
from emcd_devchain.genesis import OfflineRpc
from emcd_hub.bootstrap import create_account
from emcd_hub.role import SPEC as HUB_SPEC
from emcd_hub.role import HubRole
from emcd_node.config import NodeConfig
from emcd_node.role import SPEC as NODE_SPEC
from emcd_validator.config import ValidatorConfig
from emcd_validator.role import SPEC as VALIDATOR_SPEC
from emcd_validator.role import ValidatorRole
from tests.support.hub_world import HUB_KEY, KEY_FILE, make_config
from tests.support.inference_model import shared_models_dir
from tests.support.network import HOLDER, LiveNetwork, deploy, empty_chain

ROUND_S = 5
EPOCH_ROUNDS = 2
NODE = make_key("node")
NODE_FILE = KeyFile(Path("node.json"))
VALIDATORS = ("validator-1", "validator-2", "validator-3", "validator-4")
HISTORY_S = 300


def fast_params(genesis_s: int, **changes: Any) -> NetworkParams:
    params = devnet_params(genesis_s, ROUND_S)
    fast = {"epoch_rounds": EPOCH_ROUNDS, "status_interval_ms": 300, "online_window_ms": 3_000, **changes}
    return msgspec.structs.replace(params, **fast)


def key_file(name: str) -> KeyFile:
    return KeyFile(Path(f"{name}.json"))


@dataclass
class LivingNetwork:
    """What a test acts on."""

    network: LiveNetwork
    rpc: OfflineRpc
    ledger: Ledger
    nursery: trio.Nursery
    keeper: ParameterKeeper
    services: Services
    folder: Path
    keys: dict[str, SigningKey]
    hub: HubRole = field(init=False)
    urls: dict[str, str] = field(default_factory=dict)
    """Where the validators serve."""
    api_key: str = ""

    @property
    def deployment(self) -> Deployment:
        return self.network.deployment

    @property
    def chain(self) -> Chain:
        return self.network.chain

    @property
    def params(self) -> NetworkParams:
        """The clock."""
        return self.deployment.params

    @property
    def hub_url(self) -> str:
        return f"http://127.0.0.1:{self.hub.ports['public']}"

    def now_ms(self) -> int:
        return SystemClock().now_ms()

    async def wait_until(self, at_ms: int) -> None:
        await trio.sleep(max(0.0, (at_ms - self.now_ms()) / 1000))

    async def call(self, text: str = "how much does it cost?") -> Response:
        """A user's call."""
        body = {"model": "all-MiniLM-L6-v2", "input": text}
        headers = {"authorization": f"Bearer {self.api_key}"}
        return await request(
            "POST", f"{self.hub_url}/v1/embeddings", json=body, headers=headers, timeout_s=20
        )

    async def fetch_attestation(self, name: str, index: int) -> tuple[int, Any]:
        answer = await request("GET", f"{self.urls[name]}/attestations/{index}", timeout_s=10)
        return answer.status, answer.json()

    async def wait_decision(self, name: str, index: int) -> tuple[int, Any]:
        """The attestation of a round, or the refusal that stands."""
        undecided = ("EMC-1801", "EMC-1807", "EMC-1826", "EMC-1827")
        until_ms = self.params.grace_end_ms(index) + 6 * ROUND_S * 1000
        while True:
            status, page = await self.fetch_attestation(name, index)
            if status == 200 or page["code"] not in undecided or self.now_ms() > until_ms:
                return status, page
            await trio.sleep(0.1)

    async def fetch_bundle(self, index: int) -> bytes:
        answer = await request(
            "GET", f"{self.hub_url}/api/rounds/{index}/bundle", timeout_s=20, max_bytes=64 << 20
        )
        assert answer.status == 200, answer.body[:200]
        return answer.body

    # ------------------------------------------------------------------ roles

    async def start_role(self, role: Role, kind: str, name: str, keys: dict[KeyFile, SigningKey]) -> None:
        context = make_context(
            kind,
            self.ledger,
            name=name,
            data_dir=self.folder,
            deployment=self.deployment,
            chain=self.chain,
            keys=keys,
            services=self.services,
            clock=SystemClock(),
        )
        await role.setup(context)
        await self.nursery.start(lambda task_status: role.run(task_status=task_status))

    async def start_hub(self) -> None:
        account, self.api_key = await create_account(self.ledger, "user", 10**15)
        del account
        config = make_config(
            admit="listed", allowed_nodes=(NODE.address,), collect_poll_s=0.2, registry_poll_s=1.0
        )
        self.hub = HubRole(config)
        await self.start_role(self.hub, "hub", "hub", {KEY_FILE: HUB_KEY})

    async def start_node(self) -> None:
        config = NodeConfig(
            NODE_FILE,
            HUB_KEY.address,
            f"ws://127.0.0.1:{self.hub.ports['tunnel']}",
            models_dir=shared_models_dir(),
            reconnect_max_s=0.3,
        )
        await self.start_role(NODE_SPEC.build(config), "node", "node", {NODE_FILE: NODE})

    async def start_validator(self, name: str, *more: SigningKey) -> None:
        """A validator with its key, and more of them; its endpoint is published."""
        api_keys = self.folder / "api.keys"
        if not api_keys.exists():
            api_keys.write_text(self.api_key + "\n", "utf-8")
            api_keys.chmod(0o600)
        files = {key_file(f"{name}-{number}"): key for number, key in enumerate(more, start=2)}
        config = ValidatorConfig(
            key=key_file(name),
            more_keys=tuple(files),
            listen=Listen("127.0.0.1", 0),
            hub_url=self.hub_url,
            hub_address=HUB_KEY.address,
            api_key_file=api_keys,
            corpus_leaves=400,
            models_dir=shared_models_dir(),
        )
        keys = {key_file(name): self.keys[name], **files}
        role = VALIDATOR_SPEC.build(config)
        assert isinstance(role, ValidatorRole)
        await self.start_role(role, "validator", name, keys)
        self.urls[name] = f"http://127.0.0.1:{role.port}"
        call = self.chain.staking.submit_set_endpoint(self.keys[name].address, self.urls[name])
        await self.network.send(HOLDER, call)

    # ------------------------------------------------------------------ the chain

    async def rotate_key(self, name: str, following: SigningKey) -> None:
        """The wallet puts another key in force, from the epoch after next."""
        node = self.keys[name].address
        nonce = await self.chain.staking.fetch_nonce(node) + 1
        role = int(ParticipantRole.VALIDATOR)
        binding = Binding(following.address, HOLDER.address, role, nonce, 2**40)
        signature = following.sign(self.deployment.staking_domain, binding)
        await self.network.send(HOLDER, self.chain.staking.submit_rotate_key(node, binding, signature))

    async def mine(self) -> None:
        """A block every second, whatever else is mined."""
        while True:
            head = await self.chain.head()
            now_s = int(time.time())
            if now_s > head.timestamp_s:
                await self.rpc.mine(now_s)
            await trio.sleep(0.25)


@asynccontextmanager
async def living_network(
    folder: Path, *, lead_s: float = 9.0, **changes: Any
) -> AsyncIterator[LivingNetwork]:
    """Contracts and stakes are made, the chain runs; a test starts the roles it wants."""
    genesis_s = math.ceil((time.time() + lead_s) / ROUND_S) * ROUND_S
    components = {
        "hub": HUB_SPEC.migrations, "node": NODE_SPEC.migrations, "validator": VALIDATOR_SPEC.migrations,
    }  # fmt: skip
    with empty_chain(folder / "chain.sqlite", timestamp_s=genesis_s - HISTORY_S) as rpc:
        made = await deploy(rpc, params=fast_params(genesis_s, **changes))
        config = ChainConfig(("http://127.0.0.1:1",), confirmations=1, poll_s=0.2)
        network = LiveNetwork(Chain(config, made.deployment, rpc), made.deployment, rpc)
        keys = {name: await network.join(name, ParticipantRole.VALIDATOR) for name in VALIDATORS}
        await network.join("node", ParticipantRole.COMPUTE)
        async with open_ledger(folder / "ledger.db", components) as ledger, trio.open_nursery() as nursery:
            keeper = ParameterKeeper(network.chain, LedgerParameterStore(ledger), SystemClock(), get_logger())
            services = Services()
            services.offer(HealthBoard, AlwaysReady())
            services.offer(ParametersInForce, keeper)
            living = LivingNetwork(network, rpc, ledger, nursery, keeper, services, folder, keys)
            nursery.start_soon(living.mine)
            nursery.start_soon(keeper.run)
            yield living
            nursery.cancel_scope.cancel()
