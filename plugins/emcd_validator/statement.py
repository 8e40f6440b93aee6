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
from emcd.proto.address import hex_hash, parse_address, parse_hash
from emcd.proto.bundle import CommitmentEntry, ProbeResult, RevealEntry, VoteEntry
from emcd.proto.json_form import from_json, to_json
from emcd.proto.messages import BundleSeal, PlanCommitment, Results, Reveal, RoundRoot, TaskResult, Vote
from emcd.proto.records import BATCH_RECORDS, batch_root, format_call_id
from emcd.types import Address
from emcd_validator.entry import ResultsEntry, TaskEntry

MAX_VOTES = 4_096
MAX_PROBES = 65_536
MAX_ROOTS = 128
"""Of a round: one of every member, and a second of those that signed two; of results likewise."""

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


def write_results(entries: Iterable[ResultsEntry]) -> dict[str, Any]:
    return {
        "results": [
            {"results": to_json(entry.results), "signature": write_signature(entry.signature)}
            for entry in entries
        ]
    }


def read_results(page: object) -> tuple[ResultsEntry, ...]:
    """Raises: RemoteProtocolError EMC-1499."""
    items = [_object(item, "results") for item in _list(_object(page, "results"), "results", MAX_ROOTS)]
    return tuple(ResultsEntry(from_json(Results, item.get("results")), _signature(item)) for item in items)


def write_task_result(entry: TaskEntry) -> dict[str, Any]:
    return {"result": to_json(entry.result), "signature": write_signature(entry.signature)}


def read_task_result(page: object) -> TaskEntry:
    """Raises: RemoteProtocolError EMC-1499."""
    table = _object(page, "result")
    return TaskEntry(from_json(TaskResult, table.get("result")), _signature(table))


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


def write_roots(entries: Iterable[tuple[Address, RoundRoot, bytes]]) -> dict[str, Any]:
    return {"roots": [{"validator": who, **write_round_root(root, sig)} for who, root, sig in entries]}


def read_roots(page: object) -> tuple[tuple[Address, RoundRoot, bytes], ...]:
    """(validator, root, signature). Raises: RemoteProtocolError EMC-1499."""
    items = [_object(item, "root") for item in _list(_object(page, "roots"), "roots", MAX_ROOTS)]
    return tuple(
        (
            parse_address(str(item.get("validator"))),
            from_json(RoundRoot, item.get("round_root")),
            _signature(item),
        )
        for item in items
    )


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
    return _read_call(_decode(data))


@dataclass(frozen=True)
class Filing:
    """A call that somebody wants to see in a bundle; `record_hashes`: all of the batch of its receipt."""

    call: CallReceipt
    record_hashes: tuple[bytes, ...]


def read_filing(data: bytes) -> Filing:
    """What is posted as an omission: a receipt, or a receipt and the records of the node's batch.

    The hub may lack that batch, and can prove nothing with a path alone. So the whole batch is
    wanted, which a batch of one is by itself.

    Raises: RemoteProtocolError EMC-1499 (malformed), EMC-1830 (no node's receipt, or not all records
    of its batch).
    """
    filing = _parse_filing(data)
    receipt, proof, hashes = filing.call.receipt, filing.call.receipt_proof, filing.record_hashes
    if receipt is None or proof is None:
        raise RemoteProtocolError("EMC-1830", "the node's receipt is wanted, with its proof")
    if bytes(receipt.struct_hash()) not in hashes or len(hashes) != proof.batch.count:
        raise RemoteProtocolError(
            "EMC-1830", f"all {proof.batch.count} records of the receipt's batch are wanted"
        )
    if batch_root(hashes) != proof.batch.root:
        raise RemoteProtocolError("EMC-1830", "the records are not those of the receipt's batch")
    return filing


def _parse_filing(data: bytes) -> Filing:
    """The same without looking whether it holds together. Raises: RemoteProtocolError EMC-1499."""
    table = _decode(data)
    if "receipt" not in table or "record_hashes" not in table:
        call = _read_call(table)
        return Filing(call, () if call.receipt is None else (bytes(call.receipt.struct_hash()),))
    hashes = _read_hashes(table)
    return Filing(_read_call(table["receipt"]), hashes)


def _read_call(table: object) -> CallReceipt:
    """A receipt without the hub's notes to it, which nobody signed."""
    return from_json(CallReceipt, {k: v for k, v in _object(table, "receipt").items() if k != "notes"})


def write_omissions(filings: Iterable[bytes]) -> list[dict[str, Any]]:
    """Of each filed call, which was checked when it came, the node's batch, whole: the hub may lack it."""
    rows = []
    for data in filings:
        filing = _parse_filing(data)
        proof = filing.call.receipt_proof
        assert proof is not None
        row = {"call_id": format_call_id(filing.call.forward.call_id), "batch": to_json(proof.batch)}
        row["signature"] = write_signature(proof.signature)
        if len(filing.record_hashes) > 1:
            row["record_hashes"] = [hex_hash(item) for item in filing.record_hashes]
        rows.append(row)
    return rows


def _read_hashes(table: dict[str, Any]) -> tuple[bytes, ...]:
    if table.keys() != {"receipt", "record_hashes"}:
        raise RemoteProtocolError("EMC-1499", "receipt and record_hashes are wanted, nothing else")
    return tuple(parse_hash(str(item)) for item in _list(table, "record_hashes", BATCH_RECORDS))


def _base64(data: bytes) -> str:
    return b64encode(data).decode()


def _decode(data: bytes) -> dict[str, Any]:
    try:
        table = msgspec.json.decode(data)
    except (msgspec.DecodeError, ValueError, RecursionError) as exc:
        raise RemoteProtocolError("EMC-1499", f"receipt: {exc}") from exc
    return _object(table, "receipt")


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
