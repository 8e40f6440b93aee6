"""GET /api/routers: the routers that are connected, for everybody."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from emcd.clock import Clock
from emcd_hub.api.page import answer
from emcd_hub.routers.gate import RouterGate
from emcd_hub.routers.session import RouterSession


@dataclass(frozen=True)
class RouterPages:
    """The handler and what it looks at."""

    gate: RouterGate
    clock: Clock

    def routes(self) -> list[Route]:
        return [Route("/api/routers", self.list_routers)]

    async def list_routers(self, _: Request) -> Response:
        now_ms = self.clock.now_ms()
        return answer({"routers": [_show(session, now_ms) for session in self.gate.list_sessions()]})


def _show(session: RouterSession, now_ms: int) -> dict[str, object]:
    """`nodes` is the hub's count; the rest is what the router says of itself."""
    status = session.status
    return {
        "address": session.address,
        "region": "" if status is None else status.region,
        "version": "" if status is None else status.version,
        "nodes": len(session.links),
        "in_flight": 0 if status is None else status.in_flight,
        "since_ms": session.since_ms,
        "status_age_ms": None if status is None else max(0, now_ms - session.status_at_ms),
    }
