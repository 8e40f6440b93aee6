"""`emcd credits buy`: token burnt in the credit vault for the credits of a hub's account."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click
import trio

from emcd.chain import Call, Chain, TxReceipt
from emcd.cli.network import NetworkOptions, network_options, resolve_network
from emcd.cli.spend import Intent, Wallet, spend, spend_options, wallet_address
from emcd.command import CommandContext, json_option, pass_command_context
from emcd.errors import ConfigError, RecoverableError
from emcd.money import BPS, format_credits_floor, format_token_floor, parse_token
from emcd.net.http_client import request
from emcd.proto.address import parse_hash
from emcd.proto.hashing import keccak
from emcd.types import Address

KEY_VARIABLE = "EMCD_API_KEY"
WAIT_S = 900.0
POLL_S = 1.0


@click.command("buy")
@click.argument("account")
@click.argument("amount")
@click.option(
    "--api-key-file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help=f"File with an API key of the account (or ${KEY_VARIABLE}): waits until the credits are there.",
)
@spend_options
@network_options
@json_option
@pass_command_context
def buy(
    context: CommandContext,
    account: str,
    amount: str,
    api_key_file: Path | None,
    wallet: Wallet,
    network: NetworkOptions,
    as_json: bool,
) -> None:
    """Buy credits for ACCOUNT with AMOUNT token (such as 100 or 0.5), from the wallet of --keystore.

    ACCOUNT is the acct_... id, the 0x... vault account that `emcd credits show` prints, or with an API
    key of it, its name. Two transactions: approve, then buy. The token is burnt, but for the share that
    the deployment gives to a treasury, which is shown. The hub credits it after the chain's confirmations.
    """
    resolved = resolve_network(context, network)
    chain, payer = resolved.open_chain(), wallet_address(wallet)
    amount_wei = _parse_amount(amount)
    api_key = _read_key(api_key_file)
    hub = resolved.hub_url
    target = trio.run(_find_vault_account, account, hub, api_key)
    calls, credits_micro, share = trio.run(_plan, chain, payer, target, amount_wei)
    shown = f"{format_credits_floor(credits_micro)} credits for {account} with {format_token_floor(amount_wei)} EMC"
    intent = Intent(
        f"buy {shown}{share}",
        calls,
        {"account": account, "amount_wei": str(amount_wei), "credits_micro": str(credits_micro)},
        f"bought {shown}",
    )
    receipts = spend(chain, wallet, intent, as_json=as_json)
    if receipts:
        said = trio.run(_wait_credited, chain, receipts[-1], hub, api_key)
        click.echo(said, err=True)


async def _plan(chain: Chain, payer: Address, account: bytes, amount_wei: int) -> tuple[list[Call], int, str]:
    """What to send, what it brings, and in words where the token goes. Raises: ConfigError EMC-2147."""
    balance_wei = await chain.token.fetch_balance(payer)
    if balance_wei < amount_wei:
        raise ConfigError("EMC-2147", f"{payer} owns {format_token_floor(balance_wei)} EMC")
    credits_micro = await chain.vault.fetch_credits_for(amount_wei)
    if not credits_micro:
        raise ConfigError("EMC-2147", "so little token buys no credit at all")
    calls: list[Call] = []
    if await chain.token.fetch_allowance(payer, chain.vault.address) < amount_wei:
        calls.append(chain.token.submit_approve(chain.vault.address, amount_wei))
    calls.append(chain.vault.submit_buy(account, amount_wei))
    bps = int(await chain.vault.view_one("treasuryBps"))
    treasury = await chain.vault.view_one("treasury")
    share = (
        f"; {bps * 100 / BPS:g} % of it goes to the treasury {treasury}, the rest is burnt"
        if bps
        else "; it is burnt"
    )
    return calls, int(credits_micro), share


async def _find_vault_account(account: str, hub_url: str, api_key: str) -> bytes:
    """The vault's name of an account. Raises: ConfigError EMC-2148; EMC-1496 for 0x and no 32 bytes."""
    if account.startswith("0x"):
        return parse_hash(account)
    if account.startswith("acct_"):
        return keccak(account.encode())
    if hub_url and api_key:
        own = await _ask(f"{hub_url}/api/account", api_key)
        if own["name"] == account:
            return parse_hash(own["vault_account"])
    raise ConfigError("EMC-2148", f"{account!r} is no account id (acct_...) and no account of the API key")


async def _wait_credited(chain: Chain, receipt: TxReceipt, hub_url: str, api_key: str) -> str:
    """Wait until the hub's statement has the purchase, or without a key until the chain has confirmed it."""
    index = _find_index(chain, receipt)
    depth = chain.config.confirmations
    with trio.move_on_after(WAIT_S):
        while True:
            if (await chain.head()).number >= receipt.block + depth - 1:
                break
            await trio.sleep(POLL_S)
        if not (hub_url and api_key):
            return f"deposit {index} is {depth} blocks deep: the hub credits it about now"
        while True:
            books = await _ask(f"{hub_url}/api/account/statement", api_key)
            if any(item["note"] == f"vault deposit {index}" for item in books["movements"]):
                balance = format_credits_floor(int(books["balance"]["vault_micro"]))
                return f"deposit {index} is credited: {balance} credits from the vault are there"
            await trio.sleep(POLL_S)
    return f"deposit {index} is not credited after {WAIT_S:.0f} s; it will be, and once: `emcd credits show`"


def _find_index(chain: Chain, receipt: TxReceipt) -> int:
    event = chain.vault.abi.event("CreditsBought")
    for log in receipt.logs:
        if log.address == chain.vault.address and log.topics and log.topics[0] == event.topic:
            return int(event.decode(log.topics, log.data)["index"])
    raise RecoverableError("EMC-1507", f"transaction 0x{receipt.tx_hash.hex()} has bought nothing")


async def _ask(url: str, api_key: str) -> dict[str, Any]:
    """Raises: RecoverableError EMC-2137."""
    answer = await request(
        "GET", url, headers={"authorization": f"Bearer {api_key}"}, timeout_s=20.0, max_bytes=16 << 20
    )
    if answer.status != 200:
        raise RecoverableError("EMC-2137", f"{url} answers {answer.status}")
    document = answer.json()
    if not isinstance(document, dict):
        raise RecoverableError("EMC-2137", f"{url} answers no JSON object")
    return document


def _parse_amount(text: str) -> int:
    try:
        amount_wei = parse_token(text)
    except ValueError as exc:
        raise ConfigError("EMC-2134", str(exc)) from exc
    if amount_wei == 0:
        raise ConfigError("EMC-2134", "the amount is zero")
    return amount_wei


def _read_key(file: Path | None) -> str:
    return (file.read_text("utf-8") if file is not None else os.environ.get(KEY_VARIABLE, "")).strip()
