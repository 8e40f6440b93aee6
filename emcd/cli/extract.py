"""`emcd extract`: ask for the rewards of a wallet, signed by it."""

from __future__ import annotations

import json
import time
from contextlib import aclosing
from pathlib import Path
from typing import Any

import click
import trio

from emcd.accounting.payout import ExtractionState
from emcd.chain import Chain
from emcd.chain.quantity import ask_quantity
from emcd.cli.layout_text import format_ether_ceil
from emcd.cli.network import Network, NetworkOptions, network_options, resolve_network
from emcd.cli.payout_text import list_extraction_lines
from emcd.cli.rewards import fetch_document
from emcd.cli.wallet import confirm_option, open_wallet, require_yes, wallet_options
from emcd.cli.wallet_stream import watch_wallet
from emcd.command import CommandContext, emit, json_option, pass_command_context
from emcd.errors import ConfigError, RecoverableError
from emcd.keys import SigningKey
from emcd.net.http_client import request
from emcd.proto.address import hex_hash, parse_address
from emcd.proto.json_form import to_json
from emcd.proto.messages import Extraction
from emcd.types import Address

VALID_S = 7 * 86_400
TYPICAL_CLAIM_GAS = 165_000
"""Of a claim among 100,000 accounts; the real one is estimated when it can be sent."""
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
@click.option("--watch", is_flag=True, help="Wait, and show every step until it is paid or has ended.")
@wallet_options
@confirm_option
@network_options
@json_option
@pass_command_context
def extract(
    context: CommandContext,
    recipient: str,
    through_round: int | None,
    submit: bool,
    watch: bool,
    keystore: Path,
    password_file: Path | None,
    yes: bool,
    network: NetworkOptions,
    as_json: bool,
) -> None:
    """Ask for the wallet's rewards: a request signed by it, given to the hub.

    The settler then publishes a root that covers the round and, with --submit, sends the claim: the
    wallet pays no gas. With --no-submit the wallet sends it (`emcd claim`), and it is told here what
    that costs at today's prices. Asks before it signs away to another address.
    """
    paid = parse_address(recipient) if recipient else None
    resolved = resolve_network(context, network)
    key = open_wallet(keystore, password_file)
    if paid not in (None, key.address):
        require_yes(yes, f"have the rewards of {key.address} paid to {paid}?")
    answer = trio.run(_request_extraction, resolved, key, paid, through_round, submit)
    cost = {"gas": 0, "expected_cost_wei": "0", "paid_by": "settler"}
    text = "the settler pays the gas"
    if not submit:
        cost, text = trio.run(_price_claim, resolved.open_chain())
    if not watch:
        lines = [*list_extraction_lines(answer), f"  {'costs':<13} {text}"]
        emit({**answer, "cost": cost}, "\n".join(lines), as_json)
        return
    if not as_json:
        click.echo(f"costs: {text}")
    last = trio.run(_watch, resolved.require_hub(), key.address, str(answer["id"]), as_json)
    if last["state"] != ExtractionState.CLAIMED:
        raise ConfigError("EMC-2146", f"{last['state']}: {last['reason'] or 'no reason is known'}")


async def _watch(hub_url: str, wallet: Address, request_id: str, as_json: bool) -> dict[str, Any]:
    """Show a request's steps until it has ended. Returns: how it ended."""
    shown: dict[str, Any] = {}
    async with aclosing(watch_wallet(hub_url, wallet)) as states:
        async for state in states:
            path = next((item for item in state["extractions"] if item["id"] == request_id), None)
            if path is None or path == shown:
                continue
            shown = path
            click.echo(json.dumps(path) if as_json else "\n".join([*list_extraction_lines(path), ""]))
            if not ExtractionState(path["state"]).is_open:
                return dict(path)
    raise RecoverableError("EMC-2137", "the hub's stream has ended")


async def _price_claim(chain: Chain) -> tuple[dict[str, Any], str]:
    """What the wallet's own claim would cost now."""
    price_wei = await ask_quantity(chain.rpc, "eth_gasPrice")
    cost_wei = TYPICAL_CLAIM_GAS * price_wei
    text = f"the claim is the wallet's to send: about {TYPICAL_CLAIM_GAS:,} gas, {format_ether_ceil(cost_wei)} ETH now"
    return {"gas": TYPICAL_CLAIM_GAS, "expected_cost_wei": str(cost_wei), "paid_by": "wallet"}, text


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
    """The first that neither the contract nor a listed request has used: a hub can't make it leap."""
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
