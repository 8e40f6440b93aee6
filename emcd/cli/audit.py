"""`emcd audit`: recompute a round from its bundle, on this machine, trusting nobody."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import trio

from emcd.accounting.audit import AuditOutcome, check_seal
from emcd.accounting.expectation import Expectation
from emcd.accounting.round_result import decode_totals
from emcd.bundle_file import Progress, audit_file, open_bundle
from emcd.cli.audit_parameters import describe_parameters, expect_parameters, fetch_schedule
from emcd.cli.audit_report import Source, Verdict, make_document, make_report
from emcd.cli.network import NetworkOptions, resolve_network
from emcd.command import CommandContext, emit, json_option, pass_command_context
from emcd.errors import ConfigError, RecoverableError, RemoteProtocolError
from emcd.net.download import download
from emcd.proto.bundle import BundleHeader
from emcd.proto.bundle_codec import MAX_BUNDLE_BYTES, read_header
from emcd.proto.network import Deployment, decode_deployment
from emcd.proto.parameter_schedule import ParameterSchedule

FETCH_S = 60.0
WRONG = 3
"""Exit code of a bundle that differs, or whose seal is not the hub's; 1 is: it could not be audited."""
Bars = Callable[[str, str], Progress | None]


@click.command()
@click.argument("subject", metavar="ROUND|FILE")
@click.option("--hub", default="", metavar="URL", help="Base URL of a hub, for a ROUND.")
@click.option(
    "--deployment",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="The network's deployment.json: chain, contracts and parameters must be these.",
)
@click.option(
    "--rpc",
    default="",
    metavar="URL",
    help="JSON-RPC address of the chain, with --deployment: parameters and prices must be the chain's.",
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
    rpc: str,
    previous: Path | None,
    save: Path | None,
    as_json: bool,
) -> None:
    """Recompute everything in a round's bundle: bytes, signatures, charges, credits, rewards, root.

    A ROUND number is fetched from the hub, and the hub's seal is checked; a FILE is read. The first
    difference is named with its record and what it does to whom. Exit code 0: all of it is
    reproduced; 3: the bundle is wrong; 1: it could not be audited.
    Without --previous and --deployment the audit says that the bundle agrees with itself; its
    snapshot and beacon are the chain's to say, and so are parameters and prices that a quorum changed:
    give --rpc.
    """
    known: Deployment | None = None
    if deployment is not None:
        known = decode_deployment(deployment.read_bytes(), str(deployment))
    index = int(subject) if subject.isdecimal() else None
    with TemporaryDirectory(prefix="emcd-audit-") as folder, _bars(quiet=as_json) as bars:
        if index is not None:
            hub_url, known = _find_hub(context, hub, deployment, known)
            fetch = bars("fetching", "bytes")
            source = trio.run(fetch_bundle, hub_url, index, Path(folder) / "bundle.emcb", fetch)
        else:
            source = Source(subject, _require_file(Path(subject)))
        if save is not None and save != source.path:
            shutil.copyfile(source.path, save)
        schedule = _find_schedule(known, rpc)
        expected = make_expectation(known, index, previous, bars)
        verdict = examine(source, expected, bars("auditing", "calls"), known, schedule)
        document, report = make_document(verdict), make_report(verdict)
    emit(document, report, as_json)
    if not verdict.ok:
        raise click.exceptions.Exit(WRONG)


async def fetch_bundle(hub_url: str, index: int, path: Path, progress: Progress | None = None) -> Source:
    """A round's bundle from a hub, into a file. Raises: RecoverableError EMC-1940 when it gives none."""
    url = f"{hub_url}/api/rounds/{index}/bundle"
    answer = await download(url, path, max_bytes=MAX_BUNDLE_BYTES, timeout_s=FETCH_S, on_progress=progress)
    if answer.status != 200:
        raise RecoverableError("EMC-1940", f"{url} answers {answer.status}")
    seal = answer.headers.get("x-emc-bundle-seal", "").removeprefix("0x")
    try:
        return Source(url, path, bytes.fromhex(seal))
    except ValueError as exc:
        raise RecoverableError("EMC-1940", f"{url} gives a seal that is no hex") from exc


def examine(
    source: Source,
    expected: Expectation,
    progress: Progress | None = None,
    known: Deployment | None = None,
    schedule: ParameterSchedule | None = None,
) -> Verdict:
    """Audit a bundle's file and check the seal that came with it."""
    started = time.monotonic()
    header = _find_header(source.path)
    if header is not None:
        expected = replace(expected, **expect_parameters(header, known, schedule))
    outcome = audit_file(source.path, expected, progress)
    named = "" if outcome.header is None else describe_parameters(outcome.header, schedule)
    return Verdict(source, outcome, _check_seal(source, outcome), time.monotonic() - started, named)


def make_expectation(
    known: Deployment | None, index: int | None, previous: Path | None, bars: Bars
) -> Expectation:
    """What a bundle is compared with. Raises: ConfigError EMC-1941 when `previous` is not sound itself."""
    facts: dict[str, Any] = {"round": index}
    if known is not None:
        facts |= {
            "chain_id": known.chain_id,
            "staking": known.staking,
            "distributor": known.distributor,
        }
    if previous is not None:
        before = audit_file(_require_file(previous), progress=bars("auditing the one before", "calls"))
        if before.header is None or before.result is None:
            raise ConfigError("EMC-1941", f"{previous}: {before.difference}")
        facts |= {
            "previous_round": before.header.round,
            "previous_bundle_hash": before.bundle_hash,
            "totals": decode_totals(before.result.totals_after),
            "settled_call_ids": _index_calls(previous),
        }
    return Expectation(**facts)


def _find_schedule(known: Deployment | None, rpc: str) -> ParameterSchedule | None:
    """Raises: ConfigError EMC-1941 when it is not said of which network, RecoverableError, FatalError."""
    if not rpc:
        return None
    if known is None:
        raise ConfigError("EMC-1941", "--rpc wants the network's --deployment too")
    return fetch_schedule(known, rpc)


def _find_header(path: Path) -> BundleHeader | None:
    """None when the bytes are no bundle: the audit says so."""
    with open_bundle(path) as data:
        try:
            return read_header(data)
        except RemoteProtocolError:
            return None


def _index_calls(path: Path) -> Any:
    from emcd.accounting.call_index import CallIdIndex
    from emcd.proto.bundle_codec import BundleReader, read_call_ids

    with open_bundle(path) as data:
        return CallIdIndex([read_call_ids(BundleReader(data))])


def _find_hub(
    context: CommandContext, hub: str, deployment: Path | None, known: Deployment | None
) -> tuple[str, Deployment | None]:
    if hub:
        return hub.rstrip("/"), known
    network = resolve_network(context, NetworkOptions(deployment, "", ""))
    return network.require_hub(), network.deployment


def _require_file(path: Path) -> Path:
    """Raises: ConfigError EMC-1941."""
    try:
        with path.open("rb"):
            return path
    except OSError as exc:
        raise ConfigError("EMC-1941", f"{path}: {exc.strerror}") from exc


def _check_seal(source: Source, outcome: AuditOutcome) -> bool | None:
    """None when there is no seal to check."""
    header, bundle_hash = outcome.header, outcome.bundle_hash
    if not source.seal or header is None or bundle_hash is None:
        return None
    return check_seal(header.domain, header.hub, header.round, bundle_hash, source.seal)


@contextmanager
def _bars(*, quiet: bool) -> Iterator[Bars]:
    """Makes progress bars on the terminal; none where nobody looks."""
    if quiet or not sys.stderr.isatty():
        yield lambda title, unit: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Screen

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Screen(*columns, console=Console(stderr=True), transient=True) as screen:

        def add(title: str, unit: str) -> Progress:
            task = screen.add_task(f"{title} ({unit})", total=None)
            return lambda done, total: screen.update(task, completed=done, total=total or None)

        yield add
