"""`emcd audit`: recompute a round from its bundle, on this machine, trusting nobody."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import trio

from emcd.accounting.audit import AuditOutcome, audit_bundle, check_seal
from emcd.accounting.expectation import Expectation
from emcd.accounting.round_result import decode_totals
from emcd.cli.network import NetworkOptions, resolve_network
from emcd.command import CommandContext, emit, json_option, pass_command_context
from emcd.errors import ConfigError, RecoverableError
from emcd.money import format_credits_floor, format_token_floor
from emcd.net.http_client import request
from emcd.proto.address import hex_hash
from emcd.proto.bundle_codec import MAX_BUNDLE_BYTES, Section, iter_section
from emcd.proto.json_form import to_json
from emcd.proto.network import Deployment, decode_deployment
from emcd.types import ParticipantRole

FETCH_S = 300.0


@dataclass(frozen=True)
class Source:
    """A bundle's bytes, where they came from, and the hub's seal where it gave one."""

    name: str
    data: bytes
    seal: bytes = b""


@click.command()
@click.argument("subject", metavar="ROUND|FILE")
@click.option("--hub", default="", metavar="URL", help="Base URL of a hub, for a ROUND.")
@click.option(
    "--deployment",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="The network's deployment.json: chain, contracts and parameters must be these.",
)
@click.option(
    "--previous",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="The bundle file before this one: its hash, totals and calls must fit.",
)
@click.option(
    "--save", type=click.Path(path_type=Path, dir_okay=False), help="Write the bundle to this file."
)
@json_option
@pass_command_context
def audit(
    context: CommandContext,
    subject: str,
    hub: str,
    deployment: Path | None,
    previous: Path | None,
    save: Path | None,
    as_json: bool,
) -> None:
    """Recompute everything in a round's bundle: bytes, signatures, charges, credits, rewards, root.

    A ROUND number is fetched from the hub, and the hub's seal is checked; a FILE is read. The first
    difference is named with its record, and the exit code is 1. Without --previous and --deployment
    the audit says that the bundle agrees with itself; its snapshot and beacon are the chain's to say.
    """
    known: Deployment | None = None
    if deployment is not None:
        known = decode_deployment(deployment.read_bytes(), str(deployment))
    if subject.isdecimal():
        hub_url, known = _find_hub(context, hub, deployment, known)
        source = trio.run(fetch_bundle, hub_url, int(subject))
    else:
        source = Source(subject, _read_file(Path(subject)))
    if save is not None:
        save.write_bytes(source.data)
    expected = make_expectation(known, int(subject) if subject.isdecimal() else None, previous)
    outcome = audit_bundle(source.data, expected)
    sealed = _check_seal(source, outcome)
    emit(_document(source, outcome, sealed), _report(source, outcome, sealed), as_json)
    if not outcome.ok or sealed is False:
        raise click.exceptions.Exit(1)


async def fetch_bundle(hub_url: str, index: int) -> Source:
    """A round's bundle from a hub. Raises: RecoverableError EMC-1940 when it gives none."""
    url = f"{hub_url}/api/rounds/{index}/bundle"
    answer = await request("GET", url, timeout_s=FETCH_S, max_bytes=MAX_BUNDLE_BYTES)
    if answer.status != 200:
        raise RecoverableError("EMC-1940", f"{url} answers {answer.status}")
    seal = answer.headers.get("x-emc-bundle-seal", "").removeprefix("0x")
    try:
        return Source(url, answer.body, bytes.fromhex(seal))
    except ValueError as exc:
        raise RecoverableError("EMC-1940", f"{url} gives a seal that is no hex") from exc


def make_expectation(known: Deployment | None, index: int | None, previous: Path | None) -> Expectation:
    """What a bundle is compared with. Raises: ConfigError EMC-1941 when `previous` is not sound itself."""
    facts: dict[str, Any] = {"round": index}
    if known is not None:
        facts |= {
            "chain_id": known.chain_id,
            "staking": known.staking,
            "distributor": known.distributor,
            "params": known.params,
        }
    if previous is not None:
        data = _read_file(previous)
        before = audit_bundle(data)
        if before.header is None or before.result is None:
            raise ConfigError("EMC-1941", f"{previous}: {before.difference}")
        facts |= {
            "previous_round": before.header.round,
            "previous_bundle_hash": before.bundle_hash,
            "totals": decode_totals(before.result.totals_after),
            "settled_call_ids": {call.forward.call_id for call in iter_section(data, Section.CALLS)},
        }
    return Expectation(**facts)


def _find_hub(
    context: CommandContext, hub: str, deployment: Path | None, known: Deployment | None
) -> tuple[str, Deployment | None]:
    if hub:
        return hub.rstrip("/"), known
    network = resolve_network(context, NetworkOptions(deployment, "", ""))
    return network.require_hub(), network.deployment


def _read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as exc:
        raise ConfigError("EMC-1941", f"{path}: {exc.strerror}") from exc


def _check_seal(source: Source, outcome: AuditOutcome) -> bool | None:
    """None when there is no seal to check."""
    header, bundle_hash = outcome.header, outcome.bundle_hash
    if not source.seal or header is None or bundle_hash is None:
        return None
    return check_seal(header.domain, header.hub, header.round, bundle_hash, source.seal)


def _document(source: Source, outcome: AuditOutcome, sealed: bool | None) -> dict[str, Any]:
    header, result, difference = outcome.header, outcome.result, outcome.difference
    return {
        "source": source.name,
        "ok": outcome.ok and sealed is not False,
        "round": header.round if header else None,
        "bundle_hash": hex_hash(outcome.bundle_hash) if outcome.bundle_hash else None,
        "seal": {True: "valid", False: "invalid", None: "none"}[sealed],
        "calls": outcome.calls,
        "counted_calls": outcome.counted_calls,
        "issue_wei": str(result.issue_wei) if result else None,
        "cumulative_wei": str(result.cumulative_wei) if result else None,
        "root": hex_hash(result.root) if result else None,
        "results": [to_json(entry) for entry in result.results] if result else [],
        "difference": None
        if difference is None
        else {
            "code": difference.code,
            "section": difference.section,
            "index": difference.index,
            "record": difference.record,
            "detail": difference.detail,
        },
    }


def _report(source: Source, outcome: AuditOutcome, sealed: bool | None) -> str:
    lines = [f"{source.name}: {len(source.data):,} bytes"]
    if outcome.header is not None and outcome.bundle_hash is not None:
        lines.append(f"round {outcome.header.round} of hub {outcome.header.hub}")
        lines.append(f"bundle hash {hex_hash(outcome.bundle_hash)}")
    if sealed is not None:
        lines.append("the hub's seal is valid" if sealed else "THE HUB'S SEAL IS NOT VALID")
    if outcome.difference is not None:
        return "\n".join([*lines, f"DIFFERENCE {outcome.difference}"])
    return "\n".join([*lines, *_result_lines(source, outcome)])


def _result_lines(source: Source, outcome: AuditOutcome) -> list[str]:
    result = outcome.result
    assert result is not None
    roles = {
        entry.node: ParticipantRole(entry.role).name.lower()
        for entry in iter_section(source.data, Section.PARTICIPANTS)
    }
    lines = [
        f"{outcome.calls} calls, {outcome.counted_calls} of them count",
        "",
        f"{'participant':<42} {'role':<9} {'credits':>14} {'reward':>20}  why not",
    ]
    for entry in result.results:
        reward = format_token_floor(int.from_bytes(entry.reward_wei, "big"))
        credits_text = format_credits_floor(entry.credits_micro)
        role = roles.get(entry.node, "-")
        lines.append(f"{entry.node:<42} {role:<9} {credits_text:>14} {reward:>20}  {entry.reason}".rstrip())
    return [
        *lines,
        "",
        f"issued      {format_token_floor(result.issue_wei):>24} EMC",
        f"cumulative  {format_token_floor(result.cumulative_wei):>24} EMC",
        f"root        {hex_hash(result.root)}",
        "every byte, signature and number is reproduced",
    ]
