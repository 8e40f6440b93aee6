"""A devnet in a folder and on ports of its own, driven as its users drive it: by command line and HTTP."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from emcd.inference.training.tiny import ensure_tiny
from tests.support.decoder_model import shared_tiny_dir

REPOSITORY = Path(__file__).parents[2]
CONFIG = REPOSITORY / "conf" / "devnet.toml"


def free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago, all different."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for sock in sockets:
            sock.bind(("127.0.0.1", 0))
        return [int(sock.getsockname()[1]) for sock in sockets]


class Devnet:
    """One devnet folder; `run` is `emcd devnet ...` with its environment."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not folder.exists():
            folder.mkdir(mode=0o700, parents=True)
            tiny = ensure_tiny(shared_tiny_dir(), lambda _: None)
            shutil.copytree(tiny, folder / "models" / tiny.name)
        names = ["HUB", "TUNNEL", "RPC", "ADMIN", "ROUTER", *(f"VALIDATOR_{n}" for n in range(1, 5))]
        ports = dict(zip(names, free_ports(len(names)), strict=True))
        self.environment = {
            **os.environ,
            "EMCD_DEVNET_DIR": str(folder),
            "PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'plugins'}",
            **{f"EMCD_{name}_PORT": str(port) for name, port in ports.items()},
        }

    def run(self, *arguments: str, timeout_s: float = 400.0) -> subprocess.CompletedProcess[str]:
        """Run an emcd command beside this devnet."""
        return subprocess.run(
            [sys.executable, "-m", "emcd", *arguments],
            env=self.environment,
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def start(self) -> None:
        """Start or go on, until every role is ready."""
        done = self.run("devnet", "run", "--config", str(CONFIG), "--detach")
        assert done.returncode == 0, done.stderr + self.read_log()[-4000:]

    def stop(self) -> None:
        self.run("devnet", "stop")

    @property
    def summary(self) -> dict[str, Any]:
        """devnet.json."""
        found: dict[str, Any] = json.loads((self.folder / "devnet.json").read_text())
        return found

    @property
    def pid(self) -> int:
        return int((self.folder / "emcd.pid").read_text().split()[0])

    def read_log(self) -> str:
        file = self.folder / "emcd.log"
        return file.read_text("utf-8", "replace") if file.exists() else ""
