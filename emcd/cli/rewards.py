"""`emcd rewards`: what a wallet has earned, and how far it is on its way."""

from __future__ import annotations

import json
from contextlib import aclosing, suppress
from typing import Any

import click
import trio

from emcd.cli.network import NetworkOptions, network_options, resolve_network
from emcd.cli.payout_text import EXTRACTIONS_SHOWN, list_extraction_lines, list_reward_lines
from emcd.cli.wallet_stream import watch_wallet
from emcd.command import CommandContext, emit, json_option, pass_command_context
from emcd.errors import RecoverableError
from emcd.net.http_client import request
from emcd.proto.address import parse_address
from emcd.types import Address


@click.command()
@click.argument("wallet")
@click.option("--watch", is_flag=True, help="Go on, and print it again whenever it changes.")
@network_options
@json_option
@pass_command_context
def rewards(
    context: CommandContext, wallet: str, watch: bool, network: NetworkOptions, as_json: bool
) -> None:
    """Show what WALLET earned over all its nodes: accrued, settled, published, claimable, claimed.

    With --watch the hub pushes what changes, extraction requests included; with --json that is one
    object a line.
    """
    address = parse_address(wallet)
    hub = resolve_network(context, network).require_hub()
    if watch:
        with suppress(KeyboardInterrupt):
            trio.run(_watch, hub, address, as_json)
        return
    found = trio.run(fetch_rewards, hub, address)
    emit(found, "\n".join(list_reward_lines(found)), as_json)


async def _watch(hub_url: str, wallet: Address, as_json: bool) -> None:
    async with aclosing(watch_wallet(hub_url, wallet)) as states:
        async for state in states:
            if as_json:
                click.echo(json.dumps(state))
                continue
            lines = list_reward_lines(state["rewards"])
            for path in state["extractions"][:EXTRACTIONS_SHOWN]:
                lines += list_extraction_lines(path)
            click.echo("\n".join([*lines, ""]))


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
