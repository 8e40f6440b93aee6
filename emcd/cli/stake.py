"""`emcd stake` and `emcd unstake`: put token behind a node, and take it back."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click
import trio

from emcd.chain import Call, Chain, Participant
from emcd.cli.network import NetworkOptions, network_options, resolve_network
from emcd.cli.wallet import confirm_option, open_wallet, require_yes, send_all, wallet_options
from emcd.command import CommandContext, emit, json_option, pass_command_context
from emcd.errors import ConfigError
from emcd.keys import SigningKey
from emcd.money import format_token_floor, parse_token
from emcd.proto.address import parse_address
from emcd.types import Address


@click.command()
@click.argument("node")
@click.argument("amount")
@click.option(
    "--lock-days",
    type=click.IntRange(0, 360),
    metavar="DAYS",
    help="Compute: 0 (default), 7, 30, 90 or 180 (weighs 1.0, 1.4, 2.7, 6.2, 10.0 times). Router: 180. "
    "Validator: 360.",
)
@wallet_options
@network_options
@confirm_option
@json_option
@pass_command_context
def stake(
    context: CommandContext,
    node: str,
    amount: str,
    lock_days: int | None,
    keystore: Path,
    password_file: Path | None,
    network: NetworkOptions,
    yes: bool,
    as_json: bool,
) -> None:
    """Stake AMOUNT token for NODE from the wallet that it is bound to.

    A node that has a stake already is topped up: that weighs from the next epoch and begins its
    lock anew, for as many days as before. AMOUNT is in token, such as 3000 or 0.5. Two transactions: approve, then stake.
    """
    target = parse_address(node)
    amount_wei = _parse_amount(amount)
    chain = resolve_network(context, network).open_chain()
    key = open_wallet(keystore, password_file)
    participant = trio.run(_require_bound, chain, target, key)
    tops_up = participant.stake_wei > 0 or participant.pending_wei > 0
    if tops_up and lock_days not in (None, participant.lock_days):
        raise click.UsageError(f"{target} is staked for {participant.lock_days} days: a top-up keeps that")
    days = lock_days or 0
    shown = f"{format_token_floor(amount_wei)} EMC for {target}"
    require_yes(yes, f"top up by {shown}?" if tops_up else f"stake {shown}, locked {days} days?")
    move = (
        chain.staking.submit_top_up(target, amount_wei)
        if tops_up
        else chain.staking.submit_stake(target, amount_wei, days)
    )
    approve = chain.token.submit_approve(chain.deployment.staking, amount_wei)
    receipts = trio.run(send_all, chain, key, (approve, move))
    result = {
        "node": target,
        "wallet": key.address,
        "amount_wei": str(amount_wei),
        "topped_up": tops_up,
        "tx_hash": "0x" + receipts[-1].tx_hash.hex(),
    }
    emit(result, f"staked {shown} in transaction {result['tx_hash']}", as_json)


@click.command()
@click.argument("node")
@wallet_options
@network_options
@confirm_option
@json_option
@pass_command_context
def unstake(
    context: CommandContext,
    node: str,
    keystore: Path,
    password_file: Path | None,
    network: NetworkOptions,
    yes: bool,
    as_json: bool,
) -> None:
    """Take NODE's stake back, one step a call: ask for the exit, and once unbonded, withdraw.

    The exit can be asked for when the lock is over; the stake weighs nothing from then on and stays
    slashable until it is withdrawn, 24 rounds later.
    """
    target = parse_address(node)
    chain = resolve_network(context, network).open_chain()
    key = open_wallet(keystore, password_file)
    step = trio.run(_plan_exit, chain, target, key)
    if step["call"] is None:
        emit({k: v for k, v in step.items() if k != "call"}, str(step["text"]), as_json)
        return
    require_yes(yes, f"{step['text']}?")
    call: Call = step.pop("call")
    receipt = trio.run(send_all, chain, key, (call,))[0]
    step["tx_hash"] = "0x" + receipt.tx_hash.hex()
    emit(step, f"done: {step['text']}, transaction {step['tx_hash']}", as_json)


def _parse_amount(text: str) -> int:
    try:
        amount_wei = parse_token(text)
    except ValueError as exc:
        raise ConfigError("EMC-2134", str(exc)) from exc
    if amount_wei == 0:
        raise ConfigError("EMC-2134", "the amount is zero")
    return amount_wei


async def _require_bound(chain: Chain, node: Address, wallet: SigningKey) -> Participant:
    participant = await chain.staking.find_participant(node)
    if participant is None:
        raise ConfigError("EMC-2135", f"{node} is bound to no wallet")
    if participant.wallet != wallet.address:
        raise ConfigError("EMC-2136", f"{node} is bound to {participant.wallet}, not to {wallet.address}")
    return participant


async def _plan_exit(chain: Chain, node: Address, wallet: SigningKey) -> dict[str, Any]:
    """The next step of leaving: {"step", "text", "call"}; call None when it is a matter of time."""
    participant = await _require_bound(chain, node, wallet)
    current = await chain.staking.fetch_current_round()
    held_wei = participant.stake_wei + participant.pending_wei
    if participant.unbonding_wei:
        amount = format_token_floor(participant.unbonding_wei)
        if current < participant.exit_round:
            text = f"{amount} EMC unbond until round {participant.exit_round}; now is round {current}"
            return {"step": "unbonding", "exit_round": participant.exit_round, "text": text, "call": None}
        call = chain.staking.submit_withdraw(node)
        return {"step": "withdraw", "text": f"withdraw {amount} EMC to {wallet.address}", "call": call}
    if not held_wei:
        return {"step": "none", "text": f"nothing is staked for {node}", "call": None}
    left_s = participant.lock_end_s - int(time.time())
    if left_s > 0:
        text = f"the lock runs for {left_s / 3600:.1f} more hours"
        return {"step": "locked", "lock_end_s": participant.lock_end_s, "text": text, "call": None}
    text = f"ask for the exit of {format_token_floor(held_wei)} EMC"
    return {"step": "exit", "text": text, "call": chain.staking.submit_request_exit(node)}
