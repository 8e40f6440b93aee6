"""Opens receipts that validators challenge: shows the answer to whoever knows the request.

Invariants: a challenge counts only under the signature of the validator that serves it, as the chain
names it, about this node; nothing is told unless the challenger knows the request of that very call;
one task, one deadline and one byte limit a validator.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import trio

from emcd.clock import Clock
from emcd.errors import EmcdError, RecoverableError, RemoteProtocolError
from emcd.ledger import Ledger
from emcd.metrics import counter
from emcd.net.http_client import request
from emcd.proto.eip712 import Domain
from emcd.proto.json_form import from_json
from emcd.proto.messages import Challenge
from emcd.proto.params import NetworkParams
from emcd.proto.records import format_call_id
from emcd.proto.signing import require_signer
from emcd.proto.watch import knowledge_hash
from emcd.types import Address
from emcd_node.directory import Directory
from emcd_node.queries import find_receipt
from emcd_node.transcript import Transcript
from emcd_node.transcript_keeper import TranscriptKeeper

MAX_CHALLENGES = 64
"""Of one validator at a time; it serves the others next time."""
MAX_PAGE_BYTES = 1 << 20
_REMEMBERED = 4096
_TAKEN = (200, 202, 404, 410)
_CHALLENGES = counter(
    "emcd_node_challenges_total", "Receipts that were challenged, by what came of it.", ("node", "outcome")
)


class ChallengeWatch:
    """The openings of one node."""

    def __init__(
        self,
        *,
        node: Address,
        domain: Domain,
        params: NetworkParams,
        ledger: Ledger,
        clock: Clock,
        directory: Directory,
        keeper: TranscriptKeeper,
        timeout_s: float,
        log: Any,
    ) -> None:
        self._node = node
        self._domain = domain
        self._params = params
        self._ledger = ledger
        self._clock = clock
        self._directory = directory
        self._keeper = keeper
        self._timeout_s = timeout_s
        self._log = log
        self._done: dict[tuple[Address, bytes], None] = {}
        """What was answered for good, by validator and call."""

    async def run(self) -> None:
        """Look until cancelled: twenty times within the time that an opening may take."""
        pause_s = min(30.0, max(1.0, self._params.round_s / 240))
        while True:
            try:
                await self.step()
            except EmcdError as exc:
                self._log.debug("node.challenges_not_read", code=exc.code, detail=exc.detail)
            await trio.sleep(pause_s)

    async def step(self) -> None:
        """Ask every validator once. Raises: RecoverableError (the chain is away)."""
        current = self._params.round_at(self._clock.now_ms())
        validators = await self._directory.fetch_validators(current)
        async with trio.open_nursery() as nursery:
            for validator, endpoint in validators.items():
                nursery.start_soon(self._ask, validator, endpoint.rstrip("/"))

    async def _ask(self, validator: Address, endpoint: str) -> None:
        try:
            url = f"{endpoint}/challenges/{self._node}"
            answer = await request("GET", url, timeout_s=self._timeout_s, max_bytes=MAX_PAGE_BYTES)
            if answer.status != 200:
                return
            for challenge in self._read(validator, answer.json()):
                await self._open(endpoint, challenge)
        except (RecoverableError, RemoteProtocolError) as exc:
            self._log.debug("node.challenge_failed", validator=validator, code=exc.code, detail=exc.detail)

    def _read(self, validator: Address, page: object) -> Iterator[Challenge]:
        """The challenges that hold. Raises: RemoteProtocolError EMC-2018, EMC-1499."""
        items = page.get("challenges") if isinstance(page, dict) else None
        if not isinstance(items, list):
            raise RemoteProtocolError("EMC-2018", "a list of challenges is wanted")
        for item in items[:MAX_CHALLENGES]:
            challenge = from_json(Challenge, item.get("challenge") if isinstance(item, dict) else None)
            signature = _read_signature(item)
            if (challenge.validator, challenge.node) != (validator, self._node):
                raise RemoteProtocolError("EMC-2018", f"it is of {challenge.validator} for {challenge.node}")
            require_signer(self._domain, challenge, signature, validator)
            is_due = challenge.deadline_ms > self._clock.now_ms()
            if is_due and (validator, challenge.call_id) not in self._done:
                yield challenge

    async def _open(self, endpoint: str, challenge: Challenge) -> None:
        transcript = await self._find(challenge.call_id)
        if transcript is None:
            self._finish(challenge, "not kept")
            return
        shown = knowledge_hash(
            challenge.validator, self._node, challenge.call_id, transcript.path, transcript.request
        )
        if shown != challenge.knowledge:
            self._finish(challenge, "another request")
            return
        body = await trio.to_thread.run_sync(_write_opening, transcript)
        url = f"{endpoint}/openings/{format_call_id(challenge.call_id)}"
        headers = {"content-type": "application/json"}
        answer = await request(
            "POST", url, body=body, headers=headers, timeout_s=self._timeout_s, max_bytes=MAX_PAGE_BYTES
        )
        if answer.status in _TAKEN:
            self._finish(challenge, "opened" if answer.status < 300 else "late")

    async def _find(self, call_id: bytes) -> Transcript | None:
        row = await self._ledger.read(lambda con: find_receipt(con, self._node, call_id))
        return None if row is None else await self._keeper.find(row.round, call_id)

    def _finish(self, challenge: Challenge, outcome: str) -> None:
        self._done[challenge.validator, challenge.call_id] = None
        while len(self._done) > _REMEMBERED:
            del self._done[next(iter(self._done))]
        _CHALLENGES.labels(self._node, outcome).inc()
        log: Callable[..., None] = self._log.info if outcome == "opened" else self._log.warning
        call_id = format_call_id(challenge.call_id)
        log("node.challenged", validator=challenge.validator, call_id=call_id, outcome=outcome)


def _read_signature(item: dict[str, Any]) -> bytes:
    try:
        return bytes.fromhex(str(item.get("signature", ""))[2:132])
    except ValueError as exc:
        raise RemoteProtocolError("EMC-2018", f"signature: {exc}") from exc


def _write_opening(transcript: Transcript) -> bytes:
    return msgspec.json.encode(
        {
            "status": transcript.status,
            "content_type": transcript.response_type,
            "response": b64encode(transcript.response).decode(),
        }
    )
