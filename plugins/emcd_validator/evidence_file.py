"""Evidence as a third party gets it: read strictly from a page, and followed link by link. Pure.

Each link says whether it holds and what was compared with what. Nothing is believed but the chain's
names: whose keys they are, and which network it is, is for the reader to compare.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec

from emcd.accounting.plan import compute_commitment
from emcd.errors import RemoteProtocolError
from emcd.inference.manifest import CheckedManifest, EngineManifest, decode_manifest
from emcd.proto.address import address_bytes, parse_address, parse_hash
from emcd.proto.bundle import CommitmentEntry
from emcd.proto.eip712 import Domain, TypedStruct
from emcd.proto.hashing import keccak
from emcd.proto.json_form import from_json
from emcd.proto.messages import Reveal, Verdict
from emcd.proto.params import NetworkParams
from emcd.proto.signing import require_signer
from emcd.types import Address, Hash
from emcd_validator.corpus_tree import is_leaf, leaf_hash
from emcd_validator.judge import Exchange, Numbers, RecordFault, find_record_fault
from emcd_validator.plan import Draws, Slot, draw_plan
from emcd_validator.statement import Evidence, read_commitment, read_evidence

MAX_PAGE_BYTES = 32 << 20
MAX_SLOTS = 65_536
_SLOTS_OF_A_NODE = 256


@dataclass(frozen=True)
class Link:
    """One step from the plan to the verdict; `holds` None: it can't be told with what is at hand."""

    name: str
    holds: bool | None
    text: str


@dataclass(frozen=True)
class Stated:
    """What the prober says itself."""

    verdict: Verdict
    statistic_e12: int
    reason: str
    numbers: Numbers | None


@dataclass(frozen=True, kw_only=True)
class WholeEvidence:
    """A page of `GET /evidence/{call_id}`."""

    round: int
    node: Address
    slot: int
    validator: Address
    evidence: Evidence
    domain: Domain
    hub: Address
    commitment: CommitmentEntry | None
    reveal: Reveal | None
    reveal_signature: bytes
    beacon_hash: bytes
    slots: tuple[Slot, ...]
    manifest: CheckedManifest
    model_hash: Hash
    stated: Stated

    @property
    def exchange(self) -> Exchange:
        """The call as the prober saw it."""
        call = self.evidence.receipt
        return Exchange(
            node=self.node,
            call_id=call.forward.call_id,
            model_hash=self.model_hash,
            request_path=self.evidence.request_path,
            request_body=self.evidence.request_body,
            status=self.evidence.response_status,
            response_body=self.evidence.response_body,
            receipt=call,
        )


class _Network(msgspec.Struct, frozen=True):
    chain_id: int
    staking: str
    hub: str


class _Own(msgspec.Struct, frozen=True):
    verdict: str
    statistic_e12: str
    reason: str = ""
    numbers: Numbers | None = None


class _Plan(msgspec.Struct, frozen=True):
    slots: list[tuple[str, int]]
    beacon_hash: str = ""
    commitment: dict[str, Any] | None = None
    signature: str = ""
    reveal: dict[str, Any] | None = None
    reveal_signature: str = ""


class _Page(msgspec.Struct, frozen=True):
    round: int
    node: str
    slot: int
    validator: str
    network: _Network
    plan: _Plan
    manifest: str
    own: _Own


def read_whole(data: bytes) -> WholeEvidence:
    """Read a page. Raises: RemoteProtocolError EMC-1851 when it is none, or lacks something."""
    if len(data) > MAX_PAGE_BYTES:
        raise RemoteProtocolError("EMC-1851", f"{len(data)} bytes")
    try:
        table = msgspec.json.decode(data)
        page = msgspec.convert(table, _Page)
        return _build(page, read_evidence(table))
    except (msgspec.MsgspecError, ValueError, RecursionError, KeyError) as exc:
        raise RemoteProtocolError("EMC-1851", str(exc)) from exc
    except RemoteProtocolError as exc:
        raise RemoteProtocolError("EMC-1851", exc.detail) from exc


def _build(page: _Page, evidence: Evidence) -> WholeEvidence:
    numbers = [page.slot, *(slot for _, slot in page.plan.slots)]
    if len(numbers) > MAX_SLOTS or not all(0 <= number < _SLOTS_OF_A_NODE for number in numbers):
        raise ValueError("too many slots, or numbers that no slot has")
    manifest = decode_manifest(page.manifest.encode())
    if isinstance(manifest, EngineManifest):
        raise ValueError("an engine's model can't be judged")
    plan = page.plan
    commitment = None
    if plan.commitment is not None:
        commitment = read_commitment({"commitment": plan.commitment, "signature": plan.signature})
    return WholeEvidence(
        round=page.round,
        node=parse_address(page.node),
        slot=page.slot,
        validator=parse_address(page.validator),
        evidence=evidence,
        domain=Domain(page.network.chain_id, parse_address(page.network.staking)),
        hub=parse_address(page.network.hub),
        commitment=commitment,
        reveal=None if plan.reveal is None else from_json(Reveal, plan.reveal),
        reveal_signature=bytes.fromhex(plan.reveal_signature.removeprefix("0x")),
        beacon_hash=parse_hash(plan.beacon_hash) if plan.beacon_hash else b"",
        slots=tuple(Slot(parse_address(node), slot) for node, slot in plan.slots),
        manifest=manifest,
        model_hash=keccak(page.manifest.encode()),
        stated=Stated(
            Verdict[page.own.verdict], int(page.own.statistic_e12), page.own.reason, page.own.numbers
        ),
    )


ListRequests = Callable[[Draws, Slot, bytes], list[tuple[str, bytes]]]
"""The requests (path, body) that a leaf may make; needs the model's tokenizer for text."""


@dataclass(frozen=True)
class Links:
    """Every link, and what the call's records say of hub and node."""

    items: tuple[Link, ...]
    fault: RecordFault | None = field(default=None)

    @property
    def hold(self) -> bool:
        return self.fault is None and all(item.holds is not False for item in self.items)


def check_links(whole: WholeEvidence, list_requests: ListRequests | None) -> Links:
    """Follow the evidence from the commitment to the signed answer.

    Args: `list_requests` None where the model's files are not at hand.
    """
    items = [_check_commitment(whole), *_check_drawing(whole), _check_request(whole, list_requests)]
    fault = find_record_fault(whole.domain, whole.hub, whole.exchange)
    items.append(
        Link(
            "records",
            fault is None,
            f"hub {whole.hub} and node {whole.node} signed exactly this request and answer"
            if fault is None
            else fault.reason,
        )
    )
    in_round = whole.evidence.receipt.delivery.round == whole.round
    items.append(
        Link("round", in_round, f"the call belongs to round {whole.evidence.receipt.delivery.round}")
    )
    return Links(tuple(items), fault)


def _check_commitment(whole: WholeEvidence) -> Link:
    """The plan was fixed, and opens."""
    name, entry, reveal = "commitment", whole.commitment, whole.reveal
    if entry is None or reveal is None:
        return Link(name, None, "the page shows no plan: it was never revealed, or is too old")
    stated = entry.commitment
    if not stated.round == reveal.round == whole.round or stated.validator != reveal.validator:
        return Link(name, False, "commitment and reveal are of another round or validator")
    try:
        _require(whole, stated, entry.signature)
        _require(whole, reveal, whole.reveal_signature)
        opened = compute_commitment(reveal.seed, reveal.corpus_root, reveal.salt)
    except (RemoteProtocolError, ValueError) as exc:
        return Link(name, False, str(exc))
    if opened != stated.commitment:
        return Link(name, False, "seed, corpus root and salt do not open the commitment")
    return Link(name, True, f"validator {whole.validator} had committed to seed and corpus before the round")


def _require(whole: WholeEvidence, struct: TypedStruct, signature: bytes) -> None:
    require_signer(whole.domain, struct, signature, whole.validator)


def _check_drawing(whole: WholeEvidence) -> Iterator[Link]:
    """Seed and beacon drew this leaf for this node, and the leaf stands in the corpus."""
    reveal, evidence = whole.reveal, whole.evidence
    if reveal is None or not whole.beacon_hash:
        yield Link("beacon", None, "without the reveal and the beacon nobody can say what was drawn")
        return
    draws = Draws(reveal.seed, whole.beacon_hash)
    drawn = _draw_leaf(whole, draws)
    yield Link(
        "beacon",
        drawn == evidence.leaf_index,
        f"beacon 0x{whole.beacon_hash.hex()} and seed draw leaf {drawn} of {evidence.leaf_count};"
        f" {evidence.leaf_index} was used",
    )
    stands = is_leaf(
        reveal.corpus_root,
        evidence.leaf_count,
        evidence.leaf_index,
        leaf_hash(evidence.leaf),
        evidence.leaf_path,
    )
    where = "stands" if stands else "does not stand"
    yield Link("leaf", stands, f"the leaf {where} in the corpus that was committed to")


def _draw_leaf(whole: WholeEvidence, draws: Draws) -> int | None:
    """Which leaf the plan has for the probe; a plan's times need parameters, its leaves do not."""
    slots = sorted(set(whole.slots), key=lambda item: (address_bytes(item.node), item.slot))
    plan = draw_plan(draws, slots, whole.evidence.leaf_count, NetworkParams(0), 0)
    mine = Slot(whole.node, whole.slot)
    return next((item.leaf_index for item in plan if item.slot == mine), None)


def _check_request(whole: WholeEvidence, list_requests: ListRequests | None) -> Link:
    reveal, name = whole.reveal, "request"
    if reveal is None or list_requests is None:
        return Link(name, None, "whether the leaf makes this request needs the reveal and the model's files")
    draws = Draws(reveal.seed, whole.beacon_hash)
    asked = (whole.evidence.request_path, whole.evidence.request_body)
    try:
        made = list_requests(draws, Slot(whole.node, whole.slot), whole.evidence.leaf)
    except RemoteProtocolError as exc:
        return Link(name, False, str(exc))
    if asked in made:
        return Link(name, True, "the leaf makes exactly this request: nobody chose it after the beacon")
    return Link(name, False, "the leaf makes another request: the validator chose this one")
