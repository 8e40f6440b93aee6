"""The pages about offences: proofs to read and to bring, orders to slash, attestations held.

Invariants: what is brought is judged before it is kept; a source whose proofs prove nothing is not
listened to for a while; a page is bounded.
"""

from __future__ import annotations

from typing import Any

import msgspec
import trio
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from emcd.accounting.offence import OffenceKind, evidence_hash, judged_rounds, offence_of, read_proof
from emcd.errors import RecoverableError, RemoteProtocolError
from emcd.net.ratelimit import FailureLimiter
from emcd.proto.address import hex_hash, parse_hash
from emcd.proto.json_form import from_json, to_json
from emcd.proto.messages import RoundRoot
from emcd_validator.offence_desk import OffenceDesk
from emcd_validator.page import FAILURES, fault, find_source, read_body, read_index, reply
from emcd_validator.queries.offences import (
    Kept,
    OffenceRow,
    find_offence,
    list_offences,
    list_roots,
    list_slashes,
)
from emcd_validator.statement import write_roots, write_signature
from emcd_validator.validator import Validator

MAX_PROOF_BYTES = 16 << 10


class OffencePages:
    """The pages of one validator."""

    def __init__(self, validator: Validator, desk: OffenceDesk) -> None:
        self._validator = validator
        self._desk = desk
        self._limiter = FailureLimiter(FAILURES)

    def routes(self) -> list[Route]:
        return [
            Route("/offences", self._list, methods=["GET"]),
            Route("/offences", self._take, methods=["POST"]),
            Route("/offences/{hash}", self._find),
            Route("/slashes/{epoch}", self._slashes),
            Route("/roots/{round}", self._roots),
        ]

    async def _list(self, request: Request) -> Response:
        """What was proven here and is judged still."""
        validator = self._validator
        first, _ = judged_rounds(validator.params, validator.current_round())
        rows = await validator.read(lambda con: list_offences(con, validator.address, first))
        return reply(200, {"offences": [_show(row) for row in rows]})

    async def _find(self, request: Request) -> Response:
        validator = self._validator
        try:
            identity = parse_hash(request.path_params["hash"])
        except RemoteProtocolError as exc:
            return fault(exc)
        row = await validator.read(lambda con: find_offence(con, validator.address, identity))
        if row is None:
            return reply(404, {"reason": "no such offence was proven here"})
        return Response(row.proof, 200, media_type="application/json")

    async def _take(self, request: Request) -> Response:
        """Anybody brings a proof."""
        source, now_s = find_source(request), trio.current_time()
        if not self._limiter.check_allowed(source, now_s):
            return reply(429, {"code": "EMC-1842", "reason": "too many proofs that prove nothing"})
        body = await read_body(request, MAX_PROOF_BYTES)
        if body is None:
            return reply(413, {"code": "EMC-1980", "reason": f"more than {MAX_PROOF_BYTES} bytes"})
        try:
            proof = read_proof(_decode(body))
            kept = await self._desk.take(proof, source)
        except RemoteProtocolError as exc:
            self._limiter.add_failure(source, now_s)
            return fault(exc)
        except RecoverableError as exc:
            return fault(exc, 503)
        if kept is Kept.FULL:
            return reply(409, {"code": "EMC-1842", "reason": "too many offences are kept"})
        return reply(202, {"hash": hex_hash(evidence_hash(offence_of(proof))), "state": kept.value})

    async def _slashes(self, request: Request) -> Response:
        validator = self._validator
        epoch = read_index(request, "epoch")
        if epoch is None:
            return reply(404, {"reason": "nothing here"})
        rows = await validator.read(lambda con: list_slashes(con, validator.address, epoch))
        signed = [(row.slash, row.signature) for row in rows if row.signature is not None]
        slashes = [{"slash": to_json(order), "signature": write_signature(sig)} for order, sig in signed]
        return reply(200, {"slashes": slashes})

    async def _roots(self, request: Request) -> Response:
        """Every attestation of a round held here, whoever signed it: two of one validator show here."""
        validator = self._validator
        index = read_index(request)
        held = (
            []
            if index is None
            else await validator.read(lambda con: list_roots(con, validator.address, index))
        )
        if not held:
            return reply(404, {"reason": "nothing here"})
        entries = [(who, from_json(RoundRoot, msgspec.json.decode(data)), sig) for who, data, sig in held]
        return reply(200, write_roots(entries))


def _show(row: OffenceRow) -> dict[str, Any]:
    offence = row.offence
    return {
        "hash": hex_hash(row.evidence_hash),
        "kind": offence.kind,
        "name": OffenceKind(offence.kind).name.lower(),
        "offender": offence.offender,
        "round": offence.round,
        "state": row.state.value,
    }


def _decode(body: bytes) -> object:
    try:
        return msgspec.json.decode(body)
    except (msgspec.MsgspecError, ValueError, RecursionError) as exc:
        raise RemoteProtocolError("EMC-1980", f"it is not JSON: {exc}") from exc
