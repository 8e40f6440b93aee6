"""Transactions of a wallet on the command line: priced first, a dry run unless --send.

Every command that spends goes through here, so that all of them say the same: what would be sent, the
gas, the cost now and at most, and that nothing was sent. A password is asked for only when it is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import click
import trio

from emcd.chain import Call, CallReverted, Chain, TxReceipt
from emcd.chain.quantity import ask_quantity
from emcd.cli.layout_text import columns, format_ether_ceil
from emcd.cli.wallet import open_wallet, require_yes
from emcd.command import emit
from emcd.errors import ConfigError
from emcd.keys import read_keystore_address
from emcd.proto.address import hex_hash
from emcd.types import Address

F = TypeVar("F", bound=Callable[..., Any])

_AFTER_APPROVAL = frozenset(("ERC20InsufficientAllowance",))
"""A refusal that only means that the transaction before it is not mined yet."""


@dataclass(frozen=True)
class Wallet:
    """Whose transactions they are, and whether they are to be sent at all."""

    keystore: Path
    password_file: Path | None
    send: bool
    yes: bool


def spend_options(command: F) -> F:
    """Add --keystore, --password-file, --send and --yes; the command takes them as `wallet: Wallet`."""
    return _with_options(command, required=True)


def optional_spend_options(command: F) -> F:
    """The same where there is something to see without an account: `wallet: Wallet | None`."""
    return _with_options(command, required=False)


def _with_options(command: F, *, required: bool) -> F:
    def collect(
        *args: Any, keystore: Path | None, password_file: Path | None, send: bool, yes: bool, **rest: Any
    ) -> Any:
        if keystore is None and (send or yes):
            raise click.UsageError("--send needs --keystore")
        wallet = None if keystore is None else Wallet(keystore, password_file, send or yes, yes)
        return command(*args, wallet=wallet, **rest)

    collect.__doc__ = command.__doc__
    collect.__name__ = command.__name__
    collect.__click_params__ = getattr(command, "__click_params__", [])  # type: ignore[attr-defined]
    file = click.Path(path_type=Path, exists=True, dir_okay=False)
    wrapped: Any = collect
    for option in (
        click.option("--yes", is_flag=True, help="Send without asking; implies --send."),
        click.option("--send", is_flag=True, help="Send it. Without, it is priced and nothing is sent."),
        click.option(
            "--password-file",
            type=file,
            help="File with the keystore's password. Else: $EMCD_KEY_PASSWORD, else it is asked for.",
        ),
        click.option(
            "--keystore",
            "--wallet-keystore",
            "keystore",
            type=file,
            required=required,
            help="The keystore v3 file of the account that sends and pays the gas.",
        ),
    ):
        wrapped = option(wrapped)
    return wrapped  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Intent:
    """What is to be done, in words, as calls, and what a script is told of it."""

    title: str
    calls: Sequence[Call]
    data: Mapping[str, Any] = field(default_factory=dict)
    done: str = ""
    """The sentence afterwards; the title without it."""


@dataclass(frozen=True)
class Priced:
    """A call with its cost; `gas` 0: known only once the call before it is mined."""

    label: str
    gas: int = 0
    expected_wei: int = 0
    most_wei: int = 0


def wallet_address(wallet: Wallet) -> Address:
    """The account, without its password."""
    return read_keystore_address(wallet.keystore)


def spend(chain: Chain, wallet: Wallet, intent: Intent, *, as_json: bool) -> list[TxReceipt]:
    """Price the intent; with --send, ask and send it. Prints the outcome. Returns: [] after a dry run.

    Raises: CallReverted EMC-1504 (it would not work), ConfigError EMC-2160 (too little ether), EMC-11xx;
        RecoverableError when the chain is away. Nothing was sent then, but what the receipts before say.
    """
    sender = wallet_address(wallet)
    priced, balance_wei = trio.run(price_all, chain, sender, intent.calls)
    most_wei = sum(item.most_wei for item in priced)
    costs = _cost_lines(priced)
    if not wallet.send:
        table = {**intent.data, "sent": False, "sender": sender, "balance_wei": str(balance_wei)}
        table["calls"] = [_to_json(item) for item in priced]
        lack = [_lacks(sender, balance_wei, most_wei)] if balance_wei < most_wei else []
        emit(
            table, "\n".join([intent.title, *costs, *lack, "", "Nothing was sent: --send does it."]), as_json
        )
        return []
    if balance_wei < most_wei:
        raise ConfigError("EMC-2160", _lacks(sender, balance_wei, most_wei))
    if not wallet.yes:
        click.echo("\n".join(costs), err=True)
    require_yes(wallet.yes, f"{intent.title}?")
    key = open_wallet(wallet.keystore, wallet.password_file)
    receipts = trio.run(_send_all, chain, key, intent.calls)
    hashes = [hex_hash(receipt.tx_hash) for receipt in receipts]
    table = {**intent.data, "sent": True, "sender": sender, "tx_hash": hashes[-1], "tx_hashes": hashes}
    emit(table, f"{intent.done or intent.title}: transaction {hashes[-1]}", as_json)
    return receipts


async def price_all(chain: Chain, sender: Address, calls: Sequence[Call]) -> tuple[list[Priced], int]:
    """The cost of each call, and what the sender owns. Raises: CallReverted EMC-1504."""
    priced: list[Priced] = []
    for call in calls:
        try:
            cost = await chain.estimate_cost(call, sender)
        except CallReverted as exc:
            if priced and exc.reason.name in _AFTER_APPROVAL:
                priced.append(Priced(call.label))
                continue
            raise
        priced.append(Priced(call.label, cost.gas, cost.expected_cost_wei, cost.max_cost_wei))
    return priced, await ask_quantity(chain.rpc, "eth_getBalance", sender, "latest")


async def _send_all(chain: Chain, key: Any, calls: Sequence[Call]) -> list[TxReceipt]:
    return [await chain.send(key, call) for call in calls]


def _cost_lines(priced: Sequence[Priced]) -> list[str]:
    rows = [("transaction", "gas", "ETH now", "at most")]
    for item in priced:
        if item.gas:
            cost = (f"{item.gas:,}", format_ether_ceil(item.expected_wei), format_ether_ceil(item.most_wei))
        else:
            cost = ("?", "?", "?")
        rows.append((item.label, *cost))
    lines = ["  " + line for line in columns(rows, right=(1, 2, 3))]
    if any(not item.gas for item in priced):
        lines.append("  ?: it can be estimated when the approval before it is mined")
    return lines


def _lacks(sender: Address, balance_wei: int, most_wei: int) -> str:
    return f"{sender} owns {format_ether_ceil(balance_wei)} ETH and may need {format_ether_ceil(most_wei)} for gas"


def _to_json(item: Priced) -> dict[str, Any]:
    return {
        "label": item.label,
        "gas": item.gas or None,
        "expected_cost_wei": str(item.expected_wei),
        "max_cost_wei": str(item.most_wei),
    }
