"""`emcd node`: what an operator does with a node beside running it.

Owns no logic: options in, `registration` in the middle, text or JSON out.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import click
import trio

from emcd.chain import Chain, ChainConfig
from emcd.command import CommandContext, emit, json_option, pass_command_context
from emcd.config import Config, KeyFile
from emcd.errors import ConfigError, FatalError
from emcd.keys import SigningKey, load_keystore
from emcd.ledger import OperationalError, open_reader
from emcd.proto.address import parse_address
from emcd.proto.network import Deployment, decode_deployment
from emcd.proto.records import format_call_id
from emcd.types import Address, ParticipantRole
from emcd_node.omission_row import Listed, list_instances, list_omissions
from emcd_node.registration import SignedBinding, fetch_next_nonce, send_binding, sign_binding

_KINDS = {"compute": "node", "router": "router", "validator": "validator", "hub": "hub"}
_PASSWORD_ENV = "EMCD_KEY_PASSWORD"


@click.group()
def node() -> None:
    """This machine's node: bind it to the wallet that earns, see what bundles left out."""


@node.command()
@click.option("--wallet", required=True, metavar="ADDRESS", help="The wallet that stakes and earns, 0x...")
@click.option(
    "--role",
    "role_name",
    type=click.Choice(list(_KINDS)),
    default="compute",
    show_default=True,
    help="What the key does in the network.",
)
@click.option(
    "--name", default="", help="Which [[role]] of the configuration, where it has several of the kind."
)
@click.option(
    "--hours", type=click.IntRange(1, 720), default=24, show_default=True, help="How long it may be sent."
)
@click.option("--nonce", type=click.IntRange(1), help="Do not ask the chain for the nonce; take this one.")
@click.option(
    "--rpc", default="", metavar="URL", help="JSON-RPC address of the chain; default: [chain] rpc_urls."
)
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), help="Write the signed binding here too."
)
@click.option("--send", is_flag=True, help="Send it from the wallet now; needs --wallet-keystore.")
@click.option(
    "--wallet-keystore",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="The wallet's keystore v3.",
)
@click.option(
    "--wallet-password-file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help=f"File with its password. Else: ${_PASSWORD_ENV}, else it is asked for.",
)
@click.option("--yes", is_flag=True, help="Send without asking.")
@json_option
@pass_command_context
def register(
    context: CommandContext,
    wallet: str,
    role_name: str,
    name: str,
    hours: int,
    nonce: int | None,
    rpc: str,
    out: Path | None,
    send: bool,
    wallet_keystore: Path | None,
    wallet_password_file: Path | None,
    yes: bool,
    as_json: bool,
) -> None:
    """Sign the binding of this node to a wallet, and print it for the DApp or send it.

    The node's key signs who earns (wallet, role, nonce, deadline, for this chain and contract);
    the wallet sends it, which is its consent. Nothing changes before it is sent. Afterwards the
    wallet stakes: `emcd stake NODE AMOUNT`.
    """
    address = parse_address(wallet)
    if send and wallet_keystore is None:
        raise click.UsageError("--send needs --wallet-keystore")
    config = context.load()
    key = _open_key(_find_key(config, _KINDS[role_name], name))
    deployment = _load_deployment(config)
    chain = _open_chain(config, deployment, rpc) if send or nonce is None else None
    if nonce is None:
        assert chain is not None
        nonce = trio.run(fetch_next_nonce, chain, key.address)
    role = ParticipantRole[role_name.upper()]
    signed = sign_binding(deployment, key, address, role, nonce, int(time.time()) + 3600 * hours)
    result = signed.to_json()
    if out is not None:
        out.write_text(json.dumps(result, indent=2) + "\n", "utf-8")
    text = _describe(signed)
    if send:
        assert chain is not None
        assert wallet_keystore is not None
        wallet_key = _open_keystore(wallet_keystore, wallet_password_file, "")
        if not yes:
            click.confirm(f"bind {key.address} ({role_name}) to {address}?", abort=True, err=True)
        receipt = trio.run(send_binding, chain, signed, wallet_key)
        result["tx_hash"] = "0x" + receipt.tx_hash.hex()
        text = f"{key.address} earns for {address} now: transaction {result['tx_hash']}"
    emit(result, text, as_json)


@node.command()
@click.option(
    "--limit", type=click.IntRange(1, 100_000), default=100, show_default=True, help="Calls to show."
)
@json_option
@pass_command_context
def omissions(context: CommandContext, limit: int, as_json: bool) -> None:
    """Show this machine's calls that a bundle of the hub left out, and what became of them.

    missing: found out, not filed yet. filed: validators have it, and sign no bundle without it.
    carried: a later bundle has it. lost: no bundle may carry it any more. Reads the ledger only; may
    be used while the daemon runs.
    """
    path = context.load_daemon().data_dir / "ledger.db"
    try:
        con = open_reader(path)
    except FatalError as exc:
        raise ConfigError("EMC-2034", f"{path}: {exc.detail}") from exc
    try:
        found = {instance: list_omissions(con, instance, limit) for instance in list_instances(con)}
    except OperationalError as exc:
        raise ConfigError("EMC-2034", f"{path}: {exc}") from exc
    finally:
        con.close()
    rows = [_show_omission(instance, item) for instance, items in found.items() for item in items]
    lines = [
        f"{row['call_id']}  round {row['round']}  {row['state']:8} {_describe_state(row)}" for row in rows
    ]
    emit({"omissions": rows}, "\n".join(lines) or "no bundle has left out a call of this node", as_json)


def _show_omission(instance: Address, item: Listed) -> dict[str, Any]:
    return {
        "node": instance,
        "call_id": format_call_id(item.call_id),
        "round": item.round,
        "state": item.state,
        "vault_micro": str(item.vault_micro),
        "filed_with": item.filed_with,
        "carried_in": item.carried_in,
    }


def _describe_state(row: dict[str, Any]) -> str:
    if row["carried_in"] is not None:
        return f"by the bundle of round {row['carried_in']}"
    return f"with {row['filed_with']} validators" if row["filed_with"] else ""


def _find_key(config: Config, kind: str, name: str) -> KeyFile:
    found = [role for role in config.roles if role.kind == kind and name in ("", role.name)]
    if len(found) != 1:
        names = ", ".join(role.name for role in config.roles if role.kind == kind) or "none"
        raise ConfigError(
            "EMC-2020", f"{len(found)} roles of kind {kind} fit; the configuration has: {names}"
        )
    key = getattr(found[0].config, "key", None)
    if not isinstance(key, KeyFile):
        raise ConfigError("EMC-2020", f"role {found[0].name} has no key of its own")
    return key


def _open_key(ref: KeyFile) -> SigningKey:
    return _open_keystore(ref.file, ref.password_file, ref.password_env)


def _open_keystore(file: Path, password_file: Path | None, password_env: str) -> SigningKey:
    """Decrypt a keystore; the password never stands in an argument. Blocking."""
    if password_file is not None:
        try:
            password = password_file.read_text("utf-8").partition("\n")[0].rstrip("\r")
        except (OSError, UnicodeDecodeError) as exc:
            raise ConfigError("EMC-1108", f"{password_file}: {type(exc).__name__}") from exc
    else:
        stored = os.environ.get(password_env or _PASSWORD_ENV)
        password = (
            stored if stored is not None else click.prompt(f"password of {file}", hide_input=True, err=True)
        )
    return load_keystore(file, password)


def _load_deployment(config: Config) -> Deployment:
    path = config.network.deployment
    try:
        return decode_deployment(path.read_bytes(), str(path))
    except OSError as exc:
        raise ConfigError("EMC-1006", f"{path}: {exc.strerror}") from exc


def _open_chain(config: Config, deployment: Deployment, rpc: str) -> Chain:
    urls = (rpc,) if rpc else config.chain.rpc_urls
    if not urls:
        raise ConfigError(
            "EMC-1007", "the nonce and the transaction need it; or give --rpc, or --nonce to sign only"
        )
    return Chain(ChainConfig(urls, confirmations=config.chain.confirmations), deployment)


def _describe(signed: SignedBinding) -> str:
    binding = signed.binding
    until = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(binding.deadline))
    return "\n".join(
        (
            f"node      {binding.node}",
            f"wallet    {binding.wallet}",
            f"role      {ParticipantRole(binding.role).name.lower()}",
            f"nonce     {binding.nonce}",
            f"send by   {until}",
            f"contract  {signed.deployment.staking} on chain {signed.deployment.chain_id}",
            f"signature 0x{signed.signature.hex()}",
            "",
            "Nothing is registered yet: send it from the wallet, here with --send --wallet-keystore FILE.",
        )
    )
