"""What a command gets, core's or a role's: the chosen config file, output, running the daemon.

Commands are click commands named in the entry-point group `emcd.commands`; click hands them a
`CommandContext` as `ctx.obj`. It must not import the daemon: the command line's main does, and
passes in what commands need of it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from emcd.config import DaemonConfig, load_daemon_config
from emcd.errors import ConfigError

if TYPE_CHECKING:
    from emcd.config import Config

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class CommandContext:
    """`ctx.obj` of every command.

    `config_file` is what --config or the search found; `run_daemon` runs the daemon in this
    process until it stops and returns its exit code; `load` reads the configuration
    (raises: ConfigFaults).
    """

    config_file: Path | None
    run_daemon: Callable[[Path | None, Sequence[str]], int]
    load: Callable[[], Config]

    def load_daemon(self) -> DaemonConfig:
        """The [daemon] table alone; no role is imported or judged. Raises: ConfigFaults."""
        return load_daemon_config(self.config_file)

    def data_dir_or_default(self) -> Path:
        """The data directory, or its default when the configuration can't be read."""
        try:
            return self.load_daemon().data_dir
        except ConfigError:
            return DaemonConfig().data_dir


pass_command_context = click.make_pass_decorator(CommandContext)


def json_option(command: F) -> F:
    """Add `--json` as the parameter `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")(
        command
    )


def emit(data: object, text: str, as_json: bool) -> None:
    """Print a result: `data` as JSON, or `text` for people."""
    click.echo(json.dumps(data, indent=2, default=str) if as_json else text)
