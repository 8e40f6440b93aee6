"""Closes a round: evidence in, the canonical bundle out, written as it goes.

What no audit would accept is left out and named, so that one bad record of one peer never stops
the round. Invariants: what it writes passes `audit_bundle`; memory grows by 120 bytes a call.
CPU-bound: run it in a process of its own, small rounds in a thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO, NamedTuple

from emcd.accounting.round_result import RoundResult
from emcd.accounting.signed_batch import SignedBatch
from emcd.proto.bundle import (
    BundleHeader,
    CommitmentEntry,
    DepositEntry,
    RevealEntry,
    SnapshotEntry,
    StatusEntry,
    ValidatorPower,
    VoteEntry,
)
from emcd.proto.bundle_codec import Section
from emcd.proto.messages import BundleSeal, RoundRoot
from emcd.proto.params import NetworkParams, PriceTable
from emcd.proto.records import Delivery, Forward, Receipt
from emcd.types import ZERO_HASH, Address, Hash

__all__ = ["CallRecords", "ClosedRound", "Evidence", "LeftOut", "RoundFacts", "SignedBatch", "close_round"]

MAX_LEFT_OUT = 1000


class CallRecords(NamedTuple):
    """The records of one call; their batches are found."""

    forward: Forward
    receipt: Receipt | None
    delivery: Delivery


@dataclass(frozen=True, kw_only=True)
class RoundFacts:
    """What the chain and the bundle before say; `totals` are the cumulative wei before this round.

    `prices_from` are the first rounds in which the tables of `prices` are in force; both ascend.
    """

    round: int
    hub: Address
    chain_id: int
    staking: Address
    distributor: Address
    params: NetworkParams
    prices: tuple[PriceTable, ...]
    prices_from: tuple[int, ...] = (0,)
    snapshot_block: int
    snapshot_block_hash: bytes
    beacon_block: int
    beacon_block_hash: bytes
    participants: Sequence[SnapshotEntry]
    validators: Sequence[ValidatorPower]
    totals: Mapping[Address, int] = field(default_factory=dict)
    previous_round: int = -1
    previous_bundle_hash: bytes = ZERO_HASH


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What came in; of several with one key the first stays. Each is iterated once.

    `calls` ascend by their ids. They are read after statuses, commitments, reveals and deposits, before
    `batches`; `votes` come last.
    """

    calls: Iterable[CallRecords] = ()
    batches: Iterable[SignedBatch] = ()
    statuses: Iterable[StatusEntry] = ()
    commitments: Iterable[CommitmentEntry] = ()
    reveals: Iterable[RevealEntry] = ()
    votes: Iterable[VoteEntry] = ()
    deposits: Iterable[DepositEntry] = ()


@dataclass(frozen=True)
class LeftOut:
    """Evidence that is not in the bundle, and why."""

    section: Section
    key: str
    code: str
    detail: str


@dataclass(frozen=True, kw_only=True)
class ClosedRound:
    """What was written and what it gives; `left_out` are the first of all that were left out."""

    header: BundleHeader
    bundle_hash: Hash
    size_bytes: int
    result: RoundResult
    left_out: tuple[LeftOut, ...]
    left_out_count: int
    calls: int
    batches: int

    @property
    def seal(self) -> BundleSeal:
        """For the hub to sign, once."""
        return BundleSeal(self.header.hub, self.header.round, self.bundle_hash)

    @property
    def round_root(self) -> RoundRoot:
        """What the validators will sign."""
        return RoundRoot(self.header.round, self.bundle_hash, self.result.root, self.result.cumulative_wei)


def close_round(
    facts: RoundFacts,
    evidence: Evidence,
    out: BinaryIO,
    *,
    signatures_checked: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> ClosedRound:
    """Write the bundle of a round.

    Args:
        out: writable and seekable; written from its position on. After an exception what is in it is
            worth nothing.
        signatures_checked: every signature of the evidence, and the root of every batch, was verified
            when it came.
        progress: told the calls done and 0, for how many there are is not known.

    Raises: LocalProtocolError, RemoteProtocolError EMC-1905, 1926 when the facts themselves are wrong;
    LocalProtocolError EMC-1904 when the calls do not ascend.
    """
    from emcd.accounting.close_pass import ClosePass

    return ClosePass(facts, out, signatures=not signatures_checked, progress=progress).run(evidence)
