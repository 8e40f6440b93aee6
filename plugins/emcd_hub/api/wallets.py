"""A wallet's pages: its rewards and extraction requests, and the stream of both.

Everybody may read them, as everybody may read the chain. A request counts by the wallet's
signature, a settler's report by the settler's.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from emcd.accounting.payout import ExtractionPath, ExtractionState
from emcd.bus import Bus
from emcd.clock import Clock
from emcd.errors import RemoteProtocolError
from emcd.events import REWARDS, RewardsChanged
from emcd.ledger import Connection, Ledger
from emcd.proto.address import hex_hash, parse_address
from emcd.proto.json_form import from_json
from emcd.proto.messages import Extraction
from emcd.proto.network import Deployment
from emcd.proto.settler_report import MAX_TEXT, ReportKind, SettlerReport
from emcd.proto.signing import require_signer
from emcd.types import ZERO_ADDRESS, ZERO_HASH, Address
from emcd_hub.api.auth import FailureGuard
from emcd_hub.api.error import ApiError
from emcd_hub.api.events import WalletEvents
from emcd_hub.api.page import answer, read_json
from emcd_hub.rounds.bundle_row import list_wallet_results
from emcd_hub.rounds.extraction_row import (
    OPEN_PAGE,
    PAGE,
    Asked,
    find_extraction,
    insert_extraction,
    list_open_extractions,
    list_wallet_extractions,
)
from emcd_hub.rounds.payout_path import Reported, read_paths, take_report
from emcd_hub.rounds.reader import RoundReader, WalletRewards

MAX_VALID_S = 366 * 86_400
MAX_REPORT_AGE_MS = 60_000
STREAMED_EXTRACTIONS = 20
MAX_SUBSCRIBERS = 256
_OPEN_STATES = ("requested", "synchronised")
_PAYABLE = (ExtractionState.SYNCHRONISED, ExtractionState.SUBMITTED)


class NewExtraction(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    extraction: dict[str, Any]
    signature: str


class NewReport(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    report: dict[str, Any]
    signature: str


class WalletPages:
    """Handlers."""

    def __init__(
        self,
        *,
        deployment: Deployment,
        ledger: Ledger,
        clock: Clock,
        bus: Bus,
        reader: RoundReader,
        guard: FailureGuard,
        has_wallet: Callable[[Address], bool],
        fetch_nonce: Callable[[Address], Awaitable[int]],
    ) -> None:
        """
        Args:
            has_wallet: whether anything is bound to a wallet now.
            fetch_nonce: the least nonce the contract still takes of a wallet.
        """
        self._deployment = deployment
        self._ledger = ledger
        self._clock = clock
        self._bus = bus
        self._reader = reader
        self._guard = guard
        self._has_wallet = has_wallet
        self._fetch_nonce = fetch_nonce
        poll_s = min(15.0, max(0.5, deployment.params.round_s / 30))
        self.events = WalletEvents(
            read=self._read_state, bus=bus, poll_s=poll_s, max_subscribers=MAX_SUBSCRIBERS
        )

    def routes(self) -> list[Route]:
        return [
            Route("/api/wallets/{address}/rewards", self.get_rewards),
            Route("/api/wallets/{address}/extractions", self.list_extractions, methods=["GET"]),
            Route("/api/wallets/{address}/extractions", self.ask_extraction, methods=["POST"]),
            Route("/api/wallets/{address}/events", self.stream_events),
            Route("/api/extractions", self.list_all_extractions, methods=["GET"]),
            Route("/api/extractions/reports", self.take_report, methods=["POST"]),
        ]

    # ------------------------------------------------------------------ reading

    async def get_rewards(self, request: Request) -> Response:
        wallet = parse_address(request.path_params["address"])
        return answer(_show_rewards(wallet, await self._reader.fetch_wallet(wallet)))

    async def stream_events(self, request: Request) -> Response:
        """The wallet's whole state, and again whenever it changes: server-sent events."""
        wallet = parse_address(request.path_params["address"])
        return self.events.open(wallet, request.headers.get("last-event-id", ""))

    async def list_extractions(self, request: Request) -> Response:
        """Newest first; `next` is the `before` of the next page, null at the end."""
        wallet = parse_address(request.path_params["address"])
        limit = _read_limit(request, PAGE)
        before = _read_cursor(request.query_params.get("before"), 2)
        at = None if before is None else (int(before[0]), int(before[1]))
        now_ms = self._clock.now_ms()

        def read(con: Connection) -> tuple[list[ExtractionPath], str | None]:
            rows = list_wallet_extractions(con, wallet, limit, at)
            last = rows[-1] if len(rows) == limit else None
            cursor = None if last is None else f"{last.requested_at_ms}.{last.extraction.nonce}"
            return read_paths(con, rows, now_ms), cursor

        paths, cursor = await self._ledger.read(read)
        return answer({"extractions": paths, "next": cursor})

    async def list_all_extractions(self, request: Request) -> Response:
        """What settlers work off, oldest first: "requested" are all open ones, "synchronised" the payable."""
        wanted = request.query_params.get("state", "requested")
        if wanted not in _OPEN_STATES:
            raise ApiError("EMC-1744", f"state must be one of {', '.join(_OPEN_STATES)}", 400, param="state")
        cursor = _read_cursor(request.query_params.get("after"), 3)
        after = None if cursor is None else (int(cursor[0]), parse_address(cursor[1]), int(cursor[2]))
        now_ms = self._clock.now_ms()

        def read(con: Connection) -> tuple[list[ExtractionPath], str | None]:
            rows = list_open_extractions(con, now_ms, OPEN_PAGE, after)
            last = rows[-1] if len(rows) == OPEN_PAGE else None
            key = (
                None
                if last is None
                else (last.requested_at_ms, last.extraction.wallet, last.extraction.nonce)
            )
            return read_paths(con, rows, now_ms), None if key is None else ".".join(map(str, key))

        paths, following = await self._ledger.read(read)
        shown = [item for item in paths if wanted == "requested" or item.state in _PAYABLE]
        return answer({"extractions": shown, "next": following})

    async def _read_state(self, wallet: Address) -> dict[str, Any]:
        """What the stream sends."""
        now_ms = self._clock.now_ms()
        rewards = await self._reader.fetch_wallet(wallet)
        paths = await self._ledger.read(
            lambda con: read_paths(con, list_wallet_extractions(con, wallet, STREAMED_EXTRACTIONS), now_ms)
        )
        return {"rewards": _show_rewards(wallet, rewards), "extractions": paths}

    # ------------------------------------------------------------------ asking

    async def ask_extraction(self, request: Request) -> Response:
        wallet = parse_address(request.path_params["address"])
        body = await read_json(request, NewExtraction)
        extraction = from_json(Extraction, body.extraction)
        signature = self._require_signed(request, wallet, extraction, body.signature)
        self._require_sensible(extraction)
        await self._require_participant(wallet)
        if extraction.nonce < await self._fetch_nonce(wallet):
            raise ApiError("EMC-1745", "the contract has used this nonce or a later one", 409, param="nonce")
        now_ms = self._clock.now_ms()
        outcome = await self._ledger.write(lambda con: insert_extraction(con, extraction, signature, now_ms))
        if outcome is Asked.NONCE_USED:
            raise ApiError("EMC-1745", "another request has this nonce", 409, param="nonce")
        if outcome is Asked.TOO_MANY:
            raise ApiError("EMC-1745", "the wallet has too many open requests", 429)
        self._bus.publish(REWARDS, RewardsChanged(wallet))
        return answer(await self._show_extraction(wallet, extraction.nonce), 202)

    async def take_report(self, request: Request) -> Response:
        """A settler's word on a request; taken from addresses that published a root of this network."""
        body = await read_json(request, NewReport)
        report = from_json(SettlerReport, body.report)
        now_ms = self._clock.now_ms()
        self._require_fair(request, report, body.signature, now_ms)
        outcome = await self._ledger.write(lambda con: take_report(con, report, now_ms))
        if outcome is Reported.NO_REQUEST:
            raise ApiError("EMC-1749", "there is no such open request", 404)
        if outcome is Reported.NO_PUBLISHER:
            raise ApiError("EMC-1749", f"{report.settler} has published no root that stands", 403)
        if outcome is Reported.TAKEN:
            self._bus.publish(REWARDS, RewardsChanged(report.wallet))
        return answer({"taken": outcome is Reported.TAKEN}, 202)

    async def _show_extraction(self, wallet: Address, nonce: int) -> ExtractionPath:
        now_ms = self._clock.now_ms()

        def read(con: Connection) -> ExtractionPath:
            row = find_extraction(con, wallet, nonce)
            assert row is not None
            return read_paths(con, [row], now_ms)[0]

        return await self._ledger.read(read)

    def _require_fair(self, request: Request, report: SettlerReport, signature: str, now_ms: int) -> None:
        """Raises: ApiError 400, 401, 429."""
        fault = ""
        kinds = {item.value for item in ReportKind}
        if report.kind not in kinds or len(report.text) > MAX_TEXT or not report.text.isprintable():
            fault = f"kind must be one of {sorted(kinds)}, text at most {MAX_TEXT} printable characters"
        elif (report.tx_hash != ZERO_HASH) is not (report.kind == ReportKind.SUBMITTED):
            fault = "a transaction belongs to kind SUBMITTED and to no other"
        elif abs(report.reported_at_ms - now_ms) > MAX_REPORT_AGE_MS:
            fault = "the report is too old, or a clock is wrong"
        if fault:
            raise ApiError("EMC-1749", fault, 400, param="report")
        try:
            raw = bytes.fromhex(signature.removeprefix("0x"))
            require_signer(self._deployment.staking_domain, report, raw, report.settler)
        except (RemoteProtocolError, ValueError) as exc:
            raise self._refuse(request, "EMC-1749", "the report is not signed by its settler") from exc

    def _require_signed(self, request: Request, wallet: Address, asked: Extraction, signature: str) -> bytes:
        """Raises: ApiError 401 and 429, for a signature that is not the wallet's."""
        try:
            raw = bytes.fromhex(signature.removeprefix("0x"))
            if asked.wallet != wallet:
                raise RemoteProtocolError("EMC-1495", f"the request is of wallet {asked.wallet}")
            require_signer(self._deployment.distributor_domain, asked, raw, wallet)
        except (RemoteProtocolError, ValueError) as exc:
            detail = "the signature is not the wallet's for this request"
            raise self._refuse(request, "EMC-1746", detail) from exc
        return raw

    def _refuse(self, request: Request, code: str, detail: str) -> ApiError:
        """Count a wrong signature. Returns: the answer to it."""
        refusal = self._guard.refuse(request.scope)
        return refusal if refusal.status == 429 else ApiError(code, detail, 401)

    def _require_sensible(self, asked: Extraction) -> None:
        """Raises: ApiError 400, 404."""
        now_s = self._clock.now_ms() // 1000
        fault = ""
        if asked.recipient == ZERO_ADDRESS:
            fault = "the recipient is the zero address"
        elif not now_s < asked.deadline <= now_s + MAX_VALID_S:
            fault = "the deadline must be in the future, at most a year away"
        elif asked.through_round > self._reader.current_round():
            fault = "through_round is a round to come"
        if fault:
            raise ApiError("EMC-1744", fault, 400, param="extraction")

    async def _require_participant(self, wallet: Address) -> None:
        """Others could fill the books. Raises: ApiError 404."""
        if not self._has_wallet(wallet) and not await self._ledger.read(
            lambda con: list_wallet_results(con, wallet, 1)
        ):
            raise ApiError("EMC-1747", "no participant of this network is bound to the wallet", 404)


def _show_rewards(wallet: Address, found: WalletRewards) -> dict[str, Any]:
    proof = None
    if found.tree is not None and found.tree.cumulative_wei(wallet):
        proof = {
            "round": found.active_round,
            "root": hex_hash(found.tree.root),
            "cumulative_wei": str(found.tree.cumulative_wei(wallet)),
            "proof": [hex_hash(item) for item in found.tree.proof(wallet)],
        }
    stages = found.stages
    return {
        "wallet": wallet,
        "accrued_wei": str(sum(int(item.estimate_wei) for item in found.accrued)),
        "accrued_is_estimate": True,
        "accrued": found.accrued,
        "settled_wei": str(stages.settled_wei),
        "published_wei": str(stages.published_wei),
        "claimable_wei": str(stages.claimable_wei),
        "claimed_wei": str(stages.claimed_wei),
        "total_wei": str(stages.total_wei),
        "rounds": found.results,
        "proof": proof,
    }


def _read_limit(request: Request, most: int) -> int:
    text = request.query_params.get("limit", str(most))
    if not text.isascii() or not text.isdigit() or not 0 < int(text[:6]) <= most:
        raise ApiError("EMC-1744", f"limit must be 1 to {most}", 400, param="limit")
    return int(text)


def _read_cursor(text: str | None, parts: int) -> list[str] | None:
    """A page's cursor as `next` gave it: numbers and addresses by dots. Raises: ApiError 400."""
    if not text:
        return None
    found = text.split(".")
    numbers = [found[0], found[-1]]
    in_range = all(n.isascii() and n.isdigit() and len(n) <= 78 for n in numbers)
    if len(found) != parts or not in_range or int(found[0]) >= 2**62 or int(found[-1]) >= 2**256:
        raise ApiError("EMC-1744", "the cursor is not one that `next` gave", 400)
    return found
