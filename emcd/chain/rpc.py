"""Ethereum JSON-RPC over `emcd.net`: deadlines, fail-over, a pinned chain id, numbered errors.

Invariants: no value is taken from an endpoint whose chain id was not checked; every call ends
within its deadline; an endpoint that stalls, cuts, lies about the framing or answers for another
request costs one try. What a node says is material: callers still check hashes and shapes.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from itertools import count
from typing import Any, Protocol

import msgspec
import trio

from emcd.chain.endpoint import Endpoint, EndpointPool
from emcd.chain.revert import CallReverted, decode_revert
from emcd.errors import EmcdError, FatalError, RecoverableError
from emcd.net.http_client import Response, request

MAX_ANSWER_BYTES = 16 << 20
_TRY_ELSEWHERE = frozenset((-32005, -32603, -32002, -32001, 429))
"""Limits and internal errors: another endpoint may do it. Logs are asked for in smaller pieces instead."""

Post = Callable[[str, bytes, float], Awaitable[Response]]


class Rpc(Protocol):
    """What the chain's code needs of a node: over HTTP, or in process."""

    async def call(self, method: str, *params: Any) -> Any:
        """Raises: RecoverableError, RpcRefused, CallReverted, FatalError EMC-1501."""
        ...


class RpcRefused(EmcdError):
    """EMC-1503: the node understood and said no; `rpc_code` and `message` are its words."""

    def __init__(self, method: str, rpc_code: int, message: str) -> None:
        super().__init__("EMC-1503", f"{method}: {message} ({rpc_code})")
        self.rpc_code = rpc_code
        self.message = message


async def _post(url: str, body: bytes, timeout_s: float) -> Response:
    return await request(
        "POST",
        url,
        body=body,
        headers={"content-type": "application/json"},
        timeout_s=timeout_s,
        max_bytes=MAX_ANSWER_BYTES,
    )


class JsonRpc:
    """A chain behind one or more RPC URLs."""

    def __init__(
        self, urls: Sequence[str], chain_id: int, *, timeout_s: float = 10.0, post: Post = _post
    ) -> None:
        self.chain_id = chain_id
        self._pool = EndpointPool(tuple(urls))
        self._timeout_s = timeout_s
        self._post = post
        self._ids = count(1)

    async def call(self, method: str, *params: Any) -> Any:
        """Ask the first endpoint that answers.

        Raises: RecoverableError EMC-1502, RpcRefused EMC-1503, CallReverted EMC-1504,
            FatalError EMC-1501 (an endpoint is on another chain).
        Cancellation: the node may have acted on the request.
        """
        deadline = trio.current_time() + self._timeout_s
        endpoints = self._pool.order(trio.current_time())
        faults = []
        for position, endpoint in enumerate(endpoints):
            left = deadline - trio.current_time()
            if left <= 0:
                break
            share = left / (len(endpoints) - position)
            try:
                await self._verify(endpoint, share)
                result = await self._ask(endpoint, method, params, share)
            except RecoverableError as exc:
                self._pool.failed(endpoint, trio.current_time(), exc.detail)
                faults.append(exc.detail)
                continue
            self._pool.succeeded(endpoint)
            return result
        raise RecoverableError("EMC-1502", f"{method}: {'; '.join(faults) or 'deadline passed'}")

    async def require_chain_id(self) -> None:
        """Check every endpoint that answers. Raises: FatalError EMC-1501, RecoverableError EMC-1502."""
        answered = 0
        for endpoint in self._pool.endpoints:
            try:
                await self._verify(endpoint, self._timeout_s)
                answered += 1
            except RecoverableError as exc:
                self._pool.failed(endpoint, trio.current_time(), exc.detail)
        if not answered:
            raise RecoverableError("EMC-1502", "; ".join(e.last_error for e in self._pool.endpoints))

    def list_endpoints(self) -> list[Endpoint]:
        """The endpoints and their last errors, for `emcd doctor`."""
        return list(self._pool.endpoints)

    async def _verify(self, endpoint: Endpoint, timeout_s: float) -> None:
        if endpoint.verified:
            return
        answer = await self._ask(endpoint, "eth_chainId", (), timeout_s)
        try:
            found = int(answer, 16)
        except (TypeError, ValueError):
            raise RecoverableError("EMC-1507", f"{endpoint.url}: eth_chainId is {answer!r:.60}") from None
        if found != self.chain_id:
            raise FatalError(
                "EMC-1501", f"{endpoint.url} is chain {found}, this network is on {self.chain_id}"
            )
        endpoint.verified = True

    async def _ask(self, endpoint: Endpoint, method: str, params: Sequence[Any], timeout_s: float) -> Any:
        request_id = next(self._ids)
        body = {"jsonrpc": "2.0", "id": request_id, "method": method, "params": params}
        response = await self._post(endpoint.url, msgspec.json.encode(body), timeout_s)
        answer = _read_answer(endpoint.url, response, request_id)
        if "error" in answer and answer["error"] is not None:
            raise error_from(method, answer["error"])
        if "result" not in answer:
            raise RecoverableError("EMC-1507", f"{endpoint.url}: neither result nor error")
        return answer["result"]


def _read_answer(url: str, response: Response, request_id: int) -> dict[str, Any]:
    try:
        answer = msgspec.json.decode(response.body)
    except (msgspec.DecodeError, ValueError, RecursionError):
        raise RecoverableError("EMC-1507", f"{url}: status {response.status}, no JSON") from None
    if not isinstance(answer, dict) or answer.get("id") != request_id:
        refused = isinstance(answer, dict) and answer.get("id") is None and "error" in answer
        text = str(answer["error"])[:200] if refused else "not the answer to our request"
        raise RecoverableError("EMC-1507", f"{url}: status {response.status}, {text}")
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
