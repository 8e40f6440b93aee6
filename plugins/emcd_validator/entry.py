"""Statements between their bundle form and their row in the ledger. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import msgspec

from emcd.proto.bundle import CommitmentEntry, ProbeResult, RevealEntry, VoteEntry
from emcd.proto.eip712 import TypedStruct
from emcd.proto.json_form import from_json, to_json
from emcd.proto.messages import PlanCommitment, Results, Reveal, RoundRoot, TaskResult, Vote
from emcd.types import Address
from emcd_validator.queries.items import Item, Kind

_encode = msgspec.msgpack.Encoder().encode
_commitment = msgspec.msgpack.Decoder(PlanCommitment)
_reveal = msgspec.msgpack.Decoder(tuple[Reveal, tuple[ProbeResult, ...]])
_results = msgspec.msgpack.Decoder(tuple[Results, tuple[ProbeResult, ...]])
_vote = msgspec.msgpack.Decoder(Vote)
_task_result = msgspec.msgpack.Decoder(TaskResult)


@dataclass(frozen=True)
class ResultsEntry:
    """A validator's results with its signature; `probes` are known of own ones only."""

    results: Results
    signature: bytes
    probes: tuple[ProbeResult, ...] = ()


@dataclass(frozen=True)
class TaskEntry:
    """A validator's verdict on a task with its signature."""

    result: TaskResult
    signature: bytes


@dataclass(frozen=True)
class Held:
    """The statements held for a round: by author, votes by call and author."""

    commitments: Mapping[Address, CommitmentEntry] = field(default_factory=dict)
    reveals: Mapping[Address, RevealEntry] = field(default_factory=dict)
    votes: Mapping[tuple[bytes, Address], VoteEntry] = field(default_factory=dict)
    results: Mapping[Address, ResultsEntry] = field(default_factory=dict)
    results_at_ms: Mapping[Address, int] = field(default_factory=dict)
    """When the results of each came here."""


def commitment_item(entry: CommitmentEntry, held_at_ms: int = 0) -> Item:
    struct = entry.commitment
    return Item(
        Kind.COMMITMENT,
        struct.round,
        struct.validator,
        b"",
        _encode(struct),
        entry.signature or None,
        held_at_ms,
    )


def reveal_item(entry: RevealEntry, held_at_ms: int = 0) -> Item:
    struct = entry.reveal
    data = _encode((struct, entry.probes))
    return Item(Kind.REVEAL, struct.round, struct.validator, b"", data, entry.signature or None, held_at_ms)


def results_item(entry: ResultsEntry, held_at_ms: int = 0) -> Item:
    struct = entry.results
    data = _encode((struct, entry.probes))
    return Item(Kind.RESULTS, struct.round, struct.validator, b"", data, entry.signature or None, held_at_ms)


def task_item(entry: TaskEntry, held_at_ms: int = 0) -> Item:
    struct = entry.result
    return Item(
        Kind.TASK_RESULT,
        struct.round,
        struct.validator,
        struct.task_hash,
        _encode(struct),
        entry.signature or None,
        held_at_ms,
    )


def vote_item(entry: VoteEntry, held_at_ms: int = 0) -> Item:
    struct = entry.vote
    return Item(
        Kind.VOTE,
        struct.round,
        struct.validator,
        struct.call_id,
        _encode(struct),
        entry.signature or None,
        held_at_ms,
    )


def round_root_item(
    root: RoundRoot, author: Address, held_at_ms: int, signature: bytes | None = None
) -> Item:
    data = msgspec.json.encode(to_json(root))  # msgpack has no integer of 256 bits
    return Item(Kind.ROUND_ROOT, root.round, author, b"", data, signature, held_at_ms)


def read_struct(item: Item) -> TypedStruct:
    """What is signed in the item."""
    match item.kind:
        case Kind.COMMITMENT:
            return _commitment.decode(item.data)
        case Kind.REVEAL:
            return _reveal.decode(item.data)[0]
        case Kind.RESULTS:
            return _results.decode(item.data)[0]
        case Kind.VOTE:
            return _vote.decode(item.data)
        case Kind.TASK_RESULT:
            return _task_result.decode(item.data)
        case Kind.ROUND_ROOT:
            return read_round_root_item(item)


def read_commitment_item(item: Item) -> CommitmentEntry:
    return CommitmentEntry(_commitment.decode(item.data), item.signature or b"")


def read_reveal_item(item: Item) -> RevealEntry:
    reveal, probes = _reveal.decode(item.data)
    return RevealEntry(reveal, item.signature or b"", probes)


def read_results_item(item: Item) -> ResultsEntry:
    results, probes = _results.decode(item.data)
    return ResultsEntry(results, item.signature or b"", probes)


def read_results_data(data: bytes) -> Results:
    """The results of an item's data."""
    return _results.decode(data)[0]


def read_task_item(item: Item) -> TaskEntry:
    return TaskEntry(_task_result.decode(item.data), item.signature or b"")


def read_task_result_data(data: bytes) -> TaskResult:
    """The verdict of an item's data."""
    return _task_result.decode(data)


def read_vote_item(item: Item) -> VoteEntry:
    return VoteEntry(_vote.decode(item.data), item.signature or b"")


def read_round_root_item(item: Item) -> RoundRoot:
    return from_json(RoundRoot, msgspec.json.decode(item.data))


def collect(items: Iterable[Item]) -> Held:
    """Sort the items of a round by what they say."""
    commitments: dict[Address, CommitmentEntry] = {}
    reveals: dict[Address, RevealEntry] = {}
    votes: dict[tuple[bytes, Address], VoteEntry] = {}
    results: dict[Address, ResultsEntry] = {}
    results_at_ms: dict[Address, int] = {}
    for item in items:
        if item.kind is Kind.COMMITMENT:
            commitments[item.author] = read_commitment_item(item)
        elif item.kind is Kind.REVEAL:
            reveals[item.author] = read_reveal_item(item)
        elif item.kind is Kind.VOTE:
            votes[item.key, item.author] = read_vote_item(item)
        elif item.kind is Kind.RESULTS:
            results[item.author] = read_results_item(item)
            results_at_ms[item.author] = item.held_at_ms
    return Held(commitments, reveals, votes, results, results_at_ms)
