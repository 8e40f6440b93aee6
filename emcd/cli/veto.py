"""`emcd veto`: more than a third of the validators' power voids a published round, by hand."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import trio

from emcd.chain import Chain, Publication, PublicationState, ValidatorSet
from emcd.cli.keys import ask_password
from emcd.cli.layout_text import columns, format_when
from emcd.cli.network import NetworkOptions, network_options, resolve_network
from emcd.cli.quorum_file import (
    Statement,
    merge_statements,
    tally,
    tally_json,
    tally_lines,
    write_statement,
)
from emcd.cli.spend import Intent, Wallet, optional_spend_options, spend
from emcd.cli.wallet import require_yes, wallet_options
from emcd.command import CommandContext, emit, json_option, pass_command_context
from emcd.errors import ConfigError
from emcd.keys import load_keystore
from emcd.money import format_token_floor
from emcd.proto.address import hex_hash
from emcd.proto.messages import Veto
from emcd.types import Address

KIND = "veto"
ONE_THIRD = (1, 3)


@dataclass(frozen=True)
class Published:
    """A round as published, with the set whose power counts."""

    round: int
    publication: Publication
    members: ValidatorSet
    last_round: int | None


@click.group()
def veto() -> None:
    """Void a published round before it becomes active: show it, sign, submit.

    Each validator signs with the node key that is in force in the round's epoch; anybody submits the
    signatures. It takes more than 1/3 of that epoch's power, and voids the round and all published
    after it. Sign when `emcd audit` of the round's bundle says that the published root is wrong.
    """


@veto.command()
@click.argument("index", metavar="ROUND", type=click.IntRange(0))
@network_options
@json_option
@pass_command_context
def show(context: CommandContext, index: int, network: NetworkOptions, as_json: bool) -> None:
    """Show what was published for ROUND, until when it can be vetoed, and who has a say."""
    chain = resolve_network(context, network).open_chain()
    found = trio.run(_fetch, chain, index)
    emit(_to_json(found), "\n".join(_lines(found)), as_json)


@veto.command()
@click.argument("index", metavar="ROUND", type=click.IntRange(0))
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), help="Default: veto-ROUND-SIGNER.json."
)
@click.option("--yes", is_flag=True, help="Sign without asking.")
@wallet_options
@network_options
@json_option
@pass_command_context
def sign(
    context: CommandContext,
    index: int,
    out: Path | None,
    yes: bool,
    keystore: Path,
    password_file: Path | None,
    network: NetworkOptions,
    as_json: bool,
) -> None:
    """Sign a veto of what is published for ROUND, with a validator's node key; nothing is sent."""
    chain = resolve_network(context, network).open_chain()
    found = trio.run(_fetch, chain, index)
    _require_pending(found)
    if not as_json:
        click.echo("\n".join(_lines(found)), err=True)
    require_yes(yes, f"sign a veto of round {index}?")
    key = load_keystore(keystore, ask_password(password_file, confirm=False))
    if not found.members.power_of(key.address):
        raise ConfigError("EMC-2170", f"{key.address} has no power in the epoch of round {index}")
    file = out or Path(f"veto-{index}-{key.address[2:10].lower()}.json")
    write_statement(file, _statement(chain, found).sign(key))
    data = {**_to_json(found), "signer": key.address, "file": str(file)}
    emit(data, f"{key.address} signed: {file}; then: emcd veto submit FILES", as_json)


@veto.command()
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
    """Say how much of the power has signed FILES, and with --send give the veto to the contract."""
    statement = merge_statements(files, KIND)
    order = statement.struct
    assert isinstance(order, Veto)
    chain = resolve_network(context, network).open_chain()
    published = trio.run(_fetch, chain, order.round)
    _require_pending(published)
    if not statement.is_same(_statement(chain, published)):
        raise ConfigError(
            "EMC-2168", f"{files[0]} is not about what is published for round {order.round} here"
        )
    found = tally(statement, published.members)
    lines = [*_lines(published), *tally_lines(found, "more than 1/3")]
    is_enough = found.is_more_than(*ONE_THIRD)
    data: dict[str, Any] = {**_to_json(published), **tally_json(found), "is_enough": is_enough}
    if wallet is None or not is_enough:
        last = "It can be sent: --keystore FILE --send." if is_enough else "Not enough yet."
        emit({**data, "sent": False}, "\n".join([*lines, "", last]), as_json)
        raise click.exceptions.Exit(0 if is_enough else 1)
    if not as_json:
        click.echo("\n".join(lines), err=True)
    call = chain.distributor.submit_veto(order, found.counted)
    title = f"void round {order.round} and all published after it"
    done = f"round {order.round} is void"
    spend(chain, wallet, Intent(title, (call,), data, done), as_json=as_json)


async def _fetch(chain: Chain, index: int) -> Published:
    head = await chain.head()
    epoch = chain.deployment.params.epoch_of(index)
    return Published(
        round=index,
        publication=await chain.distributor.fetch_publication(index, at=head),
        members=await chain.staking.fetch_validator_set(epoch, at=head),
        last_round=await chain.distributor.find_last_round(at=head),
    )


def _require_pending(found: Published) -> None:
    state = found.publication.state
    if state is not PublicationState.PENDING:
        words = {
            PublicationState.NONE: "is not published",
            PublicationState.ACTIVE: "is active: its challenge delay is over",
            PublicationState.VOID: "is void already",
        }
        raise ConfigError("EMC-2171", f"round {found.round} {words[state]}")


def _statement(chain: Chain, found: Published) -> Statement:
    order = Veto(found.round, found.publication.bundle_hash, found.publication.root)
    return Statement(KIND, chain.deployment.distributor_domain, order)


def _lines(found: Published) -> list[str]:
    publication = found.publication
    state = publication.state.name.lower()
    rows = [("round", f"{found.round}, {state}")]
    if publication.state is not PublicationState.NONE:
        rows += [
            ("root", hex_hash(publication.root)),
            ("bundle hash", hex_hash(publication.bundle_hash)),
            ("cumulative", f"{format_token_floor(publication.cumulative_wei)} EMC"),
            ("published by", publication.publisher),
        ]
    if publication.state is PublicationState.PENDING:
        rows.append(("veto until", format_when(publication.active_at_s, int(time.time()))))
        later = (found.last_round or 0) - found.round
        if later > 0:
            rows.append(("with it", f"rounds up to {found.last_round} that were published after it"))
    rows.append(
        ("validators", f"{len(found.members)} with {format_token_floor(found.members.total_wei)} EMC")
    )
    return columns(rows)


def _to_json(found: Published) -> dict[str, Any]:
    publication = found.publication
    members: list[tuple[Address, int]] = list(found.members.members)
    return {
        "round": found.round,
        "state": publication.state.name.lower(),
        "root": hex_hash(publication.root),
        "bundle_hash": hex_hash(publication.bundle_hash),
        "cumulative_wei": str(publication.cumulative_wei),
        "publisher": publication.publisher,
        "active_at_s": publication.active_at_s,
        "validators": [{"node": node, "power_wei": str(wei)} for node, wei in members],
    }
