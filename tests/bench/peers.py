"""The gateways that emcd is compared with: how they are had, configured and started.

nginx as a plain proxy, the LiteLLM proxy, the Portkey gateway: each in the version named here, each
with one worker, all in front of the same engine. They are fetched once into a folder that git ignores;
what can't be had is told with its reason and left out. Nothing is started by what is installed: no
service, no install script; and they get no environment but what stands here.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from emcd.chain.contracts.compile import ToolUnavailable, find_node
from tests.bench.openai_wire import MODEL

HERE = Path(__file__).parent / "peer_lock"
CACHE = Path(__file__).parents[2] / ".bench"
LITELLM_KEY = "sk-bench-0123456789abcdef"
INSTALL_S = 540
START_S = 90
_HOME = {"HOME": str(CACHE / "home"), "PATH": os.environ.get("PATH", "")}


class Unavailable(Exception):
    """A gateway that can't be measured here, and why."""


@dataclass
class Peer:
    """A gateway that runs; `headers` is what its clients send beside the usual."""

    name: str
    version: str
    port: int
    process: subprocess.Popen[bytes]
    headers: Mapping[str, str]

    def close(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


def _run(command: Sequence[str], why: str, cwd: Path | None = None, path: str = "") -> str:
    """Raises: Unavailable with the command's last words."""
    environment = {**os.environ, "PATH": os.pathsep.join(filter(None, (path, _HOME["PATH"])))}
    try:
        done = subprocess.run(
            command,
            cwd=cwd,
            env=environment,
            check=True,
            timeout=INSTALL_S,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
    except subprocess.CalledProcessError as exc:
        raise Unavailable(f"{why}: {exc.output.strip()[-300:]}") from exc
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise Unavailable(f"{why}: {exc}") from exc
    return done.stdout


def _installed(name: str, key: bytes, install: Callable[[Path], None]) -> Path:
    """The folder of a package, complete; made anew when its lock changed or an install was cut short."""
    folder = CACHE / f"{name}-{hashlib.sha256(key).hexdigest()[:16]}"
    stamp = folder / ".complete"
    if not stamp.exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        print(f"installing {name} into {folder} ...", file=sys.stderr, flush=True)
        install(folder)
        stamp.touch()
    return folder


def find_nginx() -> str:
    """The machine's nginx, or Debian's unpacked into the cache. Raises: Unavailable."""
    found = shutil.which("nginx", path=f"{_HOME['PATH']}:/usr/sbin:/usr/local/sbin")
    if found:
        return found

    def unpack(folder: Path) -> None:
        why = "no nginx here (install it, or run apt-get update so that it can be fetched)"
        _run(["apt-get", "download", "-qq", "nginx"], why, cwd=folder)
        for package in folder.glob("nginx_*.deb"):
            _run(["dpkg", "-x", str(package), "."], why, cwd=folder)

    binary = _installed("nginx", b"debian", unpack) / "usr" / "sbin" / "nginx"
    if not binary.exists():
        raise Unavailable("the nginx package has no nginx in it")
    return str(binary)


_NGINX = """\
daemon off; master_process off; worker_processes 1;
pid {folder}/nginx.pid; error_log stderr crit;
events {{ worker_connections 8192; }}
http {{
  access_log off; keepalive_requests 100000000; keepalive_timeout 600s;
  client_body_buffer_size 1m; client_max_body_size 16m;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  upstream engine {{ server 127.0.0.1:{engine}; keepalive 1024; keepalive_requests 100000000; }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location / {{
      proxy_pass http://engine; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off;
    }}
  }}
}}
"""


def start_nginx(engine_port: int, folder: Path) -> Peer:
    """A plain proxy: no key, no limit, no record."""
    binary, port = find_nginx(), free_port()
    version = _run([binary, "-v"], "nginx does not run").strip().rpartition("/")[2]
    config = folder / "nginx.conf"
    config.write_text(_NGINX.format(folder=folder, engine=engine_port, port=port))
    return _start("nginx", version, port, [binary, "-p", str(folder), "-c", str(config)], {}, folder)


_LITELLM = """\
model_list:
  - model_name: {model}
    litellm_params:
      model: openai/{model}
      api_base: http://127.0.0.1:{engine}/v1
      api_key: none
litellm_settings:
  telemetry: false
  set_verbose: false
  num_retries: 0
  request_timeout: 600
general_settings:
  master_key: {key}
"""


def ensure_litellm() -> Path:
    """The folder of a virtual environment with LiteLLM. Raises: Unavailable."""
    lock = HERE / "litellm.lock"

    def install(target: Path) -> None:
        _run([sys.executable, "-m", "venv", str(target)], "no venv")
        pip = [
            str(target / "bin" / "python"),
            "-m",
            "pip",
            "--disable-pip-version-check",
            "--no-input",
            "install",
        ]
        flags = ["--quiet", "--no-deps", "--require-hashes", "--only-binary", ":all:"]
        _run([*pip, *flags, "-r", str(lock)], "pip can't install LiteLLM")

    return _installed("litellm", lock.read_bytes(), install)


def start_litellm(engine_port: int, folder: Path) -> Peer:
    """With its key check, without a database: it keeps no durable record of a call."""
    version = next(
        line.split("==")[1].split()[0]
        for line in (HERE / "litellm.lock").read_text().splitlines()
        if line.startswith("litellm==")
    )
    program = ensure_litellm() / "bin" / "litellm"
    config, port = folder / "litellm.yaml", free_port()
    config.write_text(_LITELLM.format(model=MODEL, engine=engine_port, key=LITELLM_KEY))
    command = [str(program), "--config", str(config), "--host", "127.0.0.1", "--port", str(port)]
    environment = {
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_MODE": "PRODUCTION",
        "LITELLM_LOG": "ERROR",
    }
    headers = {"authorization": f"Bearer {LITELLM_KEY}"}
    return _start("LiteLLM", version, port, [*command, "--num_workers", "1"], headers, folder, environment)


def start_portkey(engine_port: int, folder: Path) -> Peer:
    """As its own command starts it, without its console; it checks no key and keeps no record."""
    try:
        node, npm = find_node()
    except ToolUnavailable as exc:
        raise Unavailable(str(exc)) from exc
    lock = HERE / "portkey" / "package-lock.json"
    version = json.loads((HERE / "portkey" / "package.json").read_text())["dependencies"][
        "@portkey-ai/gateway"
    ]

    def install(target: Path) -> None:
        for name in ("package.json", "package-lock.json"):
            shutil.copy(lock.parent / name, target / name)
        flags = ["--ignore-scripts", "--omit=dev", "--no-audit", "--no-fund", "--loglevel=error"]
        _run([*npm, "ci", *flags], "npm can't install Portkey", cwd=target, path=str(Path(node[0]).parent))

    package = _installed("portkey", lock.read_bytes(), install) / "node_modules" / "@portkey-ai" / "gateway"
    port = free_port()
    command = [*node, str(package / "build" / "start-server.js"), f"--port={port}", "--headless"]
    headers = {
        "authorization": "Bearer none",
        "x-portkey-provider": "openai",
        "x-portkey-custom-host": f"http://127.0.0.1:{engine_port}/v1",
    }
    environment = {"NODE_ENV": "production"}
    return _start("Portkey", version, port, command, headers, folder, environment)


def _start(
    name: str,
    version: str,
    port: int,
    command: Sequence[str],
    headers: Mapping[str, str],
    folder: Path,
    environment: Mapping[str, str] | None = None,
) -> Peer:
    """Raises: Unavailable when nobody listens on the port in time."""
    (CACHE / "home").mkdir(parents=True, exist_ok=True)
    log = folder / f"{name}.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={**_HOME, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    until = time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < until:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.1)
        else:
            return Peer(name, version, port, process, headers)
    process.kill()
    process.wait()
    words = log.read_text("utf-8", "replace").strip()[-300:]
    raise Unavailable(f"{name} did not start: {words or 'nobody listened'}")


STARTERS: Mapping[str, Callable[[int, Path], Peer]] = {
    "nginx": start_nginx,
    "LiteLLM": start_litellm,
    "Portkey": start_portkey,
}
