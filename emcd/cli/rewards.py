"""`emcd rewards`: what a wallet has earned, and how far it is on its way."""

from __future__ import annotations

from typing import Any

import click
import trio

from emcd.cli.network import NetworkOptions, network_options, resolve_network
from emcd.command import CommandContext, emit, json_option, pass_command_context
from emcd.errors import RecoverableError
from emcd.money import format_token_floor
from emcd.net.http_client import request
from emcd.proto.address import parse_address
from emcd.types import Address

_STEPS = (
    ("accrued_wei", "accrued", "open round, an estimate"),
    ("settled_wei", "settled", "in closed rounds"),
    ("published_wei", "published", "in a root on chain"),
    ("claimable_wei", "claimable", "in the active root, not yet claimed"),
    ("claimed_wei", "claimed", "paid by the contract"),
)


@click.command()
@click.argument("wallet")
@network_options
@json_option
@pass_command_context
def rewards(context: CommandContext, wallet: str, network: NetworkOptions, as_json: bool) -> None:
    """Show what WALLET earned over all its nodes: accrued, settled, published, claimable, claimed."""
    address = parse_address(wallet)
    hub = resolve_network(context, network).require_hub()
    found = trio.run(fetch_rewards, hub, address)
    lines = [f"rewards of {address}"]
    for key, name, meaning in _STEPS:
        lines.append(f"  {name:<10} {format_token_floor(int(found[key])):>20} EMC   {meaning}")
    for entry in found["rounds"][-12:]:
        amount = format_token_floor(int(entry["reward_wei"]))
        lines.append(f"  round {entry['round']:>6} {amount:>18} EMC   {entry['state']}")
    emit(found, "\n".join(lines), as_json)


async def fetch_rewards(hub_url: str, wallet: Address) -> dict[str, Any]:
    """The hub's word on a wallet. Raises: RecoverableError EMC-2137 when it gives none."""
    return await fetch_document(f"{hub_url}/api/wallets/{wallet}/rewards")


async def fetch_document(url: str) -> dict[str, Any]:
    """GET a JSON object. Raises: RecoverableError EMC-2137."""
    answer = await request("GET", url, timeout_s=20.0, max_bytes=16 << 20)
    if answer.status != 200:
        raise RecoverableError("EMC-2137", f"{url} answers {answer.status}")
    document = answer.json()
    if not isinstance(document, dict):
        raise RecoverableError("EMC-2137", f"{url} answers no JSON object")
    return document
