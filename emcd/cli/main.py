"""`emcd`: runs the daemon, or one of the commands that core and roles bring.

Owns the top-level group, the error output and the exit code. Invariants: `emcd --help` imports no
role; every failure prints `EMC-dddd: ...` on stderr (or one JSON object with --json) and exits
non-zero.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from emcd import __version__
from emcd.cli.summary import find_summary
from emcd.command import CommandContext
from emcd.config import Config, ConfigFaults, find_config_file, load_config
from emcd.config.fault import did_you_mean
from emcd.errors import EmcdError
from emcd.registry import Registry, list_commands, load_point


class _Commands(click.Group):
    """The installed commands, imported when run."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(list_commands())

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        point = list_commands().get(name)
        if point is None:
            return None
        command = load_point(point)
        if not isinstance(command, click.Command):
            raise TypeError(f"{point.value} is no click command")
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        known = self.list_commands(ctx)
        if name not in known and not name.startswith("-"):
            ctx.fail(f"no command {name!r}{did_you_mean(name, known)}; `emcd --help` lists them")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = [(name, find_summary(point)) for name, point in sorted(list_commands().items())]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


@click.group(
    cls=_Commands,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Configuration file. Default: $EMCD_CONFIG, ./emcd.toml, /etc/emcd/emcd.toml.",
)
@click.option(
    "--role", "roles", multiple=True, metavar="KIND", help="Run only roles of this kind; may repeat."
)
@click.version_option(__version__, prog_name="emcd")
@click.pass_context
def emcd(ctx: click.Context, config_file: Path | None, roles: tuple[str, ...]) -> None:
    """One daemon for a network that pays for AI work that was really done.

    Without a command, runs the daemon with the roles of its configuration, or only those that
    --role names:

    \b
        emcd --config hub.toml        every role of hub.toml
        emcd --role node              a compute node
        emcd check hub.toml           judge a configuration, start nothing
        emcd doctor                   judge this machine
    """
    found = find_config_file(config_file)
    ctx.obj = CommandContext(found, _run_daemon, lambda: _load(found, roles))
    if ctx.invoked_subcommand is not None:
        return
    if found is None and not roles:
        click.echo(ctx.get_help())
        ctx.exit(2)
    ctx.exit(_run_daemon(found, roles))


def main(args: Sequence[str] | None = None) -> None:
    """The console script: run the command line, print what went wrong, exit."""
    arguments = list(sys.argv[1:] if args is None else args)
    try:
        code = emcd.main(arguments, standalone_mode=False)
    except click.exceptions.Exit as exc:
        code = exc.exit_code
    except click.Abort:
        click.echo("aborted", err=True)
        code = 130
    except click.ClickException as exc:
        exc.show()
        code = exc.exit_code
    except EmcdError as exc:
        _print_error(exc, as_json="--json" in arguments)
        code = 1
    except ExceptionGroup as group:  # from a nursery
        for fault in _list_faults(group):
            _print_error(fault, as_json="--json" in arguments)
        code = 1
    sys.exit(code if isinstance(code, int) else 0)


def _list_faults(group: ExceptionGroup[Exception]) -> list[EmcdError]:
    """The numbered faults of a group. Raises: what is not one: a bug, whose traceback must be seen."""
    faults: list[EmcdError] = []
    for exc in group.exceptions:
        if isinstance(exc, ExceptionGroup):
            faults += _list_faults(exc)
        elif isinstance(exc, EmcdError):
            faults.append(exc)
        else:
            raise group
    return faults


def _load(file: Path | None, roles: Sequence[str]) -> Config:
    return load_config(file, Registry(), select=roles)


def _run_daemon(file: Path | None, roles: Sequence[str]) -> int:
    from emcd.daemon import require_prepared, run_daemon

    registry = Registry()
    prepared = require_prepared(load_config(file, registry, select=roles), registry)
    return run_daemon(prepared)


def _print_error(exc: EmcdError, *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"error": to_json(exc)}, indent=2), err=True)
    else:
        click.echo(str(exc), err=True)


def to_json(exc: EmcdError) -> dict[str, Any]:
    """An error as the object that --json prints."""
    shown: dict[str, Any] = {"code": exc.code, "message": exc.detail, "remedy": exc.remedy}
    if isinstance(exc, ConfigFaults):
        shown["faults"] = [
            {"code": f.code, "file": f.file, "where": f.where, "message": f.message} for f in exc.faults
        ]
    return shown
