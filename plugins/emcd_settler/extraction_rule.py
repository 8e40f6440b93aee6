"""What an extraction request must be before the settler acts on it. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from emcd.errors import RemoteProtocolError
from emcd.proto.eip712 import Domain
from emcd.proto.json_form import from_json
from emcd.proto.messages import Extraction
from emcd.proto.signing import require_signer
from emcd.types import ZERO_ADDRESS

CODE = "EMC-1974"
MAX_AHEAD_ROUNDS = 2
"""Beyond the current round: a request for a later one is taken when its time comes."""
MAX_DEADLINE_S = 400 * 86_400


@dataclass(frozen=True)
class SignedExtraction:
    """A request with its wallet's signature, which was checked."""

    extraction: Extraction
    signature: bytes


def read_request(domain: Domain, table: dict[str, Any], now_s: int, current_round: int) -> SignedExtraction:
    """Read one entry of the hub's list.

    Raises: RemoteProtocolError EMC-1974: not signed by its wallet for this contract, expired, for a
    round or until a day that is far away, or nonsense.
    """
    try:
        extraction = from_json(Extraction, table.get("extraction"))
        text = table.get("signature")
        signature = bytes.fromhex(text.removeprefix("0x")) if isinstance(text, str) else b""
        require_signer(domain, extraction, signature, extraction.wallet)
    except RemoteProtocolError as exc:
        raise RemoteProtocolError(CODE, exc.detail) from exc
    except ValueError as exc:
        raise RemoteProtocolError(CODE, "the signature is no hex") from exc
    if is_expired(extraction, now_s):
        raise RemoteProtocolError(CODE, f"{extraction.wallet}: the request expired at {extraction.deadline}")
    if extraction.recipient == ZERO_ADDRESS:
        raise RemoteProtocolError(CODE, f"{extraction.wallet}: nobody to pay")
    if extraction.through_round > current_round + MAX_AHEAD_ROUNDS:
        raise RemoteProtocolError(CODE, f"{extraction.wallet}: round {extraction.through_round} is far away")
    if extraction.deadline > now_s + MAX_DEADLINE_S:
        raise RemoteProtocolError(CODE, f"{extraction.wallet}: the deadline is more than 400 days away")
    return SignedExtraction(extraction, signature)


def is_expired(extraction: Extraction, now_s: int) -> bool:
    """The contract takes the second of the deadline itself."""
    return now_s > extraction.deadline
