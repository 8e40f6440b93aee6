"""Challenged receipts: who has a receipt and knows its request may see the answer that the node signed for.

The request is read, hashed and forgotten: the node gets what only somebody who knows it can make, the
`knowledge` of the challenge, and shows the answer. Invariants: a challenge is of a call that hub and node
signed, of the last rounds, and shows the very request that was forwarded; an opening is taken when its
bytes have the hash that the node signed; nobody who does not show the request is told the answer; the
store is bounded.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import trio

from emcd.accounting.receipt import CallReceipt, check_receipt
from emcd.errors import RemoteProtocolError
from emcd.proto.hashing import keccak
from emcd.proto.messages import Challenge
from emcd.proto.records import format_call_id, request_hash
from emcd.proto.watch import knowledge_hash
from emcd.types import Address
from emcd_validator.metrics import CHALLENGES
from emcd_validator.queries.challenges import (
    ChallengeRow,
    Filed,
    file_challenge,
    find_challenge,
    list_expired,
    list_waiting,
    set_opening,
)
from emcd_validator.validator import Validator

KEPT_ROUNDS = 12
"""As long as nodes keep transcripts."""
_SHARE_OF_ROUND = 12
"""Ten minutes of a round of two hours."""
_LEAST_S = 5


@dataclass(frozen=True)
class Shown:
    """A call that somebody challenges: its receipt, and the request as it was forwarded to the node."""

    receipt: CallReceipt
    path: str
    request: bytes


class ChallengeDesk:
    """The challenges of one validator."""

    def __init__(self, validator: Validator) -> None:
        self._validator = validator
        self._told_ms = validator.now_ms()

    async def challenge(self, shown: Shown) -> ChallengeRow | Filed:
        """File a challenge. Returns: it, as it stands now; FULL where there is no room.

        Raises: RemoteProtocolError EMC-1870 (not a call that can be challenged), EMC-196x (the receipt).
        """
        validator = self._validator
        call = await trio.to_thread.run_sync(self._check, shown)
        known = await validator.read(lambda con: find_challenge(con, validator.address, call.forward.call_id))
        if known is not None:
            return known
        row = await self._make(shown)
        outcome = await validator.write(
            partial(file_challenge, instance=validator.address, row=row, now_ms=validator.now_ms())
        )
        if outcome is Filed.FULL:
            return Filed.FULL
        CHALLENGES.labels("filed").inc()
        validator.log.info("receipt challenged", call_id=format_call_id(row.call_id), node=row.node)
        return row

    async def list_for(self, node: Address) -> list[tuple[Challenge, bytes]]:
        """What a node is to open, with this validator's signature."""
        validator = self._validator
        rows = await validator.read(
            lambda con: list_waiting(con, validator.address, node, validator.now_ms())
        )
        return [
            (Challenge(row.validator, row.node, row.call_id, row.knowledge, row.expires_at_ms), row.signature)
            for row in rows
        ]

    async def find(self, call_id: bytes) -> ChallengeRow | None:
        validator = self._validator
        return await validator.read(lambda con: find_challenge(con, validator.address, call_id))

    async def open(self, row: ChallengeRow, response: bytes) -> None:
        """Take what the node shows. Raises: RemoteProtocolError EMC-1873 (not what it signed)."""
        validator = self._validator
        hashed = await trio.to_thread.run_sync(keccak, response)
        if hashed != row.response_hash:
            CHALLENGES.labels("another answer").inc()
            raise RemoteProtocolError("EMC-1873", format_call_id(row.call_id))
        await validator.write(
            lambda con: set_opening(con, validator.address, row.call_id, response, validator.now_ms())
        )
        CHALLENGES.labels("opened").inc()

    async def tell_expired(self) -> None:
        """Write down what was not opened in time since the last look."""
        validator, now_ms = self._validator, self._validator.now_ms()
        since_ms, self._told_ms = self._told_ms, now_ms
        rows = await validator.read(lambda con: list_expired(con, validator.address, since_ms, now_ms))
        for row in rows:
            CHALLENGES.labels("unanswered").inc()
            validator.log.warning(
                "receipt not opened", code="EMC-1874", call_id=format_call_id(row.call_id), node=row.node
            )

    def describe(self, row: ChallengeRow) -> str:
        """open, opened, or unanswered."""
        if row.opened_at_ms is not None:
            return "opened"
        return "open" if self._validator.now_ms() < row.expires_at_ms else "unanswered"

    def _check(self, shown: Shown) -> CallReceipt:
        validator, call = self._validator, shown.receipt
        outcome = check_receipt(validator.domain, validator.hub, call)
        if outcome.fault is not None:
            raise RemoteProtocolError(outcome.fault.code, outcome.fault.detail)
        if call.receipt is None:
            raise RemoteProtocolError("EMC-1870", "the node signed no receipt")
        if request_hash(shown.path, shown.request) != call.forward.request_hash:
            raise RemoteProtocolError("EMC-1870", "another request was forwarded to the node")
        age = validator.current_round() - validator.params.round_at(call.receipt.finished_at_ms)
        if not 0 <= age <= KEPT_ROUNDS:
            raise RemoteProtocolError("EMC-1870", f"the call is {age} rounds old")
        return call

    async def _make(self, shown: Shown) -> ChallengeRow:
        validator, forward, receipt = self._validator, shown.receipt.forward, shown.receipt.receipt
        assert receipt is not None
        me = await validator.find_speaker(max(0, validator.current_round()))
        knowledge = knowledge_hash(me, forward.node, forward.call_id, shown.path, shown.request)
        limit_ms = max(_LEAST_S * 1000, validator.params.round_s * 1000 // _SHARE_OF_ROUND)
        challenge = Challenge(me, forward.node, forward.call_id, knowledge, validator.now_ms() + limit_ms)
        return ChallengeRow(
            forward.call_id,
            validator.params.round_at(receipt.finished_at_ms),
            forward.node,
            receipt.response_hash,
            knowledge,
            validator.sign(me, validator.domain, challenge),
            me,
            challenge.deadline_ms,
        )
