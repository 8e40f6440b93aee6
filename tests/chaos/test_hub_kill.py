"""kill -9 in the middle of calls: whatever a client was told is complete stands in the ledger, and balances."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest
import trio

from emcd.ledger import Connection, open_ledger
from emcd_hub.billing.queries import find_imbalance
from emcd_hub.role import SPEC
from tests.support.hub_world import MODEL

pytestmark = pytest.mark.chaos

KILLS = 6
CLIENTS = 16
CHILD = """
import json, sys
from pathlib import Path
import trio
from tests.support.hub_world import StubNode, answer_embedding, answer_stream, chat_events, node_key, running_world

async def engine(node, call, meta):
    if meta.stream:
        await answer_stream(chat_events(["a", "b", "c"]), (7, 3))(node, call, meta)
    else:
        await answer_embedding(node, call, meta)

async def main():
    async with running_world(Path(sys.argv[1]), granted_micro=10**14) as world:
        await world.add_node(StubNode(node_key(0), answer=engine, keep_bodies=False))
        print(json.dumps({"port": world.role.ports["public"], "key": world.api_key}), flush=True)
        await trio.sleep_forever()

trio.run(main)
"""


@dataclass
class Acknowledged:
    """What clients were told is complete: call ids."""

    ids: set[str] = field(default_factory=set)


@asynccontextmanager
async def hub_process(folder: Path) -> AsyncIterator[tuple[subprocess.Popen[bytes], int, str]]:
    """A hub in a process of its own, killed without mercy at the end."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(("", ".", "plugins")), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
        cwd=Path(__file__).parents[2],
    )
    try:
        assert process.stdout is not None
        stdout = process.stdout
        with trio.fail_after(30):
            while True:
                line = await trio.to_thread.run_sync(stdout.readline, abandon_on_cancel=True)
                assert line, "the hub's process ended"
                if line.startswith(b'{"port"'):
                    break
        told = json.loads(line)
        yield process, told["port"], told["key"]
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


async def client(port: int, key: str, streams: bool, seen: Acknowledged) -> None:
    """Call for ever on one connection; note the id of every response that came whole."""
    path = "/v1/chat/completions" if streams else "/v1/embeddings"
    fields = (
        {"messages": [{"role": "user", "content": "x"}], "stream": True} if streams else {"input": "hello"}
    )
    body = msgspec.json.encode({"model": MODEL, **fields})
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\ncontent-length: {len(body)}\r\n\r\n"
    try:
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            while True:
                await stream.send_all(head.encode() + body)
                received = b""
                while not is_whole(received):
                    piece = await stream.receive_some(65536)
                    if not piece:
                        return
                    received += piece
                if received.startswith(b"HTTP/1.1 200"):
                    at = received.index(b"x-emc-call-id: ") + 15
                    seen.ids.add(received[at : at + 37].decode())
    except (OSError, trio.BrokenResourceError):
        return


def is_whole(received: bytes) -> bool:
    head, blank, body = received.partition(b"\r\n\r\n")
    if not blank:
        return False
    if b"transfer-encoding: chunked" in head:
        return body.endswith(b"0\r\n\r\n")
    at = head.index(b"content-length: ") + 16
    return len(body) >= int(head[at:].split(b"\r\n")[0])


async def test_nothing_acknowledged_is_lost_when_the_hub_is_killed(tmp_path: Path) -> None:
    draw = random.Random(7)
    seen = Acknowledged()
    for _ in range(KILLS):
        before = len(seen.ids)
        async with hub_process(tmp_path) as (process, port, key), trio.open_nursery() as nursery:
            for number in range(CLIENTS):
                nursery.start_soon(client, port, key, number % 4 == 0, seen)
            with trio.move_on_after(10):
                while len(seen.ids) == before:
                    await trio.sleep(0.01)
            await trio.sleep(draw.uniform(0.02, 0.5))
            process.send_signal(signal.SIGKILL)
            with trio.move_on_after(5):
                await trio.to_thread.run_sync(process.wait)
            nursery.cancel_scope.cancel()
        await require_kept(tmp_path, seen)
    assert len(seen.ids) > KILLS


async def require_kept(folder: Path, seen: Acknowledged) -> None:
    """Every acknowledged call has its row, the books balance, nothing stands twice."""

    def read(con: Connection) -> tuple[set[str], str | None, int]:
        rows = con.execute("SELECT call_id FROM hub_calls").fetchall()
        ids = ["call_" + bytes(row[0]).hex() for row in rows]
        return set(ids), find_imbalance(con), len(ids)

    async with open_ledger(folder / "ledger.db", {"hub": SPEC.migrations}) as ledger:
        kept, imbalance, count = await ledger.read(read)
    assert seen.ids <= kept
    assert imbalance is None
    assert count == len(kept)
