"""What anybody may see of the network's service: its models and its nodes. No key, no accounts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from emcd.clock import Clock
from emcd.proto.address import hex_hash
from emcd.proto.json_form import to_json
from emcd.types import ZERO_ADDRESS
from emcd_hub.api.page import answer
from emcd_hub.in_force import InForce
from emcd_hub.nodes.board import NodeBoard, NodeEntry
from emcd_hub.nodes.model_book import ModelBook, ModelNumbers
from emcd_hub.nodes.status import ModelInfo


@dataclass(frozen=True)
class NetworkPages:
    """Handlers and what they look at."""

    board: NodeBoard
    models: ModelBook
    in_force: InForce
    clock: Clock

    def routes(self) -> list[Route]:
        return [Route("/api/models", self.list_models), Route("/api/nodes", self.list_nodes)]

    async def list_models(self, _: Request) -> Response:
        """Every model that is served, or was in the last day: where, for how much, how fast, how reliably."""
        served = self.board.list_models()
        online = self.board.count_serving()
        names = sorted(served.keys() | set(self.models.list_names()))
        return answer({"models": [self._model(name, served.get(name, []), online) for name in names]})

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
            "manifests": [self._manifest(info, online[name, info.model_hash]) for info in infos],
        }
        numbers = self.models.numbers(name)
        return row if numbers is None else row | _numbers(numbers)

    def _manifest(self, info: ModelInfo, nodes: int) -> dict[str, Any]:
        return {
            "model_hash": hex_hash(info.model_hash),
            "nodes_online": nodes,
            "endpoints": sorted(endpoint.path for endpoint in info.endpoints),
            "quantization": info.quantization or None,
            "context_tokens": info.context_tokens,
            "price": to_json(self.in_force.price(info.model_hash, self.clock.now_ms())),
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
            "models": [_served(entry, info) for _, info in sorted(entry.models.items())],
            "capacity": status.capacity if status else 0,
            "in_flight": entry.in_flight,
            "version": status.version if status else "",
            "gpu": status.gpu if status else "",
            "last_status_at_ms": entry.seen_at_ms,
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


def _served(entry: NodeEntry, info: ModelInfo) -> dict[str, Any]:
    speed = entry.record.speeds.get(info.name)
    first_s = None if speed is None else speed.first_s
    return {
        "name": info.name,
        "model_hash": hex_hash(info.model_hash),
        "first_token_ms": _rounded(None if first_s is None else first_s * 1000),
        "tokens_per_s": _rounded(None if speed is None else speed.tokens_per_s),
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)
