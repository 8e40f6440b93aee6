"""`emcd devnet`: the whole network on this machine, for trying it and for tests."""

from __future__ import annotations

import contextlib
import shutil
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import click
import trio
from rich.console import Console

from emcd.command import emit, json_option
from emcd.errors import ConfigError
from emcd_devchain.devnet.layout import DevnetLayout, read_layout
from emcd_devchain.devnet.process import find_daemon, start_daemon, stop_daemon

DEFAULT_CONFIG = Path("conf/devnet.toml")


@click.group()
def devnet() -> None:
    """The whole network in one process on this machine, with rounds of 15 seconds.

    Folder and ports: EMCD_DEVNET_DIR (.devnet), EMCD_HUB_PORT (8420), EMCD_TUNNEL_PORT (8421),
    EMCD_RPC_PORT (8545). Everything listens on loopback only. Scripts start from devnet.json in
    that folder.
    """


_config_option = click.option(
    "--config",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    default=DEFAULT_CONFIG,
    show_default=True,
    help="What the one process runs.",
)


@devnet.command()
@_config_option
@click.option("--detach", is_flag=True, help="Leave it running and return as soon as it is ready.")
@json_option
def run(config: Path, detach: bool, as_json: bool) -> None:
    """Start the network, show every round as it happens, until Ctrl-C.

    Goes on where it was when the folder holds a devnet already.
    """
    layout = read_layout()
    console = Console(quiet=as_json)
    trio.run(_run, layout, config, console, detach)
    if detach:
        emit({"devnet": str(layout.summary), "hub_url": layout.hub_url}, "", as_json)


@devnet.command()
@_config_option
@json_option
def smoke(config: Path, as_json: bool) -> None:
    """Start the network and wait until a provider's claim is confirmed on chain.

    Prints the table of the round and compares it with the chain; exit code 0 only if all agrees.
    The network is stopped afterwards.
    """
    layout = read_layout()
    shown = trio.run(_smoke, layout, config, Console(quiet=as_json))
    emit(shown, f"claim confirmed; everything took {shown['total_seconds']} s", as_json)


@devnet.command()
@json_option
def stop(as_json: bool) -> None:
    """Stop the devnet that runs in this folder; it drains first."""
    stopped = trio.run(stop_daemon, read_layout())
    emit({"stopped": stopped}, "stopped" if stopped else "nothing was running", as_json)


@devnet.command()
@json_option
def status(as_json: bool) -> None:
    """Whether it runs, and where."""
    layout = read_layout()
    pid = find_daemon(layout)
    data = {"running": pid is not None, "pid": pid, "devnet": str(layout.summary), "hub_url": layout.hub_url}
    emit(data, f"running as process {pid}, hub at {layout.hub_url}" if pid else "not running", as_json)
    if pid is None:
        raise click.exceptions.Exit(1)


@devnet.command()
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
def reset(yes: bool, as_json: bool) -> None:
    """Remove the devnet's folder: its chain, keys and ledger. It must not run."""
    layout = read_layout()
    if find_daemon(layout) is not None:
        raise ConfigError("EMC-2231", f"the devnet in {layout.folder} runs; stop it first")
    if not layout.summary.exists():
        raise ConfigError("EMC-2235", f"{layout.folder} holds no devnet.json")
    if not yes:
        click.confirm(f"remove {layout.folder} and all in it?", abort=True, err=True)
    shutil.rmtree(layout.folder)
    emit({"removed": str(layout.folder)}, f"removed {layout.folder}", as_json)


async def _run(layout: DevnetLayout, config: Path, console: Console, detach: bool) -> None:
    async with _running(layout, config, console, keep=detach):
        if detach:
            return
        from emcd_devchain.devnet.watch import watch

        console.print("[dim]Ctrl-C stops it. Everything it told you stands in /api/rounds.[/dim]")
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(watch, layout, console, lambda: False)
                async for _ in signals:
                    console.print("stopping: what is under way is finished first")
                    nursery.cancel_scope.cancel()
                    break


async def _smoke(layout: DevnetLayout, config: Path, console: Console) -> dict[str, Any]:
    from emcd_devchain.devnet.prepare import ensure_devnet
    from emcd_devchain.devnet.smoke import prove_claim
    from emcd_devchain.devnet.watch import watch

    began = time.monotonic()
    async with _running(layout, config, console, keep=False):
        deployment = await ensure_devnet(layout, console.print)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch, layout, console, lambda: False)
            shown = await prove_claim(layout, deployment, console)
            nursery.cancel_scope.cancel()
    return {**shown, "total_seconds": round(time.monotonic() - began, 1)}


@contextlib.asynccontextmanager
async def _running(
    layout: DevnetLayout, config: Path, console: Console, *, keep: bool
) -> AsyncIterator[None]:
    """The devnet, prepared, started, provisioned; stopped at the end unless it is to be kept."""
    from emcd_devchain.devnet.prepare import daemon_variables, ensure_devnet, write_summary
    from emcd_devchain.devnet.provision import provision
    from emcd_devchain.devnet.watch import wait_until_open, wait_until_ready

    deployment = await ensure_devnet(layout, console.print)
    start_daemon(layout, config, daemon_variables(layout))
    ready = False
    try:
        console.print("starting the roles")
        await wait_until_ready(layout)
        await provision(layout, deployment)
        write_summary(layout, deployment)
        await wait_until_open(deployment, console.print)
        console.print(_welcome(layout), highlight=False)
        ready = True
        yield
    finally:
        if not (keep and ready):
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 60):
                await stop_daemon(layout)


def _welcome(layout: DevnetLayout) -> str:
    key = layout.api_key("demo").read_text().strip()
    return (
        f"\n[bold]emcd devnet is up[/bold]\n"
        f"  hub       {layout.hub_url}/v1   (OpenAI's API)\n"
        f"  api key   {key}\n"
        f"  rounds    {layout.hub_url}/api/rounds\n"
        f"  chain     {layout.rpc_url}   (JSON-RPC)\n"
        f"  scripts   {layout.summary}\n"
    )
