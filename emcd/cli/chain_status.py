"""`emcd chain status`: the network's contracts at a glance."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import trio

from emcd.cli.chain_view.endpoint import view_endpoints
from emcd.cli.chain_view.gather import gather_status
from emcd.cli.chain_view.text import status_text
from emcd.cli.deployment.record import find_record
from emcd.cli.network import Network, NetworkOptions, network_options, resolve_network
from emcd.command import CommandContext, emit, json_option, pass_command_context


@click.command()
@network_options
@json_option
@pass_command_context
def status(context: CommandContext, network: NetworkOptions, as_json: bool) -> None:
    """Show what the contracts say: code, token, round, validators, publications, parameters.

    Every RPC endpoint is asked by itself and compared with the others; the code of every contract is
    compared with these artifacts, byte for byte. Exits 1 when something of that is wrong.
    """
    resolved = resolve_network(context, network)
    plan = _find_plan(network.deployment, resolved.deployment.chain_id)
    found = trio.run(_gather, resolved, plan["validators"] if plan else [])
    found["differs_from_record"] = [] if plan is None else list(_compare(found, plan))
    emit(found, status_text(found), as_json)
    wrong = [item for item in (*found["contracts"], *found["endpoints"]) if not item["ok"]]
    if wrong or found["parameters"]["problem"] or found["differs_from_record"]:
        raise click.exceptions.Exit(1)


async def _gather(network: Network, expected: Sequence[dict[str, Any]]) -> dict[str, Any]:
    chain = network.open_chain()
    endpoints = await view_endpoints(network.rpc_urls, network.deployment.chain_id)
    return await gather_status(chain, endpoints, expected)


def _find_plan(deployment: Path | None, chain_id: int) -> dict[str, Any] | None:
    """The plan in the record beside the deployment, if there is one."""
    if deployment is None:
        return None
    record = find_record(deployment.resolve().parent.parent, chain_id)
    if record is None or record.addresses.get("EMCToken") != json.loads(deployment.read_bytes())["token"]:
        return None
    return dict(record.document["plan"])


def _compare(found: dict[str, Any], plan: dict[str, Any]) -> Iterator[str]:
    """The powers that the code alone can't prove: it holds whoever it was deployed with."""
    pairs = (
        ("the guardian", found["guardian"]["address"], plan["guardian"]),
        ("the treasury", found["vault"]["treasury"], plan["treasury"]),
        ("the treasury's share", found["vault"]["treasury_bps"], plan["treasury_bps"]),
    )
    for name, now, planned in pairs:
        if now != planned:
            yield f"{name} is {now}, the record says {planned}"
