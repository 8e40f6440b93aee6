"""Hub, a real node and an engine over real sockets: the whole way of a call, for clients as they come."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import openai
import trio

from emcd.clock import SystemClock
from emcd.config import KeyFile
from emcd.ledger import open_ledger
from emcd.net.http_client import Response, request
from emcd.net.http_stream import stream
from emcd.proto.openai import ENDPOINT_WORDS
from emcd.proto.records import CallStatus, Delivery, Receipt
from emcd.testing import make_context, running_role
from emcd_node.config import ModelConfig, NodeConfig
from emcd_node.role import SPEC, NodeRole
from tests.support.cut_wire import CutWire
from tests.support.hub_world import DEPLOYMENT, HUB_KEY, HubWorld, node_key, running_world
from tests.support.toy_engine import MODEL, ToyEngine, toy_engine

NODE_FILE = KeyFile(Path("node.json"))


@dataclass
class Row:
    """A call as the hub recorded it."""

    status: CallStatus
    delivery: Delivery
    receipt: Receipt | None


@dataclass
class OpenAIWorld:
    """A network of one node with one engine; `wire` is between node and hub, and can be cut."""

    hub: HubWorld
    node: NodeRole
    engine: ToyEngine
    wire: CutWire

    async def use(self, work: Callable[[openai.OpenAI], Any], **options: Any) -> Any:
        """Run work with a client in a thread, as a user's program would."""

        def run() -> Any:
            settings = {"api_key": self.hub.api_key, "max_retries": 0, "timeout": 10, **options}
            with openai.OpenAI(base_url=self.hub.url + "/v1", **settings) as client:
                return work(client)

        return await trio.to_thread.run_sync(run)

    async def post(self, path: str, body: Any, **headers: str) -> Response:
        """One request; a body of bytes goes as it is."""
        sent = {"authorization": f"Bearer {self.hub.api_key}"}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        given: dict[str, Any] = {"body": body} if isinstance(body, bytes) else {"json": body}
        return await request("POST", self.hub.url + path, headers=sent, timeout_s=20, **given)

    async def read(self, path: str, body: Any, **headers: str) -> tuple[int, dict[str, str], bytes]:
        """One request whose answer may be streamed."""
        sent = {"authorization": f"Bearer {self.hub.api_key}", "content-type": "application/json"}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        raw = body if isinstance(body, bytes) else msgspec.json.encode(body)
        async with stream("POST", self.hub.url + path, headers=sent, body=raw) as answer:
            received = b"".join([piece async for piece in answer])
            return answer.status, dict(answer.headers), received

    async def rows(self) -> list[Row]:
        """Every call recorded, oldest first."""
        found = await self.hub.rows("SELECT status, delivery, receipt FROM hub_calls ORDER BY call_seq")
        return [
            Row(
                CallStatus(status),
                msgspec.msgpack.decode(delivery, type=Delivery),
                None if receipt is None else msgspec.msgpack.decode(receipt, type=Receipt),
            )
            for status, delivery, receipt in found
        ]


@asynccontextmanager
async def openai_world(folder: Path, **settings: Any) -> AsyncIterator[OpenAIWorld]:
    """Everything, connected; `settings` are the hub's."""
    (folder / "node").mkdir()
    async with (
        toy_engine() as engine,
        running_world(folder, **settings) as hub,
        open_ledger(folder / "node" / "ledger.db", {"node": SPEC.migrations}) as ledger,
    ):
        words: Any = tuple(ENDPOINT_WORDS)
        model = ModelConfig("engine", MODEL, url=engine.url, endpoints=words)
        wire = CutWire(hub.role.ports["tunnel"])
        await hub.nursery.start(wire.run)
        url = f"ws://127.0.0.1:{wire.port}"
        config = NodeConfig(NODE_FILE, HUB_KEY.address, url, model=(model,), check_bundles=False)
        context = make_context(
            "node", ledger, deployment=DEPLOYMENT, clock=SystemClock(), keys={NODE_FILE: node_key(0)}
        )
        role = SPEC.build(config)
        assert isinstance(role, NodeRole)
        async with running_role(role, context):
            await hub.until(lambda: MODEL in hub.plane.board.list_models())
            yield OpenAIWorld(hub, role, engine, wire)
