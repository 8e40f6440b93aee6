"""Every other signed message, each with the contract whose domain it is signed for.

Domain "staking": Binding, Slash and everything that no contract checks. Domain "distributor":
RoundRoot, Veto, Extraction. One class, one purpose: a signature for one never counts for another.
"""

from __future__ import annotations

from enum import IntEnum
from typing import ClassVar

from emcd.proto.eip712 import TypedStruct
from emcd.types import Address


class Verdict(IntEnum):
    """What a validator says of one probe. Bands: VERIFICATION 5.3."""

    PASS = 1
    FAIL = 2
    GROSS = 3
    CLASS = 4
    TEMPLATE = 5
    ERROR = 6  # no usable answer: liveness, never cheating
    OFFLINE = 7  # the node was not there to be probed

    @property
    def is_strike(self) -> bool:
        return self in (Verdict.FAIL, Verdict.GROSS, Verdict.CLASS)


class Binding(TypedStruct, frozen=True, array_like=True):
    """The node key's consent to earn for a wallet; the wallet sends it, which is its own."""

    eip712: ClassVar = ("address", "address", "uint8", "uint256", "uint256")
    node: Address
    wallet: Address
    role: int
    nonce: int
    deadline: int


class Slash(TypedStruct, frozen=True, array_like=True):
    """A quorum of validators burns a share of a stake."""

    eip712: ClassVar = ("address", "uint16", "bytes32", "uint64")
    node: Address
    bps: int
    evidence_hash: bytes
    epoch: int


class Offence(TypedStruct, frozen=True, array_like=True):
    """The identity of a deed, never signed: its struct hash is the evidence hash of the `Slash` for it.

    One deed has one identity, whichever of its proofs somebody saw, so that all validators sign the
    same order and the contract takes it once.
    """

    eip712: ClassVar = ("uint8", "address", "uint64")
    kind: int
    offender: Address
    round: int


class RoundRoot(TypedStruct, frozen=True, array_like=True):
    """A validator's attestation of one round, given once, after its own audit of the bundle."""

    eip712: ClassVar = ("uint64", "bytes32", "bytes32", "uint256")
    round: int
    bundle_hash: bytes
    root: bytes
    cumulative_wei: int


class Veto(TypedStruct, frozen=True, array_like=True):
    """A validator's word against a published round."""

    eip712: ClassVar = ("uint64", "bytes32", "bytes32")
    round: int
    bundle_hash: bytes
    root: bytes


class Extraction(TypedStruct, frozen=True, array_like=True):
    """A wallet asks for its rewards up to a round; `submit` lets anyone send the claim for it."""

    eip712: ClassVar = ("address", "address", "uint64", "bool", "uint256", "uint256")
    wallet: Address
    recipient: Address
    through_round: int
    submit: bool
    nonce: int
    deadline: int


class TunnelAuth(TypedStruct, frozen=True, array_like=True):
    """One side of a tunnel proves its key to the other, which gave it `receiver_nonce`."""

    eip712: ClassVar = ("address", "address", "bytes32", "bytes32", "uint64", "uint8")
    sender: Address
    receiver: Address
    sender_nonce: bytes
    receiver_nonce: bytes
    expires_at_ms: int
    role: int


class NodeStatus(TypedStruct, frozen=True, array_like=True):
    """A node's heartbeat to its hub. `models` are manifest hashes, sorted."""

    eip712: ClassVar = (
        "address", "address", "uint64", "uint64", "bytes32[]", "uint32", "uint32", "string", "string",
    )  # fmt: skip
    node: Address
    hub: Address
    sequence: int
    sent_at_ms: int
    models: tuple[bytes, ...]
    capacity: int
    in_flight: int
    version: str
    gpu: str


class RouterStatus(TypedStruct, frozen=True, array_like=True):
    """A router's heartbeat to one of its hubs: the nodes that it holds for that hub, their calls."""

    eip712: ClassVar = (
        "address", "address", "uint64", "uint64", "uint32", "uint32", "string", "string",
    )  # fmt: skip
    router: Address
    hub: Address
    sequence: int
    sent_at_ms: int
    nodes: int
    in_flight: int
    version: str
    region: str


class BundleSeal(TypedStruct, frozen=True, array_like=True):
    """The hub's word for a round's bundle: exactly one, a second is evidence against it."""

    eip712: ClassVar = ("address", "uint64", "bytes32")
    hub: Address
    round: int
    bundle_hash: bytes


class PlanCommitment(TypedStruct, frozen=True, array_like=True):
    """Before a round: commitment = keccak(seed || corpus_root || salt)."""

    eip712: ClassVar = ("address", "uint64", "bytes32", "uint64")
    validator: Address
    round: int
    commitment: bytes
    signed_at_ms: int


class Reveal(TypedStruct, frozen=True, array_like=True):
    """After a round: the opened commitment and the hash of what came of every planned probe."""

    eip712: ClassVar = ("address", "uint64", "bytes32", "bytes32", "bytes32", "bytes32")
    validator: Address
    round: int
    seed: bytes
    corpus_root: bytes
    salt: bytes
    probes_hash: bytes


class Vote(TypedStruct, frozen=True, array_like=True):
    """A validator's own verdict on a probe of another one: on every strike, and on the PASSes that it
    has to check again.

    `statistic_e12` is the statistic times 10**12, rounded down: relative L2 for embeddings; for text
    the largest of its statistics, each as a share of its threshold.
    """

    eip712: ClassVar = ("address", "uint64", "bytes16", "bytes32", "uint8", "uint64")
    validator: Address
    round: int
    call_id: bytes
    receipt_hash: bytes
    verdict: int
    statistic_e12: int


class Results(TypedStruct, frozen=True, array_like=True):
    """What came of a validator's probes, fixed before anybody's seed is known; once a round.

    `probes_hash` is the one that its reveal will open to.
    """

    eip712: ClassVar = ("address", "uint64", "bytes32", "uint64")
    validator: Address
    round: int
    probes_hash: bytes
    signed_at_ms: int


class TaskResult(TypedStruct, frozen=True, array_like=True):
    """A validator's verdict on a transcript that another one gave it to judge."""

    eip712: ClassVar = ("address", "uint64", "bytes32", "uint8", "uint64")
    validator: Address
    round: int
    task_hash: bytes
    verdict: int
    statistic_e12: int


class Task(TypedStruct, frozen=True, array_like=True):
    """A validator asks another one to judge a transcript; what it says of it is a `TaskResult`."""

    eip712: ClassVar = ("address", "address", "uint64", "bytes32")
    sender: Address
    receiver: Address
    round: int
    task_hash: bytes


class Challenge(TypedStruct, frozen=True, array_like=True):
    """A validator asks a node for the answer that it signed a receipt for.

    `knowledge` can only be made by who knows the request, so that nobody is told a prompt anew.
    """

    eip712: ClassVar = ("address", "address", "bytes16", "bytes32", "uint64")
    validator: Address
    node: Address
    call_id: bytes
    knowledge: bytes
    deadline_ms: int
