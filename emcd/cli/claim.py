"""`emcd claim`: send the claim yourself, with the hub's proof or from a bundle alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click
import trio

from emcd.accounting.audit import audit_bundle
from emcd.accounting.reward_tree import build_reward_tree
from emcd.chain import ActiveRoot, Chain
from emcd.cli.network import Network, NetworkOptions, network_options, resolve_network
from emcd.cli.rewards import fetch_rewards
from emcd.cli.wallet import confirm_option, open_wallet, require_yes, send_all, wallet_options
from emcd.command import CommandContext, emit, json_option, pass_command_context
from emcd.errors import ConfigError
from emcd.money import decode_wei, format_token_floor
from emcd.proto.address import parse_address, parse_hash
from emcd.types import Address


@click.command()
@click.option("--recipient", default="", metavar="ADDRESS", help="Who is paid; the wallet itself without it.")
@click.option(
    "--bundle",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="The bundle of the active round: needs no hub at all.",
)
@wallet_options
@network_options
@confirm_option
@json_option
@pass_command_context
def claim(
    context: CommandContext,
    recipient: str,
    bundle: Path | None,
    keystore: Path,
    password_file: Path | None,
    network: NetworkOptions,
    yes: bool,
    as_json: bool,
) -> None:
    """Claim what the active root gives the wallet, in a transaction of its own (it pays the gas).

    Totals are cumulative: nothing expires, and one claim takes everything not yet claimed.
    """
    paid = parse_address(recipient) if recipient else None
    resolved = resolve_network(context, network)
    chain = resolved.open_chain()
    key = open_wallet(keystore, password_file)
    active = trio.run(_require_active, chain)
    if bundle is not None:
        total_wei, proof = _prove_from_bundle(bundle, active, key.address)
    else:
        total_wei, proof = trio.run(_prove_from_hub, resolved, active, key.address)
    open_wei = total_wei - trio.run(lambda: chain.distributor.fetch_claimed(key.address))
    if open_wei <= 0:
        why = "is claimed already" if total_wei else "gives the wallet nothing"
        emit({"claimed_wei": "0"}, f"nothing to claim: the active root {why}", as_json)
        return
    to = paid or key.address
    require_yes(yes, f"claim {format_token_floor(open_wei)} EMC to {to}?")
    call = chain.distributor.submit_claim(key.address, total_wei, proof, to)
    tx_hash = "0x" + trio.run(send_all, chain, key, (call,))[0].tx_hash.hex()
    result = {"claimed_wei": str(open_wei), "recipient": to, "round": active.round, "tx_hash": tx_hash}
    emit(result, f"claimed {format_token_floor(open_wei)} EMC in transaction {tx_hash}", as_json)


async def _require_active(chain: Chain) -> ActiveRoot:
    active = await chain.distributor.find_active_root()
    if active is None:
        raise ConfigError("EMC-2139", "the contract has no active root yet")
    return active


def _prove_from_bundle(file: Path, active: ActiveRoot, wallet: Address) -> tuple[int, Sequence[bytes]]:
    outcome = audit_bundle(file.read_bytes())
    if not outcome.ok or outcome.result is None:
        raise ConfigError("EMC-2140", f"{file}: {outcome.difference}")
    if outcome.result.root != active.root:
        raise ConfigError("EMC-2140", f"{file} is not the bundle of the active round {active.round}")
    tree = build_reward_tree({t.wallet: decode_wei(t.cumulative_wei) for t in outcome.result.totals_after})
    try:
        return tree.cumulative_wei(wallet), tree.proof(wallet)
    except KeyError:
        return 0, ()


async def _prove_from_hub(
    network: Network, active: ActiveRoot, wallet: Address
) -> tuple[int, Sequence[bytes]]:
    shown = (await fetch_rewards(network.require_hub(), wallet)).get("proof")
    if not shown:
        return 0, ()
    if parse_hash(shown["root"]) != active.root:
        raise ConfigError("EMC-2140", "the hub's proof is not for the active root; try again or use --bundle")
    return int(shown["cumulative_wei"]), [parse_hash(item) for item in shown["proof"]]
