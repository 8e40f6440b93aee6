"""`emcd init`: a commented configuration and the keystores it names."""

from __future__ import annotations

import json
from pathlib import Path

import click

from emcd.cli.keys import ask_password, require_strong
from emcd.command import emit, json_option
from emcd.config.template import find_key_fields, render_template
from emcd.errors import ConfigError
from emcd.keys import generate_key, write_keystore
from emcd.registry import Registry


@click.command()
@click.option(
    "--role", "kind", required=True, metavar="KIND", help="The role to run: hub, node, validator ..."
)
@click.option("--name", help="The role's name. Default: its kind.")
@click.option(
    "--dir",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("emcd"),
    show_default=True,
    help="Folder for the configuration and all data; made when it does not exist.",
)
@click.option(
    "--password-file",
    type=click.Path(path_type=Path),
    help="File with the password of the new keys; the configuration will name it.",
)
@json_option
def init(kind: str, name: str | None, folder: Path, password_file: Path | None, as_json: bool) -> None:
    """Write a commented configuration for a role, with a new keystore for each key it needs.

    Puts FOLDER/emcd.toml and FOLDER/data/keys/*.json there and overwrites nothing. Then: put the
    network's deployment.json into FOLDER/data, fill in what says FILL-IN, run `emcd check`.
    """
    spec = Registry().get(kind)
    role_name = name or kind
    file = folder / "emcd.toml"
    if file.exists():
        raise ConfigError("EMC-1033", f"{file} exists already")
    fields = find_key_fields(spec.config)
    values = {"daemon.data_dir": '"data"', "network.deployment": '"deployment.json"'}
    addresses: dict[str, str] = {}
    if fields:
        password = ask_password(password_file, confirm=True)
        require_strong(password)
        for field in fields:
            keystore = folder / "data" / "keys" / f"{role_name}-{field.removesuffix('_key')}.json"
            key = generate_key()
            write_keystore(keystore, key, password)
            addresses[field] = key.address
            values[field] = _to_table(keystore.relative_to(folder / "data"), password_file)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    file.write_text(render_template(kind, role_name, spec.config, values), "utf-8")
    text = "\n".join([f"{file}", *(f"{field}: {address}" for field, address in addresses.items())])
    emit({"config": str(file), "keys": addresses}, f"{text}\nnext: emcd check {file}", as_json)


def _to_table(keystore: Path, password_file: Path | None) -> str:
    if password_file is None:
        return json.dumps(str(keystore))
    file, password = json.dumps(str(keystore)), json.dumps(str(password_file.resolve()))
    return f"{{ file = {file}, password_file = {password} }}"
