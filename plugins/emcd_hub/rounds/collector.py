"""Asks validators for what they signed: plans, reveals, votes, and their roots of closed rounds.

The validators are asked each for itself and for all that it holds, so that one which answers its
peers and not the hub makes no bundle incomplete. Invariants: every wait has a deadline, every
answer a bound; one slow validator delays no other; what is kept was signed by a member of the set.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

import structlog
import trio

from emcd.accounting.terms import RoundTerms
from emcd.errors import ConfigError, EmcdError, RecoverableError, RemoteProtocolError
from emcd.ledger import Ledger
from emcd.net.http_client import Response, request
from emcd.net.url_guard import parse_target, require_public
from emcd.proto.address import address_bytes
from emcd.proto.network import Deployment
from emcd.proto.records import format_call_id
from emcd.services import ParametersInForce
from emcd.types import Address
from emcd_hub.rounds.bundle_folder import BundleFolder
from emcd_hub.rounds.evidence_row import insert_attestation, insert_statements, list_known, upsert_refusal
from emcd_hub.rounds.omission import (
    MAX_LOOKED_UP,
    check_filed,
    insert_forgotten,
    insert_late_batches,
    list_forgotten,
    list_lacking,
)
from emcd_hub.rounds.statement import (
    MAX_OMISSIONS,
    OMISSION_PAGE_BYTES,
    OMISSIONS_PER_PAGE,
    FiledReceipt,
    Statements,
    decode_page,
    read_attestation_page,
    read_commitment_page,
    read_next_page,
    read_omission_page,
    read_refusal_page,
    read_reveal_page,
    read_round_page,
)
from emcd_hub.rounds.view import RoundView

MAX_PAGE_BYTES = 4 << 20
MAX_ROUND_PAGE_BYTES = 64 << 20
SMALL_PAGE_BYTES = 64 << 10
LOOK_UP_S = 60.0
UNDECIDED_CODE = "EMC-1801"

PAGES_TIMEOUTS = 4
"""How many requests' time a validator has for all of its pages."""
SLOW_CODE = "EMC-1302"
MAX_TOLD = 4096

_Fetch = Callable[[Address], Awaitable[None]]
_Read = Callable[[object, RoundTerms], Statements]


class Collector:
    """Fetches statements of one hub's rounds."""

    def __init__(
        self,
        *,
        hub: Address,
        deployment: Deployment,
        parameters: ParametersInForce,
        ledger: Ledger,
        timeout_s: float,
        any_endpoint: bool,
        log: structlog.stdlib.BoundLogger,
    ) -> None:
        """`any_endpoint`: take http and private addresses too, as on a devnet."""
        self._hub = hub
        self._deployment = deployment
        self._parameters = parameters
        self._ledger = ledger
        self._timeout_s = timeout_s
        self._any_endpoint = any_endpoint
        self._log = log
        self._looked_up: tuple[int, set[bytes]] = (-1, set())
        self._told: dict[tuple[Address, str], None] = {}

    async def collect_commitments(self, view: RoundView) -> None:
        """Ask the members whose plan is missing."""
        known = await self._ledger.read(lambda con: list_known(con, view.round, "commitment"))
        missing = [node for node in view.endpoints if address_bytes(node) not in known]
        if missing:
            terms = await self._terms(view)
            await self._each(missing, partial(self._fetch_commitment, view, terms))

    async def collect_statements(self, view: RoundView) -> None:
        """Ask every member for what it holds of a round that is over."""
        terms = await self._terms(view)
        await self._each(list(view.endpoints), partial(self._fetch_statements, view, terms))
        await self._each(list(view.endpoints), partial(self._fetch_omissions, view))

    async def collect_attestations(self, view: RoundView) -> tuple[int, int]:
        """Ask members that have not signed a closed round's root. Returns: (signed, all) power in wei."""
        known = await self._ledger.read(lambda con: list_known(con, view.round, "attestation"))
        missing = [node for node in view.endpoints if address_bytes(node) not in known]
        await self._each(missing, partial(self._fetch_attestation, view))
        known = await self._ledger.read(lambda con: list_known(con, view.round, "attestation"))
        powers = view.powers
        return sum(p for node, p in powers.items() if address_bytes(node) in known), sum(powers.values())

    async def _terms(self, view: RoundView) -> RoundTerms:
        """Raises: RecoverableError while the round's parameters are not known."""
        params = self._parameters.schedule.params_at(view.round)
        domain = self._deployment.staking_domain
        return await trio.to_thread.run_sync(view.terms, params, domain, self._hub)

    async def _each(self, nodes: list[Address], fetch: _Fetch) -> None:
        async with trio.open_nursery() as nursery:
            for node in nodes:
                nursery.start_soon(self._guarded, fetch, node)

    async def _guarded(self, fetch: _Fetch, node: Address, page: str = "") -> None:
        """One validator's fault is its own. What a bundle may lack without the page is told once, aloud."""
        try:
            await fetch(node)
        except (RecoverableError, RemoteProtocolError, ConfigError) as exc:
            self._tell(node, page, exc.code, exc.detail)

    def _tell(self, node: Address, page: str, code: str, detail: str) -> None:
        is_news = bool(page) and (node, page) not in self._told
        if is_news:
            self._told[node, page] = None
            while len(self._told) > MAX_TOLD:
                del self._told[next(iter(self._told))]
        log = self._log.warning if is_news else self._log.debug
        log("validator not read", validator=node, page=page, code=code, detail=detail[:200])

    async def _fetch_commitment(self, view: RoundView, terms: RoundTerms, node: Address) -> None:
        answer = await self._get(view, node, f"/commitments/{view.round}", SMALL_PAGE_BYTES)
        if answer.status == 200:
            await self._keep(view, node, read_commitment_page(decode_page(answer.body), terms))

    async def _fetch_statements(self, view: RoundView, terms: RoundTerms, node: Address) -> None:
        pages = (
            (f"/rounds/{view.round}", MAX_ROUND_PAGE_BYTES, read_round_page),
            (f"/commitments/{view.round}", SMALL_PAGE_BYTES, read_commitment_page),
            (f"/reveals/{view.round}", MAX_PAGE_BYTES, read_reveal_page),
            (f"/votes/{view.round}", MAX_PAGE_BYTES, read_round_page),
        )
        with trio.move_on_after(PAGES_TIMEOUTS * self._timeout_s) as scope:
            for path, max_bytes, read in pages:
                fetch = partial(self._fetch_page, view, terms, path, max_bytes, read)
                await self._guarded(fetch, node, path)
                if path.startswith("/rounds/"):
                    known = await self._ledger.read(lambda con: list_known(con, view.round, "reveal"))
                    if address_bytes(node) in known:
                        return
        if scope.cancelled_caught:
            self._tell(node, path, SLOW_CODE, "its statements were not read in time")

    async def _fetch_page(
        self, view: RoundView, terms: RoundTerms, path: str, max_bytes: int, read: _Read, node: Address
    ) -> None:
        answer = await self._get(view, node, path, max_bytes)
        if answer.status == 200:
            page = await trio.to_thread.run_sync(decode_page, answer.body)
            await self._keep(view, node, await trio.to_thread.run_sync(read, page, terms))

    async def _fetch_omissions(self, view: RoundView, node: Address) -> None:
        """Take the calls that were filed with the validator, and their nodes' batches: it looks for them."""
        path = f"/omissions/{view.round}"
        with trio.move_on_after(PAGES_TIMEOUTS * self._timeout_s) as scope:
            await self._guarded(partial(self._fetch_filed, view, path), node, path)
        if scope.cancelled_caught:
            self._tell(node, path, SLOW_CODE, "its filed calls were not read in time")

    async def _fetch_filed(self, view: RoundView, path: str, node: Address) -> None:
        """Page after page, as many as a validator can have."""
        place = b""
        for _ in range(MAX_OMISSIONS // OMISSIONS_PER_PAGE + 1):
            query = f"?from={format_call_id(place)}" if place else ""
            answer = await self._get(view, node, path + query, OMISSION_PAGE_BYTES)
            if answer.status != 200:
                return
            page = await trio.to_thread.run_sync(decode_page, answer.body)
            await self._take_filed(view, node, await trio.to_thread.run_sync(read_omission_page, page))
            following = read_next_page(page)
            if following is None or following <= place:
                return
            place = following

    async def _take_filed(self, view: RoundView, node: Address, filed: tuple[FiledReceipt, ...]) -> None:
        domain = self._deployment.staking_domain
        lacking = await self._ledger.read(lambda con: list_lacking(con, filed)) if filed else []
        batches = await trio.to_thread.run_sync(check_filed, domain, lacking)
        if len(batches) < len(lacking):
            count = len(lacking) - len(batches)
            self._log.warning("filed receipts refused", validator=node, round=view.round, count=count)
        if batches:
            await self._ledger.write(partial(insert_late_batches, items=batches))
            self._log.info("filed receipts taken", validator=node, round=view.round, count=len(batches))
        if filed:
            await self._carry_forgotten(view, [item.call_id for item in filed])

    async def _carry_forgotten(self, view: RoundView, call_ids: list[bytes]) -> None:
        """Calls that stand in no bundle since their round go into the next one. Asked once a round."""
        if self._looked_up[0] != view.round:
            self._looked_up = (view.round, set())
        call_ids = [item for item in call_ids if item not in self._looked_up[1]]
        if not call_ids:
            return
        carry_rounds = self._parameters.schedule.params_at(view.round).carry_rounds
        folder = BundleFolder(self._ledger.path.parent)
        find = partial(list_forgotten, folder=folder, call_ids=call_ids, carry_rounds=carry_rounds)
        found = await self._ledger.read(find, timeout_s=LOOK_UP_S)
        self._looked_up[1].update(call_ids[:MAX_LOOKED_UP])
        if found:
            await self._ledger.write(partial(insert_forgotten, found=found))
            self._log.error("calls were left out of a bundle", code="EMC-1825", count=len(found))

    async def _fetch_attestation(self, view: RoundView, node: Address) -> None:
        answer = await self._get(view, node, f"/attestations/{view.round}", SMALL_PAGE_BYTES)
        page = decode_page(answer.body)
        if answer.status == 200:
            found = read_attestation_page(page, self._deployment.distributor_domain, node)
            if found.root.round != view.round:
                raise RemoteProtocolError("EMC-1751", f"a root of round {found.root.round}")
            await self._ledger.write(
                partial(insert_attestation, index=view.round, validator=node, item=found)
            )
        elif answer.status == 404:
            code, reason = read_refusal_page(page)
            if code in ("", UNDECIDED_CODE):
                return
            await self._ledger.write(
                partial(upsert_refusal, index=view.round, validator=node, code=code, reason=reason)
            )

    async def _keep(self, view: RoundView, node: Address, found: Statements) -> None:
        if found.refused:
            self._log.warning("statements refused", validator=node, round=view.round, count=found.refused)
        if found.commitments or found.reveals or found.votes:
            await self._ledger.write(partial(insert_statements, index=view.round, found=found))

    async def _get(self, view: RoundView, node: Address, path: str, max_bytes: int) -> Response:
        base = view.endpoints[node].rstrip("/")
        try:
            parse_target(base) if self._any_endpoint else require_public(base)
        except EmcdError as exc:
            raise ConfigError("EMC-1753", f"the endpoint of validator {node}: {exc.detail}") from exc
        return await request("GET", base + path, timeout_s=self._timeout_s, max_bytes=max_bytes)
