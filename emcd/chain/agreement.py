"""Which answers several endpoints must agree on, and whether they do. Pure.

A question is comparable when its answer is a function of the chain's content at a place it names: a
block by number or hash, logs of a range, a receipt, a state at a block. What depends on where an
endpoint's head is (fees) is not compared; heads and next nonces are taken at the value that the
wanted number of endpoints has reached, of gas estimates the highest. Answers are compared by what they say, not by how:
order of keys, letter case and fields that only some nodes give do not matter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import msgspec

from emcd.chain.endpoint import Endpoint
from emcd.chain.revert import CallReverted
from emcd.chain.wire import RpcRefused
from emcd.errors import RecoverableError

ABSENT = b"absent"
"""What an endpoint says that has not, or no longer, the block in question."""
SHOWN_BEFORE, SHOWN_AFTER = 24, 48
"""Characters of an answer that a message shows around the first difference."""
_HEADS = ("latest", "safe", "finalized", "pending")
_STATE_AT = {"eth_call": 1, "eth_getBalance": 1, "eth_getCode": 1, "eth_getStorageAt": 2}
"""State queries, with the place of the block among their parameters."""


class Comparison(StrEnum):
    """How the answers to a question are believed."""

    NONE = "none"
    """Any endpoint's word is taken."""
    EQUAL = "equal"
    """Several must say the same."""
    HEAD = "head"
    """The newest block that several have."""
    LEAST = "least"
    """A number that several have reached."""
    MOST = "most"
    """The highest of the numbers that several give."""
    STATE_AT_HEAD = "state at head"
    """A state at "latest": asked at the agreed head instead."""


def compare_how(method: str, params: Sequence[Any]) -> Comparison:
    """How the answer to a question must be believed."""
    match method:
        case "eth_getBlockByNumber":
            return Comparison.HEAD if params and params[0] in _HEADS else Comparison.EQUAL
        case "eth_getTransactionCount":
            return Comparison.LEAST if len(params) < 2 or params[1] in _HEADS else Comparison.EQUAL
        case "eth_blockNumber":
            return Comparison.LEAST
        case "eth_estimateGas":
            return Comparison.MOST
        case "eth_getBlockByHash" | "eth_getLogs" | "eth_getTransactionReceipt" | "eth_getBlockReceipts":
            return Comparison.EQUAL
        case _ if method in _STATE_AT:
            place = _STATE_AT[method]
            return (
                Comparison.STATE_AT_HEAD
                if len(params) <= place or params[place] in _HEADS
                else Comparison.EQUAL
            )
        case _:
            return Comparison.NONE


def at_block(method: str, params: Sequence[Any], block_hash: str) -> tuple[Any, ...]:
    """The same state query at a block, by hash (EIP-1898)."""
    place = _STATE_AT[method]
    return (*params[:place], {"blockHash": block_hash, "requireCanonical": True})


@dataclass(frozen=True)
class Answer:
    """What one endpoint said: a result, or one of the refusals that are answers."""

    endpoint: Endpoint
    result: Any = None
    refusal: CallReverted | RpcRefused | None = None

    def give(self) -> Any:
        """The result. Raises: the refusal."""
        if self.refusal is not None:
            raise self.refusal
        return self.result


def count_votes(method: str, answers: Sequence[Answer], wanted: int, *, is_last: bool) -> Answer | None:
    """What `wanted` endpoints say, or None.

    Who has not got the block dissents from nobody; when nobody else is left to be heard (`is_last`) and
    the others do not differ, it is absent for us too: too few have it yet.
    """
    groups: dict[bytes, list[Answer]] = {}
    for answer in answers:
        groups.setdefault(read_vote(method, answer), []).append(answer)
    contents = [key for key in groups if key != ABSENT]
    for group in groups.values():
        if len(group) >= wanted:
            return group[0]
    if is_last and len(contents) <= 1 and ABSENT in groups and len(answers) >= wanted:
        return groups[ABSENT][0]
    return None


def read_vote(method: str, answer: Answer) -> bytes:
    """What an answer says, in one form."""
    if isinstance(answer.refusal, CallReverted):
        return b"revert" + answer.refusal.reason.data
    if answer.refusal is not None or answer.result is None:
        return ABSENT
    try:
        said = _FORMS.get(method, _as_is)(answer.result)
    except (TypeError, KeyError, ValueError, AttributeError):
        said = ["unreadable", answer.result]
    if said is None:
        return ABSENT
    return msgspec.json.encode(said, order="deterministic")


def read_number(method: str, answer: Answer) -> int:
    """The number that an answer gives: a quantity, or a block's. Raises: the refusal, or
    RecoverableError EMC-1507.
    """
    raw = answer.give()
    try:
        return int(raw["number"] if method == "eth_getBlockByNumber" else raw, 16)
    except (TypeError, KeyError, ValueError):
        raise RecoverableError("EMC-1507", f"{answer.endpoint.shown}: {method} gave {raw!r:.60}") from None


def describe_dissent(method: str, answers: Sequence[Answer]) -> str:
    """Who said what, from where they differ on, for people."""
    votes = [read_vote(method, answer) for answer in answers]
    shortest = min(len(vote) for vote in votes)
    same = next((i for i in range(shortest) if len({vote[i] for vote in votes}) > 1), shortest)
    start = max(0, same - SHOWN_BEFORE)
    said = []
    for answer, vote in zip(answers, votes, strict=True):
        text = vote[start : same + SHOWN_AFTER].decode(errors="replace")
        said.append(f"{answer.endpoint.shown} says {'...' if start else ''}{text}")
    return f"{method}: {', '.join(said)}"


def _block(raw: Any) -> Any:
    return [
        _quantity(raw["number"]),
        raw["hash"].lower(),
        raw["parentHash"].lower(),
        _quantity(raw["timestamp"]),
        _quantity(raw.get("gasLimit") or "0x0"),
        str(raw.get("logsBloom", "")).lower(),
    ]


def _log(raw: Any) -> Any:
    return [
        _quantity(raw["blockNumber"]),
        _quantity(raw["logIndex"]),
        raw["blockHash"].lower(),
        raw["transactionHash"].lower(),
        raw["address"].lower(),
        [topic.lower() for topic in raw["topics"]],
        raw["data"].lower(),
    ]


def _logs(raw: Any) -> Any:
    return sorted(_log(entry) for entry in raw)


def _receipt(raw: Any) -> Any:
    if raw.get("blockHash") is None:
        return None
    return [
        raw["transactionHash"].lower(),
        raw["blockHash"].lower(),
        _quantity(raw["blockNumber"]),
        _quantity(raw["status"]),
        _quantity(raw["gasUsed"]),
        _quantity(raw.get("effectiveGasPrice") or "0x0"),
        _logs(raw["logs"]),
    ]


def _receipts(raw: Any) -> Any:
    return [_receipt(entry) for entry in raw]


def _quantity(raw: Any) -> Any:
    return hex(int(raw, 16))


def _as_is(raw: Any) -> Any:
    return raw.lower() if isinstance(raw, str) else raw


_FORMS: dict[str, Callable[[Any], Any]] = {
    "eth_getBlockByNumber": _block,
    "eth_getBlockByHash": _block,
    "eth_getLogs": _logs,
    "eth_getTransactionReceipt": _receipt,
    "eth_getBlockReceipts": _receipts,
    "eth_getTransactionCount": _quantity,
    "eth_blockNumber": _quantity,
    "eth_getBalance": _quantity,
}
