"""What anybody may see of the network's service: its models and its nodes. No key, no accounts."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from emcd.clock import Clock
from emcd.errors import RemoteProtocolError
from emcd.inference.manifest import canonical_json
from emcd.ledger import Ledger
from emcd.proto.address import hex_hash, parse_address
from emcd.proto.json_form import to_json
from emcd.types import ZERO_ADDRESS
from emcd_hub.api.error import ApiError
from emcd_hub.api.page import answer
from emcd_hub.api.verification import show_conduct, show_count, show_drift, show_verification
from emcd_hub.counts.count_row import list_counts
from emcd_hub.counts.desk import CountDesk
from emcd_hub.in_force import InForce
from emcd_hub.nodes.board import NodeBoard, NodeEntry
from emcd_hub.nodes.model_book import ModelBook, ModelNumbers
from emcd_hub.nodes.status import ModelInfo
from emcd_hub.nodes.suspension import SuspensionWatch

COUNTS_SHOWN = 100
_HASH = re.compile(r"0x[0-9a-f]{64}")


@dataclass(frozen=True)
class NetworkPages:
    """Handlers and what they look at."""

    board: NodeBoard
    models: ModelBook
    in_force: InForce
    clock: Clock
    suspension: SuspensionWatch
    counts: CountDesk
    ledger: Ledger

    def routes(self) -> list[Route]:
        return [
            Route("/api/models", self.list_models),
            Route("/api/models/{model_hash}", self.get_manifest),
            Route("/api/nodes", self.list_nodes),
            Route("/api/nodes/{address}/counts", self.list_counts),
        ]

    async def list_models(self, _: Request) -> Response:
        """Every model that is served, or was in the last day: where, for how much, how fast, how reliably."""
        served = self.board.list_models()
        for name, infos in self.board.list_delisted().items():
            served[name] = served.get(name, []) + infos
        online = self.board.count_serving()
        names = sorted(served.keys() | set(self.models.list_names()))
        return answer({"models": [self._model(name, served.get(name, []), online) for name in names]})

    async def get_manifest(self, request: Request) -> Response:
        """A manifest that can be verified, in the one byte form that its hash is over."""
        text = request.path_params["model_hash"].lower()
        if _HASH.fullmatch(text) is None:
            raise ApiError("EMC-1702", "a model's hash is 0x and 64 hex digits", 400, param="model_hash")
        wanted = bytes.fromhex(text[2:])
        listed = (*self.board.list_models().values(), *self.board.list_delisted().values())
        for infos in listed:
            for info in infos:
                if info.model_hash == wanted and info.checked is not None:
                    return Response(canonical_json(info.checked), media_type="application/json")
        raise ApiError(
            "EMC-1707", "no node here serves a model of that manifest", 404, openai_code="model_not_found"
        )

    async def list_counts(self, request: Request) -> Response:
        """The newest of a node's calls whose tokens were counted again."""
        try:
            node = parse_address(request.path_params["address"])
        except RemoteProtocolError as exc:
            raise ApiError("EMC-1702", exc.detail, 400, param="address") from None
        rows = await self.ledger.read(lambda con: list_counts(con, node, COUNTS_SHOWN))
        return answer({"node": node, "counts": [show_count(row) for row in rows]})

    async def list_nodes(self, _: Request) -> Response:
        now_ms = self.clock.now_ms()
        entries = sorted(self.board.list_entries(), key=lambda entry: entry.address.lower())
        return answer({"nodes": [self._node(entry, now_ms) for entry in entries]})

    def _model(
        self, name: str, infos: list[ModelInfo], online: dict[tuple[str, bytes], int]
    ) -> dict[str, Any]:
        row: dict[str, Any] = {
            "name": name,
            "nodes_online": sum(online.get((name, info.model_hash), 0) for info in infos),
            "manifests": [self._manifest(info, online.get((name, info.model_hash), 0)) for info in infos],
        }
        numbers = self.models.numbers(name)
        return row if numbers is None else row | _numbers(numbers)

    def _manifest(self, info: ModelInfo, nodes: int) -> dict[str, Any]:
        now_ms = self.clock.now_ms()
        standing = self.in_force.params(now_ms).standing_of(info.model_hash)
        return {
            "model_hash": hex_hash(info.model_hash),
            "nodes_online": nodes,
            "endpoints": sorted(endpoint.path for endpoint in info.endpoints),
            "quantization": info.quantization or None,
            "context_tokens": info.context_tokens,
            "price": to_json(self.in_force.price(info.model_hash, now_ms)),
            "verification": show_verification(info, standing),
        }

    def _node(self, entry: NodeEntry, now_ms: int) -> dict[str, Any]:
        status = entry.status
        return {
            "address": entry.address,
            "router": None if entry.router == ZERO_ADDRESS else entry.router,
            "online": self.board.is_online(entry, now_ms),
            "link": "live" if entry.live else "lost",
            "breaker": entry.breaker.value,
            "suspended": entry.suspended,
            "verification": show_conduct(
                self.suspension.find_verdicts(entry.address), self.suspension.find_conduct(entry.address)
            ),
            "models": [self._served(entry, info) for _, info in sorted(entry.models.items())],
            "capacity": status.capacity if status else 0,
            "in_flight": entry.in_flight,
            "version": status.version if status else "",
            "gpu": status.gpu if status else "",
            "last_status_at_ms": entry.seen_at_ms,
        }

    def _served(self, entry: NodeEntry, info: ModelInfo) -> dict[str, Any]:
        speed = entry.record.speeds.get(info.name)
        first_s = None if speed is None else speed.first_s
        return {
            "name": info.name,
            "model_hash": hex_hash(info.model_hash),
            "first_token_ms": _rounded(None if first_s is None else first_s * 1000),
            "tokens_per_s": _rounded(None if speed is None else speed.tokens_per_s),
            "token_drift": show_drift(self.counts.find(entry.address, info.model_hash)),
        }


def _numbers(numbers: ModelNumbers) -> dict[str, Any]:
    return {
        "first_token_p50_ms": _rounded(numbers.first_token_p50_ms),
        "first_token_p95_ms": _rounded(numbers.first_token_p95_ms),
        "tokens_per_s_p50": _rounded(numbers.tokens_per_s_p50),
        "uptime_24h": round(numbers.uptime, 4),
        "calls_24h": numbers.calls,
        "error_share_24h": round(numbers.faults / numbers.calls, 4) if numbers.calls else 0.0,
        "since_ms": numbers.since_ms,
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)
