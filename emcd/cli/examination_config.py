"""What `emcd doctor` looks at when it has a configuration: faults, ports, the chain."""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import trio

from emcd.cli.examination import Finding, Verdict
from emcd.config import Config, ConfigFaults, HttpListen, Listen, list_values, load_config
from emcd.daemon.prepare import Prepared, prepare
from emcd.daemon.status import fetch_status
from emcd.errors import EmcdError, RecoverableError
from emcd.registry import Registry

MAX_CLOCK_LAG_S = 30
"""Past this a receipt does not count."""
CHAIN_TIMEOUT_S = 15.0


def examine_config(file: Path) -> Iterator[Callable[[], Finding]]:
    """The checks of one configuration; without a readable one, the first finding says so."""
    try:
        registry = Registry()
        config = load_config(file, registry)
    except ConfigFaults as exc:
        message = f"{file}: {len(exc.faults)} faults"
        yield lambda: Finding("config", Verdict.BAD, message, f"emcd check {file}")
        return
    prepared, faults = prepare(config, registry, passwords_required=False)
    if faults:
        yield lambda: Finding("config", Verdict.BAD, "; ".join(map(str, faults)), f"emcd check {file}")
    else:
        yield lambda: Finding("config", Verdict.GOOD, f"{file}: {len(config.roles)} roles")
    running = is_running(config)
    for role in config.roles:
        for where, listen in list_values(role.config, Listen):
            assert isinstance(listen, Listen)
            yield partial(check_port, f"{role.name}.{where}", listen, running)
    if prepared.deployment is not None and config.chain.rpc_urls:
        yield partial(check_chain, prepared)


def is_running(config: Config) -> bool:
    """Whether a daemon of this configuration answers on its status socket."""
    if not config.daemon.status_listen:
        return False
    try:
        trio.run(fetch_status, config.daemon.status_listen, config.daemon.data_dir)
    except RecoverableError:
        return False
    return True


def check_port(where: str, listen: Listen, running: bool) -> Finding:
    """That the address can be listened on, or is ours already."""
    if isinstance(listen, HttpListen) and listen.unix is not None:
        return _check_unix(where, listen.unix, running)
    family = socket.AF_INET6 if ":" in listen.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((listen.host, listen.port))
        except OSError as exc:
            if exc.errno == errno.EADDRINUSE and running:
                return Finding("port", Verdict.GOOD, f"{where} {listen} is in use while the daemon runs")
            remedy = "stop what uses it, or choose another" if exc.errno == errno.EADDRINUSE else ""
            return Finding("port", Verdict.BAD, f"{where} {listen}: {exc.strerror}", remedy)
    return Finding("port", Verdict.GOOD, f"{where} {listen} is free")


def _check_unix(where: str, path: Path, running: bool) -> Finding:
    """That nobody answers on a unix socket, or we do; one that a killed process left is no obstacle."""
    shown = f"{where} unix:{path}"
    if not path.parent.is_dir():
        return Finding("port", Verdict.BAD, f"{shown}: there is no such folder", "make the folder")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        return Finding("port", Verdict.BAD, f"{shown}: the folder can't be written to", "allow it")
    if path.exists() and not path.is_socket():
        return Finding("port", Verdict.BAD, f"{shown}: a file that is no socket", "choose another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(os.fspath(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return Finding("port", Verdict.GOOD, f"{shown} is free")
        except OSError as exc:
            if exc.errno != errno.EAGAIN:
                return Finding("port", Verdict.BAD, f"{shown}: {exc.strerror}", "choose another path")
    if running:
        return Finding("port", Verdict.GOOD, f"{shown} is in use while the daemon runs")
    return Finding("port", Verdict.BAD, f"{shown} is in use", "stop what uses it, or choose another")


def check_chain(prepared: Prepared) -> Finding:
    """That the chain answers, is the right one, and agrees with this machine's clock."""
    try:
        chain_id, head_s, faults = trio.run(_ask_chain, prepared)
    except EmcdError as exc:
        return Finding("chain", Verdict.BAD, exc.detail, exc.remedy)
    except trio.TooSlowError:
        return Finding(
            "chain", Verdict.BAD, f"no answer within {CHAIN_TIMEOUT_S:.0f} s", "check [chain] rpc_urls"
        )
    ahead_s = head_s - time.time()
    detail = f"chain {chain_id}, newest block {-ahead_s:.0f} s old"
    if ahead_s > MAX_CLOCK_LAG_S:
        return Finding("chain", Verdict.BAD, detail, "this machine's clock is behind: run an NTP client")
    if faults:
        return Finding("chain", Verdict.WARNING, f"{detail}; {'; '.join(faults)}", "check [chain] rpc_urls")
    return Finding("chain", Verdict.GOOD if ahead_s > -600 else Verdict.WARNING, detail)


async def _ask_chain(prepared: Prepared) -> tuple[int, int, list[str]]:
    """Chain id, the newest block's time, and what is wrong with single addresses."""
    from emcd.chain import JsonRpc
    from emcd.daemon.life import make_chain

    chain = make_chain(prepared)
    assert chain is not None
    with trio.fail_after(CHAIN_TIMEOUT_S):
        await chain.require_chain()
        head = await chain.head()
    endpoints = chain.rpc.list_endpoints() if isinstance(chain.rpc, JsonRpc) else []
    faults = [endpoint.last_error for endpoint in endpoints if endpoint.last_error]
    return chain.deployment.chain_id, head.timestamp_s, faults
