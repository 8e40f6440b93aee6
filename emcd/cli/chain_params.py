"""`emcd chain params`: parameters and prices in force, and their change by a quorum, step by step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import trio

from emcd.chain import BlockRef, Chain, ValidatorSet
from emcd.chain.parameters import fetch_parameter_schedule
from emcd.cli.keys import ask_password
from emcd.cli.layout_text import columns
from emcd.cli.network import NetworkOptions, network_options, resolve_network
from emcd.cli.parameter_edit import assign, list_values, parse_assignment
from emcd.cli.quorum_file import (
    Statement,
    load_statement,
    merge_statements,
    signed_copy,
    tally,
    tally_json,
    tally_lines,
    write_statement,
)
from emcd.cli.spend import Intent, Wallet, optional_spend_options, spend
from emcd.cli.wallet import require_yes, wallet_options
from emcd.command import CommandContext, emit, json_option, pass_command_context
from emcd.config import ConfigFaults, Fault
from emcd.errors import ConfigError, RemoteProtocolError
from emcd.keys import load_keystore
from emcd.proto.eip712 import Domain
from emcd.proto.json_form import to_json
from emcd.proto.network import decode_deployment
from emcd.proto.parameter_rule import FIXED
from emcd.proto.parameter_schedule import ParameterSchedule
from emcd.proto.parameter_words import list_differences
from emcd.proto.parameters import (
    ParametersChange,
    ParameterSet,
    decode_document,
    encode_document,
    list_change_faults,
    make_change,
    next_set,
    rules_of,
)

KIND = "parameters"
TWO_THIRDS = (2, 3)
SPARE_EPOCHS = 1
"""Left for signatures to come together, beyond the earliest epoch that the contract takes."""


@click.group()
def params() -> None:
    """Show parameters and prices; change them with more than 2/3 of the validators' power.

    One drafts, each validator signs a copy of the draft (offline, if it likes), anybody submits the
    copies. A change is in force from the start of an epoch, at least one whole epoch later.
    """


@params.command()
@click.option("--version", "number", type=click.IntRange(1), help="This version instead of the one in force.")
@network_options
@json_option
@pass_command_context
def show(context: CommandContext, number: int | None, network: NetworkOptions, as_json: bool) -> None:
    """Show every parameter and price by the name that --set takes, and which versions there are."""
    chain = resolve_network(context, network).open_chain()
    head, schedule = trio.run(_fetch, chain)
    epoch = _epoch_at(chain, head)
    in_force = [v for v in schedule.versions if v.from_epoch <= max(0, epoch)][-1]
    chosen = next((v for v in schedule.versions if v.number == number), None) if number else in_force
    if chosen is None:
        raise ConfigError("EMC-2169", f"there are versions 1 to {schedule.newest.number}, not {number}")
    rows = list_values(chosen.parameters)
    others = [f"version {v.number} from epoch {v.from_epoch}" for v in schedule.versions]
    others += [f"version {u.number} from epoch {u.from_epoch}, UNREADABLE here" for u in schedule.unreadable]
    lines = [f"version {chosen.number}, from epoch {chosen.from_epoch}; now is epoch {epoch}"]
    shown = [(name, "=", value, "never changes" if _is_fixed(name) else "") for name, value in rows]
    lines += ["  " + line for line in columns(shown, gap=1)]
    lines.append(f"there are: {', '.join(others)}")
    data = {
        "version": chosen.number,
        "from_epoch": chosen.from_epoch,
        "epoch": epoch,
        "values": dict(rows),
        "document": encode_document(chosen.parameters.params, chosen.parameters.prices),
        "versions": [{"version": v.number, "from_epoch": v.from_epoch} for v in schedule.versions],
    }
    emit(data, "\n".join(lines), as_json)


@params.command()
@click.option(
    "--set",
    "assignments",
    multiple=True,
    required=True,
    metavar="NAME=VALUE",
    help="prices.default.FIELD, prices.models.MANIFEST.FIELD, params.FIELD; may repeat. `none` removes.",
)
@click.option(
    "--from-epoch",
    type=click.IntRange(1),
    help="When it takes force. Default: the third epoch from now, so that there is time to sign.",
)
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), help="The draft: a new file. Without: dry run."
)
@network_options
@json_option
@pass_command_context
def draft(
    context: CommandContext,
    assignments: tuple[str, ...],
    from_epoch: int | None,
    out: Path | None,
    network: NetworkOptions,
    as_json: bool,
) -> None:
    """Draft the next version from the newest one, and show what it changes."""
    chain = resolve_network(context, network).open_chain()
    head, schedule = trio.run(_fetch, chain)
    newest = schedule.newest
    last_number, last_epoch = _last_version(schedule)
    after = _edit(newest.parameters, assignments, last_number + 1)
    earliest = max(max(0, _epoch_at(chain, head)) + 2, last_epoch + 1)
    epoch = from_epoch or earliest + SPARE_EPOCHS
    if epoch < earliest:
        raise ConfigError(
            "EMC-2169", f"epoch {epoch} is too early: it can take force in {earliest} at the earliest"
        )
    text = encode_document(after.params, after.prices)
    statement = Statement(
        KIND,
        chain.deployment.parameters_domain,
        make_change(last_number + 1, epoch, text),
        text,
        encode_document(newest.parameters.params, newest.parameters.prices),
    )
    if out is not None:
        write_statement(out, statement)
    last = (
        f"wrote {out}; each validator: emcd chain params sign {out} --keystore KEY"
        if out
        else "Nothing was written: --out FILE does it."
    )
    data = {**_change_json(statement), "file": None if out is None else str(out)}
    emit(data, "\n".join([*_change_lines(statement), "", last]), as_json)


@params.command()
@click.argument("draft_file", metavar="DRAFT", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option(
    "--deployment",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Your own deployment.json: the draft must be for that network.",
)
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), help="The signed copy. Default: beside DRAFT."
)
@click.option("--yes", is_flag=True, help="Sign without asking.")
@wallet_options
@json_option
def sign(
    draft_file: Path,
    deployment: Path | None,
    out: Path | None,
    yes: bool,
    keystore: Path,
    password_file: Path | None,
    as_json: bool,
) -> None:
    """Sign a copy of DRAFT with a validator's node key. Needs no network.

    It shows what the draft changes, as computed here from its two documents: compare it with what you
    agreed on. A wrong signature harms nobody: the contract counts only what fits.
    """
    statement = load_statement(draft_file, KIND)
    _require_consistent(draft_file, statement)
    if deployment is not None:
        own = decode_deployment(deployment.read_bytes(), str(deployment)).parameters_domain
        if own != statement.domain:
            raise ConfigError(
                "EMC-2168", f"{draft_file} is for {_where(statement.domain)}, {deployment} is {_where(own)}"
            )
    if not as_json:
        click.echo("\n".join(_change_lines(statement)), err=True)
    require_yes(yes, "sign it?")
    key = load_keystore(keystore, ask_password(password_file, confirm=False))
    copy = signed_copy(draft_file, key.address, out)
    write_statement(copy, statement.sign(key))
    data = {**_change_json(statement), "signer": key.address, "file": str(copy)}
    emit(data, f"{key.address} signed: {copy}", as_json)


@params.command()
@click.argument(
    "files", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True, dir_okay=False)
)
@optional_spend_options
@network_options
@json_option
@pass_command_context
def submit(
    context: CommandContext,
    files: tuple[Path, ...],
    wallet: Wallet | None,
    network: NetworkOptions,
    as_json: bool,
) -> None:
    """Say how much of the power has signed FILES, and with --send give the change to the contract.

    Anybody may send it. It needs more than 2/3 of the power of the epoch in which it is mined.
    """
    statement = merge_statements(files, KIND)
    change, after = _require_consistent(files[0], statement)
    chain = resolve_network(context, network).open_chain()
    if statement.domain != chain.deployment.parameters_domain:
        raise ConfigError("EMC-2168", f"{files[0]} is for {_where(statement.domain)}")
    found = tally(statement, trio.run(_fetch_set, chain))
    lines = [*_change_lines(statement), "", *tally_lines(found, "more than 2/3")]
    data: dict[str, Any] = {**_change_json(statement), **tally_json(found)}
    is_enough = found.is_more_than(*TWO_THIRDS)
    if wallet is None or not is_enough:
        data |= {"sent": False, "is_enough": is_enough}
        emit(
            data,
            "\n".join(
                [*lines, "", "It can be sent: --keystore FILE --send." if is_enough else "Not enough yet."]
            ),
            as_json,
        )
        raise click.exceptions.Exit(0 if is_enough else 1)
    if not as_json:
        click.echo("\n".join(lines), err=True)
    call = chain.parameters.submit_change(change, rules_of(after.params), statement.document, found.counted)
    title = f"version {change.version} of the parameters from epoch {change.from_epoch}"
    spend(chain, wallet, Intent(title, (call,), data), as_json=as_json)


async def _fetch(chain: Chain) -> tuple[BlockRef, ParameterSchedule]:
    head = await chain.head()
    return head, await fetch_parameter_schedule(chain, head)


def _is_fixed(name: str) -> bool:
    field = name.removeprefix("params.")
    return field in FIXED or field.removesuffix("_token") + "_wei" in FIXED


def _last_version(schedule: ParameterSchedule) -> tuple[int, int]:
    """Number and epoch of the contract's last version, whether it can be read here or not."""
    newest = schedule.newest
    found = [(newest.number, newest.from_epoch), *((u.number, u.from_epoch) for u in schedule.unreadable)]
    return max(found)


async def _fetch_set(chain: Chain) -> ValidatorSet:
    head = await chain.head()
    return await chain.staking.fetch_validator_set(max(0, _epoch_at(chain, head)), at=head)


def _epoch_at(chain: Chain, head: BlockRef) -> int:
    """As the contracts count; negative before genesis."""
    clock = chain.deployment.params
    return int(clock.epoch_of(clock.round_at(head.timestamp_s * 1000)))


def _edit(before: ParameterSet, assignments: Sequence[str], number: int) -> ParameterSet:
    """Raises: ConfigFaults with everything that is wrong."""
    after, faults = before, []
    for text in assignments:
        try:
            name, value = parse_assignment(text)
            after = assign(after, name, value)
        except ValueError as exc:
            faults.append(Fault(f"--set {text}", str(exc), "EMC-2169"))
    if not faults and after == before:
        faults.append(Fault("--set", "it changes nothing", "EMC-2169"))
    after = next_set(before, after.params, after.prices, number)
    faults += [
        Fault("--set", fault.detail, fault.code) for fault in list_change_faults(before, after, number)
    ]
    if faults:
        raise ConfigFaults(faults)
    return after


def _require_consistent(file: Path, statement: Statement) -> tuple[ParametersChange, ParameterSet]:
    """The change that is signed is that of the document. Raises: ConfigError EMC-2167."""
    change = statement.struct
    assert isinstance(change, ParametersChange)
    try:
        after = decode_document(statement.document)
        decode_document(statement.before)
        if change != make_change(change.version, change.from_epoch, statement.document):
            raise ConfigError("EMC-2167", f"{file}: what is signed is not the hash of its document")
    except RemoteProtocolError as exc:
        raise ConfigError("EMC-2167", f"{file}: {exc.detail}") from exc
    return change, after


def _change_lines(statement: Statement) -> list[str]:
    change = statement.struct
    assert isinstance(change, ParametersChange)
    before, after = decode_document(statement.before), decode_document(statement.document)
    title = f"version {change.version} of the parameters, from the start of epoch {change.from_epoch}"
    words = [f"  {sentence}" for sentence in list_differences(before, after)]
    return [title, *words, f"for {_where(statement.domain)}"]


def _change_json(statement: Statement) -> dict[str, Any]:
    before, after = decode_document(statement.before), decode_document(statement.document)
    return {
        "change": to_json(statement.struct),
        "chain_id": statement.domain.chain_id,
        "contract": statement.domain.verifying_contract,
        "differences": list(list_differences(before, after)),
    }


def _where(domain: Domain) -> str:
    return f"chain {domain.chain_id}, contract {domain.verifying_contract}"
