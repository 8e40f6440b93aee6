"""The canonical bundle of a round: everything from which anyone recomputes its root.

Owns: the structs of its sections. `proto/bundle_codec.py` turns them into bytes and back.
Invariants: it holds no prompt and no answer, only their hashes; every section is sorted strictly
by its key; one content has one byte sequence; amounts in wei are 32 bytes, big-endian; what follows
from something else (who a record's hub is, which records a call's records name) is not in the bytes.
"""

from __future__ import annotations

import msgspec

from emcd.proto.eip712 import Domain
from emcd.proto.messages import NodeStatus, PlanCommitment, Reveal, Vote
from emcd.proto.params import NetworkParams, PriceTable
from emcd.proto.records import Delivery, Forward, Receipt, RecordBatch
from emcd.types import Address


class _Part(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    pass


class BundleHeader(_Part, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What the bundle is about and under which numbers it was settled."""

    format_version: int
    round: int
    hub: Address
    chain_id: int
    staking: Address
    distributor: Address
    params: NetworkParams
    prices: tuple[PriceTable, ...]
    prices_from: tuple[int, ...]  # the first round in which each of them is in force
    snapshot_block: int
    snapshot_block_hash: bytes
    beacon_block: int
    beacon_block_hash: bytes
    previous_round: int  # the settled round whose totals stand in `totals`; -1 for none
    previous_bundle_hash: bytes  # zero for none
    issue_wei: bytes
    root: bytes
    cumulative_wei: bytes

    @property
    def domain(self) -> Domain:
        """Of the records, statuses and verdicts."""
        return Domain(self.chain_id, self.staking)


class SnapshotEntry(_Part, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A participant at the snapshot block. `stake_wei` is what weighs there; key: node."""

    node: Address
    wallet: Address
    role: int
    stake_wei: bytes
    lock_days: int
    suspended_until_round: int  # 0 when not suspended


class ValidatorPower(_Part, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A member of the epoch's frozen set; key: node."""

    node: Address
    power_wei: bytes


class Total(_Part, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Cumulative wei of a wallet before (section `totals`) this round; key: wallet."""

    wallet: Address
    cumulative_wei: bytes


class BatchEntry(_Part, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A signed batch; `others` are (leaf index, record hash) of records outside this bundle.

    Its root is not stated: it follows from the calls that refer to it and from the others. Key: kind,
    place of the signer among the bundle's nodes (0 for the hub), signed_at_ms, signature.
    """

    signer: Address
    kind: int
    count: int
    signed_at_ms: int
    signature: bytes
    others: tuple[tuple[int, bytes], ...]

    def with_root(self, root: bytes) -> RecordBatch:
        """What its signer signed, if this is the root."""
        return RecordBatch(self.signer, self.kind, root, self.count, self.signed_at_ms)


class RecordRef(_Part, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Where a record stands: index into the bundle's batches, leaf in that batch."""

    batch: int
    leaf: int


class CallEntry(_Part, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One call; a ref is None where no signed batch came in time. Key: forward.call_id."""

    forward: Forward
    receipt: Receipt | None
    delivery: Delivery
    forward_ref: RecordRef | None
    receipt_ref: RecordRef | None
    delivery_ref: RecordRef | None


class StatusEntry(_Part, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The first status of a node seen by the hub in the round; key: status.node."""

    status: NodeStatus
    signature: bytes


class CommitmentEntry(_Part, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Key: commitment.validator."""

    commitment: PlanCommitment
    signature: bytes


class ProbeResult(_Part, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What came of one planned probe. Hashes are zero where there was no call.

    `leaf_index` is the corpus leaf, `statistic_e12` as in `Vote`. Key: node, slot.
    """

    node: Address
    slot: int
    leaf_index: int
    call_id: bytes
    request_hash: bytes
    response_hash: bytes
    verdict: int
    statistic_e12: int


class RevealEntry(_Part, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Key: reveal.validator."""

    reveal: Reveal
    signature: bytes
    probes: tuple[ProbeResult, ...]


class VoteEntry(_Part, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Key: vote.call_id, vote.validator."""

    vote: Vote
    signature: bytes


class DepositEntry(_Part, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A purchase in the vault that was credited in this round; key: index."""

    index: int
    account: bytes
    amount_wei: bytes
    credits_micro: int
    block: int
    tx_hash: bytes


class ResultEntry(_Part, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What a participant got and why; key: node. `reason` is empty when it was eligible."""

    node: Address
    credits_micro: int
    weight: bytes  # 64 bytes, big-endian: credits_micro * stake_wei * multiplier_bps
    reward_wei: bytes
    reason: str


class Bundle(_Part, frozen=True, array_like=True, forbid_unknown_fields=True):
    """All sections, in the order of the wire."""

    header: BundleHeader
    participants: tuple[SnapshotEntry, ...] = ()
    validators: tuple[ValidatorPower, ...] = ()
    totals: tuple[Total, ...] = ()
    calls: tuple[CallEntry, ...] = ()
    batches: tuple[BatchEntry, ...] = ()
    statuses: tuple[StatusEntry, ...] = ()
    commitments: tuple[CommitmentEntry, ...] = ()
    reveals: tuple[RevealEntry, ...] = ()
    votes: tuple[VoteEntry, ...] = ()
    deposits: tuple[DepositEntry, ...] = ()
    results: tuple[ResultEntry, ...] = ()
