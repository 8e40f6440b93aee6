"""The public listener's application: calls take the short way, everything else goes to `cold`.

No framework on the way of a call: one look at the path, the key, the body, then the gateway.
Invariant: whatever goes wrong before a node answers, the client gets a body in OpenAI's shape.
"""

from __future__ import annotations

import msgspec
import structlog

from emcd.errors import EmcdError
from emcd.net.http_exchange import ASGIApp, ClientGoneError, Receive, Scope, Send
from emcd.proto.openai import (
    ENDPOINTS,
    Endpoint,
    RequestError,
    UpstreamRequest,
    parse_providers,
    read_request,
)
from emcd_hub.api.auth import KeyGate
from emcd_hub.api.error import SERVER, ApiError, from_request_error, wrong_method
from emcd_hub.api.reply import Reply
from emcd_hub.calls.gateway import Gateway
from emcd_hub.metrics import count_refused

_PROVIDER = b"x-emc-provider"


class PublicApp:
    """ASGI 3."""

    def __init__(
        self, gate: KeyGate, gateway: Gateway, cold: ASGIApp, log: structlog.stdlib.BoundLogger
    ) -> None:
        self._gate = gate
        self._gateway = gateway
        self._cold = cold
        self._log = log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        endpoint = ENDPOINTS.get(scope["path"])
        if endpoint is None:
            await self._cold(scope, receive, send)
            return
        reply = Reply(send)
        try:
            await self._call(endpoint, scope, receive, reply)
        except ClientGoneError:
            raise
        except RequestError as exc:
            await self._refuse(reply, from_request_error(exc))
        except ApiError as exc:
            await self._refuse(reply, exc)
        except EmcdError as exc:
            self._log.error("call failed", code=exc.code, detail=exc.detail)
            if reply.begun:
                raise
            await self._refuse(reply, ApiError(exc.code, "the hub has a fault", 500, kind=SERVER))

    async def _call(self, endpoint: Endpoint, scope: Scope, receive: Receive, reply: Reply) -> None:
        if scope["method"] != "POST":
            raise wrong_method(scope["method"])
        key = self._gate.require_key(scope)
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError("the client left before its request was whole")
        body: bytes = message["body"]
        if message["more_body"]:
            body += await _read_rest(receive)
        request = read_request(endpoint, body)
        for name, value in scope["headers"]:
            if name == _PROVIDER:
                request = _with_provider(request, value)
        await self._gateway.serve(key.account_id, request, reply)

    async def _refuse(self, reply: Reply, error: ApiError) -> None:
        count_refused(error.code)
        await reply.whole(error.status, error.headers, error.body)


async def _read_rest(receive: Receive) -> bytes:
    """The rest of a body; its size is the listener's to limit."""
    pieces = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError("the client left before its request was whole")
        pieces.append(message["body"])
        if not message["more_body"]:
            return b"".join(pieces)


def _with_provider(request: UpstreamRequest, value: bytes) -> UpstreamRequest:
    """The header's choice of nodes. Raises: RequestError EMC-1702."""
    names = [part.strip() for part in value.decode("latin-1").split(",")]
    only = parse_providers(list(names))
    if request.only and set(request.only) != set(only):
        raise RequestError("EMC-1702", "provider.only and x-emc-provider name different nodes", "provider")
    return msgspec.structs.replace(request, only=only)
