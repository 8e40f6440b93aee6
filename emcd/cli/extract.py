"""`emcd extract`: ask for the rewards of a wallet, signed by it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click
import trio

from emcd.chain import Chain
from emcd.cli.network import Network, NetworkOptions, network_options, resolve_network
from emcd.cli.rewards import fetch_document
from emcd.cli.wallet import open_wallet, wallet_options
from emcd.command import CommandContext, emit, json_option, pass_command_context
from emcd.errors import ConfigError, RecoverableError
from emcd.keys import SigningKey
from emcd.net.http_client import request
from emcd.proto.address import hex_hash, parse_address
from emcd.proto.json_form import to_json
from emcd.proto.messages import Extraction
from emcd.types import Address

VALID_S = 7 * 86_400
_CLOSED = ("closed", "attested", "published", "active")


@click.command()
@click.option("--recipient", default="", metavar="ADDRESS", help="Who is paid; the wallet itself without it.")
@click.option(
    "--through-round",
    type=click.IntRange(0),
    metavar="ROUND",
    help="Up to which round; the last closed one without it.",
)
@click.option(
    "--submit/--no-submit",
    default=True,
    show_default=True,
    help="Whether the settler may send the claim for the wallet.",
)
@wallet_options
@network_options
@json_option
@pass_command_context
def extract(
    context: CommandContext,
    recipient: str,
    through_round: int | None,
    submit: bool,
    keystore: Path,
    password_file: Path | None,
    network: NetworkOptions,
    as_json: bool,
) -> None:
    """Ask for the wallet's rewards: a request signed by it, given to the hub.

    The settler then publishes a root that covers the round and, with --submit, sends the claim. The
    wallet pays no gas. `emcd rewards` shows how it goes on.
    """
    paid = parse_address(recipient) if recipient else None
    resolved = resolve_network(context, network)
    key = open_wallet(keystore, password_file)
    answer = trio.run(_request_extraction, resolved, key, paid, through_round, submit)
    emit(answer, f"requested through round {answer['through_round']}: {answer['state']}", as_json)


async def _request_extraction(
    network: Network, key: SigningKey, recipient: Address | None, through_round: int | None, submit: bool
) -> dict[str, Any]:
    hub, chain = network.require_hub(), network.open_chain()
    if through_round is None:
        through_round = await _find_last_closed(hub)
    extraction = Extraction(
        wallet=key.address,
        recipient=recipient or key.address,
        through_round=through_round,
        submit=submit,
        nonce=await _find_free_nonce(hub, chain, key.address),
        deadline=int(time.time()) + VALID_S,
    )
    signature = key.sign(network.deployment.distributor_domain, extraction)
    answer = await request(
        "POST",
        f"{hub}/api/wallets/{key.address}/extractions",
        json={"extraction": to_json(extraction), "signature": hex_hash(signature)},
        timeout_s=20.0,
    )
    if answer.status >= 300:
        raise RecoverableError(
            "EMC-2137", f"the hub answers {answer.status}: {answer.body[:300].decode('utf-8', 'replace')}"
        )
    return {**answer.json(), "through_round": through_round}


async def _find_free_nonce(hub_url: str, chain: Chain, wallet: Address) -> int:
    """The first that neither the contract nor an open request has used: a hub can't make it leap."""
    listed = (await fetch_document(f"{hub_url}/api/wallets/{wallet}/extractions"))["extractions"]
    taken = {int(entry["extraction"]["nonce"]) for entry in listed}
    nonce = await chain.distributor.fetch_extraction_nonce(wallet)
    while nonce in taken:
        nonce += 1
    return nonce


async def _find_last_closed(hub_url: str) -> int:
    rounds = (await fetch_document(f"{hub_url}/api/rounds"))["rounds"]
    closed = [int(entry["round"]) for entry in rounds if entry["state"] in _CLOSED]
    if not closed:
        raise ConfigError("EMC-2138", "no round has closed yet")
    return max(closed)
