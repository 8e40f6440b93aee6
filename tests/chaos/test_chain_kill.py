"""kill -9 of a settler at every step of publishing and claiming, on anvil: one publication, one claim.

The role runs as it does in a daemon, on a ledger file and over HTTP; whatever the moment of its deaths, in
the end the round is published once, the wallet paid once, no nonce is skipped, and no intent was signed
with two contents.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import trio
from eth_account.typed_transactions import TypedTransaction
from hexbytes import HexBytes

from emcd.accounting.round_result import decode_totals
from emcd.chain import JsonRpc
from emcd.clock import ManualClock
from emcd.ledger import Connection, open_ledger
from emcd.money import encode_wei
from emcd.net.http_server import serve_http
from emcd.proto.network import encode_deployment
from emcd.proto.params import devnet_params
from emcd.testing import make_key
from emcd.types import ParticipantRole
from emcd_settler.schema import MIGRATIONS
from tests.support.anvil import Anvil, running_anvil
from tests.support.devchain import CHAIN_ID
from tests.support.network import GENESIS_S, HOLDER, deploy
from tests.support.round_world import edited
from tests.support.settler_world import RECIPIENT, SETTLER, VALIDATORS, WALLET, SettlerWorld
from tests.support.watch import TABLE, TO, list_paid

pytestmark = [pytest.mark.anvil, pytest.mark.chaos]

ROOT = Path(__file__).parents[2]
ROUND_OF = {"publish": 2, "claim": 5}
"""The round whose time it is in each phase: round 0 is closed in the one, its root is active in the other."""
MAX_LIVES = 40


class Site:
    """A prepared network on anvil, served attestations and bundle, and settlers that die."""

    def __init__(self, anvil: Anvil, world: SettlerWorld, child: trio.Process, folder: Path) -> None:
        self.anvil = anvil
        self.world = world
        self.cumulative_wei = 0
        self._child = child
        self._folder = folder
        self._numbers = count()
        self._buffer = b""

    async def new_story(self, snapshot: str) -> tuple[Path, str]:
        """The chain as prepared, and an empty folder. Returns: the folder, the next snapshot."""
        assert await self.anvil.rpc.call("evm_revert", snapshot)
        folder = self._folder / f"story-{next(self._numbers)}"
        folder.mkdir()
        return folder, await self.anvil.rpc.call("evm_snapshot")

    async def live(self, phase: str, folder: Path, **death: float) -> dict[str, Any]:
        """One life of the settler."""
        now_ms = 0
        if phase in ROUND_OF:
            now_ms = self.world.params.round_start_ms(ROUND_OF[phase]) + 1_000
            await self._move_to(now_ms // 1000)
        line = {"phase": phase, "folder": str(folder), "now_ms": now_ms, **death}
        assert self._child.stdin is not None
        await self._child.stdin.send_all(json.dumps(line).encode() + b"\n")
        return dict(json.loads(await self.read_line()))

    async def read_line(self) -> bytes:
        assert self._child.stdout is not None
        with trio.fail_after(60):
            while b"\n" not in self._buffer:
                chunk = await self._child.stdout.receive_some()
                assert chunk, "the settlers' process ended"
                self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    async def _move_to(self, time_s: int) -> None:
        head = await self.anvil.rpc.call("eth_getBlockByNumber", "latest", False)
        if int(head["timestamp"], 16) < time_s:
            await self.anvil.move_to(self.anvil.rpc, time_s)

    async def mine_what_comes(self) -> None:
        """A block for transactions that wait, and one more to confirm them."""
        rpc = JsonRpc([self.anvil.url], CHAIN_ID)
        while True:
            status = await rpc.call("txpool_status")
            if int(status["pending"], 16):
                await rpc.call("anvil_mine", "0x2")
            await trio.sleep(0.02)

    async def pay(self, *amounts: int) -> None:
        """Transfers to watch, a block each."""
        for amount in amounts:
            await self.world.network.send(HOLDER, self.world.chain.token.submit_transfer(TO, amount))

    async def list_paid(self) -> list[int]:
        """What the chain says of them."""
        token = self.world.chain.token
        wanted = {"fromBlock": "0x0", "toBlock": "latest", "address": token.address}
        logs = await self.anvil.rpc.call("eth_getLogs", wanted)
        return [int(log["data"], 16) for log in logs if log["topics"][2].endswith(TO[2:].lower())]

    async def list_applied(self, folder: Path) -> list[int]:
        """What the watcher wrote down of them."""
        async with open_ledger(folder / "ledger.db", {"test": [TABLE]}) as ledger:
            return await ledger.read(list_paid)

    async def require_paid_once(self, folder: Path) -> None:
        """The chain and the ledger agree on one publication, one fee, one claim, each signed once."""
        distributor = self.world.chain.distributor
        logs = await self.anvil.rpc.call(
            "eth_getLogs", {"fromBlock": "0x0", "toBlock": "latest", "address": distributor.address}
        )
        names = [distributor.find_event(bytes.fromhex(log["topics"][0][2:])) for log in logs]
        counts = {name: sum(e is not None and e.name == name for e in names) for name in PAID_ONCE}
        assert counts == dict.fromkeys(PAID_ONCE, 1)
        assert await self.world.balance(RECIPIENT) == self.cumulative_wei
        async with open_ledger(folder / "ledger.db", {"settler": MIGRATIONS}) as ledger:
            rows = await ledger.read(list_signed)
        nonces = {nonce for _, nonce, _, _ in rows}
        assert nonces == set(range(await self.anvil.nonce(SETTLER.address))), "a nonce was skipped"
        assert len({key for key, *_ in rows}) == len(nonces) == len(PAID_ONCE), "an intent was made twice"
        for key, nonce, to, raw in rows:
            signed = TypedTransaction.from_bytes(HexBytes(raw)).as_dict()
            same = [TypedTransaction.from_bytes(HexBytes(r)).as_dict() for k, _, _, r in rows if k == key]
            assert signed["nonce"] == nonce
            assert "0x" + bytes(signed["to"]).hex() == to.lower()
            assert len({(s["nonce"], bytes(s["to"]), bytes(s["data"]), s["value"]) for s in same}) == 1


PAID_ONCE = ("RootPublished", "Claimed", "FeePaid")


def list_signed(con: Connection) -> list[tuple[str, int, str, bytes]]:
    query = (
        "SELECT o.key, o.nonce, o.to_address, a.raw FROM chain_outbox o "
        "JOIN chain_attempts a ON a.outbox_id = o.id"
    )
    return [tuple(row) for row in con.execute(query)]


@asynccontextmanager
async def prepared_site(folder: Path) -> AsyncIterator[tuple[Site, str]]:
    """Validators staked, round 0 closed and attested, an extraction asked for. Gives a snapshot too."""
    async with (
        running_anvil(timestamp_s=GENESIS_S - 200, chain_id=CHAIN_ID) as anvil,
        trio.open_nursery() as nursery,
    ):
        for key in (HOLDER, SETTLER):
            await anvil.fund(key.address)
        params = edited(devnet_params(GENESIS_S), publish_fee_wei=encode_wei(10**18))
        network = await deploy(anvil.rpc, chain_id=CHAIN_ID, params=params)
        world = SettlerWorld(folder, network, None, ManualClock())  # type: ignore[arg-type]
        world.port = await nursery.start(partial(serve_http, world.serve, host="127.0.0.1", port=0))
        for name in VALIDATORS:
            await network.join(name, ParticipantRole.VALIDATOR)
            url = f"http://127.0.0.1:{world.port}/{name}"
            call = network.chain.staking.submit_set_endpoint(make_key(name).address, url)
            await network.send(HOLDER, call)
        closed = world.close_round(0)
        world.attest(closed.round_root)
        world.request(0)
        await anvil.hold()
        async with settlers(anvil, world, folder) as child:
            site = Site(anvil, world, child, folder)
            site.cumulative_wei = decode_totals(closed.result.totals_after)[WALLET.address]
            assert await site.read_line() == b"ready"
            nursery.start_soon(site.mine_what_comes)
            yield site, await anvil.rpc.call("evm_snapshot")
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def settlers(anvil: Anvil, world: SettlerWorld, folder: Path) -> AsyncIterator[trio.Process]:
    """The process that settlers are forked from."""
    spec = {
        "rpc_url": anvil.url,
        "hub_url": f"http://127.0.0.1:{world.port}",
        "deployment": encode_deployment(world.deployment),
    }
    (folder / "spec.json").write_text(json.dumps(spec))
    child = await trio.lowlevel.open_process(
        [sys.executable, "-m", "tests.support.chain_child", str(folder / "spec.json")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "plugins")))},
    )
    try:
        yield child
    finally:
        child.kill()
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 10):
            await child.wait()


async def tell_story(site: Site, snapshot: str, deaths: dict[str, list[dict[str, float]]]) -> tuple[str, int]:
    """Live both phases to their ends, through these deaths first. Returns: the next snapshot, the kills."""
    folder, snapshot = await site.new_story(snapshot)
    kills = 0
    for phase in ("publish", "claim"):
        for death in [*deaths[phase], *({} for _ in range(MAX_LIVES))]:
            ended = await site.live(phase, folder, **death)
            if ended["code"] == 0:
                break
            assert ended["code"] == -9, f"{phase} with {death}: exit code {ended['code']}"
            kills += 1
        else:
            raise AssertionError(f"{phase} never ends with {deaths[phase]}")
    await site.require_paid_once(folder)
    return snapshot, kills


async def count_boundaries(site: Site, snapshot: str) -> tuple[str, dict[str, int]]:
    """A story without a death."""
    folder, snapshot = await site.new_story(snapshot)
    found = {}
    for phase in ("publish", "claim"):
        ended = await site.live(phase, folder)
        assert ended["code"] == 0
        found[phase] = ended["boundaries"]
    await site.require_paid_once(folder)
    return snapshot, found


async def die_everywhere(folder: Path, stories: int, seed: int) -> int:
    """Stories whose deaths are spread over every boundary, twice each, with random ones between."""
    dice = random.Random(seed)
    kills = 0
    async with prepared_site(folder) as (site, snapshot):
        snapshot, boundaries = await count_boundaries(site, snapshot)
        assert min(boundaries.values()) > 40
        for story in range(stories):
            deaths: dict[str, list[dict[str, float]]] = {}
            for phase, last in boundaries.items():
                at = 1 + story * last // stories
                deaths[phase] = [
                    {"kill_at": at},
                    {"kill_at": 1 + dice.randrange(last)},
                    {"kill_after_s": dice.uniform(0.01, 0.6)},
                ]
            snapshot, died = await tell_story(site, snapshot, deaths)
            kills += died
    return kills


async def test_settler_killed_at_steps_of_a_round_pays_it_once(tmp_path: Path) -> None:
    assert await die_everywhere(tmp_path, stories=8, seed=7) >= 16


async def die_watching(folder: Path, step: int) -> int:
    """Payments, a death, a reorganisation that drops some of what was applied, a death, more payments.

    Returns: how many stories it took until no death was reached any more.
    """
    async with prepared_site(folder) as (site, snapshot):
        for at in count(1, step=step):
            story, snapshot = await site.new_story(snapshot)
            await site.pay(1, 2)
            ended = await site.live("watch", story, kill_at=at)
            await site.anvil.reorg(2)
            again = await site.live("watch", story, kill_at=at)
            await site.pay(4)
            assert (await site.live("watch", story))["code"] == 0
            assert await site.list_applied(story) == await site.list_paid(), f"killed at {at}"
            if ended["code"] == again["code"] == 0:
                return at // step
    raise AssertionError


async def test_watcher_killed_through_a_reorganisation_applies_each_event_once(tmp_path: Path) -> None:
    assert await die_watching(tmp_path, step=11) >= 3


@pytest.mark.deep
async def test_watcher_killed_at_every_step_applies_each_event_once(tmp_path: Path) -> None:
    assert await die_watching(tmp_path, step=1) >= 35


@pytest.mark.deep
async def test_settler_killed_at_every_step_of_a_round_pays_it_once(tmp_path: Path) -> None:
    assert await die_everywhere(tmp_path, stories=200, seed=11) >= 400
