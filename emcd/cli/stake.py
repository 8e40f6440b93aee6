"""`emcd stake` and `emcd unstake`: put token behind a node, lock them longer, and take them back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import click
import trio

from emcd.chain import Call, Chain, Participant
from emcd.cli.layout_text import format_time
from emcd.cli.network import NetworkOptions, network_options, resolve_network
from emcd.cli.spend import Intent, Wallet, spend, spend_options, wallet_address
from emcd.command import CommandContext, emit, json_option, pass_command_context
from emcd.errors import ConfigError
from emcd.money import format_token_floor, parse_token
from emcd.proto.address import parse_address
from emcd.types import Address

MAX_LOCK_DAYS = 3_650


@click.command()
@click.argument("node")
@click.argument("amount", required=False)
@click.option(
    "--lock-days",
    type=click.IntRange(0, MAX_LOCK_DAYS),
    metavar="DAYS",
    help="Compute: 0 (default), 7, 30, 90 or 180 (weighs 1.0, 1.4, 2.7, 6.2, 10.0 times). Router: 180. "
    "Validator: 360.",
)
@click.option("--top-up", is_flag=True, help="Only add to a stake that is there; refuse to begin one.")
@click.option(
    "--extend", is_flag=True, help="Lock the stake that is there for --lock-days from now; no AMOUNT."
)
@spend_options
@network_options
@json_option
@pass_command_context
def stake(
    context: CommandContext,
    node: str,
    amount: str | None,
    lock_days: int | None,
    top_up: bool,
    extend: bool,
    wallet: Wallet,
    network: NetworkOptions,
    as_json: bool,
) -> None:
    """Stake AMOUNT token for NODE from the wallet that it is bound to, add to its stake, or extend its lock.

    A node that has a stake already is topped up: that weighs from the next epoch and begins its lock
    anew, for as many days as before. AMOUNT is in token, such as 3000 or 0.5. Two transactions: approve,
    then stake; --extend is one. Without --send they are priced and nothing is sent.
    """
    target = parse_address(node)
    if extend and (amount is not None or top_up or lock_days is None):
        raise click.UsageError("--extend takes --lock-days, and neither AMOUNT nor --top-up")
    if not extend and amount is None:
        raise click.UsageError("AMOUNT is missing")
    amount_wei = 0 if extend else _parse_amount(str(amount))
    chain = resolve_network(context, network).open_chain()
    participant = trio.run(require_bound, chain, target, wallet_address(wallet))
    if extend:
        intent = plan_extension(chain, participant, lock_days or 0)
    else:
        intent = trio.run(_plan_stake, chain, participant, amount_wei, lock_days, top_up)
    spend(chain, wallet, intent, as_json=as_json)


@click.command()
@click.argument("node")
@spend_options
@network_options
@json_option
@pass_command_context
def unstake(
    context: CommandContext, node: str, wallet: Wallet, network: NetworkOptions, as_json: bool
) -> None:
    """Take NODE's stake back, one step a call: ask for the exit, and once unbonded, withdraw.

    The exit can be asked for when the lock is over; the stake weighs nothing from then on and stays
    slashable until it is withdrawn, 24 rounds later. Without --send the step is priced and not taken.
    """
    target = parse_address(node)
    chain = resolve_network(context, network).open_chain()
    step = trio.run(_plan_exit, chain, target, wallet_address(wallet))
    if step.call is None:
        emit({**step.data, "step": step.name, "text": step.text}, step.text, as_json)
        return
    data = {**step.data, "step": step.name, "text": step.text}
    spend(chain, wallet, Intent(step.text, (step.call,), data, f"done: {step.text}"), as_json=as_json)


@dataclass(frozen=True)
class ExitStep:
    """The next step of leaving; `call` None when it is a matter of time."""

    name: str
    text: str
    call: Call | None
    data: dict[str, Any]


def plan_extension(chain: Chain, participant: Participant, lock_days: int) -> Intent:
    """Lock a stake anew. Raises: ConfigError EMC-2161 without a stake."""
    held_wei = participant.stake_wei + participant.pending_wei
    if not held_wei:
        raise ConfigError("EMC-2161", f"nothing is staked for {participant.node}")
    shown = f"{format_token_floor(held_wei)} EMC of {participant.node}"
    return Intent(
        f"lock {shown} for {lock_days} days from now",
        (chain.staking.submit_extend(participant.node, lock_days),),
        {"node": participant.node, "lock_days": lock_days, "amount_wei": str(held_wei)},
        f"locked {shown} for {lock_days} days",
    )


async def _plan_stake(
    chain: Chain, participant: Participant, amount_wei: int, lock_days: int | None, top_up: bool
) -> Intent:
    """Approve what is not approved yet, then stake. Raises: ConfigError EMC-2161, EMC-2165."""
    node = participant.node
    is_there = participant.stake_wei > 0 or participant.pending_wei > 0
    if top_up and not is_there:
        raise ConfigError("EMC-2161", f"nothing is staked for {node}: leave --top-up out to begin")
    if is_there and lock_days not in (None, participant.lock_days):
        raise click.UsageError(
            f"{node} is staked for {participant.lock_days} days: a top-up keeps that; --extend changes it"
        )
    days = lock_days or 0
    shown = f"{format_token_floor(amount_wei)} EMC for {node}"
    staking = chain.staking
    move = (
        staking.submit_top_up(node, amount_wei) if is_there else staking.submit_stake(node, amount_wei, days)
    )
    owned_wei = await chain.token.fetch_balance(participant.wallet)
    if owned_wei < amount_wei:
        owned = f"{participant.wallet} owns {format_token_floor(owned_wei)} EMC"
        raise ConfigError("EMC-2165", f"{owned} of {format_token_floor(amount_wei)}")
    approved_wei = await chain.token.fetch_allowance(participant.wallet, chain.deployment.staking)
    approve = chain.token.submit_approve(chain.deployment.staking, amount_wei)
    return Intent(
        f"top up by {shown}" if is_there else f"stake {shown}, locked {days} days",
        (move,) if approved_wei >= amount_wei else (approve, move),
        {
            "node": node,
            "wallet": participant.wallet,
            "amount_wei": str(amount_wei),
            "topped_up": is_there,
        },
        f"staked {shown}",
    )


def _parse_amount(text: str) -> int:
    try:
        amount_wei = parse_token(text)
    except ValueError as exc:
        raise ConfigError("EMC-2134", str(exc)) from exc
    if amount_wei == 0:
        raise ConfigError("EMC-2134", "the amount is zero")
    return amount_wei


async def require_bound(chain: Chain, node: Address, wallet: Address) -> Participant:
    participant = await chain.staking.find_participant(node)
    if participant is None:
        raise ConfigError("EMC-2135", f"{node} is bound to no wallet")
    if participant.wallet != wallet:
        raise ConfigError("EMC-2136", f"{node} is bound to {participant.wallet}, not to {wallet}")
    return participant


async def _plan_exit(chain: Chain, node: Address, wallet: Address) -> ExitStep:
    """What comes next for a node that leaves."""
    participant = await require_bound(chain, node, wallet)
    current = await chain.staking.fetch_current_round()
    held_wei = participant.stake_wei + participant.pending_wei
    if participant.unbonding_wei:
        amount = format_token_floor(participant.unbonding_wei)
        if current < participant.exit_round:
            text = f"{amount} EMC unbond until round {participant.exit_round}; now is round {current}"
            return ExitStep("unbonding", text, None, {"exit_round": participant.exit_round})
        text = f"withdraw {amount} EMC to {wallet}"
        return ExitStep("withdraw", text, chain.staking.submit_withdraw(node), {"node": node})
    if not held_wei:
        return ExitStep("none", f"nothing is staked for {node}", None, {})
    now_s = (await chain.head()).timestamp_s
    if participant.lock_end_s > now_s:
        left_h = (participant.lock_end_s - now_s) / 3600
        text = f"the lock runs for {left_h:.1f} more hours, until {format_time(participant.lock_end_s)}"
        return ExitStep("locked", text, None, {"lock_end_s": participant.lock_end_s})
    text = f"ask for the exit of {format_token_floor(held_wei)} EMC"
    return ExitStep("exit", text, chain.staking.submit_request_exit(node), {"node": node})
