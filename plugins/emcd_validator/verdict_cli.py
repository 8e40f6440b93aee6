"""`emcd verdict`: why a probe was judged as it was, recomputed here, and what this validator has judged.

Owns options and exit codes; the words are in `verdict_text`, the recomputation in `verdict_examine`.
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import click
import msgspec
import trio

from emcd.accounting.drift import Drift
from emcd.command import CommandContext, emit, json_option, pass_command_context
from emcd.errors import ConfigError, RecoverableError, RemoteProtocolError
from emcd.ledger import OperationalError, open_reader
from emcd.net.http_client import request
from emcd.proto.address import hex_hash
from emcd.proto.messages import Verdict
from emcd.proto.network import decode_deployment
from emcd.proto.params import NetworkParams
from emcd.proto.records import format_call_id, parse_call_id
from emcd.types import Address
from emcd_validator.evidence_file import MAX_PAGE_BYTES, WholeEvidence, read_whole
from emcd_validator.judge_ledger import read_drift, read_numbers
from emcd_validator.queries.verdicts import (
    DriftRow,
    VerdictRow,
    list_drifts,
    list_instances,
    list_newest_verdicts,
    list_verdicts,
)
from emcd_validator.statement import read_votes
from emcd_validator.verdict_examine import examine
from emcd_validator.verdict_text import Surroundings, show, tell, tell_drift, tell_row

TIMEOUT_S = 20.0
MAX_ROWS = 10_000


@click.group()
def verdict() -> None:
    """Verdicts on nodes' answers: explain one with its numbers, or list them."""


@verdict.command("show")
@click.argument("call")
@click.option("--url", default="", metavar="VALIDATOR", help="Base URL of a validator that probed the call.")
@click.option(
    "--file",
    "file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="The evidence as a file, instead of a validator's.",
)
@click.option(
    "--models-dir", type=click.Path(path_type=Path), help="Where the models are. Default: the daemon's."
)
@click.option(
    "--deployment",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="The network's deployment.json: the evidence must be of that network.",
)
@json_option
@pass_command_context
@click.pass_context
def show_command(
    ctx: click.Context,
    context: CommandContext,
    call: str,
    url: str,
    file: Path | None,
    models_dir: Path | None,
    deployment: Path | None,
    as_json: bool,
) -> None:
    """Recompute the verdict on CALL (call_...) and explain it.

    Follows the evidence from the validator's committed plan to the node's signature, runs the model anew
    where it is in --models-dir, and says who is to blame and what follows.

    \b
    Exit code 0: recomputed, and the same verdict.
    3: the evidence does not hold together.   4: another verdict.
    5: the links hold, but the model is not here to be run.
    """
    call_id = parse_call_id(call)
    page, around = trio.run(_gather, context, call_id, url, file)
    whole = read_whole(page)
    if whole.evidence.receipt.forward.call_id != call_id:
        raise RemoteProtocolError("EMC-1851", "it is the evidence of another call")
    params = None if deployment is None else _require_network(deployment, whole)
    folder = models_dir or context.data_dir_or_default() / "models"
    examination = examine(whole, folder)
    around = Surroundings(params, around.votes, around.challenge)
    emit(show(examination, around), tell(examination, around), as_json)
    ctx.exit(int(examination.result))


@verdict.command("list")
@click.option("--round", "round_index", type=click.IntRange(0), help="Of this round alone.")
@click.option(
    "--limit", default=50, show_default=True, type=click.IntRange(1, MAX_ROWS), help="Rows to show."
)
@click.option(
    "--ledger", type=click.Path(path_type=Path), help="A ledger file, instead of the configured one."
)
@json_option
@pass_command_context
def list_command(
    context: CommandContext, round_index: int | None, limit: int, ledger: Path | None, as_json: bool
) -> None:
    """List what the validators of this daemon judged, newest first, and how nodes drift.

    Each line: round, what was judged (probe, vote on a peer's strike, re-check, task), verdict, kind,
    statistic (for text as a share of the threshold), node, call, reason.
    """
    path = ledger or context.load_daemon().data_dir / "ledger.db"
    rows, drifts = _read_ledger(path, round_index, limit)
    states = [(item, read_drift(item.state)) for item in drifts]
    lines = [*map(tell_row, rows)] or ["no verdicts"]
    if states:
        lines += ["", "drift", *(tell_drift(item.node, item.model_hash, state) for item, state in states)]
    data = {"verdicts": [*map(_show_row, rows)], "drifts": [_show_drift(*pair) for pair in states]}
    emit(data, "\n".join(lines), as_json)


def _read_ledger(path: Path, round_index: int | None, limit: int) -> tuple[list[VerdictRow], list[DriftRow]]:
    """Verdicts of every validator of a ledger, newest first, and their drifts."""
    if not path.is_file():
        raise ConfigError("EMC-1854", f"{path} does not exist")
    rows: list[VerdictRow] = []
    drifts: list[DriftRow] = []
    with closing(open_reader(path)) as con:
        try:
            for instance in list_instances(con):
                drifts += list_drifts(con, instance)
                if round_index is None:
                    rows += list_newest_verdicts(con, instance, limit)
                else:
                    rows += list_verdicts(con, instance, round_index)
        except OperationalError as exc:
            raise ConfigError("EMC-1854", f"{path}: {exc}") from exc
    return sorted(rows, key=lambda row: (-row.round, -row.judged_at_ms))[:limit], drifts


async def _gather(
    context: CommandContext, call_id: bytes, url: str, file: Path | None
) -> tuple[bytes, Surroundings]:
    """The page, and what the validator that serves it knows beside it."""
    if file is not None:
        return await trio.Path(file).read_bytes(), Surroundings()
    bases = [url.rstrip("/")] if url else _list_validators(context)
    if not bases:
        raise ConfigError("EMC-1852", "neither --url, nor --file, nor a validator in the configuration")
    for base in bases:
        answer = await request(
            "GET",
            f"{base}/evidence/{format_call_id(call_id)}",
            timeout_s=TIMEOUT_S,
            max_bytes=MAX_PAGE_BYTES,
        )
        if answer.status == 200:
            return answer.body, await _look_around(base, answer.body, call_id)
    raise RecoverableError("EMC-1853", f"{' and '.join(bases)}: no evidence of {format_call_id(call_id)}")


def _list_validators(context: CommandContext) -> list[str]:
    """The validators of the configuration, where they listen."""
    if context.config_file is None:
        return []
    listens = [role.config.listen for role in context.load().roles if role.kind == "validator"]  # type: ignore[attr-defined]
    return [f"{'http' if item.tls_cert is None else 'https'}://{item.host}:{item.port}" for item in listens]


async def _look_around(base: str, page: bytes, call_id: bytes) -> Surroundings:
    """Votes on the call and a challenge of its node, as far as the validator tells."""
    whole = read_whole(page)
    votes: dict[str, int] | None = None
    answer = await request(
        "GET", f"{base}/rounds/{whole.round}", timeout_s=TIMEOUT_S, max_bytes=MAX_PAGE_BYTES
    )
    if answer.status == 200:
        votes = {}
        for entry in read_votes(answer.json()):
            if entry.vote.call_id == call_id:
                name = Verdict(entry.vote.verdict).name
                votes[name] = votes.get(name, 0) + 1
    path = f"{base}/challenges/{whole.node}/{format_call_id(call_id)}"
    asked = await request("GET", path, timeout_s=TIMEOUT_S)
    state = asked.json().get("state", "") if asked.status == 200 else ""
    told = f"the node was asked to open this receipt: {state}" if state else ""
    return Surroundings(votes=votes, challenge=told)


def _require_network(path: Path, whole: WholeEvidence) -> NetworkParams:
    """Raises: RemoteProtocolError EMC-1851 when the evidence is of another network."""
    try:
        deployment = decode_deployment(path.read_bytes(), str(path))
    except OSError as exc:
        raise ConfigError("EMC-1006", f"{path}: {exc.strerror}") from exc
    if deployment.staking_domain != whole.domain:
        raise RemoteProtocolError(
            "EMC-1851", f"it is of chain {whole.domain.chain_id}, not of {path}'s network"
        )
    return deployment.params


def _show_row(row: VerdictRow) -> dict[str, Any]:
    numbers = read_numbers(row.numbers)
    return {
        "round": row.round,
        "part": row.part,
        "verdict": Verdict(row.verdict).name,
        "kind": row.kind,
        "node": row.node,
        "slot": row.slot,
        "call_id": format_call_id(row.call_id) if row.call_id else "",
        "model_hash": hex_hash(row.model_hash),
        "statistic_e12": str(row.statistic_e12),
        "reason": row.reason,
        "blame": row.blame,
        "numbers": None if numbers is None else msgspec.to_builtins(numbers),
        "judged_at_ms": row.judged_at_ms,
    }


def _show_drift(row: DriftRow, drift: Drift) -> dict[str, Any]:
    return {
        "node": Address(row.node),
        "model_hash": hex_hash(row.model_hash),
        "is_drifting": row.is_drifting,
        "is_suspect": row.is_suspect,
        "round": row.round,
        **msgspec.to_builtins(drift),
    }
