"""`emcd why-unpaid`: walks from the binding to the claim and shows the first broken step."""

from __future__ import annotations

from typing import Any

import click
import trio

from emcd.accounting.payment_path import PathStep, trace_call, trace_missing, trace_node
from emcd.cli.network import Network, NetworkOptions, network_options, resolve_network
from emcd.cli.payment_facts import CLOSED, fetch_bundle, fetch_facts, find_missing
from emcd.cli.rewards import fetch_document
from emcd.command import CommandContext, emit, json_option, pass_command_context
from emcd.errors import ConfigError
from emcd.proto.address import parse_address
from emcd.proto.records import parse_call_id
from emcd.types import Address


@click.command("why-unpaid")
@click.argument("call_or_round")
@click.option("--node", default="", metavar="ADDRESS", help="The node to ask about; needed for a round.")
@network_options
@json_option
@pass_command_context
@click.pass_context
def why_unpaid(
    ctx: click.Context,
    context: CommandContext,
    call_or_round: str,
    node: str,
    network: NetworkOptions,
    as_json: bool,
) -> None:
    """Show why a CALL (call_...) or a ROUND (a number, with --node) has not been paid.

    Recomputes the round's bundle first, then walks bound, staked, online, routed, served, metered,
    settled, published, claimed, each with its evidence. Exit code 1 when a step is broken.
    """
    resolved = resolve_network(context, network)
    if call_or_round.isascii() and call_or_round.isdigit():
        if not node:
            raise ConfigError("EMC-2141", "a round needs --node")
        steps, number = trio.run(_trace_round, resolved, int(call_or_round), parse_address(node))
    else:
        steps, number = trio.run(_trace_call, resolved, parse_call_id(call_or_round))
    lines = [f"round {number}"] + [
        f"  {'ok' if s.is_done else 'NO':<3} {s.name:<10} {s.evidence}" for s in steps
    ]
    data = {
        "round": number,
        "steps": [{"step": s.name, "done": s.is_done, "evidence": s.evidence} for s in steps],
    }
    emit(data, "\n".join(lines), as_json)
    ctx.exit(0 if steps[-1].is_done else 1)


async def _trace_round(network: Network, number: int, node: Address) -> tuple[list[PathStep], int]:
    bundle = await fetch_bundle(network, number, node)
    entry = next((item for item in bundle.participants if item.node == node), None)
    facts = await fetch_facts(network, number, node, entry.wallet if entry else None)
    return trace_node(bundle, node, facts), number


async def _trace_call(network: Network, call_id: bytes) -> tuple[list[PathStep], int]:
    """In the newest bundle that holds it: a call of a void round is carried into a later one.

    Our hubs' ids begin with the time: the rounds of that time are looked through first.
    """
    hub = network.require_hub()
    rounds: list[dict[str, Any]] = (await fetch_document(f"{hub}/api/rounds"))["rounds"]
    params = network.deployment.params
    began = params.round_at(int.from_bytes(call_id[:6], "big"))
    near = range(began, began + params.carry_rounds + 2)
    closed = sorted((int(entry["round"]) for entry in rounds if entry["state"] in CLOSED), reverse=True)
    for number in sorted(closed, key=lambda index: index not in near):
        bundle = await fetch_bundle(network, number, None, call_id)
        call = next((item for item in bundle.calls if item.forward.call_id == call_id), None)
        if call is None:
            continue
        node = call.forward.node
        wallet = next((p.wallet for p in bundle.participants if p.node == node), None)
        return trace_call(bundle, call_id, await fetch_facts(network, number, node, wallet)), number
    missing = await find_missing(network, call_id)
    return trace_missing(missing), missing.round
