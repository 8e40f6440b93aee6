"""What a validator serves: its signed statements, evidence of its strikes, the state of its audits.

Owns the routes and nothing else: every page is read from the ledger. Invariants: nothing of a
round's plan is served before its results were to be told; a page is bounded; what is posted here is checked
before it is kept, and its store is bounded.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

import trio
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from emcd.accounting.receipt import check_receipt
from emcd.errors import RemoteProtocolError
from emcd.net.ratelimit import FailureLimiter
from emcd.proto.messages import BundleSeal, Verdict
from emcd.proto.records import format_call_id, parse_call_id
from emcd.services import Health
from emcd_validator.attester import Attester
from emcd_validator.base import Waiting
from emcd_validator.bundle_check import Refusal
from emcd_validator.entry import (
    collect,
    read_commitment_item,
    read_results_item,
    read_reveal_item,
    read_round_root_item,
    read_vote_item,
)
from emcd_validator.evidence_page import fetch_evidence_page
from emcd_validator.offence_page import OffencePages
from emcd_validator.page import FAILURES, fault, find_source, read_body, read_index, reply
from emcd_validator.queries.bundles import list_bundles
from emcd_validator.queries.items import (
    Filed,
    Item,
    Kind,
    file_omission,
    list_filed,
    list_items,
    list_results,
)
from emcd_validator.queries.rounds import ProbeRow, find_probe_of_call
from emcd_validator.signatory import find_own
from emcd_validator.statement import (
    MAX_VOTES,
    read_filing,
    write_commitment,
    write_omissions,
    write_results,
    write_reveal,
    write_round_root,
    write_seal,
    write_votes,
)
from emcd_validator.validator import Validator

MAX_OMISSION_BYTES = 64 << 10
OMISSIONS_PER_PAGE = 128
"""What a page holds of filed calls; each may bring a whole batch of its own, about 18 kB."""

_Page = Callable[[int], Awaitable[Any]]


class Pages:
    """The pages of one validator; None is a 404."""

    def __init__(
        self,
        validator: Validator,
        attester: Attester,
        offences: OffencePages,
        health: Callable[[], Health],
        more: Sequence[Route] = (),
    ) -> None:
        """`more`: pages that other parts own."""
        self._validator = validator
        self._attester = attester
        self._offences = offences
        self._health = health
        self._more = more
        self._limiter = FailureLimiter(FAILURES)

    def build_app(self) -> Starlette:
        """The ASGI application."""
        pages: dict[str, _Page] = {
            "commitments": self._commitment,
            "results": self._results,
            "reveals": self._reveal,
            "votes": self._votes,
            "rounds": self._round,
            "seals": self._seals,
        }
        routes = [Route(f"/{name}/{{round}}", partial(self._serve, page)) for name, page in pages.items()]
        routes += [
            Route("/attestations/{round}", self._attestation),
            Route("/omissions/{round}", self._omissions),
            Route("/evidence/{call_id}", self._evidence),
            Route("/omissions", self._file_omission, methods=["POST"]),
            Route("/healthz", self._healthz),
        ]
        return Starlette(routes=[*routes, *self._offences.routes(), *self._more])

    async def _serve(self, page: _Page, request: Request) -> Response:
        index = read_index(request)
        body = None if index is None else await page(index)
        return reply(404, {"reason": "nothing here"}) if body is None else reply(200, body)

    async def _commitment(self, index: int) -> Any:
        item = await self._find_own(Kind.COMMITMENT, index)
        return item and write_commitment(read_commitment_item(item))

    async def _reveal(self, index: int) -> Any:
        item = await self._find_own(Kind.REVEAL, index) if self._is_open(index) else None
        return item and write_reveal(read_reveal_item(item))

    async def _results(self, index: int) -> Any:
        """Every results held, own ones and peers', second ones of a peer too: so that two of one show."""
        validator = self._validator
        if not self._is_over(index):
            return None
        held = await validator.read(lambda con: list_results(con, validator.address, index))
        return write_results(map(read_results_item, held)) if held else None

    async def _votes(self, index: int) -> Any:
        validator = self._validator
        if not self._is_open(index):
            return None
        items = await validator.read(lambda con: list_items(con, validator.address, index, Kind.VOTE))
        own = [item for item in items if item.author in validator.keys]
        return write_votes(read_vote_item(item) for item in own[:MAX_VOTES])

    async def _round(self, index: int) -> Any:
        """Everything held of a round, whoever signed it: so that nobody can serve some and not others."""
        validator = self._validator
        if not self._is_open(index):
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

    async def _omissions(self, request: Request) -> Response:
        """The nodes' batches that were filed, for the hub to prove these calls in the round's bundle.

        A page has the calls from the call id `from` on; `next` is where the page after it begins.
        """
        validator = self._validator
        index = read_index(request)
        if index is None:
            return reply(404, {"reason": "nothing here"})
        try:
            asked = request.query_params.get("from")
            start = b"" if asked is None else parse_call_id(asked)
        except RemoteProtocolError as exc:
            return fault(exc)
        first = index - validator.params_now().carry_rounds
        me, most = validator.address, OMISSIONS_PER_PAGE
        filed = await validator.read(lambda con: list_filed(con, me, first, index, start, most + 1))
        bodies = [body for _, body in filed[:most]]
        page: dict[str, Any] = {"omissions": await trio.to_thread.run_sync(write_omissions, bodies)}
        if len(filed) > most:
            page["next"] = format_call_id(filed[most][0])
        return reply(200, page)

    async def _attestation(self, request: Request) -> Response:
        index = read_index(request)
        item = None if index is None else await self._find_own(Kind.ROUND_ROOT, index)
        if item is not None and item.signature is not None:
            return reply(200, write_round_root(read_round_root_item(item), item.signature))
        refusal = await self._find_refusal(index) if index is not None else None
        code, reason = refusal or ("EMC-1801", "the round is not decided here")
        return reply(404, {"code": code, "reason": reason})

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
            return fault(exc)
        probe = await validator.read(lambda con: find_probe_of_call(con, validator.address, call_id))
        may_show = probe is not None and self._may_show(probe)
        page = await fetch_evidence_page(validator, probe) if probe is not None and may_show else None
        return reply(404, {"reason": "no evidence of this call"}) if page is None else reply(200, page)

    async def _file_omission(self, request: Request) -> Response:
        """A node files a call that hub and node signed, and that it wants to see in a bundle."""
        validator = self._validator
        body = await read_body(request, MAX_OMISSION_BYTES)
        if body is None:
            return reply(413, {"code": "EMC-1830", "reason": f"more than {MAX_OMISSION_BYTES} bytes"})
        source, now_s = find_source(request), trio.current_time()
        if not self._limiter.check_allowed(source, now_s):
            return reply(429, {"code": "EMC-1830", "reason": "too many filings that prove nothing"})
        try:
            call = (await trio.to_thread.run_sync(read_filing, body)).call
        except RemoteProtocolError as exc:
            self._limiter.add_failure(source, now_s)
            return fault(exc)
        outcome = check_receipt(validator.domain, validator.hub, call)
        if outcome.fault is not None:
            self._limiter.add_failure(source, now_s)
            return reply(400, {"code": outcome.fault.code, "reason": outcome.fault.detail})
        age = validator.current_round() - call.delivery.round
        if not 0 <= age <= validator.params_now().carry_rounds + 1:
            return reply(
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
            return reply(409, {"code": "EMC-1830", "reason": "too many omissions are filed"})
        return reply(202, {"state": filed.value})

    async def _healthz(self, request: Request) -> Response:
        health = self._health()
        return reply(200, {"state": health.state.value, "reason": health.reason})

    async def _find_own(self, kind: Kind, index: int) -> Item | None:
        item = await find_own(self._validator, kind, index)
        return item if item is not None and item.signature is not None else None

    def _may_show(self, probe: ProbeRow) -> bool:
        """Strikes from the reveal on; what passed once nobody can tell a task from it any more."""
        if probe.result is None:
            return False
        is_strike = Verdict(probe.result.verdict).is_strike
        at_ms = self._validator.reveal_at_ms if is_strike else self._validator.tasks_end_ms
        return self._validator.now_ms() >= at_ms(probe.round)

    def _is_open(self, index: int) -> bool:
        """Whether seeds may be known."""
        return self._validator.now_ms() >= self._validator.reveal_at_ms(index)

    def _is_over(self, index: int) -> bool:
        return self._validator.now_ms() >= self._validator.params.round_end_ms(index)
