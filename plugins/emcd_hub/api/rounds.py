"""Rounds, bundles, rewards and extraction requests: what providers, validators and settlers read."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from emcd.accounting.weights import effective_stake_floor
from emcd.clock import Clock
from emcd.errors import RemoteProtocolError
from emcd.ledger import Ledger
from emcd.proto.address import address_bytes, address_from_bytes, hex_hash, parse_address
from emcd.proto.bundle import RevealEntry
from emcd.proto.json_form import from_json, to_json
from emcd.proto.messages import Extraction, Verdict
from emcd.proto.network import Deployment
from emcd.proto.records import format_call_id
from emcd.proto.signing import require_signer
from emcd.types import ZERO_ADDRESS, Address, ParticipantRole
from emcd_hub.api.auth import FailureGuard
from emcd_hub.api.error import ApiError
from emcd_hub.api.page import answer, read_json
from emcd_hub.rounds.bundle_row import ResultRow, find_data, find_facts, list_wallet_results
from emcd_hub.rounds.extraction_row import (
    Asked,
    ExtractionRow,
    find_extraction,
    insert_extraction,
    list_open_extractions,
    list_wallet_extractions,
)
from emcd_hub.rounds.reader import RoundDetail, RoundReader, RoundSummary

MAX_ROUND = 1 << 40
MAX_VALID_S = 366 * 86_400
_OPEN_STATES = ("requested", "synchronised")


class NewExtraction(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    extraction: dict[str, Any]
    signature: str


class RoundPages:
    """Handlers."""

    def __init__(
        self,
        *,
        deployment: Deployment,
        ledger: Ledger,
        clock: Clock,
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
        self._params = deployment.params
        self._ledger = ledger
        self._clock = clock
        self._reader = reader
        self._guard = guard
        self._has_wallet = has_wallet
        self._fetch_nonce = fetch_nonce

    def routes(self) -> list[Route]:
        return [
            Route("/api/rounds", self.list_rounds),
            Route("/api/rounds/{round}", self.get_round),
            Route("/api/rounds/{round}/bundle", self.get_bundle),
            Route("/api/wallets/{address}/rewards", self.get_rewards),
            Route("/api/wallets/{address}/extractions", self.list_extractions, methods=["GET"]),
            Route("/api/wallets/{address}/extractions", self.ask_extraction, methods=["POST"]),
            Route("/api/extractions", self.list_all_extractions),
        ]

    async def list_rounds(self, _: Request) -> Response:
        rounds = await self._reader.list_rounds()
        return answer(
            {"current": self._reader.current_round(), "rounds": [self._show_summary(item) for item in rounds]}
        )

    async def get_round(self, request: Request) -> Response:
        index = _read_round(request)
        detail = await self._reader.find_round(index)
        if detail is None:
            raise _no_round(index)
        return answer(self._show_detail(detail))

    async def get_bundle(self, request: Request) -> Response:
        """The canonical bytes with the hub's one seal on them."""
        index = _read_round(request)
        facts, data = await self._ledger.read(
            lambda con: (find_facts(con, index), find_data(con, index)), timeout_s=60
        )
        if facts is None or facts.seal is None or data is None:
            raise _no_round(index)
        headers = {
            "x-emc-bundle-hash": hex_hash(facts.bundle_hash),
            "x-emc-bundle-seal": hex_hash(facts.seal),
            "cache-control": "public, max-age=31536000, immutable",
        }
        return Response(data, 200, headers, "application/octet-stream")

    async def get_rewards(self, request: Request) -> Response:
        wallet = parse_address(request.path_params["address"])
        found = await self._reader.fetch_wallet(wallet)
        proof = None
        if found.tree is not None and found.tree.cumulative_wei(wallet):
            proof = {
                "round": found.active_round,
                "root": hex_hash(found.tree.root),
                "cumulative_wei": str(found.tree.cumulative_wei(wallet)),
                "proof": [hex_hash(item) for item in found.tree.proof(wallet)],
            }
        stages = found.stages
        return answer(
            {
                "wallet": wallet,
                "accrued_wei": str(found.accrued_wei),
                "accrued_is_estimate": True,
                "settled_wei": str(stages.settled_wei),
                "published_wei": str(stages.published_wei),
                "claimable_wei": str(stages.claimable_wei),
                "claimed_wei": str(stages.claimed_wei),
                "total_wei": str(stages.total_wei),
                "rounds": [
                    {"round": row.round, "node": row.node, "reward_wei": str(row.reward_wei),
                     "reason": row.entry.reason, "state": state}
                    for row, state in found.results
                ],
                "proof": proof,
            }
        )  # fmt: skip

    async def list_extractions(self, request: Request) -> Response:
        wallet = parse_address(request.path_params["address"])
        rows = await self._ledger.read(lambda con: list_wallet_extractions(con, wallet))
        active = await self._reader.find_active_round()
        return answer({"extractions": [self._show_extraction(row, active) for row in rows]})

    async def list_all_extractions(self, request: Request) -> Response:
        """What settlers work off: "requested" lists the synchronised ones too, since they are open."""
        wanted = request.query_params.get("state", "requested")
        if wanted not in _OPEN_STATES:
            raise ApiError("EMC-1744", f"state must be one of {', '.join(_OPEN_STATES)}", 400, param="state")
        rows = await self._ledger.read(list_open_extractions)
        active = await self._reader.find_active_round()
        shown = [self._show_extraction(row, active) for row in rows]
        open_rows = [item for item in shown if item["state"] in _OPEN_STATES]
        return answer(
            {"extractions": [i for i in open_rows if wanted == "requested" or i["state"] == wanted]}
        )

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
        row = await self._ledger.read(lambda con: find_extraction(con, wallet, extraction.nonce))
        assert row is not None
        return answer(self._show_extraction(row, await self._reader.find_active_round()), 202)

    def _require_signed(self, request: Request, wallet: Address, asked: Extraction, signature: str) -> bytes:
        """Raises: ApiError 401 and 429, for a signature that is not the wallet's."""
        try:
            raw = bytes.fromhex(signature.removeprefix("0x"))
            if asked.wallet != wallet:
                raise RemoteProtocolError("EMC-1495", f"the request is of wallet {asked.wallet}")
            require_signer(self._deployment.distributor_domain, asked, raw, wallet)
        except (RemoteProtocolError, ValueError) as exc:
            refusal = self._guard.refuse(request.scope)
            if refusal.status == 429:
                raise refusal from exc
            raise ApiError("EMC-1746", "the signature is not the wallet's for this request", 401) from exc
        return raw

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

    def _show_extraction(self, row: ExtractionRow, active: int) -> dict[str, Any]:
        asked = row.extraction
        state, reason = row.state, row.reason
        if state == "requested":
            if asked.deadline < self._clock.now_ms() // 1000:
                state, reason = "refused", "the deadline has passed"
            elif active >= asked.through_round:
                state = "synchronised"
        return {
            "id": row.request_id,
            "wallet": asked.wallet,
            "state": state,
            "reason": reason,
            "through_round": asked.through_round,
            "requested_at_ms": row.requested_at_ms,
            "extraction": to_json(asked),
            "signature": hex_hash(row.signature),
        }

    def _show_summary(self, item: RoundSummary) -> dict[str, Any]:
        start_ms = self._params.round_start_ms(item.round)
        shown: dict[str, Any] = {
            "round": item.round,
            "state": item.state,
            "starts_at": datetime.fromtimestamp(start_ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "starts_at_ms": start_ms,
        }
        if item.facts is not None:
            shown |= {
                "bundle_hash": hex_hash(item.facts.bundle_hash),
                "root": hex_hash(item.facts.root),
                "issue_wei": str(item.facts.issue_wei),
                "cumulative_wei": str(item.facts.cumulative_wei),
                "previous_round": item.facts.previous_round,
            }
        if item.publication is not None:
            shown |= {
                "tx_hash": hex_hash(item.publication.tx_hash),
                "active_at_s": item.publication.active_at_s,
            }
        return shown

    def _show_detail(self, detail: RoundDetail) -> dict[str, Any]:
        facts = detail.summary.facts
        verdicts = list_verdicts(detail.reveals)
        return {
            "bundle_hash": None,
            "root": None,
            "issue_wei": "0",
            "cumulative_wei": "0",
            "tx_hash": None,
            **self._show_summary(detail.summary),
            "calls": facts.calls if facts is not None else detail.calls,
            "hub_signature": hex_hash(facts.seal) if facts is not None and facts.seal is not None else None,
            "participants": [
                _show_result(row, detail.locks.get(row.node, (0, 0)), verdicts.get(row.node, []))
                for row in sorted(detail.results, key=lambda row: address_bytes(row.node))
            ],
            "attestations": [
                {"validator": address_from_bytes(key), "signature": hex_hash(item.signature)}
                for key, item in detail.attestations.items()
            ],
            "refusals": [
                {"validator": address_from_bytes(key), "code": code, "reason": reason}
                for key, (code, reason) in detail.refusals.items()
            ],
        }


def list_verdicts(reveals: list[RevealEntry]) -> dict[Address, list[dict[str, Any]]]:
    """What was revealed of each node's probes, in the order of their slots."""
    found: dict[Address, list[dict[str, Any]]] = {}
    for entry in reveals:
        for probe in entry.probes:
            known = {item.value for item in Verdict}
            found.setdefault(probe.node, []).append(
                {
                    "validator": entry.reveal.validator,
                    "slot": probe.slot,
                    "verdict": Verdict(probe.verdict).name if probe.verdict in known else str(probe.verdict),
                    "statistic_e12": str(probe.statistic_e12),
                    "call_id": format_call_id(probe.call_id) if any(probe.call_id) else None,
                }
            )
    for items in found.values():
        items.sort(key=lambda item: item["slot"])
    return found


def _show_result(row: ResultRow, lock: tuple[int, int], verdicts: list[dict[str, Any]]) -> dict[str, Any]:
    stake_wei, lock_days = lock
    roles = {item.value: item.name.lower() for item in ParticipantRole}
    return {
        "node": row.node,
        "wallet": row.wallet,
        "role": roles.get(row.role, str(row.role)),
        "credits_micro": str(row.entry.credits_micro),
        "effective_stake_wei": str(effective_stake_floor(stake_wei, row.role, lock_days)),
        "weight": str(int.from_bytes(row.entry.weight, "big")),
        "reward_wei": str(row.reward_wei),
        "reason": row.entry.reason,
        "verdicts": verdicts,
    }


def _read_round(request: Request) -> int:
    text = request.path_params["round"]
    if not text.isascii() or not text.isdigit() or len(text) > 13 or int(text) >= MAX_ROUND:
        raise ApiError("EMC-1744", "a round is a number from 0", 400, param="round")
    return int(text)


def _no_round(index: int) -> ApiError:
    return ApiError("EMC-1748", f"round {index} is not here, or not closed yet", 404, openai_code="not_found")
