"""Asking endpoints: in order, a few together, one more beside each that stalls.

Owns what an answer or its lack does to an endpoint's standing. Invariants: no answer counts from an
endpoint whose chain id is not known to be right; every round of questions ends by its deadline.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Any

import trio

from emcd.chain.agreement import Answer
from emcd.chain.endpoint import Endpoint, EndpointPool
from emcd.chain.revert import CallReverted
from emcd.chain.wire import RpcRefused, Wire
from emcd.errors import FatalError, RecoverableError
from emcd.metrics import counter

HEDGE_S = 1.0
"""After that an endpoint is joined by the next: what a fail-over from one that stalls takes."""
_SLOW_METHODS = frozenset(("eth_getLogs", "eth_getBlockReceipts"))
"""Honest nodes may take longer for these: the next endpoint waits for its share of the deadline."""

FAILURES = counter("emcd_chain_rpc_failures_total", "Requests that an RPC endpoint failed.", ("endpoint",))
LIES = counter("emcd_chain_rpc_lies_total", "Untrue answers that an endpoint was caught in.", ("endpoint",))

_Said = Answer | RecoverableError | FatalError


@dataclass
class Heard:
    """What a round of questions brought."""

    answers: list[Answer] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


class Asker:
    """The endpoints of one chain, and the wire to them."""

    def __init__(self, pool: EndpointPool, wire: Wire, chain_id: int) -> None:
        self._pool = pool
        self._wire = wire
        self._chain_id = chain_id

    async def gather(
        self, method: str, params: Sequence[Any], deadline: float, candidates: deque[Endpoint], wanted: int
    ) -> Heard:
        """Ask candidates, taking them off the deque, until `wanted` of them have answered.

        Raises: FatalError EMC-1501. Cancellation: nodes may have acted on the request.
        """
        heard = Heard()
        started: dict[str, tuple[Endpoint, float]] = {}
        fatal: FatalError | None = None
        hedge_s = _hedge_s(method, _left_s(deadline), len(candidates))
        send, receive = trio.open_memory_channel[tuple[Endpoint, _Said]](len(candidates))
        together = wanted
        with trio.move_on_at(deadline):
            async with trio.open_nursery() as nursery:
                while len(heard.answers) < wanted and (candidates or started) and fatal is None:
                    while candidates and len(started) + len(heard.answers) < together:
                        endpoint = candidates.popleft()
                        started[endpoint.url] = endpoint, trio.current_time()
                        nursery.start_soon(self._attempt, endpoint, method, params, deadline, send)
                    with trio.move_on_after(hedge_s if candidates else inf) as waiting:
                        endpoint, said = await receive.receive()
                        del started[endpoint.url]
                        fatal = self._take(endpoint, said, heard)
                    if waiting.cancelled_caught:
                        together += 1
                nursery.cancel_scope.cancel()
        if fatal is not None:
            raise fatal
        self._blame(list(started.values()), hedge_s, deadline, heard)
        return heard

    async def broadcast(self, method: str, params: Sequence[Any], deadline: float) -> Heard:
        """Ask every endpoint; once one has answered, the others have `HEDGE_S` left."""
        heard = Heard()
        fatal: FatalError | None = None
        endpoints = self._pool.order(trio.current_time())
        send, receive = trio.open_memory_channel[tuple[Endpoint, _Said]](len(endpoints))
        with trio.move_on_at(deadline) as scope:
            async with trio.open_nursery() as nursery:
                for endpoint in endpoints:
                    nursery.start_soon(self._attempt, endpoint, method, params, deadline, send)
                for _ in endpoints:
                    endpoint, said = await receive.receive()
                    fatal = self._take(endpoint, said, heard) or fatal
                    if any(answer.refusal is None for answer in heard.answers):
                        scope.deadline = min(scope.deadline, trio.current_time() + HEDGE_S)
        if fatal is not None and not heard.answers:
            raise fatal
        return heard

    async def verify(self, endpoint: Endpoint, timeout_s: float) -> None:
        """Check the chain id where that was long ago.

        Raises: FatalError EMC-1501 when it was never right, RecoverableError EMC-1523 when it was.
        """
        if not endpoint.needs_check(trio.current_time()):
            return
        answer = await self._wire.ask(endpoint, "eth_chainId", (), timeout_s)
        try:
            found = int(answer, 16)
        except (TypeError, ValueError):
            raise RecoverableError("EMC-1507", f"{endpoint.shown}: eth_chainId is {answer!r:.60}") from None
        if found != self._chain_id:
            what = f"{endpoint.shown} is chain {found}, this network is on {self._chain_id}"
            if endpoint.was_right:
                self.caught(endpoint, f"answers for chain {found}")
                raise RecoverableError("EMC-1523", what)
            raise FatalError("EMC-1501", what)
        endpoint.checked_at = trio.current_time()
        endpoint.was_right = True

    def failed(self, endpoint: Endpoint, error: str, *, rest_s: float = 0.0) -> None:
        FAILURES.labels(endpoint.shown).inc()
        self._pool.failed(endpoint, trio.current_time(), error, rest_s=rest_s)

    def caught(self, endpoint: Endpoint, what: str) -> None:
        LIES.labels(endpoint.shown).inc()
        self._pool.caught(endpoint, trio.current_time(), what)

    async def _attempt(
        self,
        endpoint: Endpoint,
        method: str,
        params: Sequence[Any],
        deadline: float,
        send: trio.MemorySendChannel[tuple[Endpoint, _Said]],
    ) -> None:
        said: _Said
        try:
            await self.verify(endpoint, _left_s(deadline))
            said = Answer(endpoint, await self._wire.ask(endpoint, method, params, _left_s(deadline)))
        except (CallReverted, RpcRefused) as exc:
            said = Answer(endpoint, refusal=exc)
        except (RecoverableError, FatalError) as exc:
            said = exc
        send.send_nowait((endpoint, said))

    def _take(self, endpoint: Endpoint, said: _Said, heard: Heard) -> FatalError | None:
        match said:
            case Answer():
                self._pool.answered(endpoint)
                heard.answers.append(said)
            case RecoverableError():
                self.failed(endpoint, said.detail)
                heard.faults.append(said.detail)
            case FatalError():
                return said
        return None

    def _blame(
        self, running: Sequence[tuple[Endpoint, float]], hedge_s: float, deadline: float, heard: Heard
    ) -> None:
        """Those that had their time and said nothing."""
        now = trio.current_time()
        for endpoint, since in running:
            if now - since >= hedge_s or now >= deadline:
                error = f"{endpoint.shown}: no answer within {now - since:.1f} s"
                self.failed(endpoint, error)
                heard.faults.append(error)


def _left_s(deadline: float) -> float:
    return max(0.0, deadline - trio.current_time())


def _hedge_s(method: str, left_s: float, count: int) -> float:
    share = left_s / max(1, count)
    return share if method in _SLOW_METHODS else min(share, HEDGE_S)
