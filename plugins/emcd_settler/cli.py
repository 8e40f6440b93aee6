"""`emcd slash`: what validators have proven against whom, and the order to the chain, by anybody.

Owns no logic: options in, `slash_view` in the middle, text or JSON out.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click
import trio

from emcd.chain import Chain, ChainConfig
from emcd.chain.sender import send_call
from emcd.command import CommandContext, emit, json_option, pass_command_context
from emcd.errors import ConfigError
from emcd.keys import load_keystore
from emcd.net.url_guard import is_loopback, parse_target
from emcd.proto.address import hex_hash, parse_hash
from emcd.proto.network import decode_deployment
from emcd_settler.slash_view import SeenOffence, SlashBoard, fetch_board, find_quorum

_PASSWORD_ENV = "EMCD_KEY_PASSWORD"


@click.group()
def slash() -> None:
    """Offences that validators have proven, and the orders they signed to punish them."""


@slash.command("list")
@json_option
@pass_command_context
def list_(context: CommandContext, as_json: bool) -> None:
    """Show the offences of the rounds that are judged still, as the validators list them.

    For each: who, when, how many validators list it, how much of the power has signed the order, and
    whether the stake was taken.
    """
    chain = _open_chain(context)
    board = trio.run(_fetch, chain)
    lines = [_describe(item) for item in board.offences]
    text = "\n".join(lines) or "no validator lists an offence"
    emit({"offences": [_show(item) for item in board.offences]}, text, as_json)


@slash.command()
@click.argument("evidence_hash", metavar="HASH")
@click.option(
    "--keystore",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="The keystore v3 file of the account that sends and pays the gas; it needs no other power.",
)
@click.option(
    "--password-file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help=f"File with its password. Else: ${_PASSWORD_ENV}, else it is asked for.",
)
@click.option("--send", is_flag=True, help="Send it. Without, it is checked and nothing is sent.")
@click.option("--yes", is_flag=True, help="Send without asking; implies --send.")
@json_option
@pass_command_context
def submit(
    context: CommandContext,
    evidence_hash: str,
    keystore: Path | None,
    password_file: Path | None,
    send: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Bring the order for the offence HASH to the staking contract, which burns the share.

    Anybody may: the order counts by the validators' signatures. A settler does it by itself.
    """
    identity = bytes(parse_hash(evidence_hash))
    if (send or yes) and keystore is None:
        raise click.UsageError("--send needs --keystore")
    chain = _open_chain(context)
    quorum = find_quorum(trio.run(_fetch, chain), identity)
    order = quorum.order
    call = chain.staking.submit_slash(order, quorum.signatures)
    shown: dict[str, Any] = {
        "evidence_hash": hex_hash(identity),
        "node": order.node,
        "bps": order.bps,
        "epoch": order.epoch,
        "signers": sorted(quorum.signatures),
    }
    title = f"burn {order.bps / 100:g} % of the stake of {order.node}"
    if keystore is None or not (send or yes):
        trio.run(chain.require_can, call, next(iter(quorum.signatures)))
        emit({**shown, "sent": False}, f"{title}: would be taken. Nothing was sent: --send does it.", as_json)
        return
    if not yes:
        click.confirm(f"{title}?", abort=True, err=True)
    key = load_keystore(keystore, _read_password(keystore, password_file))
    receipt = trio.run(send_call, chain.rpc, chain.deployment.chain_id, key, call)
    tx_hash = hex_hash(receipt.tx_hash)
    emit({**shown, "sent": True, "tx_hash": tx_hash}, f"{title}: transaction {tx_hash}", as_json)


async def _fetch(chain: Chain) -> SlashBoard:
    urls = chain.config.rpc_urls
    is_local = bool(urls) and is_loopback(parse_target(urls[0]).host)
    return await fetch_board(chain, allow_loopback=is_local)


def _open_chain(context: CommandContext) -> Chain:
    config = context.load()
    path = config.network.deployment
    try:
        deployment = decode_deployment(path.read_bytes(), str(path))
    except OSError as exc:
        raise ConfigError("EMC-1006", f"{path}: {exc.strerror}") from exc
    if not config.chain.rpc_urls:
        raise ConfigError("EMC-1007", "orders to slash go to the chain")
    return Chain(ChainConfig(config.chain.rpc_urls, confirmations=config.chain.confirmations), deployment)


def _read_password(keystore: Path, password_file: Path | None) -> str:
    if password_file is None:
        stored = os.environ.get(_PASSWORD_ENV)
        return (
            stored
            if stored is not None
            else click.prompt(f"password of {keystore}", hide_input=True, err=True)
        )
    try:
        return password_file.read_text("utf-8").partition("\n")[0].rstrip("\r")
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError("EMC-1108", f"{password_file}: {type(exc).__name__}") from exc


def _show(item: SeenOffence) -> dict[str, Any]:
    return {
        "hash": hex_hash(item.evidence_hash),
        "kind": item.name,
        "offender": item.offender,
        "round": item.round,
        "listed_by": sorted(item.listed_by),
        "signed_bps": {str(epoch): share for epoch, share in item.signed_bps.items()},
        "slashed": item.is_used,
    }


def _describe(item: SeenOffence) -> str:
    signed = ", ".join(f"{share / 100:g} % in epoch {epoch}" for epoch, share in item.signed_bps.items())
    state = "slashed" if item.is_used else f"signed: {signed or 'by nobody yet'}"
    return (
        f"{hex_hash(item.evidence_hash)}  {item.name}  {item.offender}  round {item.round}"
        f"  listed by {len(item.listed_by)}  {state}"
    )
