"""`emcd doctor`: judge this machine and this installation.

Every check stands alone, changes nothing, and names the remedy; a check that can't be made says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import click

from emcd.cli.examination import Finding, Verdict, examine_machine
from emcd.cli.examination_config import examine_config
from emcd.command import CommandContext, emit, json_option, pass_command_context

_SIGNS = {Verdict.GOOD: "ok  ", Verdict.WARNING: "warn", Verdict.BAD: "FAIL"}


@click.command()
@click.argument("file", type=click.Path(path_type=Path), required=False)
@json_option
@pass_command_context
@click.pass_context
def doctor(ctx: click.Context, context: CommandContext, file: Path | None, as_json: bool) -> None:
    """Judge this machine: Python, packages, disk, clock, SQLite; with a configuration also its
    ports, keys and chain.

    FILE defaults to the configuration that the daemon would use. Exits 1 when something fails.
    """
    config_file = file or context.config_file
    findings = list(_run(examine_machine(context.data_dir_or_default())))
    if config_file is not None:
        findings += _run(examine_config(config_file))
    data = [
        {"check": f.check, "verdict": f.verdict.value, "detail": f.detail, "remedy": f.remedy}
        for f in findings
    ]
    emit(data, "\n".join(_to_line(finding) for finding in findings), as_json)
    ctx.exit(1 if any(f.verdict is Verdict.BAD for f in findings) else 0)


def _run(checks: Iterable[Callable[[], Finding]]) -> Iterable[Finding]:
    for check in checks:
        yield check()


def _to_line(finding: Finding) -> str:
    remedy = f"\n        {finding.remedy}" if finding.remedy else ""
    return f"{_SIGNS[finding.verdict]}  {finding.check}: {finding.detail}{remedy}"
