"""The JSON pages on which validators serve what they signed. Pure.

Reading is strict and bounded by the caller's byte limit; whose signature it is and whether the
statement is right is judged in `peer_check`.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from emcd.accounting.receipt import CallReceipt
from emcd.errors import RemoteProtocolError
from emcd.proto.bundle import CommitmentEntry, ProbeResult, RevealEntry, VoteEntry
from emcd.proto.json_form import from_json, to_json
from emcd.proto.messages import BundleSeal, PlanCommitment, Reveal, RoundRoot, Vote
from emcd.proto.records import format_call_id

MAX_VOTES = 4_096
MAX_PROBES = 65_536

S = TypeVar("S", bound=msgspec.Struct)


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Everything from which anybody can judge one probe anew."""

    request_path: str
    request_body: bytes
    response_status: int
    response_content_type: str
    response_body: bytes
    receipt: CallReceipt
    model: str
    leaf_index: int
    leaf_count: int
    leaf: bytes
    leaf_path: tuple[bytes, ...]


class _LeafPage(msgspec.Struct, frozen=True):
    index: int
    count: int
    data: bytes
    path: list[str]


class _EvidencePage(msgspec.Struct, frozen=True):
    request_path: str
    request_body: bytes
    response_status: int
    response_content_type: str
    response_body: bytes
    receipt: dict[str, Any]
    model: str
    leaf: _LeafPage


def write_signature(signature: bytes) -> str:
    return "0x" + signature.hex()


def write_commitment(entry: CommitmentEntry) -> dict[str, Any]:
    return {"commitment": to_json(entry.commitment), "signature": write_signature(entry.signature)}


def read_commitment(page: object) -> CommitmentEntry:
    """Raises: RemoteProtocolError EMC-1499."""
    table = _object(page, "commitment")
    return CommitmentEntry(from_json(PlanCommitment, table.get("commitment")), _signature(table))


def write_reveal(entry: RevealEntry) -> dict[str, Any]:
    return {
        "reveal": to_json(entry.reveal),
        "signature": write_signature(entry.signature),
        "probes": [to_json(probe) for probe in entry.probes],
    }


def read_reveal(page: object) -> RevealEntry:
    """Raises: RemoteProtocolError EMC-1499."""
    table = _object(page, "reveal")
    probes = tuple(from_json(ProbeResult, item) for item in _list(table, "probes", MAX_PROBES))
    return RevealEntry(from_json(Reveal, table.get("reveal")), _signature(table), probes)


def write_votes(entries: Iterable[VoteEntry]) -> dict[str, Any]:
    return {"votes": [write_vote(entry) for entry in entries]}


def write_vote(entry: VoteEntry) -> dict[str, Any]:
    return {"vote": to_json(entry.vote), "signature": write_signature(entry.signature)}


def read_votes(page: object) -> tuple[VoteEntry, ...]:
    """Raises: RemoteProtocolError EMC-1499."""
    return tuple(_read_vote(item) for item in _list(_object(page, "votes"), "votes", MAX_VOTES))


def _read_vote(item: object) -> VoteEntry:
    table = _object(item, "vote")
    return VoteEntry(from_json(Vote, table.get("vote")), _signature(table))


def write_round_root(root: RoundRoot, signature: bytes) -> dict[str, Any]:
    return {"round_root": to_json(root), "signature": write_signature(signature)}


def write_seal(seal: BundleSeal, signature: bytes) -> dict[str, Any]:
    return {"seal": to_json(seal), "signature": write_signature(signature)}


def read_seals(page: object) -> tuple[tuple[BundleSeal, bytes], ...]:
    """Raises: RemoteProtocolError EMC-1499."""
    items = [_object(item, "seal") for item in _list(_object(page, "seals"), "seals", 16)]
    return tuple((from_json(BundleSeal, item.get("seal")), _signature(item)) for item in items)


def write_evidence(evidence: Evidence) -> dict[str, Any]:
    return {
        "request_path": evidence.request_path,
        "request_body": _base64(evidence.request_body),
        "response_status": evidence.response_status,
        "response_content_type": evidence.response_content_type,
        "response_body": _base64(evidence.response_body),
        "receipt": to_json(evidence.receipt),
        "model": evidence.model,
        "leaf": {
            "index": evidence.leaf_index,
            "count": evidence.leaf_count,
            "data": _base64(evidence.leaf),
            "path": ["0x" + item.hex() for item in evidence.leaf_path],
        },
    }


def read_evidence(page: object) -> Evidence:
    """Raises: RemoteProtocolError EMC-1499."""
    try:
        parsed = msgspec.convert(page, _EvidencePage)
        path = tuple(bytes.fromhex(item.removeprefix("0x")) for item in parsed.leaf.path)
    except (msgspec.ValidationError, ValueError) as exc:
        raise RemoteProtocolError("EMC-1499", f"evidence: {exc}") from exc
    return Evidence(
        request_path=parsed.request_path,
        request_body=parsed.request_body,
        response_status=parsed.response_status,
        response_content_type=parsed.response_content_type,
        response_body=parsed.response_body,
        receipt=from_json(CallReceipt, parsed.receipt),
        model=parsed.model,
        leaf_index=parsed.leaf.index,
        leaf_count=parsed.leaf.count,
        leaf=parsed.leaf.data,
        leaf_path=path,
    )


def read_receipt(data: bytes) -> CallReceipt:
    """A receipt as the hub serves it. Raises: RemoteProtocolError EMC-1499."""
    try:
        table = msgspec.json.decode(data)
    except (msgspec.DecodeError, ValueError, RecursionError) as exc:
        raise RemoteProtocolError("EMC-1499", f"receipt: {exc}") from exc
    return from_json(CallReceipt, table)


def write_omissions(receipts: Iterable[bytes]) -> list[dict[str, Any]]:
    """Of each filed receipt the node's batch, which holds it alone: what the hub lacks."""
    rows = []
    for data in receipts:
        call = read_receipt(data)
        proof = call.receipt_proof
        if proof is not None and proof.batch.count == 1:
            row = {"call_id": format_call_id(call.forward.call_id), "batch": to_json(proof.batch)}
            rows.append({**row, "signature": write_signature(proof.signature)})
    return rows


def _base64(data: bytes) -> str:
    return b64encode(data).decode()


def _object(page: object, what: str) -> dict[str, Any]:
    if not isinstance(page, dict):
        raise RemoteProtocolError("EMC-1499", f"{what}: an object is wanted")
    return page


def _list(table: dict[str, Any], name: str, most: int) -> list[Any]:
    items = table.get(name)
    if not isinstance(items, list) or len(items) > most:
        raise RemoteProtocolError("EMC-1499", f"{name}: a list of at most {most} is wanted")
    return items


def _signature(table: dict[str, Any]) -> bytes:
    text = table.get("signature")
    try:
        if not isinstance(text, str) or not text.startswith("0x") or len(text) > 132:
            raise ValueError
        return bytes.fromhex(text[2:])
    except ValueError:
        raise RemoteProtocolError("EMC-1499", "signature: 0x and 130 hex digits are wanted") from None
