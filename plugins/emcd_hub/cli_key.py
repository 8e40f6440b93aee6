"""`emcd api-key`: the operator's commands of API keys, over the hub's admin listener."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import Any, TypeVar

import click

from emcd.command import emit, json_option
from emcd.errors import ConfigError
from emcd.money import MICRO_PER_CREDIT, format_credits_floor
from emcd_hub.admin_client import AdminClient, admin_options
from emcd_hub.billing.period import Period

NONE = "none"
_DURATION = re.compile(r"(\d{1,6})([smhdw])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_PERIODS = [period.value for period in Period]

F = TypeVar("F", bound=Callable[..., Any])


@click.group("api-key")
def api_key() -> None:
    """Create, limit, list and revoke the API keys of a hub."""


def limit_options(command: F) -> F:
    """Add the options of a key's limits; `read_settings` makes the request's fields of them."""
    options = [
        click.option("--label", default=None, help="What the key is for."),
        click.option("--models", metavar="NAMES", help="By commas; a star ends a name: 'llama*'."),
        click.option("--expires", metavar="WHEN", help="30d, 12h, 90m, or a date or time of UTC."),
        click.option("--rpm", metavar="N", help="Requests a minute."),
        click.option("--tpm", metavar="N", help="Tokens a minute, in and out."),
        click.option("--parallel", metavar="N", help="Calls at a time."),
        click.option("--budget", metavar="CREDITS", help="What it may spend, in all or in a period."),
        click.option("--period", type=click.Choice(_PERIODS), help="When the budget begins anew, by UTC."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@api_key.command("create")
@click.argument("account")
@limit_options
@admin_options
@json_option
def create_key(account: str, admin: AdminClient, as_json: bool, **settings: str | None) -> None:
    """Make a key for ACCOUNT, a name (made when it is new) or an acct_... id. It is shown once."""
    named = {"account_id": account} if account.startswith("acct_") else {"account_name": account}
    made = admin.call("POST", "/admin/api-keys", {**named, **read_settings(settings)})
    said = f"{made['api_key']}\n  {made['key_id']} of {made['account_id']}; it is not shown again"
    emit(made, "\n".join([said, *_list_limits(made["limits"])]), as_json)


@api_key.command("set")
@click.argument("key_id", metavar="KEY")
@limit_options
@admin_options
@json_option
def set_key(key_id: str, admin: AdminClient, as_json: bool, **settings: str | None) -> None:
    """Change limits of KEY (key_...) for the calls to come; `none` lifts one: --rpm none."""
    body = read_settings(settings)
    if not body:
        raise ConfigError("EMC-1773", "nothing is to be changed: give an option")
    found = admin.call("PATCH", _path(key_id), body)
    emit(found, "\n".join(_list_lines(found)), as_json)


@api_key.command("show")
@click.argument("key_id", metavar="KEY")
@admin_options
@json_option
def show_key(key_id: str, admin: AdminClient, as_json: bool) -> None:
    """Show the limits of KEY (key_...), what it spent in this period, when that begins anew."""
    found = admin.call("GET", _path(key_id))
    emit(found, "\n".join(_list_lines(found)), as_json)


@api_key.command("list")
@admin_options
@json_option
def list_keys(admin: AdminClient, as_json: bool) -> None:
    """Show all keys by their public part, with limits and use, revoked ones included."""
    found = admin.call("GET", "/admin/api-keys")
    lines = [line for key in found["api_keys"] for line in _list_lines(key)]
    emit(found, "\n".join(lines) or "no keys", as_json)


@api_key.command("revoke")
@click.argument("key_id")
@admin_options
@json_option
def revoke_key(key_id: str, admin: AdminClient, as_json: bool) -> None:
    """Revoke the key KEY_ID at once; calls in flight still end."""
    emit(admin.call("DELETE", _path(key_id)), f"{key_id} is revoked", as_json)


def read_settings(options: dict[str, str | None]) -> dict[str, Any]:
    """The fields of a request from the options that were given. Raises: ConfigError EMC-1773."""
    body: dict[str, Any] = {}
    for name, value in options.items():
        if value is None:
            continue
        if name in ("label", "period"):
            body[name] = value
        elif name == "models":
            body["models"] = [] if value == NONE else [part.strip() for part in value.split(",")]
        elif name == "expires":
            body |= _read_expiry(value)
        elif name == "budget":
            body["budget_micro"] = None if value == NONE else str(_read_credits(value))
        else:
            body[_FIELDS[name]] = None if value == NONE else _read_count(name, value)
    return body


_FIELDS = {"rpm": "requests_per_minute", "tpm": "tokens_per_minute", "parallel": "parallel_calls"}


def _read_expiry(text: str) -> dict[str, int | None]:
    """A duration counts on the hub's clock; a date is its first moment."""
    if text == NONE:
        return {"expires_at_ms": None}
    found = _DURATION.fullmatch(text)
    if found:
        return {"expires_in_s": int(found[1]) * _SECONDS[found[2]]}
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError("EMC-1773", f"--expires {text!r}") from None
    return {"expires_at_ms": int((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()) * 1000}


def _read_credits(text: str) -> int:
    """Credits of at most six decimals, exactly, in micro-credits."""
    try:
        micro = Decimal(text) * MICRO_PER_CREDIT
        if micro == int(micro) and 0 <= micro < 10**18:
            return int(micro)
    except (InvalidOperation, ValueError, OverflowError):
        pass
    raise ConfigError("EMC-1773", f"--budget {text!r}: credits of at most six decimals")


def _read_count(name: str, text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 15 or int(text) == 0:
        raise ConfigError("EMC-1773", f"--{name} {text!r}: a number from 1, or none")
    return int(text)


def _path(key_id: str) -> str:
    if not key_id.isascii() or not key_id.replace("_", "").isalnum():
        raise ConfigError("EMC-1742", f"{key_id!r} is not a key id (key_...)")
    return f"/admin/api-keys/{key_id}"


def _list_lines(key: dict[str, Any]) -> list[str]:
    """A key for people: who, its limits, what it used."""
    state = "  revoked" if key["revoked_at_ms"] else ""
    lines = [f"{key['key_id']}  {key['shown']}...  {key['account_id']}  {key['label']}{state}"]
    lines += _list_limits(key["limits"])
    used = f"  spent {_credits(key['spent_micro'])}{_period(key['limits'])}, {key['calls']} calls in all"
    if key["left_micro"] is not None:
        used += f", {_credits(key['left_micro'])} left"
    if key["resets_at_ms"] is not None:
        used += f", anew from {_time(key['resets_at_ms'])}"
    if key["last_used_at_ms"] is not None:
        used += f", last used {_time(key['last_used_at_ms'])}"
    return [*lines, used]


def _list_limits(limits: dict[str, Any]) -> list[str]:
    parts = []
    if limits["models"]:
        parts.append(f"models {', '.join(limits['models'])}")
    if limits["expires_at_ms"] is not None:
        parts.append(f"expires {_time(limits['expires_at_ms'])}")
    for name, said in (
        ("requests_per_minute", "requests a minute"),
        ("tokens_per_minute", "tokens a minute"),
        ("parallel_calls", "calls at a time"),
    ):
        if limits[name] is not None:
            parts.append(f"{limits[name]:,} {said}")
    if limits["budget_micro"] is not None:
        parts.append(f"budget {_credits(limits['budget_micro'])}{_period(limits)}")
    return [f"  {'; '.join(parts)}"] if parts else []


def _period(limits: dict[str, Any]) -> str:
    return "" if limits["period"] == NONE else f" this {limits['period']}"


def _credits(micro: str) -> str:
    return f"{format_credits_floor(int(micro), 6)} credits"


def _time(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
