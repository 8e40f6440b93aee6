"""`emcd binding`: what a wallet does with a node that is bound to it, beside staking."""

from __future__ import annotations

from typing import Any

import click
import trio

from emcd.chain import Call, Chain, Participant
from emcd.cli.layout_text import columns, format_time
from emcd.cli.network import NetworkOptions, network_options, resolve_network
from emcd.cli.spend import Intent, Wallet, spend, spend_options, wallet_address
from emcd.cli.stake import require_bound
from emcd.command import CommandContext, emit, json_option, pass_command_context
from emcd.errors import ConfigError
from emcd.money import format_token_floor
from emcd.proto.address import parse_address
from emcd.types import ZERO_ADDRESS, Address, Wei


@click.group()
def binding() -> None:
    """Look at a node's binding, give it another wallet, publish its endpoint, release it.

    A binding is made by the node's key (`emcd node register`) and sent by the wallet; what is here the
    wallet alone decides.
    """


@binding.command()
@click.argument("node")
@network_options
@json_option
@pass_command_context
def show(context: CommandContext, node: str, network: NetworkOptions, as_json: bool) -> None:
    """Show NODE's wallet, role, keys, stake and endpoint as the staking contract has them."""
    target = parse_address(node)
    chain = resolve_network(context, network).open_chain()
    participant = trio.run(_find, chain, target)
    data = _to_json(participant)
    emit(data, "\n".join(columns(_rows(participant))), as_json)


@binding.command()
@click.argument("node")
@click.argument("new_wallet")
@spend_options
@network_options
@json_option
@pass_command_context
def approve(
    context: CommandContext,
    node: str,
    new_wallet: str,
    wallet: Wallet,
    network: NetworkOptions,
    as_json: bool,
) -> None:
    """Let NODE move to NEW_WALLET, which then sends a binding signed by the node's key.

    The stake and what is earned from then on go with it. The zero address takes an approval back.
    """
    target, to = parse_address(node), parse_address(new_wallet)
    title = (
        f"let {target} move to wallet {to}" if to != ZERO_ADDRESS else f"take the approval of {target} back"
    )
    _spend(
        context, network, wallet, target, title,
        lambda chain: chain.staking.submit_approve_wallet(target, to),
        {"new_wallet": to}, as_json,
    )  # fmt: skip


@binding.command()
@click.argument("node")
@click.argument("url")
@spend_options
@network_options
@json_option
@pass_command_context
def endpoint(
    context: CommandContext, node: str, url: str, wallet: Wallet, network: NetworkOptions, as_json: bool
) -> None:
    """Publish where NODE (a validator, router or hub) is reached, as https://host:port; "" for nowhere."""
    target = parse_address(node)
    if url and not url.startswith(("http://", "https://")):
        raise click.UsageError(f"{url!r} is no http:// or https:// address")
    _spend(
        context, network, wallet, target, f"publish {url or 'no endpoint'} for {target}",
        lambda chain: chain.staking.submit_set_endpoint(target, url),
        {"endpoint": url}, as_json,
    )  # fmt: skip


@binding.command()
@click.argument("node")
@spend_options
@network_options
@json_option
@pass_command_context
def release(
    context: CommandContext, node: str, wallet: Wallet, network: NetworkOptions, as_json: bool
) -> None:
    """End NODE's binding; its stake must be withdrawn before."""
    target = parse_address(node)
    _spend(
        context, network, wallet, target, f"release {target} from its wallet",
        lambda chain: chain.staking.submit_release(target), {}, as_json,
    )  # fmt: skip


def _spend(
    context: CommandContext,
    network: NetworkOptions,
    wallet: Wallet,
    node: Address,
    title: str,
    make: Any,
    data: dict[str, Any],
    as_json: bool,
) -> None:
    """Check that the wallet is the node's, then price or send one call."""
    chain = resolve_network(context, network).open_chain()
    trio.run(require_bound, chain, node, wallet_address(wallet))
    call: Call = make(chain)
    spend(chain, wallet, Intent(title, (call,), {"node": node, **data}, f"done: {title}"), as_json=as_json)


async def _find(chain: Chain, node: Address) -> Participant:
    participant = await chain.staking.find_participant(node)
    if participant is None:
        raise ConfigError("EMC-2135", f"{node} is bound to no wallet")
    return participant


def _rows(found: Participant) -> list[tuple[str, str]]:
    rows = [
        ("node", found.node),
        ("wallet", found.wallet),
        ("role", found.role.name.lower()),
        ("stake", f"{_token(found.stake_wei)} EMC, locked {found.lock_days} days"),
    ]
    if found.account not in (found.node, ZERO_ADDRESS):
        rows.insert(1, ("first key", found.account))
    if found.pending_wei:
        rows.append(("from next epoch", f"{_token(found.pending_wei)} EMC more"))
    if found.lock_end_s and not found.unbonding_wei:
        rows.append(("lock ends", format_time(found.lock_end_s)))
    if found.unbonding_wei:
        rows.append(("unbonding", f"{_token(found.unbonding_wei)} EMC until round {found.exit_round}"))
    if found.next_node != ZERO_ADDRESS:
        rows.append(("next key", f"{found.next_node} from epoch {found.next_from_epoch}"))
    rows.append(("endpoint", found.endpoint or "none"))
    return rows


def _to_json(found: Participant) -> dict[str, Any]:
    waits = found.next_node != ZERO_ADDRESS
    return {
        "node": found.node,
        "account": found.account,
        "wallet": found.wallet,
        "role": found.role.name.lower(),
        "stake_wei": str(found.stake_wei),
        "pending_wei": str(found.pending_wei),
        "unbonding_wei": str(found.unbonding_wei),
        "lock_days": found.lock_days,
        "lock_end_s": found.lock_end_s,
        "exit_round": found.exit_round,
        "nonce": found.nonce,
        "next_node": found.next_node if waits else None,
        "next_from_epoch": found.next_from_epoch if waits else None,
        "endpoint": found.endpoint,
    }


def _token(wei: Wei) -> str:
    return format_token_floor(wei)
