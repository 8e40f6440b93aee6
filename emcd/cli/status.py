"""`emcd status`: ask a running daemon how it stands."""

from __future__ import annotations

import json
from pathlib import Path

import click
import trio

from emcd.command import CommandContext, emit, json_option, pass_command_context
from emcd.config import DaemonConfig
from emcd.daemon.status import fetch_status


@click.command()
@click.option(
    "--data-dir", type=click.Path(path_type=Path), help="The daemon's data directory, instead of a config."
)
@click.option("--metrics", is_flag=True, help="Print the daemon's metrics in Prometheus' text format.")
@json_option
@pass_command_context
@click.pass_context
def status(
    ctx: click.Context, context: CommandContext, data_dir: Path | None, metrics: bool, as_json: bool
) -> None:
    """Ask the running daemon for its roles and their health.

    Finds the daemon through the configuration (--config before the command) or --data-dir, and
    exits 1 when it is not ready or not there.
    """
    daemon = DaemonConfig(data_dir=data_dir) if data_dir else context.load_daemon()
    if metrics:
        answer = trio.run(fetch_status, daemon.status_listen, daemon.data_dir, "metrics")
        click.echo(answer.decode(), nl=False)
        return
    report = json.loads(trio.run(fetch_status, daemon.status_listen, daemon.data_dir))
    emit(report, _to_text(report), as_json)
    ctx.exit(0 if report["ready"] else 1)


def _to_text(report: dict[str, object]) -> str:
    roles = report["roles"]
    assert isinstance(roles, list)
    width = max([len(role["name"]) for role in roles], default=0)
    state = "ready" if report["ready"] else "not ready"
    lines = [f"emcd {report['version']}, process {report['pid']}, up {report['uptime_s']} s: {state}"]
    for role in roles:
        reason = f": {role['reason']}" if role["reason"] else ""
        lines.append(f"  {role['name']:<{width}}  {role['kind']:<10} {role['state']}{reason}")
    return "\n".join(lines)
