"""`emcd credits`: the operator's commands of accounts and credits, over the hub's admin listener."""

from __future__ import annotations

import secrets
from importlib.metadata import EntryPoints, entry_points
from typing import Any

import click

from emcd.command import emit, json_option
from emcd.errors import ConfigError
from emcd.money import MICRO_PER_CREDIT, format_credits_floor
from emcd_hub.admin_client import AdminClient, admin_options
from emcd_hub.billing.statement_text import list_statement_lines, write_csv
from emcd_hub.cli_key import api_key

__all__ = ["api_key", "credits"]

MORE_COMMANDS = "emcd.commands.credits"


class _Credits(click.Group):
    """The operator's commands, and those that others bring (the entry points `emcd.commands.credits`)."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *(point.name for point in _list_more())})

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        own = super().get_command(ctx, name)
        if own is not None:
            return own
        point = next((item for item in _list_more() if item.name == name), None)
        found = None if point is None else point.load()
        return found if isinstance(found, click.Command) else None


def _list_more() -> EntryPoints:
    return entry_points(group=MORE_COMMANDS)


@click.group("credits", cls=_Credits)
def credits() -> None:
    """Buy or grant credits, and show an account's books."""


@credits.command("grant")
@click.argument("account")
@click.argument("amount", type=click.FloatRange(min=0, min_open=True))
@click.option("--key", default="", help="The grant's own name: the same again grants nothing more.")
@click.option("--note", default="", help="Why; it stands in the account's statement.")
@admin_options
@json_option
def grant(account: str, amount: float, key: str, note: str, admin: AdminClient, as_json: bool) -> None:
    """Give ACCOUNT (a name or an acct_... id) AMOUNT credits. They work for calls and weigh nothing."""
    account_id = find_account(admin, account)["account_id"]
    body = {
        "account_id": account_id,
        "credits_micro": str(round(amount * MICRO_PER_CREDIT)),
        "key": key or secrets.token_hex(16),
        "note": note,
    }
    found = admin.call("POST", "/admin/credits", body)
    said = "was granted before" if found["repeated"] else "granted"
    emit(found, f"{said}; {_show_balance(found)}", as_json)


@credits.command("show")
@click.argument("account")
@admin_options
@json_option
def show(account: str, admin: AdminClient, as_json: bool) -> None:
    """Show the balance and the statement of ACCOUNT (a name or an acct_... id)."""
    account_id = find_account(admin, account)["account_id"]
    found = admin.call("GET", f"/admin/accounts/{account_id}")
    lines = [
        f"{found['name']} ({account_id})",
        f"  {_show_balance(found)}",
        f"  vault account {found['vault_account']}",
    ]
    for row in found["movements"]:
        amount = int(row["granted_micro"]) + int(row["vault_micro"])
        lines.append(f"  {row['kind']:<8} {format_credits_floor(amount):>16}  {row['note']}")
    for row in found["usage"]:
        amount = int(row["granted_micro"]) + int(row["vault_micro"])
        lines.append(f"  round {row['round']}: {row['calls']} calls, {format_credits_floor(amount)} credits")
    emit(found, "\n".join(lines), as_json)


@credits.command("statement")
@click.argument("account")
@click.option(
    "--round", "rounds", default="", metavar="A..B", help="Of which rounds; the last 360 without it."
)
@click.option("--csv", "as_csv", is_flag=True, help="Print the lines as CSV, in micro-credits.")
@admin_options
@json_option
def statement(account: str, rounds: str, as_csv: bool, admin: AdminClient, as_json: bool) -> None:
    """Show the books of ACCOUNT (a name or an acct_... id): opening, what came, what calls took, closing.

    It balances to the last micro-credit, for granted credits and those from the vault apart. A holder
    of the account's API key reads the same at /api/account/statement.
    """
    account_id = find_account(admin, account)["account_id"]
    found = admin.call("GET", f"/admin/accounts/{account_id}/statement{_read_rounds(rounds)}")
    if as_csv:
        click.echo(write_csv(found), nl=False)
        return
    emit(found, "\n".join(list_statement_lines(found)), as_json)


@credits.command("deposits")
@admin_options
@json_option
def deposits(admin: AdminClient, as_json: bool) -> None:
    """Show purchases that are held: made for accounts that this hub does not know."""
    found = admin.call("GET", "/admin/deposits")
    lines = [
        f"deposit {row['index']:>6} {format_credits_floor(int(row['credits_micro'])):>16} credits for"
        f" {row['vault_account']} by {row['payer']}"
        for row in found["held"]
    ]
    emit(found, "\n".join(lines) or "none", as_json)


def find_account(admin: AdminClient, account: str) -> dict[str, Any]:
    """An account by id or name. Raises: ConfigError EMC-1742."""
    for row in admin.call("GET", "/admin/accounts")["accounts"]:
        if account in (row["account_id"], row["name"]):
            return dict(row)
    raise ConfigError("EMC-1742", f"there is no account {account!r}")


def _show_balance(found: dict[str, Any]) -> str:
    granted, vault = int(found["granted_micro"]), int(found["vault_micro"])
    shown = f"{format_credits_floor(granted)} credits granted, {format_credits_floor(vault)} from the vault"
    debt = int(found["debt_micro"])
    return shown + (f", a debt of {format_credits_floor(debt)}" if debt else "")


def _read_rounds(text: str) -> str:
    """The query of A..B, A or nothing. Raises: ConfigError EMC-1772."""
    if not text:
        return ""
    first, _, last = text.partition("..")
    if not all(part.isascii() and part.isdigit() for part in (first, last or first)):
        raise ConfigError("EMC-1772", f"{text!r}")
    return f"?from={int(first)}&to={int(last or first)}"
