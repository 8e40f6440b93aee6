"""`emcd check`: judge a configuration and start nothing."""

from __future__ import annotations

from pathlib import Path

import click

from emcd.command import emit, json_option
from emcd.config import ConfigFaults, Fault, load_config
from emcd.config.fault import in_file
from emcd.registry import Registry


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--role", "roles", multiple=True, metavar="KIND", help="Judge only roles of this kind.")
@json_option
@click.pass_context
def check(ctx: click.Context, file: Path, roles: tuple[str, ...], as_json: bool) -> None:
    """Judge a configuration file without starting anything.

    Decodes every role's table, reads the deployment file, and opens every keystore whose password
    is at hand (its password_file or password_env, else $EMCD_KEY_PASSWORD). Prints every fault,
    numbered, and exits 1 when there is one.
    """
    from emcd.daemon.prepare import prepare

    notes: tuple[str, ...] = ()
    roles_found: list[dict[str, str]] = []
    try:
        registry = Registry()
        config = load_config(file, registry, select=roles)
        prepared, faults = prepare(config, registry, passwords_required=False)
        faults = in_file(faults, str(file))
        notes = prepared.notes
        roles_found = [{"kind": role.kind, "name": role.name} for role in config.roles]
    except ConfigFaults as exc:
        faults = list(exc.faults)
    data = {
        "file": str(file),
        "ok": not faults,
        "roles": roles_found,
        "faults": [
            {"number": n, "code": f.code, "where": f.where, "message": f.message}
            for n, f in enumerate(faults, 1)
        ],
        "notes": list(notes),
    }
    emit(data, _to_text(file, faults, notes, roles_found), as_json)
    ctx.exit(1 if faults else 0)


def _to_text(file: Path, faults: list[Fault], notes: tuple[str, ...], roles: list[dict[str, str]]) -> str:
    lines = [f"note: {note}" for note in notes]
    if not faults:
        named = ", ".join(role["name"] for role in roles)
        return "\n".join([*lines, f"{file}: no fault found. Roles: {named}"])
    lines += [f"{number}. {fault}" for number, fault in enumerate(faults, 1)]
    count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
    return "\n".join([*lines, f"{file}: {count}"])
