"""`emcd keys`: keystore files.

Invariant: a password or a secret comes from a prompt, a file or the environment, never from the
command line, where every user of the machine could read it.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any, Literal

import click

from emcd.command import CommandContext, emit, json_option, pass_command_context
from emcd.daemon.prepare import PASSWORD_VARIABLE, read_password
from emcd.errors import ConfigError
from emcd.keys import (
    SigningKey,
    decrypt_keystore,
    generate_key,
    load_keystore,
    read_keystore_address,
    write_keystore,
)

MIN_PASSWORD = 8

_password_file = click.option(
    "--password-file",
    type=click.Path(path_type=Path),
    help=f"File whose first line is the password. Default: ${PASSWORD_VARIABLE}, else a prompt.",
)
_kdf = click.option(
    "--kdf",
    type=click.Choice(["scrypt", "light"]),
    default="scrypt",
    show_default=True,
    help="light: quick to open and to guess, for a devnet.",
)


@click.group()
def keys() -> None:
    """Make, list, show and import keystore files (Web3 Secret Storage v3).

    Passwords come from --password-file, $EMCD_KEY_PASSWORD or a prompt, never from an argument.
    """


@keys.command()
@click.argument("file", type=click.Path(path_type=Path))
@_password_file
@_kdf
@json_option
def new(file: Path, password_file: Path | None, kdf: Literal["scrypt", "light"], as_json: bool) -> None:
    """Make a new key in FILE, which must not exist."""
    _require_absent(file)
    _write(file, generate_key(), password_file, kdf, as_json)


@keys.command(name="import")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--from-file",
    "source",
    type=click.Path(path_type=Path),
    help="File with the hex private key, or a keystore; - is standard input. Default: a prompt.",
)
@_password_file
@_kdf
@json_option
def import_key(
    file: Path,
    source: Path | None,
    password_file: Path | None,
    kdf: Literal["scrypt", "light"],
    as_json: bool,
) -> None:
    """Encrypt an existing private key into FILE, which must not exist."""
    _require_absent(file)
    _write(file, _parse_secret(_read_secret(source)), password_file, kdf, as_json)


@keys.command(name="list")
@click.argument("folder", type=click.Path(path_type=Path), required=False)
@json_option
@pass_command_context
def list_keys(context: CommandContext, folder: Path | None, as_json: bool) -> None:
    """List the keystores in FOLDER, by default keys/ in the data directory."""
    place = folder or context.load_daemon().data_dir / "keys"
    rows: list[dict[str, Any]] = []
    for path in sorted(place.glob("*")) if place.is_dir() else []:
        try:
            rows.append({"file": str(path), "address": read_keystore_address(path), "fault": ""})
        except ConfigError as exc:
            if exc.code != "EMC-1103":  # other files may lie here, unreadable keystores are news
                rows.append({"file": str(path), "address": "", "fault": str(exc)})
    text = "\n".join(f"{row['address'] or row['fault']}  {row['file']}" for row in rows)
    emit(rows, text or f"no keystore in {place}", as_json)


@keys.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--open", "opened", is_flag=True, help="Also decrypt it, to try the password.")
@_password_file
@json_option
def show(file: Path, opened: bool, password_file: Path | None, as_json: bool) -> None:
    """Show the address of a keystore; its secret is never shown."""
    address = read_keystore_address(file)
    if opened:
        address = load_keystore(file, ask_password(password_file, confirm=False)).address
    emit(
        {"file": str(file), "address": address, "opened": opened},
        f"{address}  {file}" + ("  (the password fits)" if opened else ""),
        as_json,
    )


def _write(
    file: Path, key: SigningKey, password_file: Path | None, kdf: Literal["scrypt", "light"], as_json: bool
) -> None:
    password = ask_password(password_file, confirm=True)
    if len(password) < MIN_PASSWORD:
        raise ConfigError(
            "EMC-1109", f"the password has {len(password)} characters of at least {MIN_PASSWORD}"
        )
    write_keystore(file, key, password, kdf=kdf)
    emit({"file": str(file), "address": key.address}, f"{key.address}  {file}", as_json)


def require_strong(password: str) -> None:
    """Raises: ConfigError EMC-1109 for a password that is too short for a new key."""
    if len(password) < MIN_PASSWORD:
        raise ConfigError(
            "EMC-1109", f"the password has {len(password)} characters of at least {MIN_PASSWORD}"
        )


def ask_password(file: Path | None, *, confirm: bool) -> str:
    """A keystore's password: from the file, from EMCD_KEY_PASSWORD, or asked for.

    Raises: ConfigError EMC-1106, EMC-1108.
    """
    if file is not None:
        return read_password(file)
    from_environment = os.environ.get(PASSWORD_VARIABLE)
    if from_environment is not None:
        return from_environment
    if not sys.stdin.isatty():
        raise ConfigError("EMC-1108", f"no terminal to ask at: set {PASSWORD_VARIABLE} or --password-file")
    return str(click.prompt("Password", hide_input=True, confirmation_prompt=confirm, err=True))


def _require_absent(file: Path) -> None:
    if file.exists():
        raise ConfigError("EMC-1101", f"{file} exists already")


def _read_secret(source: Path | None) -> str:
    if source is None:
        return str(click.prompt("Private key (hex)", hide_input=True, err=True))
    if str(source) == "-":
        return sys.stdin.read()
    try:
        return source.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError("EMC-1102", f"{source} can't be read") from exc


def _parse_secret(text: str) -> SigningKey:
    """A key from hex, or from the text of a keystore (whose password is asked for)."""
    stripped = text.strip()
    if stripped.startswith("{"):
        password = str(click.prompt("Password of the imported keystore", hide_input=True, err=True))
        try:
            return decrypt_keystore(json.loads(stripped), password, "the imported keystore")
        except ValueError as exc:
            raise ConfigError("EMC-1103", "the imported text is no keystore") from exc
    try:
        return SigningKey(bytes.fromhex(stripped.removeprefix("0x")))
    except ValueError:
        raise ConfigError("EMC-1110", "expected 64 hex digits of a private key") from None
