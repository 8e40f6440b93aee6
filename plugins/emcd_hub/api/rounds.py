"""Rounds and bundles: what providers, validators and settlers read."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from emcd.proto.address import address_bytes, address_from_bytes, hex_hash
from emcd.proto.bundle import RevealEntry
from emcd.proto.messages import Verdict
from emcd.proto.network import Deployment
from emcd.proto.records import format_call_id
from emcd.types import Address, ParticipantRole
from emcd_hub.api.bundle import BundlePages
from emcd_hub.api.error import ApiError
from emcd_hub.api.page import answer
from emcd_hub.rounds.bundle_row import ResultRow
from emcd_hub.rounds.reader import RoundDetail, RoundReader, RoundSummary

MAX_ROUND = 1 << 40


class RoundPages:
    """Handlers."""

    def __init__(
        self,
        *,
        deployment: Deployment,
        bundles: BundlePages,
        reader: RoundReader,
    ) -> None:
        self._params = deployment.params
        self._bundles = bundles
        self._reader = reader

    def routes(self) -> list[Route]:
        return [
            Route("/api/rounds", self.list_rounds),
            Route("/api/rounds/{round}", self.get_round),
            Route("/api/rounds/{round}/bundle", self.get_bundle),
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
        found = await self._bundles.find(request, index)
        if found is None:
            raise _no_round(index)
        return found

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
                _show_result(row, detail.effective_stakes_wei.get(row.node, 0), verdicts.get(row.node, []))
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


def _show_result(row: ResultRow, stake_wei: int, verdicts: list[dict[str, Any]]) -> dict[str, Any]:
    roles = {item.value: item.name.lower() for item in ParticipantRole}
    return {
        "node": row.node,
        "wallet": row.wallet,
        "role": roles.get(row.role, str(row.role)),
        "credits_micro": str(row.entry.credits_micro),
        "effective_stake_wei": str(stake_wei),
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
