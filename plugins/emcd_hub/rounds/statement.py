"""What validators serve, read strictly: commitments, reveals, votes, attestations. Pure.

Invariant: a statement leaves here with its author's signature checked, the author a member of the
round's frozen set, and right as far as it can be told alone: commitments and reveals as a bundle
wants them. Whether a reveal opens a commitment is the store's question, the rest the builder's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec

from emcd.accounting.evidence_rule import require_commitment, require_reveal
from emcd.accounting.plan import compute_commitment
from emcd.accounting.terms import RoundTerms
from emcd.errors import RemoteProtocolError
from emcd.proto.address import parse_hash
from emcd.proto.bundle import CommitmentEntry, ProbeResult, RevealEntry, VoteEntry
from emcd.proto.eip712 import Domain, TypedStruct
from emcd.proto.json_form import from_json
from emcd.proto.messages import PlanCommitment, Reveal, RoundRoot, Verdict, Vote
from emcd.proto.records import BATCH_RECORDS, RecordBatch, parse_call_id
from emcd.proto.signing import require_signer
from emcd.types import Address

MAX_STATEMENTS = 64
MAX_VOTES = 4096
"""Of one author in a round."""
MAX_PROBES = 65_536
MAX_OMISSIONS = 4096
"""What a validator holds of filed calls in all."""
OMISSIONS_PER_PAGE = 128
"""What a validator puts on a page of them."""
OMISSION_PAGE_BYTES = OMISSIONS_PER_PAGE * (BATCH_RECORDS * 72 + 2048)
"""Each with a whole batch: 256 hashes in hexadecimal, the batch, its signature."""

T = TypeVar("T")
_VERDICTS = frozenset(int(verdict) for verdict in Verdict)


@dataclass(frozen=True)
class Statements:
    """What one page held that can be believed; `refused` counts the rest."""

    commitments: tuple[CommitmentEntry, ...] = ()
    reveals: tuple[RevealEntry, ...] = ()
    votes: tuple[VoteEntry, ...] = ()
    refused: int = 0


@dataclass(frozen=True)
class Attestation:
    """A validator's signed root."""

    root: RoundRoot
    signature: bytes


@dataclass
class _Reader:
    terms: RoundTerms
    refused: int = 0
    voted: Counter[Address] = field(default_factory=Counter)

    def signed(self, struct: TypedStruct, author: Address, index: int, signature: bytes) -> None:
        if author not in self.terms.powers or index != self.terms.round:
            raise RemoteProtocolError("EMC-1751", f"a statement of {author} on round {index}")
        require_signer(self.terms.domain, struct, signature, author)

    def commitment(self, table: Mapping[str, Any]) -> CommitmentEntry:
        entry = CommitmentEntry(from_json(PlanCommitment, table.get("commitment")), _signature(table))
        require_commitment(self.terms, entry)
        return entry

    def reveal(self, table: Mapping[str, Any]) -> RevealEntry:
        probes = tuple(from_json(ProbeResult, item) for item in _list(table, "probes", MAX_PROBES))
        entry = RevealEntry(from_json(Reveal, table.get("reveal")), _signature(table), probes)
        author = entry.reveal.validator
        plan = PlanCommitment(author, entry.reveal.round, opened_by(entry.reveal), 0)
        require_reveal(self.terms, entry, {author: plan})
        return entry

    def vote(self, table: Mapping[str, Any]) -> VoteEntry:
        entry = VoteEntry(from_json(Vote, table.get("vote")), _signature(table))
        if entry.vote.verdict not in _VERDICTS:
            raise RemoteProtocolError("EMC-1923", f"{entry.vote.verdict} is no verdict")
        self.voted[entry.vote.validator] += 1
        if self.voted[entry.vote.validator] > MAX_VOTES:
            raise RemoteProtocolError("EMC-1751", f"more than {MAX_VOTES} votes of {entry.vote.validator}")
        self.signed(entry.vote, entry.vote.validator, entry.vote.round, entry.signature)
        return entry

    def all(self, read: Any, items: list[Any]) -> tuple[Any, ...]:
        found = []
        for item in items:
            try:
                found.append(read(_object(item)))
            except RemoteProtocolError:
                self.refused += 1
        return tuple(found)


def opened_by(reveal: Reveal) -> bytes:
    """The commitment that a reveal opens. Raises: RemoteProtocolError EMC-1922."""
    try:
        return compute_commitment(reveal.seed, reveal.corpus_root, reveal.salt)
    except ValueError as exc:
        raise RemoteProtocolError("EMC-1922", str(exc)) from exc


@dataclass(frozen=True)
class FiledReceipt:
    """A node's signed batch with the receipt of a call that was filed with a validator.

    `record_hashes`: all of the batch, empty for a batch of one.
    """

    call_id: bytes
    batch: RecordBatch
    signature: bytes
    record_hashes: tuple[bytes, ...] = ()


def read_next_page(page: object) -> bytes | None:
    """The call id from which the next page of filed calls is; None on the last. Raises: EMC-1499."""
    following = _object(page).get("next")
    return None if following is None else parse_call_id(str(following))


def read_omission_page(page: object) -> tuple[FiledReceipt, ...]:
    """`GET /omissions/{round}`; nothing in it is checked yet. Raises: RemoteProtocolError EMC-1499."""
    found = []
    for item in _list(_object(page), "omissions", MAX_OMISSIONS):
        table = _object(item)
        call_id = parse_call_id(str(table.get("call_id")))
        batch = from_json(RecordBatch, table.get("batch"))
        hashes = tuple(parse_hash(str(one)) for one in _list(table, "record_hashes", BATCH_RECORDS))
        found.append(FiledReceipt(call_id, batch, _signature(table), hashes))
    return tuple(found)


def read_commitment_page(page: object, terms: RoundTerms) -> Statements:
    """`GET /commitments/{round}`."""
    reader = _Reader(terms)
    return Statements(commitments=reader.all(reader.commitment, [page]), refused=reader.refused)


def read_reveal_page(page: object, terms: RoundTerms) -> Statements:
    """`GET /reveals/{round}`."""
    reader = _Reader(terms)
    return Statements(reveals=reader.all(reader.reveal, [page]), refused=reader.refused)


def read_round_page(page: object, terms: RoundTerms) -> Statements:
    """`GET /rounds/{round}`, and `GET /votes/{round}`. Raises: RemoteProtocolError EMC-1499."""
    table = _object(page)
    reader = _Reader(terms)
    return Statements(
        commitments=reader.all(reader.commitment, _list(table, "commitments", MAX_STATEMENTS)),
        reveals=reader.all(reader.reveal, _list(table, "reveals", MAX_STATEMENTS)),
        votes=reader.all(reader.vote, _list(table, "votes", MAX_VOTES * len(terms.powers))),
        refused=reader.refused,
    )


def read_attestation_page(page: object, domain: Domain, validator: Address) -> Attestation:
    """`GET /attestations/{round}`. Raises: RemoteProtocolError EMC-1494, EMC-1495, EMC-1499."""
    table = _object(page)
    root = from_json(RoundRoot, table.get("round_root"))
    signature = _signature(table)
    require_signer(domain, root, signature, validator)
    return Attestation(root, signature)


def read_refusal_page(page: object) -> tuple[str, str]:
    """Code and reason of a 404 answer, cut to sizes that fit a log."""
    table = page if isinstance(page, dict) else {}
    return str(table.get("code", ""))[:8], str(table.get("reason", ""))[:300]


def _object(value: object) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise RemoteProtocolError("EMC-1499", "an object is wanted")
    return value


def _list(table: Mapping[str, Any], name: str, most: int) -> list[Any]:
    """A list, which may be absent."""
    items = table.get(name, [])
    if not isinstance(items, list) or len(items) > most:
        raise RemoteProtocolError("EMC-1499", f"{name}: a list of at most {most} is wanted")
    return items


def _signature(table: Mapping[str, Any]) -> bytes:
    text = table.get("signature")
    try:
        if not isinstance(text, str) or not text.startswith("0x") or len(text) > 132:
            raise ValueError
        return bytes.fromhex(text[2:])
    except ValueError:
        raise RemoteProtocolError("EMC-1499", "signature: 0x and 130 hex digits are wanted") from None


def decode_page(body: bytes) -> object:
    """A page's JSON. Raises: RemoteProtocolError EMC-1499."""
    try:
        return msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise RemoteProtocolError("EMC-1499", f"the page is not JSON: {exc}") from exc
