"""A settler that dies where it is told: `python -m tests.support.settler_child SPEC`, then one life a line of stdin.

A life is a forked process (the imports are made once) that runs the real role on its ledger file, against
a real node over HTTP. Before and after every request to the node, and every write of the ledger, it counts
a boundary; at the one that the line names it is killed with SIGKILL, at once. A line may name a time
instead. The answer to a line says how the life ended, and how many boundaries it passed.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

from emcd.chain import Call, Chain, ChainConfig, JsonRpc
from emcd.chain.tx import Fees, sign_transaction
from emcd.clock import ManualClock
from emcd.config import KeyFile
from emcd.ledger import Ledger, open_ledger
from emcd.proto.network import decode_deployment
from emcd.testing import make_context, make_key
from emcd_settler.config import SettlerConfig
from emcd_settler.role import SettlerRole
from emcd_settler.schema import MIGRATIONS

KEY_FILE = KeyFile(Path("settler.json"), None, "X")
LIFE_S = 25.0
DONE = {
    "publish": "SELECT count(*) FROM settler_rounds WHERE state = 'confirmed'",
    "claim": "SELECT count(*) FROM settler_extractions, settler_rounds "
    "WHERE settler_extractions.state = 'claimed' AND is_active = 1",
}
"""When a life's work is done: its query counts something, and nothing of the outbox is open."""
OPEN = "SELECT count(*) FROM chain_outbox WHERE state NOT IN ('confirmed', 'failed', 'replaced')"


@dataclass(frozen=True)
class Life:
    """One line of stdin."""

    phase: str
    folder: str
    now_ms: int
    kill_at: int = 0
    kill_after_s: float = 0.0


class Boundaries:
    """Counts, and dies at one of them."""

    def __init__(self, kill_at: int, tally: Path) -> None:
        self._left = kill_at
        self._passed = 0
        self._tally = tally

    def cross(self) -> None:
        self._passed += 1
        self._left -= 1
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def note(self) -> None:
        self._tally.write_text(str(self._passed))

    def around(self, function: Any) -> Any:
        async def call(*args: Any, **kwargs: Any) -> Any:
            self.cross()
            result = await function(*args, **kwargs)
            self.cross()
            return result

        return call


async def live(life: Life, spec: dict[str, Any], boundaries: Boundaries) -> None:
    """Run the role until the phase's work is done."""
    deployment = decode_deployment(spec["deployment"])
    rpc: Any = JsonRpc([spec["rpc_url"]], deployment.chain_id, timeout_s=5)
    rpc.call = boundaries.around(rpc.call)
    config = SettlerConfig(KEY_FILE, spec["hub_url"], publish_every_rounds=1, poll_s=0.05, peer_timeout_s=2.0)
    async with open_ledger(Path(life.folder) / "ledger.db", {"settler": MIGRATIONS}) as ledger:
        dying: Any = ledger
        dying.write = boundaries.around(ledger.write)
        chain = Chain(ChainConfig((spec["rpc_url"],), confirmations=2, poll_s=0.03), deployment, rpc)
        role = SettlerRole(config)
        context = make_context(
            "settler",
            ledger,
            data_dir=Path(life.folder),
            deployment=deployment,
            chain=chain,
            keys={KEY_FILE: make_key("settler")},
            clock=ManualClock(life.now_ms),
        )
        await role.setup(context)
        async with trio.open_nursery() as nursery:
            await nursery.start(role.run)
            with trio.fail_after(LIFE_S):
                while not await is_done(ledger, life.phase):
                    await trio.sleep(0.02)
            nursery.cancel_scope.cancel()
    boundaries.note()


async def is_done(ledger: Ledger, phase: str) -> bool:
    done, still = await ledger.read(
        lambda con: (con.execute(DONE[phase]).fetchone()[0], con.execute(OPEN).fetchone()[0])
    )
    return bool(done) and not still


def run_life(life: Life, spec: dict[str, Any]) -> dict[str, Any]:
    """Fork, wait, and say how it ended."""
    tally = Path(life.folder) / "boundaries"
    tally.unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        status = 1
        said = os.open(Path(life.folder) / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(said, 1)
        os.dup2(said, 2)
        try:
            trio.run(live, life, spec, Boundaries(life.kill_at, tally))
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    if life.kill_after_s:
        time.sleep(life.kill_after_s)
        os.kill(child, signal.SIGKILL)
    _, ended = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(ended)
    return {"code": code, "boundaries": int(tally.read_text()) if tally.exists() else 0}


def main() -> None:
    spec = json.loads(Path(sys.argv[1]).read_bytes())
    sign_transaction(make_key("warm"), 1, 0, Call(None, b""), 21_000, Fees(1, 1))  # loads what signs, once
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for line in sys.stdin:
        sys.stdout.write(json.dumps(run_life(Life(**json.loads(line)), spec)) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
