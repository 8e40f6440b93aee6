"""A wallet on the command line: its keystore, its password, and sending its transactions.

A password never stands in an argument: it comes from a file, from EMCD_KEY_PASSWORD, or is asked
for. Nothing is sent before the person has seen what it does and said yes (or `--yes`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from emcd.chain import Call, Chain, TxReceipt
from emcd.chain.sender import send_call
from emcd.cli.keys import ask_password
from emcd.keys import SigningKey, load_keystore

F = TypeVar("F", bound=Callable[..., Any])


def wallet_options(command: F) -> F:
    """Add --keystore and --password-file as parameters of these names."""
    password = click.option(
        "--password-file",
        type=click.Path(path_type=Path, exists=True, dir_okay=False),
        help="File with the keystore's password. Else: $EMCD_KEY_PASSWORD, else it is asked for.",
    )
    keystore = click.option(
        "--keystore",
        type=click.Path(path_type=Path, exists=True, dir_okay=False),
        required=True,
        help="The wallet's keystore v3 file.",
    )
    return keystore(password(command))


def confirm_option(command: F) -> F:
    """Add --yes as the parameter `yes`."""
    return click.option("--yes", is_flag=True, help="Send without asking.")(command)


def open_wallet(keystore: Path, password_file: Path | None) -> SigningKey:
    """Decrypt the wallet. Blocking. Raises: ConfigError EMC-11xx; EMC-1108 without a terminal to ask at."""
    return load_keystore(keystore, ask_password(password_file, confirm=False))


def require_yes(yes: bool, question: str) -> None:
    """Ask before money moves. Raises: click.Abort on no."""
    if not yes:
        click.confirm(question, abort=True, err=True)


async def send_all(chain: Chain, key: SigningKey, calls: Sequence[Call]) -> list[TxReceipt]:
    """Send transactions one after the other, each after the last is mined.

    Raises: CallReverted EMC-1504 with the contract's reason, RecoverableError when the chain is away.
    """
    return [await send_call(chain.rpc, chain.deployment.chain_id, key, call) for call in calls]
