"""Whether a bundle that agrees with itself agrees with what this validator knows. Pure.

`emcd.accounting.audit` recomputes a bundle; here it is compared with what nobody but a witness can
tell: what this validator said, did and held in time. Invariant: nothing a dishonest peer does
alone makes an honest hub's bundle fail here, beyond what is written at `_vote_faults`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from mmap import mmap

from emcd.accounting.plan import compute_commitment
from emcd.accounting.receipt import CallReceipt
from emcd.proto.bundle import (
    CallEntry,
    CommitmentEntry,
    DepositEntry,
    ProbeResult,
    RevealEntry,
    VoteEntry,
)
from emcd.proto.bundle_codec import BundleReader, Section, find_call, read_call_ids
from emcd.proto.messages import Verdict, Vote
from emcd.proto.records import format_call_id
from emcd.types import ZERO_HASH, Address
from emcd_validator.entry import Held

Content = bytes | mmap


@dataclass(frozen=True)
class Refusal:
    """Why a validator does not sign: a code of the catalogue and the first difference."""

    code: str
    reason: str


@dataclass(frozen=True)
class OwnCall:
    """An own probe that was answered: what it asked, what came, and the receipt if there is one."""

    call_id: bytes
    request_hash: bytes
    body_hash: bytes
    receipt: CallReceipt | None


@dataclass(frozen=True)
class KnownDeposit:
    """A purchase as the vault has it."""

    account: bytes
    amount_wei: int
    credits_micro: int
    block: int


@dataclass(frozen=True, kw_only=True)
class Knowledge:
    """What the validator can witness of a round.

    Attributes:
        own: its own statements: where the bundle has them, they must be these.
        held: statements, own and peers', that the hub must have: they must be there.
        struck: receipt hash by call id of the calls whose evidence it checked.
        omissions: (call id, node) of calls filed a full round before the bundle's grace, and not
            settled yet.
        deposits: the vault's purchases by index; credited: indices that earlier bundles credited.
        vault_used_micro: what the bundles before this one took from credits bought in the vault.
    """

    validator: Address
    round: int
    own: Held = field(default_factory=Held)
    held: Held = field(default_factory=Held)
    own_calls: Sequence[OwnCall] = ()
    struck: Mapping[bytes, bytes] = field(default_factory=dict)
    omissions: Sequence[tuple[bytes, Address]] = ()
    deposits: Mapping[int, KnownDeposit] = field(default_factory=dict)
    credited: frozenset[int] = frozenset()
    vault_used_micro: int = 0


@dataclass(frozen=True)
class BundleFacts:
    """The parts of a bundle that a witness looks at; `call_ids` of all its calls, joined, ascending."""

    calls: Mapping[bytes, CallEntry]
    call_ids: bytes
    vault_micro: int
    commitments: Mapping[Address, CommitmentEntry]
    reveals: Mapping[Address, RevealEntry]
    votes: Mapping[tuple[bytes, Address], VoteEntry]
    deposits: Sequence[DepositEntry]


def read_facts(data: Content, wanted: frozenset[bytes], vault_micro: int) -> BundleFacts:
    """Read a bundle that passed its audit; of the calls only the wanted ones are kept whole.

    Args: `vault_micro` as the audit added it up.
    """
    reader = BundleReader(data)
    found = {call_id: find_call(reader, call_id) for call_id in sorted(wanted)}
    return BundleFacts(
        {call_id: item[1] for call_id, item in found.items() if item is not None},
        read_call_ids(reader),
        vault_micro,
        {entry.commitment.validator: entry for entry in reader.items(Section.COMMITMENTS)},
        {entry.reveal.validator: entry for entry in reader.items(Section.REVEALS)},
        {(entry.vote.call_id, entry.vote.validator): entry for entry in reader.items(Section.VOTES)},
        list(reader.items(Section.DEPOSITS)),
    )


def list_wanted(knowledge: Knowledge) -> frozenset[bytes]:
    """The calls that the checks look at."""
    filed = {call_id for call_id, _ in knowledge.omissions}
    voted = {call_id for call_id, _ in knowledge.held.votes}
    return frozenset({call.call_id for call in knowledge.own_calls} | knowledge.struck.keys() | filed | voted)


def find_refusal(facts: BundleFacts, knowledge: Knowledge) -> Refusal | None:
    """The first thing the bundle says otherwise, or leaves out; None when it agrees with all."""
    checks: tuple[Callable[[BundleFacts, Knowledge], Iterator[Refusal]], ...] = (
        _own_faults,
        _statement_faults,
        _call_faults,
        _vote_faults,
        _omission_faults,
        _deposit_faults,
    )
    return next((fault for check in checks for fault in check(facts, knowledge)), None)


def _own_faults(facts: BundleFacts, knowledge: Knowledge) -> Iterator[Refusal]:
    me, own = knowledge.validator, knowledge.own
    if me in facts.commitments and facts.commitments[me] != own.commitments.get(me):
        yield Refusal("EMC-1821", "own commitment is another one")
    if me in facts.reveals and facts.reveals[me] != own.reveals.get(me):
        yield Refusal("EMC-1821", "own reveal is another one")
    for (call_id, author), listed in facts.votes.items():
        if author == me and own.votes.get((call_id, me)) != listed:
            yield Refusal("EMC-1821", f"own vote on {format_call_id(call_id)} is another one")


def _statement_faults(facts: BundleFacts, knowledge: Knowledge) -> Iterator[Refusal]:
    for peer in sorted(knowledge.held.commitments.keys() - facts.commitments.keys()):
        yield Refusal("EMC-1822", f"the commitment of {peer} is missing")
    for peer in sorted(knowledge.held.reveals.keys() - facts.reveals.keys()):
        listed = facts.commitments.get(peer)
        if listed is not None and _is_opened(listed, knowledge.held.reveals[peer]):
            yield Refusal("EMC-1822", f"the reveal of {peer} is missing")


def _is_opened(listed: CommitmentEntry, entry: RevealEntry) -> bool:
    """Whether a reveal is of the listed plan, and not of another one that its author signed too."""
    reveal = entry.reveal
    return compute_commitment(reveal.seed, reveal.corpus_root, reveal.salt) == listed.commitment.commitment


def _call_faults(facts: BundleFacts, knowledge: Knowledge) -> Iterator[Refusal]:
    for call in knowledge.own_calls:
        name = f"own probe {format_call_id(call.call_id)}"
        entry = facts.calls.get(call.call_id)
        if entry is None:
            # Without a receipt nobody can tell a hub that hides the call from a node that withholds its batch.
            if call.receipt is not None:
                yield Refusal("EMC-1823", f"{name} is missing")
        elif entry.forward.request_hash != call.request_hash:
            yield Refusal("EMC-1823", f"{name} stands there with another request")
        elif entry.delivery.body_hash != call.body_hash:
            yield Refusal("EMC-1823", f"{name} stands there with another answer")
        elif entry.receipt is not None and entry.receipt.response_hash != call.body_hash:
            yield Refusal("EMC-1823", f"{name} was delivered with another answer than the node signed")
        elif call.receipt is not None and not _is_whole(entry, call.receipt):
            yield Refusal("EMC-1823", f"{name} stands there with other records than its receipt")
    for call_id in sorted(knowledge.struck):
        entry = facts.calls.get(call_id)
        if (
            entry is None
            or entry.receipt_ref is None
            or entry.delivery.receipt_hash != knowledge.struck[call_id]
        ):
            yield Refusal(
                "EMC-1824", f"struck call {format_call_id(call_id)} is missing or without its proofs"
            )


def _is_whole(entry: CallEntry, receipt: CallReceipt) -> bool:
    records = (entry.forward, entry.receipt, entry.delivery) == (
        receipt.forward,
        receipt.receipt,
        receipt.delivery,
    )
    return records and None not in (entry.forward_ref, entry.receipt_ref, entry.delivery_ref)


def _vote_faults(facts: BundleFacts, knowledge: Knowledge) -> Iterator[Refusal]:
    """Held votes must be there where the bundle can hold them.

    It can for a call that backs one revealed probe with an answer. Where several probes name one call,
    only a bundle with some vote on it shows that it counts: else a peer that copies another's probe
    could make everybody refuse. There only votes on calls whose evidence was checked here are wanted.
    """
    named = Counter(probe.call_id for entry in facts.reveals.values() for probe in entry.probes)
    votable = {
        probe.call_id: receipt_hash
        for entry in facts.reveals.values()
        for probe in entry.probes
        if named[probe.call_id] == 1
        and (receipt_hash := _find_backing(probe, facts.calls.get(probe.call_id), knowledge.round))
        is not None
    }
    voted = {call_id: knowledge.struck[call_id] for call_id, _ in facts.votes if call_id in knowledge.struck}
    for place in sorted(knowledge.held.votes.keys() - facts.votes.keys()):
        receipt_hash = votable.get(place[0]) or voted.get(place[0])
        if receipt_hash is not None and _is_about(knowledge.held.votes[place].vote, receipt_hash):
            yield Refusal("EMC-1822", f"the vote of {place[1]} on {format_call_id(place[0])} is missing")


def _find_backing(probe: ProbeResult, entry: CallEntry | None, round_index: int) -> bytes | None:
    """The receipt hash of the call that backs a probe with an answer; None where none does."""
    if entry is None or entry.receipt is None or probe.verdict == Verdict.OFFLINE:
        return None
    if entry.delivery.round != round_index or None in (
        entry.forward_ref,
        entry.receipt_ref,
        entry.delivery_ref,
    ):
        return None
    if (entry.forward.node, entry.forward.request_hash) != (probe.node, probe.request_hash):
        return None
    if probe.verdict != Verdict.ERROR and entry.receipt.response_hash != probe.response_hash:
        return None
    return entry.delivery.receipt_hash


def _is_about(vote: Vote, receipt_hash: bytes) -> bool:
    """Whether a vote is one about this receipt, or says that no evidence was shown."""
    saw_nothing = vote.verdict == Verdict.ERROR and vote.receipt_hash == ZERO_HASH
    return saw_nothing or vote.receipt_hash == receipt_hash


def _omission_faults(facts: BundleFacts, knowledge: Knowledge) -> Iterator[Refusal]:
    for call_id, node in knowledge.omissions:
        entry = facts.calls.get(call_id)
        if entry is None:
            yield Refusal("EMC-1825", f"{format_call_id(call_id)}, filed by {node}, is left out")
        elif entry.receipt_ref is None:
            yield Refusal(
                "EMC-1825", f"{format_call_id(call_id)}, filed by {node}, stands there without its proof"
            )


def _deposit_faults(facts: BundleFacts, knowledge: Knowledge) -> Iterator[Refusal]:
    for entry in facts.deposits:
        known = knowledge.deposits.get(entry.index)
        listed = KnownDeposit(
            entry.account, int.from_bytes(entry.amount_wei, "big"), entry.credits_micro, entry.block
        )
        if entry.index in knowledge.credited:
            yield Refusal("EMC-1832", f"deposit {entry.index} was credited by an earlier bundle")
        elif known != listed:
            yield Refusal("EMC-1832", f"deposit {entry.index} is not what the vault has")
    bought = sum(item.credits_micro for item in knowledge.deposits.values())
    used = knowledge.vault_used_micro + facts.vault_micro
    if used > bought:
        yield Refusal("EMC-1832", f"{used} micro-credits of the vault were used, {bought} were ever bought")
