"""A settler between a real chain in this process, validators and a hub behind real HTTP.

The validators and the hub say what a test puts into `attestations`, `bundles` and `requests`;
`closed` rounds are made by `round_world`, with the deployment's contracts.
"""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import trio

from emcd.accounting.round_close import ClosedRound
from emcd.accounting.round_result import decode_totals
from emcd.chain import Chain, ChainConfig, Outbox, Rpc, TxIntent, TxOutcome
from emcd.clock import ManualClock
from emcd.config import KeyFile
from emcd.keys import SigningKey
from emcd.ledger import Ledger, open_ledger
from emcd.net.http_server import serve_http
from emcd.proto.address import hex_hash
from emcd.proto.json_form import to_json
from emcd.proto.messages import Extraction, RoundRoot
from emcd.proto.network import Deployment, decode_deployment, encode_deployment
from emcd.proto.params import NetworkParams
from emcd.testing import make_context, make_key
from emcd.types import Address, ParticipantRole
from emcd_devchain.evm import EvmChain
from emcd_devchain.genesis import OfflineRpc
from emcd_devchain.store import ChainStore
from emcd_settler.config import SettlerConfig
from emcd_settler.role import SettlerRole
from emcd_settler.schema import MIGRATIONS
from tests.support.devchain import CHAIN_ID
from tests.support.network import GENESIS_S, HOLDER, LiveNetwork, deploy, empty_chain
from tests.support.round_world import World, address_of, secret_of

VALIDATORS = ("v1", "v2", "v3", "v4")
SETTLER = make_key("settler")
KEY_FILE = KeyFile(Path("settler.json"), None, "X")
WALLET = SigningKey(secret_of("wallet of node-1"))
RECIPIENT = address_of("recipient")
PATIENCE_S = 20.0

Answer = tuple[int, bytes]
Answering = Callable[[], Awaitable[Answer]]


@dataclass(frozen=True)
class Prepared:
    """A chain file with contracts and four staked validators, copied for every test."""

    file: Path
    deployment: str


async def prepare(folder: Path, params: NetworkParams | None = None) -> Prepared:
    file = folder / "prepared.sqlite"
    with empty_chain(file, SETTLER, *(make_key(name) for name in VALIDATORS)) as rpc:
        network = await deploy(rpc, params=params)
        for name in VALIDATORS:
            await network.join(name, ParticipantRole.VALIDATOR)
    return Prepared(file, encode_deployment(network.deployment))


@dataclass
class SettlerWorld:
    """What a test acts on."""

    folder: Path
    network: LiveNetwork
    ledger: Ledger
    clock: ManualClock
    port: int = 0
    attestations: dict[tuple[str, int], Answer | Answering] = field(default_factory=dict)
    bundles: dict[int, bytes] = field(default_factory=dict)
    seal: str = ""
    requests: list[dict[str, Any]] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    reports: list[dict[str, Any]] = field(default_factory=list)
    listens: bool = True

    @property
    def deployment(self) -> Deployment:
        return self.network.deployment

    @property
    def chain(self) -> Chain:
        return self.network.chain

    @property
    def params(self) -> NetworkParams:
        return self.deployment.params

    # ------------------------------------------------------------------ rounds

    def close_round(self, index: int, before: ClosedRound | None = None, **options: Any) -> ClosedRound:
        """A closed round whose bundle the hub serves."""
        world = World(
            round=index,
            params=self.params,
            staking=self.deployment.staking,
            distributor=self.deployment.distributor,
            **options,
        )
        facts: dict[str, Any] = {"totals": {}, "previous_round": -1, "previous_bundle_hash": bytes(32)}
        if before is not None:
            facts = {
                "totals": decode_totals(before.result.totals_after),
                "previous_round": before.bundle.header.round,
                "previous_bundle_hash": before.bundle_hash,
            }
        closed = world.close(facts)
        self.bundles[index] = closed.data
        return closed

    def attest(self, root: RoundRoot, *names: str, signer: SigningKey | None = None) -> None:
        """These validators serve their signature under a root."""
        for name in names or VALIDATORS:
            key = signer or make_key(name)
            signature = key.sign(self.deployment.distributor_domain, root)
            self.attestations[name, root.round] = 200, write_attestation(root, signature)

    def request(
        self, through_round: int, nonce: int = 0, *, wallet: SigningKey = WALLET, **changes: Any
    ) -> Extraction:
        """A signed extraction request that the hub lists."""
        extraction = Extraction(
            changes.pop("claimant", wallet.address),
            RECIPIENT,
            through_round,
            changes.pop("submit", True),
            nonce,
            changes.pop("deadline", GENESIS_S + 10**6),
        )
        domain = changes.pop("domain", self.deployment.distributor_domain)
        signature = changes.pop("signature", hex_hash(wallet.sign(domain, extraction)))
        self.requests.append(
            {"extraction": to_json(extraction), "signature": signature, "state": "requested"}
        )
        return extraction

    async def move_to_round(self, index: int, offset_s: int = 1) -> None:
        """The clocks of everybody, the chain's too, stand in a round."""
        at_s = self.params.round_start_ms(index) // 1000 + offset_s
        self.clock.at_ms = at_s * 1000
        rpc = self.network.rpc
        assert isinstance(rpc, OfflineRpc)
        if (await self.chain.head()).timestamp_s < at_s:
            await rpc.mine(at_s)

    # ------------------------------------------------------------------ the settler

    @asynccontextmanager
    async def running(
        self,
        name: str = "settler",
        *,
        rpc: Rpc | None = None,
        ledger: Any = None,
        key: SigningKey = SETTLER,
        **settings: Any,
    ) -> AsyncIterator[SettlerRole]:
        """A settler at work; `publish_every_rounds` is 1."""
        role = self.make_role(name, rpc=rpc, **settings)
        await self.set_up(role, name, rpc, ledger, key)
        async with trio.open_nursery() as nursery:
            await nursery.start(role.run)
            yield role
            await role.drain()
            nursery.cancel_scope.cancel()

    def make_role(self, name: str = "settler", *, rpc: Rpc | None = None, **settings: Any) -> SettlerRole:
        options = {"publish_every_rounds": 1, "poll_s": 0.02, "peer_timeout_s": 1.0, **settings}
        hub_url = options.pop("hub_url", f"http://127.0.0.1:{self.port}")
        return SettlerRole(SettlerConfig(KEY_FILE, hub_url, **options))

    async def set_up(
        self,
        role: SettlerRole,
        name: str,
        rpc: Rpc | None = None,
        ledger: Any = None,
        key: SigningKey = SETTLER,
    ) -> None:
        config = ChainConfig(("http://127.0.0.1:1",), confirmations=1, poll_s=0.02)
        await role.setup(
            make_context(
                "settler",
                ledger or self.ledger,
                name=name,
                data_dir=self.folder,
                deployment=self.deployment,
                chain=Chain(config, self.deployment, rpc or self.network.rpc),
                keys={KEY_FILE: key},
                clock=self.clock,
            )
        )

    async def wait_for(self, condition: Callable[[], Awaitable[bool]]) -> None:
        with trio.fail_after(PATIENCE_S):
            while not await condition():
                await trio.sleep(0.02)

    async def wait_state(self, index: int, state: str) -> Any:
        """Wait until the settler's row of a round is in a state."""

        async def reached() -> bool:
            row = await self.find_row(index)
            return row is not None and row["state"] == state

        await self.wait_for(reached)
        return await self.find_row(index)

    async def find_row(self, index: int) -> Any:
        query = "SELECT * FROM settler_rounds WHERE round = ?"
        return await self.ledger.read(lambda con: con.execute(query, (index,)).fetchone())

    async def wait_request(self, state: str, nonce: int = 0) -> Any:
        async def reached() -> bool:
            rows = await self.list_requests()
            return any(row["state"] == state and int.from_bytes(row["nonce"], "big") == nonce for row in rows)

        await self.wait_for(reached)
        return next(row for row in await self.list_requests() if int.from_bytes(row["nonce"], "big") == nonce)

    async def list_requests(self) -> list[Any]:
        query = "SELECT * FROM settler_extractions"
        return await self.ledger.read(lambda con: con.execute(query).fetchall())

    async def wait_polls(self, count: int = 3) -> None:
        """Let the settler look a few more times."""
        before = sum("/extractions" in path for path in self.asked)

        async def looked() -> bool:
            return sum("/extractions" in path for path in self.asked) >= before + count

        await self.wait_for(looked)

    async def count_sent(self) -> int:
        """Transactions that the settler's key sent."""
        raw = await self.network.rpc.call("eth_getTransactionCount", SETTLER.address, "latest")
        return int(raw, 16)

    async def balance(self, account: Address = RECIPIENT) -> int:
        return await self.chain.token.fetch_balance(account)

    # ------------------------------------------------------------------ HTTP

    async def serve(self, scope: Any, receive: Any, send: Any) -> None:
        """/NAME/attestations/ROUND of the validators, /api/... of the hub."""
        path = scope["path"]
        self.asked.append(path)
        parts = path.strip("/").split("/")
        answer: Answer | Answering = (404, b"{}")
        if path == "/api/extractions/reports":
            message = await receive()
            self.reports.append(msgspec.json.decode(message["body"]))
            answer = (202 if self.listens else 403), b"{}"
        elif path == "/api/extractions":
            answer = 200, msgspec.json.encode({"extractions": self.requests})
        elif parts[:2] == ["api", "rounds"] and int(parts[2]) in self.bundles:
            answer = 200, self.bundles[int(parts[2])]
        elif len(parts) == 3 and parts[1] == "attestations":
            answer = self.attestations.get((parts[0], int(parts[2])), answer)
        if callable(answer):
            answer = await answer()
        status, body = answer
        headers = [(b"content-length", str(len(body)).encode())]
        if parts[-1] == "bundle":
            headers.append((b"x-emc-bundle-seal", self.seal.encode()))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


class LyingOutbox:
    """An outbox that never sends what stands under some keys, and says that it failed."""

    def __init__(self, outbox: Outbox, lies: Mapping[str, TxOutcome]) -> None:
        self._outbox = outbox
        self._lies = lies
        self.address = outbox.address

    async def submit(self, intent: TxIntent) -> None:
        if intent.key not in self._lies:
            await self._outbox.submit(intent)

    async def find(self, key: str) -> TxOutcome | None:
        return self._lies[key] if key in self._lies else await self._outbox.find(key)


def write_attestation(root: RoundRoot, signature: bytes) -> bytes:
    return msgspec.json.encode({"round_root": to_json(root), "signature": hex_hash(signature)})


@asynccontextmanager
async def settler_world(prepared: Prepared, folder: Path) -> AsyncIterator[SettlerWorld]:
    """A copy of the prepared chain, a ledger, and a server for validators and hub."""
    file = folder / "chain.sqlite"
    shutil.copy(prepared.file, file)
    store = ChainStore(file, CHAIN_ID)
    rpc = OfflineRpc(EvmChain(store, CHAIN_ID))
    deployment = decode_deployment(prepared.deployment)
    chain = Chain(ChainConfig(("http://127.0.0.1:1",), confirmations=1, poll_s=0.02), deployment, rpc)
    try:
        async with (
            open_ledger(folder / "ledger.db", {"settler": MIGRATIONS}) as ledger,
            trio.open_nursery() as nursery,
        ):
            world = SettlerWorld(folder, LiveNetwork(chain, deployment, rpc), ledger, ManualClock())
            world.port = await nursery.start(partial(serve_http, world.serve, host="127.0.0.1", port=0))
            for name in VALIDATORS:
                url = f"http://127.0.0.1:{world.port}/{name}"
                await world.network.send(
                    HOLDER, chain.staking.submit_set_endpoint(make_key(name).address, url)
                )
            yield world
            nursery.cancel_scope.cancel()
    finally:
        store.close()
