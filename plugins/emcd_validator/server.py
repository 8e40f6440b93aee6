"""What a validator serves: its signed statements, evidence of its strikes, the state of its audits.

Owns the routes and nothing else: every page is read from the ledger. Invariants: nothing of a
round's plan is served before the round is over; a page is bounded; what is posted here is checked
before it is kept, and its store is bounded.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import aclosing
from functools import partial
from typing import Any

import msgspec
import trio
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from emcd.accounting.receipt import check_receipt
from emcd.errors import EmcdError, RemoteProtocolError
from emcd.proto.messages import BundleSeal
from emcd.proto.records import parse_call_id
from emcd.services import Health
from emcd_validator.attester import Attester
from emcd_validator.base import Waiting
from emcd_validator.bundle_check import Refusal
from emcd_validator.entry import (
    collect,
    read_commitment_item,
    read_reveal_item,
    read_round_root_item,
    read_vote_item,
)
from emcd_validator.evidence_page import make_evidence
from emcd_validator.queries.bundles import list_bundles
from emcd_validator.queries.items import (
    Filed,
    Item,
    Kind,
    file_omission,
    find_item,
    list_filed,
    list_items,
)
from emcd_validator.queries.rounds import find_probe_of_call
from emcd_validator.statement import (
    read_receipt,
    write_commitment,
    write_evidence,
    write_omissions,
    write_reveal,
    write_round_root,
    write_seal,
    write_votes,
)
from emcd_validator.validator import Validator

MAX_OMISSION_BYTES = 64 << 10
_MAX_ROUND = 1 << 40
_encode = msgspec.json.Encoder().encode

_Page = Callable[[int], Awaitable[Any]]


class Pages:
    """The pages of one validator; None is a 404."""

    def __init__(self, validator: Validator, attester: Attester, health: Callable[[], Health]) -> None:
        self._validator = validator
        self._attester = attester
        self._health = health

    def build_app(self) -> Starlette:
        """The ASGI application."""
        pages: dict[str, _Page] = {
            "commitments": self._commitment,
            "reveals": self._reveal,
            "votes": self._votes,
            "rounds": self._round,
            "seals": self._seals,
            "omissions": self._omissions,
        }
        routes = [Route(f"/{name}/{{round}}", partial(self._serve, page)) for name, page in pages.items()]
        routes += [
            Route("/attestations/{round}", self._attestation),
            Route("/evidence/{call_id}", self._evidence),
            Route("/omissions", self._file_omission, methods=["POST"]),
            Route("/healthz", self._healthz),
        ]
        return Starlette(routes=routes)

    async def _serve(self, page: _Page, request: Request) -> Response:
        index = _read_round(request)
        body = None if index is None else await page(index)
        return _reply(404, {"reason": "nothing here"}) if body is None else _reply(200, body)

    async def _commitment(self, index: int) -> Any:
        item = await self._find_own(Kind.COMMITMENT, index)
        return item and write_commitment(read_commitment_item(item))

    async def _reveal(self, index: int) -> Any:
        item = await self._find_own(Kind.REVEAL, index) if self._is_over(index) else None
        return item and write_reveal(read_reveal_item(item))

    async def _votes(self, index: int) -> Any:
        validator = self._validator
        if not self._is_over(index):
            return None
        items = await validator.read(lambda con: list_items(con, validator.address, index, Kind.VOTE))
        return write_votes(read_vote_item(item) for item in items if item.author == validator.address)

    async def _round(self, index: int) -> Any:
        """Everything held of a round, whoever signed it: so that nobody can serve some and not others."""
        validator = self._validator
        if not self._is_over(index):
            return None
        held = collect(await validator.read(lambda con: list_items(con, validator.address, index)))
        return {
            "commitments": [write_commitment(entry) for entry in held.commitments.values()],
            "reveals": [write_reveal(entry) for entry in held.reveals.values()],
            **write_votes(held.votes.values()),
        }

    async def _seals(self, index: int) -> Any:
        validator = self._validator
        rows = await validator.read(lambda con: list_bundles(con, validator.address, index))
        seals = [write_seal(BundleSeal(validator.hub, index, row.bundle_hash), row.seal) for row in rows]
        return {"seals": seals} if seals else None

    async def _omissions(self, index: int) -> Any:
        """The nodes' batches of one that were filed, for the hub to prove these calls in bundle `index`."""
        validator = self._validator
        first = index - validator.params.carry_rounds
        filed = await validator.read(lambda con: list_filed(con, validator.address, first, index))
        return {"omissions": await trio.to_thread.run_sync(write_omissions, filed)}

    async def _attestation(self, request: Request) -> Response:
        index = _read_round(request)
        item = None if index is None else await self._find_own(Kind.ROUND_ROOT, index)
        if item is not None and item.signature is not None:
            return _reply(200, write_round_root(read_round_root_item(item), item.signature))
        refusal = await self._find_refusal(index) if index is not None else None
        code, reason = refusal or ("EMC-1801", "the round is not decided here")
        return _reply(404, {"code": code, "reason": reason})

    async def _find_refusal(self, index: int) -> tuple[str, str] | None:
        validator = self._validator
        rows = await validator.read(lambda con: list_bundles(con, validator.address, index))
        refused = next(((row.code, row.reason) for row in rows if row.code), None)
        decision = self._attester.decisions.get(index)
        if refused is None and isinstance(decision, Refusal | Waiting):
            return decision.code, decision.reason
        return refused

    async def _evidence(self, request: Request) -> Response:
        validator = self._validator
        try:
            call_id = parse_call_id(request.path_params["call_id"])
        except RemoteProtocolError as exc:
            return _fault(exc)
        probe = await validator.read(lambda con: find_probe_of_call(con, validator.address, call_id))
        evidence = make_evidence(probe) if probe is not None and self._is_over(probe.round) else None
        if probe is None or evidence is None:
            return _reply(404, {"reason": "no evidence of this call"})
        place = {"round": probe.round, "node": probe.node, "slot": probe.slot}
        return _reply(200, {**place, **write_evidence(evidence)})

    async def _file_omission(self, request: Request) -> Response:
        """A node files a call that hub and node signed, and that it wants to see in a bundle."""
        validator = self._validator
        body = await _read_body(request)
        if body is None:
            return _reply(413, {"code": "EMC-1830", "reason": f"more than {MAX_OMISSION_BYTES} bytes"})
        try:
            call = read_receipt(body)
        except RemoteProtocolError as exc:
            return _fault(exc)
        outcome = check_receipt(validator.domain, validator.hub, call)
        if outcome.fault is not None:
            return _reply(400, {"code": outcome.fault.code, "reason": outcome.fault.detail})
        if call.receipt_proof is None or call.receipt_proof.batch.count != 1:
            reason = "the node's receipt is wanted, signed in a batch of its own"
            return _reply(400, {"code": "EMC-1830", "reason": reason})
        age = validator.current_round() - call.delivery.round
        if not 0 <= age <= validator.params.carry_rounds + 1:
            return _reply(
                400, {"code": "EMC-1830", "reason": f"round {call.delivery.round} can't be carried any more"}
            )
        filed = await validator.write(
            partial(
                file_omission,
                instance=validator.address,
                call_id=call.forward.call_id,
                round_index=call.delivery.round,
                node=call.forward.node,
                receipt=body,
                now_ms=validator.now_ms(),
            )
        )
        if filed is Filed.FULL:
            return _reply(409, {"code": "EMC-1830", "reason": "too many omissions are filed"})
        return _reply(202, {"state": filed.value})

    async def _healthz(self, request: Request) -> Response:
        health = self._health()
        return _reply(200, {"state": health.state.value, "reason": health.reason})

    async def _find_own(self, kind: Kind, index: int) -> Item | None:
        validator = self._validator
        item = await validator.read(
            lambda con: find_item(con, validator.address, kind, index, validator.address)
        )
        return item if item is not None and item.signature is not None else None

    def _is_over(self, index: int) -> bool:
        return self._validator.now_ms() >= self._validator.params.round_end_ms(index)


def _read_round(request: Request) -> int | None:
    text = request.path_params["round"]
    if not text.isascii() or not text.isdigit() or len(text) > 13:
        return None
    index = int(text)
    return index if index < _MAX_ROUND else None


async def _read_body(request: Request) -> bytes | None:
    body = bytearray()
    async with aclosing(request.stream()) as chunks:
        async for chunk in chunks:
            body += chunk
            if len(body) > MAX_OMISSION_BYTES:
                return None
    return bytes(body)


def _fault(exc: EmcdError) -> Response:
    return _reply(400, {"code": exc.code, "reason": exc.detail})


def _reply(status: int, body: Any) -> Response:
    return Response(_encode(body), status, media_type="application/json")
