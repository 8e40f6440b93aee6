"""`emcd chain pause` and `unpause`: the one power of the guardian."""

from __future__ import annotations

import time

import click
import trio

from emcd.chain import Chain
from emcd.cli.layout_text import format_span, format_when
from emcd.cli.network import NetworkOptions, network_options, resolve_network
from emcd.cli.spend import Intent, Wallet, spend, spend_options, wallet_address
from emcd.command import CommandContext, json_option, pass_command_context
from emcd.errors import ConfigError

HOUR_S = 3_600
MAX_HOURS = 7 * 24


@click.command()
@click.argument("hours", type=click.IntRange(1, MAX_HOURS))
@spend_options
@network_options
@json_option
@pass_command_context
def pause(
    context: CommandContext, hours: int, wallet: Wallet, network: NetworkOptions, as_json: bool
) -> None:
    """Stop publishing and claiming for HOURS, 168 at most; only the guardian can.

    Staking, unbonding and vetoes go on, nobody loses anything, and after it everything goes on by itself. The
    next pause can begin 35 days after this one at the earliest.
    """
    chain = resolve_network(context, network).open_chain()
    trio.run(_require_guardian, chain, wallet)
    until = format_when(int(time.time()) + hours * HOUR_S, int(time.time()))
    title = f"pause publishing and claiming for {format_span(hours * HOUR_S)}, until {until}"
    call = chain.distributor.submit_pause(hours * HOUR_S)
    spend(chain, wallet, Intent(title, (call,), {"seconds": hours * HOUR_S}), as_json=as_json)


@click.command()
@spend_options
@network_options
@json_option
@pass_command_context
def unpause(context: CommandContext, wallet: Wallet, network: NetworkOptions, as_json: bool) -> None:
    """End a pause before its time; only the guardian can."""
    chain = resolve_network(context, network).open_chain()
    trio.run(_require_guardian, chain, wallet)
    call = chain.distributor.submit_unpause()
    spend(chain, wallet, Intent("end the pause", (call,), done="the pause is over"), as_json=as_json)


async def _require_guardian(chain: Chain, wallet: Wallet) -> None:
    """Said before the contract does, which knows only an address."""
    guardian = await chain.distributor.view_one("guardian")
    sender = wallet_address(wallet)
    if guardian != sender:
        raise ConfigError("EMC-2164", f"the guardian is {guardian}, not {sender}")
