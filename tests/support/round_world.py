"""A small network with keys, that makes the evidence of a round as its participants would.

Everything is derived from names by keccak, so the same world gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from io import BytesIO
from typing import Any

import msgspec

from emcd.accounting.assignment import ProbeAssignment, assign_probes, draw_time_ms, probed_nodes
from emcd.accounting.plan import compute_commitment, compute_probes_hash
from emcd.accounting.price import charge_call_ceil, price_of
from emcd.accounting.round_close import (
    CallRecords,
    ClosedRound,
    Evidence,
    RoundFacts,
    SignedBatch,
    close_round,
)
from emcd.money import WEI_PER_TOKEN, encode_wei
from emcd.proto.address import address_bytes, address_of_key, hex_hash
from emcd.proto.bundle import (
    Bundle,
    CommitmentEntry,
    DepositEntry,
    ProbeResult,
    RevealEntry,
    SnapshotEntry,
    StatusEntry,
    ValidatorPower,
    VoteEntry,
)
from emcd.proto.bundle_codec import decode_bundle
from emcd.proto.eip712 import Domain, TypedStruct
from emcd.proto.hashing import keccak
from emcd.proto.messages import NodeStatus, PlanCommitment, Reveal, Verdict, Vote
from emcd.proto.params import ModelStanding, NetworkParams, PriceTable, devnet_params
from emcd.proto.records import (
    CallStatus,
    Delivery,
    Forward,
    Receipt,
    RecordBatch,
    RecordKind,
    batch_root,
)
from emcd.proto.signing import sign
from emcd.types import ZERO_ADDRESS, ZERO_HASH, Address, ParticipantRole

GENESIS_S = 1_800_000_000
CHAIN_ID = 31337
STAKE_WEI = 5_000 * WEI_PER_TOKEN
VALIDATOR_STAKE_WEI = 1_000_000 * WEI_PER_TOKEN
MODEL_HASH = keccak(b"model")


def secret_of(name: str) -> bytes:
    return keccak(b"secret of " + name.encode())


@cache
def address_of(name: str) -> Address:
    return address_of_key(secret_of(name))


STAKING = address_of("staking contract")
DISTRIBUTOR = address_of("distributor contract")


@dataclass(frozen=True)
class SealedBundle:
    """A closed round with its bytes; what `ClosedRound` has, this has too."""

    closed: ClosedRound
    data: bytes

    @cached_property
    def bundle(self) -> Bundle:
        return decode_bundle(self.data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.closed, name)


def close_to_bytes(facts: RoundFacts, evidence: Evidence, **options: Any) -> SealedBundle:
    """Close a round in memory; the calls may come in any order."""
    out = BytesIO()
    calls = sorted(evidence.calls, key=lambda call: call.forward.call_id)
    closed = close_round(facts, replace(evidence, calls=calls), out, **options)
    return SealedBundle(closed, out.getvalue())


def enforcing_params(standing: ModelStanding = ModelStanding.ENFORCED) -> NetworkParams:
    """The devnet's numbers, with the world's one model in the catalogue."""
    models = ((hex_hash(MODEL_HASH), int(standing)),) if standing else ()
    return msgspec.structs.replace(devnet_params(GENESIS_S), models=models)


@dataclass
class World:
    """Hub, nodes and validators; `evidence()` is what the hub has when it closes the round."""

    round: int = 7
    node_names: Sequence[str] = ("node-1", "node-2", "node-3")
    validator_names: Sequence[str] = ("validator-1", "validator-2", "validator-3", "validator-4")
    calls_per_node: int = 4
    batch_records: int = 5
    params: NetworkParams = field(default_factory=enforcing_params)
    prices: PriceTable = field(default_factory=PriceTable)
    verdicts: dict[str, Verdict] = field(default_factory=dict)
    """By node name: what its probes are found to be; PASS otherwise."""
    routes: dict[tuple[str, int], str] = field(default_factory=dict)
    """By node name and probe slot: the router that the probe's call goes through; none otherwise."""
    calls: list[CallRecords] = field(default_factory=list)
    chain_id: int = CHAIN_ID
    staking: Address = STAKING
    distributor: Address = DISTRIBUTOR

    def __post_init__(self) -> None:
        self.hub = address_of("hub")
        self.domain = Domain(self.chain_id, self.staking)
        self.by_address = {
            address_of(name): name for name in (*self.node_names, *self.validator_names, "hub")
        }
        self.probes: dict[Address, list[ProbeResult]] = {
            address_of(name): [] for name in self.validator_names
        }
        self._call_number = 0
        self._make_calls()

    @property
    def facts(self) -> RoundFacts:
        return RoundFacts(
            round=self.round,
            hub=self.hub,
            chain_id=self.chain_id,
            staking=self.staking,
            distributor=self.distributor,
            params=self.params,
            prices=(self.prices,),
            snapshot_block=1000,
            snapshot_block_hash=keccak(b"snapshot"),
            beacon_block=1002,
            beacon_block_hash=keccak(b"beacon"),
            participants=self.participants(),
            validators=self.validators(),
            totals={address_of("wallet of node-1"): 5, address_of("an old wallet"): 10**18},
            previous_round=self.round - 1,
            previous_bundle_hash=keccak(b"previous bundle"),
        )

    def participants(self) -> list[SnapshotEntry]:
        rows = []
        for number, name in enumerate(self.node_names):
            lock_days = (0, 7, 30, 90, 180)[number % 5]
            rows.append(self._entry(name, ParticipantRole.COMPUTE, STAKE_WEI, lock_days))
        validators = self.validator_names
        return rows + [
            self._entry(v, ParticipantRole.VALIDATOR, VALIDATOR_STAKE_WEI, 360) for v in validators
        ]

    def _entry(self, name: str, role: int, stake_wei: int, lock_days: int) -> SnapshotEntry:
        return SnapshotEntry(
            address_of(name), address_of(f"wallet of {name}"), int(role), encode_wei(stake_wei), lock_days, 0
        )

    def validators(self) -> list[ValidatorPower]:
        return [
            ValidatorPower(address_of(name), encode_wei(VALIDATOR_STAKE_WEI)) for name in self.validator_names
        ]

    def assignments(self) -> tuple[ProbeAssignment, ...]:
        powers = [(address_of(name), VALIDATOR_STAKE_WEI) for name in self.validator_names]
        nodes = probed_nodes(self.participants(), self.params)
        return assign_probes(keccak(b"beacon"), self.round, nodes, powers, self.params)

    def probe_time_ms(self, probe: ProbeAssignment) -> int:
        """When the prober's seed has the probe due."""
        seed, _, _ = self._plan_secrets(self.by_address[probe.validator])
        return draw_time_ms(seed, keccak(b"beacon"), probe.node, probe.slot, self.params, self.round)

    def sign(self, name: str, struct: TypedStruct) -> bytes:
        return sign(self.domain, struct, secret_of(name))

    def make_call(
        self,
        node: str,
        started_at_ms: int,
        *,
        tokens: tuple[int, int] = (100, 50),
        status: CallStatus = CallStatus.OK,
        from_vault: bool = True,
        router: Address = ZERO_ADDRESS,
        edit: Callable[[str, Any], Any] = lambda kind, record: record,
    ) -> CallRecords:
        """One call; `edit(kind, record)` may change a record before the next one refers to it."""
        self._call_number += 1
        number = self._call_number.to_bytes(4, "big")
        forward = edit(
            "forward",
            Forward(
                keccak(b"call" + number)[:16],
                self.hub,
                router,
                address_of(node),
                keccak(b"request" + number),
                MODEL_HASH,
                self.prices.version,
                started_at_ms,
            ),
        )
        receipt = edit(
            "receipt",
            Receipt(
                forward.struct_hash(),
                keccak(b"response" + number),
                200 if status.is_success else 500,
                *tokens,
                started_at_ms + 1,
                started_at_ms + 40,
            ),
        )
        finished = started_at_ms + 50
        is_streamed = self._call_number % 2 or receipt is None
        charge = (
            charge_call_ceil(price_of(self.prices, forward.model_hash), *tokens) if status.is_success else 0
        )
        delivery = edit(
            "delivery",
            Delivery(
                forward.struct_hash(),
                ZERO_HASH if receipt is None else receipt.struct_hash(),
                keccak(b"body" + number) if is_streamed else receipt.response_hash,
                status,
                charge,
                charge if from_vault else 0,
                self.params.round_at(finished),
                finished,
            ),
        )
        return CallRecords(forward, receipt, delivery)

    def _make_calls(self) -> None:
        start = self.params.round_start_ms(self.round)
        for node in self.node_names:
            for number in range(self.calls_per_node):
                self.calls.append(self.make_call(node, start + 100 * number))
        for probe in self.assignments():
            node = self.by_address[probe.node]
            through = self.routes.get((node, probe.slot))
            router = ZERO_ADDRESS if through is None else address_of(through)
            at_ms = self.probe_time_ms(probe)
            call = self.make_call(node, at_ms, tokens=(30, 0), from_vault=False, router=router)
            self.calls.append(call)
            verdict = self.verdicts.get(node, Verdict.PASS)
            assert call.receipt is not None
            self.probes[probe.validator].append(
                ProbeResult(
                    probe.node,
                    probe.slot,
                    self._call_number,
                    call.forward.call_id,
                    call.forward.request_hash,
                    call.receipt.response_hash,
                    int(verdict),
                    1234,
                )
            )

    def batches(self, calls: Iterable[CallRecords] | None = None) -> list[SignedBatch]:
        """Signed batches over all records, one strange record in each hub batch."""
        calls = list(self.calls if calls is None else calls)
        rows = self._sign_batches("hub", RecordKind.FORWARD, [c.forward.struct_hash() for c in calls])
        rows += self._sign_batches("hub", RecordKind.DELIVERY, [c.delivery.struct_hash() for c in calls])
        for node in sorted({c.forward.node for c in calls}):
            hashes = [
                c.receipt.struct_hash() for c in calls if c.forward.node == node and c.receipt is not None
            ]
            if hashes:
                rows += self._sign_batches(self.by_address[node], RecordKind.RECEIPT, hashes)
        return rows

    def _sign_batches(self, name: str, kind: RecordKind, hashes: Sequence[bytes]) -> list[SignedBatch]:
        rows = []
        for start in range(0, len(hashes), self.batch_records):
            part = tuple(hashes[start : start + self.batch_records])
            if name == "hub":
                part = (*part, keccak(b"another round's record" + part[0]))
            rows.append(self.sign_batch(name, kind, part))
        return rows

    def sign_batch(self, name: str, kind: RecordKind, hashes: Sequence[bytes]) -> SignedBatch:
        at_ms = self.params.round_start_ms(self.round)
        batch = RecordBatch(address_of(name), int(kind), batch_root(hashes), len(hashes), at_ms)
        return SignedBatch(batch, self.sign(name, batch), tuple(hashes))

    def statuses(self) -> list[StatusEntry]:
        rows = []
        for name in self.node_names:
            at_ms = self.params.round_start_ms(self.round) + 5
            status = NodeStatus(
                address_of(name), self.hub, 9, at_ms, (MODEL_HASH,), 8, 0, "emcd/0.1.0", "none"
            )
            rows.append(StatusEntry(status, self.sign(name, status)))
        return rows

    def commitments(self) -> list[CommitmentEntry]:
        rows = []
        for name in self.validator_names:
            plan = PlanCommitment(
                address_of(name),
                self.round,
                compute_commitment(*self._plan_secrets(name)),
                self.params.round_start_ms(self.round) - 1000,
            )
            rows.append(CommitmentEntry(plan, self.sign(name, plan)))
        return rows

    def reveals(self) -> list[RevealEntry]:
        return [self.make_reveal(name, self.probes[address_of(name)]) for name in self.validator_names]

    def make_reveal(self, name: str, probes: Sequence[ProbeResult]) -> RevealEntry:
        ordered = tuple(sorted(probes, key=lambda probe: (address_bytes(probe.node), probe.slot)))
        reveal = Reveal(address_of(name), self.round, *self._plan_secrets(name), compute_probes_hash(ordered))
        return RevealEntry(reveal, self.sign(name, reveal), ordered)

    def _plan_secrets(self, name: str) -> tuple[bytes, bytes, bytes]:
        return (
            keccak(b"seed " + name.encode()),
            keccak(b"corpus " + name.encode()),
            keccak(b"salt " + name.encode()),
        )

    def make_vote(self, name: str, call: CallRecords, verdict: Verdict) -> VoteEntry:
        assert call.receipt is not None
        vote = Vote(
            address_of(name), self.round, call.forward.call_id, call.receipt.struct_hash(), int(verdict), 99
        )
        return VoteEntry(vote, self.sign(name, vote))

    def votes(self) -> list[VoteEntry]:
        """Everybody confirms every FAIL and GROSS."""
        calls = {call.forward.call_id: call for call in self.calls}
        return [
            self.make_vote(name, calls[probe.call_id], Verdict(probe.verdict))
            for probes in self.probes.values()
            for probe in probes
            if Verdict(probe.verdict).is_strike and probe.call_id in calls
            for name in self.validator_names
        ]

    def deposits(self) -> list[DepositEntry]:
        return [DepositEntry(3, keccak(b"account"), encode_wei(10**18), 1_000_000, 998, keccak(b"purchase"))]

    def evidence(self) -> Evidence:
        return Evidence(
            calls=self.calls,
            batches=self.batches(),
            statuses=self.statuses(),
            commitments=self.commitments(),
            reveals=self.reveals(),
            votes=self.votes(),
            deposits=self.deposits(),
        )

    def close(self, facts: dict[str, Any] | None = None, **evidence: Any) -> SealedBundle:
        """Close the round; `facts` and the keywords replace parts of what would go in."""
        progress = evidence.pop("progress", None)
        return close_to_bytes(
            replace(self.facts, **(facts or {})), replace(self.evidence(), **evidence), progress=progress
        )


def edited(struct: Any, **changes: Any) -> Any:
    return msgspec.structs.replace(struct, **changes)
