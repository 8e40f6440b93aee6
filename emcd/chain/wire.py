"""JSON-RPC on the wire: one request to one endpoint, its answer read, its errors made ours.

Invariants: every request ends within its deadline; an answer of another request, or none, is a
RecoverableError; no message shows an endpoint's path, which may hold the customer's key.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from itertools import count
from typing import Any
from urllib.parse import urlsplit

import msgspec

from emcd.chain.endpoint import Endpoint
from emcd.chain.revert import CallReverted, decode_revert
from emcd.errors import EmcdError, RecoverableError
from emcd.net.http_client import Response, request

MAX_ANSWER_BYTES = 16 << 20
_TRY_ELSEWHERE = frozenset((-32005, -32603, -32002, -32001, 429))
"""Limits and internal errors: another endpoint may do it. Logs are asked for in smaller pieces instead."""

Post = Callable[[str, bytes, float], Awaitable[Response]]


class RpcRefused(EmcdError):
    """EMC-1503: the node understood and said no; `rpc_code` and `message` are its words."""

    def __init__(self, method: str, rpc_code: int, message: str) -> None:
        super().__init__("EMC-1503", f"{method}: {message} ({rpc_code})")
        self.rpc_code = rpc_code
        self.message = message


async def post_http(url: str, body: bytes, timeout_s: float) -> Response:
    """Send a request over HTTP. Raises: RecoverableError EMC-13xx."""
    return await request(
        "POST",
        url,
        body=body,
        headers={"content-type": "application/json"},
        timeout_s=timeout_s,
        max_bytes=MAX_ANSWER_BYTES,
    )


class Wire:
    """Asks endpoints; keeps nothing but the number of the next request."""

    def __init__(self, post: Post) -> None:
        self._post = post
        self._ids = count(1)

    async def ask(self, endpoint: Endpoint, method: str, params: Sequence[Any], timeout_s: float) -> Any:
        """The result of one request.

        Raises: RecoverableError EMC-13xx, EMC-1507, RpcRefused EMC-1503, CallReverted EMC-1504.
        Cancellation: the node may have acted on the request.
        """
        request_id = next(self._ids)
        body = {"jsonrpc": "2.0", "id": request_id, "method": method, "params": params}
        try:
            response = await self._post(endpoint.url, msgspec.json.encode(body), timeout_s)
        except RecoverableError as exc:
            raise RecoverableError(exc.code, _hide(exc.detail, endpoint)) from exc
        answer = _read_answer(endpoint.shown, response, request_id)
        if "error" in answer and answer["error"] is not None:
            raise error_from(method, answer["error"])
        if "result" not in answer:
            raise RecoverableError("EMC-1507", f"{endpoint.shown}: neither result nor error")
        return answer["result"]


def _hide(text: str, endpoint: Endpoint) -> str:
    """A message without the endpoint's path."""
    if endpoint.url == endpoint.shown:
        return text
    path = urlsplit(endpoint.url).path
    shown = text.replace(endpoint.url, endpoint.shown)
    return shown.replace(path, "/...") if len(path) > 1 else shown


def _read_answer(shown: str, response: Response, request_id: int) -> dict[str, Any]:
    try:
        answer = msgspec.json.decode(response.body)
    except (msgspec.DecodeError, ValueError, RecursionError):
        raise RecoverableError("EMC-1507", f"{shown}: status {response.status}, no JSON") from None
    if not isinstance(answer, dict) or answer.get("id") != request_id:
        refused = isinstance(answer, dict) and answer.get("id") is None and "error" in answer
        text = str(answer["error"])[:200] if refused else "not the answer to our request"
        raise RecoverableError("EMC-1507", f"{shown}: status {response.status}, {text}")
    return answer


def error_from(method: str, error: Any) -> EmcdError:
    """A node's error object as ours: a revert, a refusal, or a reason to try elsewhere."""
    if not isinstance(error, dict):
        return RecoverableError("EMC-1507", f"{method}: error {error!r:.100}")
    code = error.get("code")
    code = code if isinstance(code, int) else 0
    message = str(error.get("message", ""))[:500]
    data = _revert_data(error.get("data"))
    if code == 3 or "revert" in message.lower() or (data and method in ("eth_call", "eth_estimateGas")):
        return CallReverted(decode_revert(data, message), method)
    if code in _TRY_ELSEWHERE and method != "eth_getLogs":
        return RecoverableError("EMC-1507", f"{method}: {message} ({code})")
    return RpcRefused(method, code, message)


def _revert_data(data: Any) -> bytes:
    """Nodes give it as text, as text behind "Reverted ", or in an object."""
    if isinstance(data, dict):
        data = data.get("data") or data.get("result")
    if isinstance(data, str):
        text = data.removeprefix("Reverted ")
        if text.startswith("0x"):
            try:
                return bytes.fromhex(text[2:])
            except ValueError:
                return b""
    return b""
