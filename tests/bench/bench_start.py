"""How long the hub takes from its command line to ready, and what it then holds in memory.

The yardstick in the same run is a bare interpreter that imports trio, msgspec and coincurve.

    PYTHONPATH=.:plugins python -m tests.bench.bench_start [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any

import trio

from emcd_devchain.devnet.layout import read_layout
from emcd_devchain.devnet.prepare import daemon_variables, ensure_devnet
from tests.support.devnet import CONFIG, Devnet

YARDSTICK = "import trio, msgspec, coincurve"


def measure(passes: int = 3) -> dict[str, Any]:
    """Best of several starts on an existing ledger; the first start, which makes it, is not counted."""
    with tempfile.TemporaryDirectory() as folder:
        devnet = Devnet(Path(folder) / "devnet")
        layout = read_layout(devnet.environment)
        trio.run(ensure_devnet, layout, lambda _text: None)
        environment = {**devnet.environment, **daemon_variables(layout)}
        chain = _start(environment, _write_chain_config(Path(folder)))
        try:
            starts = [
                _measure_start(environment, _write_hub_config(Path(folder)), layout.hub_url)
                for _ in range(passes + 1)
            ][1:]
        finally:
            chain.terminate()
            chain.wait()
    bare = min(_measure_bare() for _ in range(passes))
    best = min(row["seconds"] for row in starts)
    return {
        "start_s": round(best, 2),
        "ratio_to_bare_imports": round(best / bare, 1),
        "idle_mb": max(row["idle_mb"] for row in starts),
    }


def _tables() -> dict[str, str]:
    """The parts of the devnet's config: its top, and each role by its kind (the first of it)."""
    top, *roles = CONFIG.read_text().split("[[role]]\n")
    parts = {"top": top}
    for role in roles:
        parts.setdefault(role.split('"')[1], "[[role]]\n" + role)
    return parts


def _write_chain_config(folder: Path) -> Path:
    """The chain in a daemon and a data directory of its own, on the devnet's chain file."""
    file, data = folder / "chain.toml", folder / "chain"
    data.mkdir()
    role = _tables()["devchain"].replace('"devchain.sqlite"', f'"{folder}/devnet/devchain.sqlite"')
    file.write_text(f'[daemon]\ndata_dir = "{data}"\n{role}\nchain_id = 31337\n')
    return file


def _write_hub_config(folder: Path) -> Path:
    file = folder / "hub.toml"
    file.write_text(_tables()["top"] + _tables()["hub"])
    return file


def _start(environment: dict[str, str], config: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "emcd", "--config", str(config)],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def _measure_start(environment: dict[str, str], config: Path, hub_url: str) -> dict[str, float]:
    began = time.perf_counter()
    process = _start(environment, config)
    try:
        while process.poll() is None and time.perf_counter() - began < 30:
            with suppress(OSError):
                urllib.request.urlopen(f"{hub_url}/readyz", timeout=1)
                break
            time.sleep(0.01)
        seconds = time.perf_counter() - began
        time.sleep(2)
        status = Path(f"/proc/{process.pid}/status").read_text()
        kib = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
    finally:
        process.terminate()
        process.wait()
    return {"seconds": seconds, "idle_mb": round(kib / 1024, 1)}


def _measure_bare() -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", YARDSTICK], check=True, env=dict(os.environ))
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    results = measure()
    if args.json:
        print(json.dumps(results))
        return
    for name, value in results.items():
        print(f"{name:24} {value}")


if __name__ == "__main__":
    main()
