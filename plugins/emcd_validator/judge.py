"""What a validator says of an answer, and who is to blame where hub and node disagree. Pure.

The order of judging is VERIFICATION 5.3: records and hashes (here), then what the answer says of
itself, then the statistic (`judge_embedding`, `judge_text`), then own runs again for what would not
pass. The same functions judge a probe of one's own, one that a peer calls a strike, and a transcript
that comes without records.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from emcd.accounting.receipt import CallReceipt, check_receipt
from emcd.accounting.token_check import ProbeKind
from emcd.proto.eip712 import Domain
from emcd.proto.messages import Verdict
from emcd.proto.openai import ENDPOINTS, RequestError, UpstreamRequest, read_request
from emcd.proto.records import request_hash
from emcd.types import Address, Hash

HTTP_OK = 200
EMBEDDINGS = "/v1/embeddings"
MAX_ANSWER_BYTES = 16 << 20
"""Of an answer that is judged: a hundred times what the longest probe makes."""
_MAX_REASON_CHARS = 300


class Blame(StrEnum):
    """Who made the records disagree; it follows from them alone. Source: VERIFICATION 5.5."""

    NOBODY = ""
    NODE = "node"
    HUB = "hub"
    VOID = "void"
    NO_CREDIT = "no credit"

    @property
    def sentence(self) -> str:
        return _SENTENCES[self]


_SENTENCES = {
    Blame.NOBODY: "nobody is to blame: the records agree, or nothing was signed that could tell",
    Blame.NODE: "the node is to blame: it signed this answer to exactly this request",
    Blame.HUB: "the hub is to blame: what it signed is not what was sent, or not what the node signed",
    Blame.VOID: "the call is void: the records do not belong together, so that they prove nothing",
    Blame.NO_CREDIT: "nobody is to blame, and nothing is credited: the node signed no receipt",
}


@dataclass(frozen=True)
class Numbers:
    """What a verdict rests on; every statistic and threshold times 10**12.

    Args:
        kind: the challenge kind.
        values, taus, spreads: by the statistic's name; a spread is how far own runs lie apart.
        facts: counts and settings for people: tokens, engine, threads, class.
    """

    kind: ProbeKind
    values: Mapping[str, int] = field(default_factory=dict)
    taus: Mapping[str, int] = field(default_factory=dict)
    spreads: Mapping[str, int] = field(default_factory=dict)
    z_sum: float = 0.0
    z_variance: float = 0.0
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Judgement:
    """A verdict with its statistic; `reason` says what a person would ask next."""

    verdict: Verdict
    statistic_e12: int = 0
    reason: str = ""
    blame: Blame = Blame.NOBODY
    numbers: Numbers | None = None


def unusable(reason: str, blame: Blame = Blame.NOBODY) -> Judgement:
    """An answer that can't be judged: never a strike."""
    return Judgement(Verdict.ERROR, reason=reason[:_MAX_REASON_CHARS], blame=blame)


def mismatch(reason: str, numbers: Numbers | None = None) -> Judgement:
    """Another template, tokenizer or way of counting than the manifest's: never a strike."""
    return Judgement(Verdict.TEMPLATE, reason=reason[:_MAX_REASON_CHARS], numbers=numbers)


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """A call as its caller saw it."""

    node: Address
    call_id: bytes
    model_hash: Hash
    request_body: bytes
    status: int
    response_body: bytes
    receipt: CallReceipt
    request_path: str = EMBEDDINGS


@dataclass(frozen=True)
class RecordFault:
    """Why hub and node did not both sign exactly this exchange.

    Args: `is_proven`: whether a stranger sees it too; else it stands and falls with the caller's word on
    what it sent and got.
    """

    reason: str
    blame: Blame
    is_proven: bool = True


def read_upstream(path: str, body: bytes) -> UpstreamRequest | None:
    """What the node must have been asked for this body; None when it is no request that can be judged."""
    endpoint = ENDPOINTS.get(path)
    if endpoint is None or endpoint.is_form:
        return None
    try:
        return read_request(endpoint, body, evidence=True)
    except RequestError:
        return None


def find_record_fault(domain: Domain, hub: Address, exchange: Exchange) -> RecordFault | None:
    """The first thing in which hub, node and caller disagree.

    A fault here is never the node's strike: whoever altered something between caller and node
    did not sign what the other side saw.
    """
    call, upstream = exchange.receipt, read_upstream(exchange.request_path, exchange.request_body)
    if call.forward.call_id != exchange.call_id:
        return RecordFault("the receipt is of another call", Blame.VOID)
    outcome = check_receipt(domain, hub, call)
    if outcome.fault is not None:
        return RecordFault(f"{outcome.fault.code}: {outcome.fault.detail}", Blame.VOID)
    if upstream is None or call.forward.request_hash != request_hash(exchange.request_path, upstream.body):
        return RecordFault("the hub forwarded another request than was sent", Blame.HUB, is_proven=False)
    if call.forward.node != exchange.node:
        return RecordFault(f"the hub forwarded to {call.forward.node}", Blame.HUB, is_proven=False)
    if call.forward.model_hash != exchange.model_hash:
        return RecordFault("the hub forwarded for another model", Blame.HUB, is_proven=False)
    outcome = check_receipt(domain, hub, call, body=exchange.response_body)
    if outcome.fault is not None:
        return RecordFault(f"{outcome.fault.code}: {outcome.fault.detail}", Blame.HUB, is_proven=False)
    if call.receipt is None:
        return RecordFault("the node signed no receipt", Blame.NO_CREDIT)
    if upstream.hidden is not None or (upstream.stream and not upstream.wants_usage):
        return RecordFault(
            "the request does not ask for all of the evidence, so the hub cut it", Blame.NOBODY
        )
    if call.receipt.response_hash != call.delivery.body_hash:
        return RecordFault("the hub delivered another answer than the node signed", Blame.HUB)
    if call.receipt.http_status != exchange.status:
        signed = call.receipt.http_status
        return RecordFault(
            f"the node signed status {signed}, {exchange.status} came", Blame.HUB, is_proven=False
        )
    return None


def find_receipt_fault(domain: Domain, hub: Address, exchange: Exchange) -> str:
    """Why hub and node did not both sign exactly this exchange, or an empty text."""
    fault = find_record_fault(domain, hub, exchange)
    return fault.reason if fault is not None else ""
