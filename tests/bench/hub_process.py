"""A hub and its nodes as processes of their own, each on a core of its own choosing.

The hub is whole: keys, budgets, receipts and durable records are on. One node has its engine in its
own process and computes nothing, so that the hub is what is measured; the other is the role `node` as
operators run it, with an engine behind HTTP. They serve models of different names.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import structlog
import trio

from emcd.clock import SystemClock
from emcd.config import KeyFile, Listen
from emcd.daemon.garbage import calm_collector
from emcd.daemon.life import SWITCH_INTERVAL_S
from emcd.errors import EmcdError
from emcd.inference.manifest import EngineManifest
from emcd.ledger import open_ledger
from emcd.net.tunnel import IncomingCall, TunnelLink, run_tunnel
from emcd.proto.control import CallEnd, CallMeta, ResponseHead, encode
from emcd.proto.hashing import keccak
from emcd.proto.records import Receipt
from emcd.testing import make_context, make_key, running_role
from emcd.types import Address
from emcd_node.config import ModelConfig, NodeConfig
from emcd_node.role import SPEC as NODE
from emcd_node.role import NodeRole
from emcd_router.config import HubRef, RouterConfig
from emcd_router.role import RouterRole
from tests.bench.openai_wire import (
    DONE,
    ENGINE_MODEL,
    FINISH,
    MODEL,
    PROMPT_TOKENS,
    WHOLE,
    make_chunk,
    read_wish,
    usage_event,
)
from tests.bench.process_use import Cores
from tests.support.hub_world import DEPLOYMENT, DOMAIN, HUB_KEY, StubNode, node_key, running_world

PARALLEL = 1024
GRANTED_MICRO = 10**15
START_S = 30.0
DRAIN_S = 30.0
_JSON_HEAD = encode(ResponseHead(200, "application/json"))
_STREAM_HEAD = encode(ResponseHead(200, "text/event-stream"))
_WHOLE_HASH = keccak(WHOLE)
_KEY_FILE = KeyFile(Path("key.json"))
_ROUTER_KEY = make_key("router")


@dataclass
class NullNode(StubNode):
    """A node on a real tunnel whose engine does nothing; its receipts are signed as they come.

    `peer` is who the tunnel leads to: the hub, or a router of it.
    """

    peer: Address = HUB_KEY.address

    async def send_batch(self) -> None:
        while self.receipts:
            await super().send_batch()

    async def _tunnel(self, port: int, task_status: trio.TaskStatus[TunnelLink]) -> None:
        with suppress(EmcdError):
            await run_tunnel(
                f"ws://127.0.0.1:{port}",
                key=self.key,
                domain=DOMAIN,
                hub_address=self.peer,
                on_call=self.on_call,
                on_control=self.on_control,
                task_status=task_status,
            )

    def make_end(self, meta: CallMeta, body_hash: bytes, output_tokens: int) -> bytes:
        """The call's last word, with a receipt that the next batch signs."""
        now_ms = SystemClock().now_ms()
        receipt = Receipt(
            meta.forward.struct_hash(), body_hash, 200, PROMPT_TOKENS, output_tokens, now_ms - 1, now_ms
        )
        self.receipts.append(receipt.struct_hash())
        return encode(CallEnd(receipt))


async def null_engine(node: StubNode, call: IncomingCall, meta: CallMeta) -> None:
    """What the mock engine answers, without HTTP."""
    assert isinstance(node, NullNode)
    if not meta.stream:
        await call.answer(_JSON_HEAD, WHOLE, node.make_end(meta, _WHOLE_HASH, 8))
        return
    wish = read_wish(call.body)
    assert wish is not None
    await call.start(_STREAM_HEAD)
    body = []
    pace_s = wish.pace_ns / 1e9
    due = trio.current_time() + meta.forward.call_id[-1] / 256 * pace_s
    for _ in range(wish.chunks):
        if pace_s:
            await trio.sleep_until(due)
            due += pace_s
        body.append(make_chunk(time.monotonic_ns()))
        await call.send(body[-1])
    body.append(FINISH + usage_event(wish.chunks) + DONE)
    await call.send(body[-1])
    await call.finish(node.make_end(meta, keccak(b"".join(body)), wish.chunks))


def begin(core: int) -> None:
    """What the daemon does before its roles start, on one core and without log lines."""
    os.sched_setaffinity(0, {core})
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))


def be_ready(pipe: Connection, word: Any) -> None:
    """What the daemon does when its roles are ready; then the word goes to who started us."""
    calm_collector()
    pipe.send(word)


def run_hub(pipe: Connection, core: int, folder: str, settings: dict[str, Any]) -> None:
    """A hub until a word comes through the pipe; then it is drained."""
    begin(core)

    async def main() -> None:
        async with running_world(Path(folder), **{"granted_micro": GRANTED_MICRO, **settings}) as world:
            be_ready(pipe, (world.role.ports, world.api_key, world.account_id))
            await trio.to_thread.run_sync(pipe.recv, abandon_on_cancel=True)

    trio.run(main)


def run_null_node(
    pipe: Connection, core: int, port: int, number: int = 0, model: str = MODEL, router: Address | None = None
) -> None:
    """A node without an engine, at the hub or, where one is named, at the router of that port."""
    begin(core)

    async def main() -> None:
        node = NullNode(
            node_key(number),
            manifests=(EngineManifest(name=model),),
            capacity=PARALLEL,
            answer=null_engine,
            keep_bodies=False,
            peer=router or HUB_KEY.address,
        )
        async with trio.open_nursery() as nursery:
            await nursery.start(node.run, port)
            be_ready(pipe, True)
            await trio.sleep_forever()

    trio.run(main)


def run_router(pipe: Connection, core: int, hub_port: int) -> None:
    """A router of the hub until the process is ended."""
    begin(core)
    hubs = (HubRef(f"ws://127.0.0.1:{hub_port}", HUB_KEY.address),)
    config = RouterConfig(key=_KEY_FILE, hubs=hubs, listen=Listen("127.0.0.1", 0))

    async def main() -> None:
        with tempfile.TemporaryDirectory() as folder:
            async with open_ledger(Path(folder) / "ledger.db", {}) as ledger:
                role = RouterRole(config)
                keys = {_KEY_FILE: _ROUTER_KEY}
                context = make_context(
                    "router", ledger, deployment=DEPLOYMENT, keys=keys, clock=SystemClock()
                )
                async with running_role(role, context):
                    be_ready(pipe, (role.port, _ROUTER_KEY.address))
                    await trio.sleep_forever()

    trio.run(main)


def run_engine_node(pipe: Connection, core: int, port: int, engine_url: str) -> None:
    begin(core)
    config = NodeConfig(
        key=_KEY_FILE,
        hub_address=HUB_KEY.address,
        hub_url=f"ws://127.0.0.1:{port}",
        model=(ModelConfig("engine", ENGINE_MODEL, url=engine_url),),
        max_parallel_calls=PARALLEL,
        check_bundles=False,
    )

    async def main() -> None:
        with tempfile.TemporaryDirectory() as folder:
            async with open_ledger(Path(folder) / "ledger.db", {"node": NODE.migrations}) as ledger:
                keys = {_KEY_FILE: node_key(1)}
                context = make_context("node", ledger, deployment=DEPLOYMENT, keys=keys, clock=SystemClock())
                async with running_role(NodeRole(config), context):
                    be_ready(pipe, True)
                    await trio.sleep_forever()

    trio.run(main)


@dataclass(frozen=True)
class Apart:
    """A process of ours; `first` is what it said when it was ready."""

    process: SpawnProcess
    pipe: Connection
    first: Any

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def drain(self) -> None:
        """Give it the word, and wait until it has ended by itself."""
        self.pipe.send(True)
        self.process.join(DRAIN_S)
        if self.process.exitcode != 0:
            raise RuntimeError(f"ended with {self.process.exitcode}")


@contextmanager
def run_apart(target: Callable[..., None], *args: Any) -> Iterator[Apart]:
    """Run `target(pipe, *args)` in a new process until the block ends.

    Raises: RuntimeError when it doesn't send its first word in time.
    """
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=target, args=(theirs, *args), daemon=True)
    process.start()
    theirs.close()
    try:
        try:
            first = ours.recv() if ours.poll(START_S) else None
        except EOFError:
            first = None
        if first is None:
            raise RuntimeError(f"{target.__name__} did not start")
        yield Apart(process, ours, first)
    finally:
        process.terminate()
        process.join()
        ours.close()


def wait_online(port: int, nodes: int) -> None:
    """Until so many nodes can be called. Raises: RuntimeError when they can't in time."""
    until = time.monotonic() + START_S
    while time.monotonic() < until:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/nodes", timeout=START_S) as answer:
            if sum(bool(node["online"]) for node in json.load(answer)["nodes"]) == nodes:
                return
        time.sleep(0.02)
    raise RuntimeError(f"{nodes} nodes did not come online")


@dataclass(frozen=True)
class RunningHub:
    """A hub with its nodes connected."""

    apart: Apart
    ports: dict[str, int]
    api_key: str
    account_id: str
    nodes: tuple[int, ...]
    """Process ids: the node without an engine, then the one with."""

    @property
    def pid(self) -> int:
        return self.apart.pid


@contextmanager
def running_hub(cores: Cores, folder: Path, engine_url: str = "", **settings: Any) -> Iterator[RunningHub]:
    """A hub on a ledger in the folder, and its node without an engine; with a URL also the one that has it."""
    settings = {
        "max_calls_per_account": 4096,
        "allowed_routers": (_ROUTER_KEY.address,),
        **settings,
    }
    with ExitStack() as stack:
        hub = stack.enter_context(run_apart(run_hub, cores.gateway, str(folder), settings))
        ports, api_key, account_id = hub.first
        nodes = [stack.enter_context(run_apart(run_null_node, cores.rest, ports["tunnel"]))]
        if engine_url:
            nodes.append(
                stack.enter_context(run_apart(run_engine_node, cores.rest, ports["tunnel"], engine_url))
            )
        wait_online(ports["public"], len(nodes))
        yield RunningHub(hub, ports, api_key, account_id, tuple(node.pid for node in nodes))
