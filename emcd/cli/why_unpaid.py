"""`emcd why-unpaid`: walks from the binding to the claim and shows the first broken step."""

from __future__ import annotations

from typing import Any

import click
import trio

from emcd.accounting.audit import audit_bundle
from emcd.accounting.payment_path import ChainFacts, PathStep, trace_call, trace_node
from emcd.cli.network import Network, NetworkOptions, network_options, resolve_network
from emcd.cli.rewards import fetch_document
from emcd.command import CommandContext, emit, json_option, pass_command_context
from emcd.errors import ConfigError
from emcd.net.http_client import request
from emcd.proto.address import parse_address
from emcd.proto.bundle import Bundle
from emcd.proto.bundle_codec import decode_bundle
from emcd.proto.records import parse_call_id
from emcd.types import Address

_CLOSED = ("closed", "attested", "published", "active", "void")
MAX_BUNDLE_BYTES = 256 << 20


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
    bundle = await _fetch_bundle(network, number)
    entry = next((item for item in bundle.participants if item.node == node), None)
    facts = await _fetch_facts(network, number, entry.wallet if entry else None)
    return trace_node(bundle, node, facts), number


async def _trace_call(network: Network, call_id: bytes) -> tuple[list[PathStep], int]:
    hub = network.require_hub()
    rounds: list[dict[str, Any]] = (await fetch_document(f"{hub}/api/rounds"))["rounds"]
    for entry in sorted(rounds, key=lambda item: -int(item["round"])):
        if entry["state"] not in _CLOSED:
            continue
        bundle = await _fetch_bundle(network, int(entry["round"]))
        call = next((item for item in bundle.calls if item.forward.call_id == call_id), None)
        if call is None:
            continue
        wallet = next((p.wallet for p in bundle.participants if p.node == call.forward.node), None)
        number = bundle.header.round
        return trace_call(bundle, call_id, await _fetch_facts(network, number, wallet)), number
    raise ConfigError("EMC-2142", "no closed round that the hub still lists holds this call")


async def _fetch_bundle(network: Network, number: int) -> Bundle:
    """The audited bundle. Raises: ConfigError EMC-2142 (none), EMC-2143 (it fails its audit)."""
    url = f"{network.require_hub()}/api/rounds/{number}/bundle"
    answer = await request("GET", url, timeout_s=120.0, max_bytes=MAX_BUNDLE_BYTES)
    if answer.status != 200:
        raise ConfigError("EMC-2142", f"round {number} has no bundle yet (the hub answers {answer.status})")
    outcome = await trio.to_thread.run_sync(audit_bundle, answer.body)
    if not outcome.ok:
        raise ConfigError("EMC-2143", f"round {number}: {outcome.difference}")
    return await trio.to_thread.run_sync(decode_bundle, answer.body)


async def _fetch_facts(network: Network, number: int, wallet: Address | None) -> ChainFacts:
    detail = await fetch_document(f"{network.require_hub()}/api/rounds/{number}")
    distributor = network.open_chain().distributor
    published = await distributor.find_last_round()
    active = await distributor.find_active_root()
    return ChainFacts(
        published_round=-1 if published is None else published,
        active_round=active.round if active else -1,
        claimed_wei=await distributor.fetch_claimed(wallet) if wallet else 0,
        is_void=detail["state"] == "void",
    )
