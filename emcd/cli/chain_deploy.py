"""`emcd chain deploy`: a network's contracts, from a plan, a dry run unless --send."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import trio

from emcd.chain import JsonRpc
from emcd.cli.deployment.carry_out import carry_out
from emcd.cli.deployment.plan_check import LEAD_ROUNDS
from emcd.cli.deployment.plan_file import (
    GenesisTime,
    PlanFile,
    Profile,
    load_plan,
    plan_of_profile,
)
from emcd.cli.deployment.plan_template import make_template
from emcd.cli.deployment.preview import Preview, preview_deployment
from emcd.cli.deployment.preview_text import preview_json, preview_text
from emcd.cli.deployment.progress import only_one
from emcd.cli.layout_text import columns, format_ether_ceil, format_when
from emcd.cli.wallet import open_wallet, require_yes
from emcd.command import emit, json_option
from emcd.config import ConfigFaults, Fault
from emcd.errors import ConfigError
from emcd.keys import SigningKey, read_keystore_address
from emcd.proto.address import parse_address
from emcd.proto.params import DEVNET_ROUND_S, MAINNET_ROUND_S
from emcd.types import Address

MIN_LEAD_S = 600
_POLL_S = 0.5


@click.command()
@click.argument(
    "plan_file",
    metavar="[PLAN]",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    required=False,
)
@click.option(
    "--profile",
    type=click.Choice(["mainnet", "devnet"]),
    help="Without a plan: one account owns everything and is the guardian. To try it out.",
)
@click.option("--chain-id", type=click.IntRange(1), metavar="ID", help="With --profile: which chain.")
@click.option(
    "--genesis", metavar="TIME", help="With --profile: when round 0 begins. Default: as soon as may be."
)
@click.option(
    "--rpc", multiple=True, metavar="URL", help="JSON-RPC address; may repeat. Default: the plan's."
)
@click.option("--from", "sender", metavar="ADDRESS", help="Dry run for this account; no key is needed.")
@click.option(
    "--keystore",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="The deployer's keystore v3 file. It holds no power afterwards.",
)
@click.option(
    "--password-file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="File with its password. Else: $EMCD_KEY_PASSWORD, else it is asked for.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("deployments"),
    show_default=True,
    help="Where records and deployment.json go.",
)
@click.option("--send", is_flag=True, help="Deploy, or go on where an earlier run was cut.")
@click.option("--new", "anew", is_flag=True, help="Set an earlier deployment of this chain id aside.")
@click.option("--yes", is_flag=True, help="With --send: do not ask.")
@json_option
def deploy(
    plan_file: Path | None,
    profile: Profile | None,
    chain_id: int | None,
    genesis: str | None,
    rpc: tuple[str, ...],
    sender: str | None,
    keystore: Path | None,
    password_file: Path | None,
    out: Path,
    send: bool,
    anew: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Deploy a network's contracts as PLAN says: token, parameters, staking, distributor, vault.

    Without --send nothing is sent: it shows every step, the addresses, gas and cost, and everything
    that is wrong with the plan. With --send it deploys, compares code, state and parameters with the
    plan, and writes DIR/<chain id>.json and DIR/<chain id>/deployment.json. A run that is cut goes on
    when it is run again; nothing is ever deployed twice. `emcd chain plan` writes a plan to begin with.
    """
    if (plan_file is None) == (profile is None):
        raise click.UsageError("give a PLAN or --profile, one of them")
    if send and keystore is None:
        raise click.UsageError("--send needs --keystore")
    key = open_wallet(keystore, password_file) if send and keystore is not None else None
    deployer = key.address if key else _dry_deployer(sender, keystore)
    plan, faults = _read(plan_file, profile, chain_id, genesis, deployer, rpc)
    urls = rpc or plan.chain.rpc_urls
    client = JsonRpc(urls, plan.chain_id) if urls else None
    account = deployer or plan.deployer

    async def preview() -> Preview:
        return await preview_deployment(plan, account, client, out, anew=anew, faults=faults)

    if key is None:
        _show(trio.run(preview), as_json)
        return
    with only_one(out, plan.chain_id):
        _deploy(trio.run(preview), key, client, yes, anew, as_json)


@click.command()
@click.option("--profile", type=click.Choice(["mainnet", "devnet"]), default="mainnet", show_default=True)
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), help="A new file; without it, it is printed."
)
@json_option
def plan(profile: Profile, out: Path | None, as_json: bool) -> None:
    """Write a commented plan for `emcd chain deploy`, to be filled in."""
    round_s = DEVNET_ROUND_S if profile == "devnet" else MAINNET_ROUND_S
    text = make_template(profile, datetime.fromtimestamp(_next_genesis(round_s, 14 * 86_400), UTC))
    if out is None:
        emit({"plan": text}, text.rstrip("\n"), as_json)
        return
    try:
        with out.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise ConfigError("EMC-2159", f"{out} exists already") from None
    emit(
        {"file": str(out)}, f"wrote {out}; fill it in, then: emcd chain deploy {out} --from ADDRESS", as_json
    )


def _dry_deployer(sender: str | None, keystore: Path | None) -> Address | None:
    if sender is not None:
        return parse_address(sender)
    return read_keystore_address(keystore) if keystore is not None else None


def _read(
    file: Path | None,
    profile: Profile | None,
    chain_id: int | None,
    genesis: str | None,
    deployer: Address | None,
    urls: tuple[str, ...],
) -> tuple[PlanFile, list[Fault]]:
    """The plan and what is wrong with its file. Raises: ConfigFaults when it can't be read at all."""
    if file is not None:
        if chain_id is not None or genesis is not None:
            raise click.UsageError("--chain-id and --genesis stand in the plan")
        plan, faults = load_plan(file)
        if plan is None:
            raise ConfigFaults(faults)
        return plan, faults
    assert profile is not None
    if chain_id is None:
        raise click.UsageError("--profile needs --chain-id: a deployment is for one chain")
    if deployer is None:
        raise click.UsageError("--profile needs --keystore or --from: that account owns everything")
    round_s = DEVNET_ROUND_S if profile == "devnet" else MAINNET_ROUND_S
    try:
        genesis_s = GenesisTime.from_text(genesis).time_s if genesis else _next_genesis(round_s, MIN_LEAD_S)
    except ValueError as exc:
        raise click.UsageError(f"--genesis: {exc}") from None
    owner_plan = plan_of_profile(
        profile, chain_id=chain_id, owner=deployer, rpc_urls=urls, genesis_s=genesis_s
    )
    return owner_plan, []


def _next_genesis(round_s: int, lead_s: int) -> int:
    earliest = int(time.time()) + max(lead_s, LEAD_ROUNDS * round_s)
    return -(-earliest // round_s) * round_s


def _show(shown: Preview, as_json: bool) -> None:
    done = "Nothing was sent." if shown.faults else "Nothing was sent. It can be: --send --keystore FILE."
    emit({"sent": False, **preview_json(shown)}, f"{preview_text(shown)}\n\n{done}", as_json)
    if shown.faults:
        raise click.exceptions.Exit(1)


def _deploy(
    shown: Preview, key: SigningKey, rpc: JsonRpc | None, yes: bool, anew: bool, as_json: bool
) -> None:
    if shown.faults or rpc is None:
        raise ConfigFaults(shown.faults)
    plan = shown.plan
    if not as_json:
        click.echo(preview_text(shown), err=True)
    verb = "go on with the deployment" if shown.resumes else "deploy"
    require_yes(yes, f"{verb} on chain {plan.chain_id} for at most {format_ether_ceil(shown.most_wei)} ETH?")
    outcome = trio.run(
        lambda: carry_out(shown, key, rpc, lambda line: click.echo(line, err=True), poll_s=_POLL_S, anew=anew)
    )
    data: dict[str, Any] = {
        "sent": True,
        "cost_wei": str(outcome.cost_wei),
        "record": str(outcome.record_file),
        "deployment_file": str(outcome.deployment_file),
        **outcome.record,
    }
    genesis = format_when(plan.genesis.time_s, int(time.time()))
    lines = [
        *columns([(check.name, "ok" if check.ok else "WRONG", check.detail) for check in outcome.checks]),
        "",
        f"deployed and compared, for {format_ether_ceil(outcome.cost_wei)} ETH",
        f"record           {outcome.record_file}",
        f"for the daemons  {outcome.deployment_file}",
        f"genesis          {genesis}",
        f"next             validators bind and stake; emcd chain status --deployment {outcome.deployment_file}",
    ]
    emit(data, "\n".join(lines), as_json)
