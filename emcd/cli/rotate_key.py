"""`emcd rotate-key`: another hot key for a validator, router or hub; the wallet decides."""

from __future__ import annotations

import time
from pathlib import Path

import click
import trio

from emcd.chain import Chain, Participant
from emcd.cli.keys import ask_password
from emcd.cli.network import NetworkOptions, network_options, resolve_network
from emcd.cli.spend import Intent, Wallet, spend, spend_options, wallet_address
from emcd.cli.stake import require_bound
from emcd.command import CommandContext, json_option, pass_command_context
from emcd.errors import ConfigError
from emcd.keys import load_keystore
from emcd.proto.address import parse_address
from emcd.proto.messages import Binding
from emcd.types import ZERO_ADDRESS, ParticipantRole

VALID_S = 86_400
ROTATING = (ParticipantRole.VALIDATOR, ParticipantRole.ROUTER, ParticipantRole.HUB)


@click.command(name="rotate-key")
@click.argument("node")
@click.option(
    "--next-keystore",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Keystore of the next key, never used before; it signs its consent.",
)
@click.option(
    "--next-password-file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="File with its password. Else as for --keystore.",
)
@click.option("--cancel", is_flag=True, help="Take back a rotation that is not in force yet.")
@spend_options
@network_options
@json_option
@pass_command_context
def rotate_key(
    context: CommandContext,
    node: str,
    next_keystore: Path | None,
    next_password_file: Path | None,
    cancel: bool,
    wallet: Wallet,
    network: NetworkOptions,
    as_json: bool,
) -> None:
    """Replace NODE's key by the one in --next-keystore; --keystore is the wallet's.

    The next key signs from the second epoch after this one on, NODE until then: keep both in the
    daemon's configuration over the change. Stake, wallet and history stay, and a slash by the old key still
    reaches the stake. A compute node exits and binds anew instead.
    """
    target = parse_address(node)
    if cancel == (next_keystore is not None):
        raise click.UsageError("give --next-keystore or --cancel, one of them")
    chain = resolve_network(context, network).open_chain()
    participant = trio.run(require_bound, chain, target, wallet_address(wallet))
    if next_keystore is None:
        intent = _plan_cancel(chain, participant)
    else:
        intent = _plan_rotation(chain, participant, next_keystore, next_password_file)
    spend(chain, wallet, intent, as_json=as_json)


def _plan_rotation(
    chain: Chain, participant: Participant, keystore: Path, password_file: Path | None
) -> Intent:
    if participant.role not in ROTATING:
        detail = f"{participant.node} is a {participant.role.name.lower()} node"
        raise ConfigError("EMC-2162", detail)
    if participant.next_node != ZERO_ADDRESS:
        epoch = participant.next_from_epoch
        raise ConfigError("EMC-2163", f"{participant.next_node} follows in epoch {epoch} already")
    key = load_keystore(keystore, ask_password(password_file, confirm=False))
    following = Binding(
        node=key.address,
        wallet=participant.wallet,
        role=int(participant.role),
        nonce=participant.nonce + 1,
        deadline=int(time.time()) + VALID_S,
    )
    signature = key.sign(chain.deployment.staking_domain, following)
    epoch = _first_epoch(chain)
    title = f"{key.address} follows {participant.node} as {participant.role.name.lower()} from epoch {epoch}"
    call = chain.staking.submit_rotate_key(participant.node, following, signature)
    data = {"node": participant.node, "next_node": key.address, "from_epoch": epoch}
    return Intent(title, (call,), data)


def _plan_cancel(chain: Chain, participant: Participant) -> Intent:
    if participant.next_node == ZERO_ADDRESS:
        raise ConfigError("EMC-2163", f"no key waits to follow {participant.node}")
    title = f"{participant.next_node} does not follow {participant.node}, and is used up"
    call = chain.staking.submit_cancel_rotation(participant.node)
    return Intent(title, (call,), {"node": participant.node, "cancelled": participant.next_node})


def _first_epoch(chain: Chain) -> int:
    """As it stands now; a transaction that is mined in a later epoch counts from there."""

    async def ask() -> int:
        return int(await chain.staking.view_one("nextEpoch"))

    return trio.run(ask) + 1
