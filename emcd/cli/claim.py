"""`emcd claim`: send the claim yourself, with the hub's proof or from a bundle alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import click
import trio

from emcd.accounting.payout_proof import WalletProof, prove_wallet
from emcd.bundle_file import open_bundle
from emcd.chain import ActiveRoot, Call, Chain, PublicationState
from emcd.cli.network import Network, NetworkOptions, network_options, resolve_network
from emcd.cli.rewards import fetch_rewards
from emcd.cli.spend import Intent, Wallet, price_all, spend, spend_options, wallet_address
from emcd.command import CommandContext, emit, json_option, pass_command_context
from emcd.errors import ConfigError
from emcd.money import BPS, WEI_PER_TOKEN, format_token_floor
from emcd.proto.address import hex_hash, parse_address, parse_hash
from emcd.proto.bundle import BundleHeader
from emcd.proto.bundle_codec import BundleFault
from emcd.types import Address


@dataclass(frozen=True)
class Due:
    """What the active root gives a wallet, with its proof; 0 without one."""

    cumulative_wei: int
    proof: Sequence[bytes]


@click.command()
@click.option("--recipient", default="", metavar="ADDRESS", help="Who is paid; the wallet itself without it.")
@click.option(
    "--bundle",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="The bundle of the active root's round: needs no hub at all.",
)
@click.option(
    "--token-price-eth",
    type=click.FloatRange(min=0, min_open=True),
    metavar="ETH",
    help="What one EMC is worth in ETH: shows what share of the claim the gas takes.",
)
@spend_options
@network_options
@json_option
@pass_command_context
def claim(
    context: CommandContext,
    recipient: str,
    bundle: Path | None,
    token_price_eth: float | None,
    wallet: Wallet,
    network: NetworkOptions,
    as_json: bool,
) -> None:
    """Claim what the active root gives the wallet, in a transaction of its own (it pays the gas).

    Without --send it says what there is to claim and what that costs. Totals are cumulative:
    nothing expires, and one claim takes everything not yet claimed. With --bundle only the file
    and the contract are asked: no hub is needed.
    """
    paid = parse_address(recipient) if recipient else None
    resolved = resolve_network(context, network)
    chain, address = resolved.open_chain(), wallet_address(wallet)
    active = trio.run(_require_active, chain)
    if bundle is not None:
        due = trio.run(_prove_from_bundle, chain, bundle, active, address)
    else:
        due = trio.run(_prove_from_hub, resolved, active, address)
    open_wei = due.cumulative_wei - trio.run(lambda: chain.distributor.fetch_claimed(address))
    if open_wei <= 0:
        why = "is claimed already" if due.cumulative_wei else "gives the wallet nothing"
        nothing = {"claimed_wei": "0", "claimable_wei": "0", "round": active.round, "sent": False}
        emit(nothing, f"nothing to claim: the active root, of round {active.round}, {why}", as_json)
        return
    to = paid or address
    call = chain.distributor.submit_claim(address, due.cumulative_wei, due.proof, to)
    share, data = _price_share(chain, address, call, open_wei, token_price_eth)
    amount = format_token_floor(open_wei)
    intent = Intent(
        f"claim {amount} EMC of the root of round {active.round} to {to}{share}",
        (call,),
        {
            "claimed_wei" if wallet.send else "claimable_wei": str(open_wei),
            "wallet": address,
            "recipient": to,
            "round": active.round,
            "cumulative_wei": str(due.cumulative_wei),
            **data,
        },
        f"claimed {amount} EMC",
    )
    spend(chain, wallet, intent, as_json=as_json)


def _price_share(
    chain: Chain, wallet: Address, call: Call, open_wei: int, token_price_eth: float | None
) -> tuple[str, dict[str, Any]]:
    """What share of the claim its gas takes, where somebody says what the token is worth."""
    if token_price_eth is None:
        return "", {}
    priced, _ = trio.run(price_all, chain, wallet, (call,))
    worth_wei = int(open_wei * Decimal(str(token_price_eth)) * WEI_PER_TOKEN) // WEI_PER_TOKEN
    share_bps = priced[0].expected_wei * BPS // max(1, worth_wei)
    return f" (the gas is {share_bps / 100:.2f} % of it)", {"gas_share_bps": share_bps}


async def _require_active(chain: Chain) -> ActiveRoot:
    active = await chain.distributor.find_active_root()
    if active is None:
        raise ConfigError("EMC-2139", "the contract has no active root yet")
    return active


async def _prove_from_bundle(chain: Chain, file: Path, active: ActiveRoot, wallet: Address) -> Due:
    """Raises: ConfigError EMC-2140 (not what was signed), EMC-2144 (another network), EMC-2145 (another round)."""
    try:
        found: WalletProof = await trio.to_thread.run_sync(_read_proof, file, wallet)
    except BundleFault as exc:
        raise ConfigError("EMC-2140", f"{file}: {exc.code}: {exc.detail}") from exc
    header = found.header
    if (header.chain_id, header.distributor) != (chain.deployment.chain_id, chain.deployment.distributor):
        raise ConfigError(
            "EMC-2144", f"{file} is of chain {header.chain_id}, distributor {header.distributor}"
        )
    if header.round != active.round:
        raise ConfigError("EMC-2145", f"{file} {await _place(chain, header, active)}")
    if found.root != active.root:
        raise ConfigError(
            "EMC-2140",
            f"{file}: its totals give the root {hex_hash(found.root)}, but {hex_hash(active.root)} is the active"
            f" root of round {active.round}",
        )
    return Due(found.cumulative_wei, found.proof)


def _read_proof(file: Path, wallet: Address) -> WalletProof:
    with open_bundle(file) as data:
        return prove_wallet(data, wallet)


async def _place(chain: Chain, header: BundleHeader, active: ActiveRoot) -> str:
    """Where a bundle's round stands beside the active root."""
    needed = f"the bundle of round {active.round} is needed"
    if header.round < active.round:
        return f"is the bundle of round {header.round}, older than the active root: {needed}"
    publication = await chain.distributor.fetch_publication(header.round)
    if publication.state is PublicationState.PENDING:
        when = datetime.fromtimestamp(publication.active_at_s, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        return f"is the bundle of round {header.round}, whose root is active from {when}: wait, or {needed}"
    state = "voided" if publication.state is PublicationState.VOID else "not published"
    return f"is the bundle of round {header.round}, whose root is {state}: {needed}"


async def _prove_from_hub(network: Network, active: ActiveRoot, wallet: Address) -> Due:
    shown = (await fetch_rewards(network.require_hub(), wallet)).get("proof")
    if not shown:
        return Due(0, ())
    if parse_hash(shown["root"]) != active.root:
        raise ConfigError("EMC-2140", "the hub's proof is not for the active root; try again or use --bundle")
    return Due(int(shown["cumulative_wei"]), [parse_hash(item) for item in shown["proof"]])
