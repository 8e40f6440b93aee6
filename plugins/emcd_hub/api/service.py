"""The service's own pages: models for who has a key, receipts, health, metrics, the description of the API."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from emcd.clock import Clock
from emcd.ledger import Ledger
from emcd.metrics import CONTENT_TYPE, render_metrics
from emcd.proto.address import hex_hash
from emcd.proto.json_form import to_json
from emcd.proto.records import format_call_id, parse_call_id
from emcd.services import HealthBoard
from emcd.types import Address
from emcd_hub.api.auth import KeyGate
from emcd_hub.api.error import ApiError
from emcd_hub.api.key_error import barred_model
from emcd_hub.api.openapi import OPENAPI
from emcd_hub.api.page import answer
from emcd_hub.in_force import InForce
from emcd_hub.nodes.board import NodeBoard
from emcd_hub.records.proof import Pending, find_receipt
from emcd_hub.records.withheld import make_notes
from emcd_hub.rounds.archive_reader import ArchiveReader

PENDING_RETRY_S = 1


@dataclass(frozen=True)
class ServicePages:
    """Handlers and what they look at."""

    hub: Address
    gate: KeyGate
    board: NodeBoard
    ledger: Ledger
    clock: Clock
    in_force: InForce
    health: HealthBoard | None
    archive: ArchiveReader

    def routes(self) -> list[Route]:
        return [
            Route("/v1/models", self.list_models),
            Route("/v1/models/{model:path}", self.get_model),
            Route("/v1/calls/{call_id}/receipt", self.get_receipt),
            Route("/healthz", self.get_health),
            Route("/readyz", self.get_ready),
            Route("/metrics", self.get_metrics),
            Route("/openapi.json", self.get_openapi),
        ]

    async def list_models(self, request: Request) -> Response:
        """OpenAI's list; `manifests` beside it says what exactly is sold under the name."""
        key = self.gate.require_key(request.scope)
        names = (name for name in self.board.list_models() if key.may_use(name))
        return answer({"object": "list", "data": [self._model(name) for name in names]})

    async def get_model(self, request: Request) -> Response:
        key = self.gate.require_key(request.scope)
        name = request.path_params["model"]
        if not key.may_use(name):
            raise barred_model(name)
        if name not in self.board.list_models():
            raise ApiError("EMC-1707", "no node serves that model here", 404, openai_code="model_not_found")
        return answer(self._model(name))

    async def get_receipt(self, request: Request) -> Response:
        """The three records with their proofs, for a key of the account that paid."""
        key = self.gate.require_key(request.scope)
        call_id = parse_call_id(request.path_params["call_id"])
        found = await self.ledger.read(lambda con: find_receipt(con, self.hub, call_id))
        owner = None
        if found is not None:
            owner = found.call.account_id if isinstance(found, Pending) else found[0].account_id
        if found is None:
            archived = await self.archive.find_receipt(call_id, key.account_id)
            if archived is not None:
                return answer({**to_json(archived), "notes": None})
        if found is None or owner != key.account_id:
            raise ApiError(
                "EMC-1716", f"there is no call {format_call_id(call_id)}", 404, openai_code="not_found"
            )
        if isinstance(found, Pending):
            return answer({"state": "pending"}, 202, {"retry-after": str(PENDING_RETRY_S)})
        return answer({**to_json(found[1]), "notes": make_notes(found[0])})

    async def get_health(self, _: Request) -> Response:
        """Whether the process answers at all."""
        return answer({"state": "ok"})

    async def get_ready(self, _: Request) -> Response:
        """Whether every role of the daemon can serve."""
        if self.health is None:
            return answer({"ready": True, "roles": []})
        ready = self.health.is_ready()
        roles = [
            {"kind": r.kind, "name": r.name, "state": r.health.state.value, "reason": r.health.reason}
            for r in self.health.list_roles()
        ]
        return answer({"ready": ready, "roles": roles}, 200 if ready else 503)

    async def get_metrics(self, _: Request) -> Response:
        return Response(render_metrics(), media_type=CONTENT_TYPE)

    async def get_openapi(self, _: Request) -> Response:
        return answer(OPENAPI)

    def _model(self, name: str) -> dict[str, object]:
        infos = self.board.list_models()[name]
        return {
            "id": name,
            "object": "model",
            "created": 0,
            "owned_by": "emc",
            "manifests": [
                {
                    "model_hash": hex_hash(info.model_hash),
                    "endpoints": sorted(endpoint.value for endpoint in info.endpoints),
                    "price": to_json(self.in_force.price(info.model_hash, self.clock.now_ms())),
                }
                for info in infos
            ],
        }
