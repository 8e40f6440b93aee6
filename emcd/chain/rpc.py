"""Ethereum JSON-RPC over one or more endpoints: deadlines, fail-over, agreement, a pinned chain id.

Invariants: no value is taken from an endpoint whose chain id was not checked within the last minute;
every call ends within its deadline; an endpoint that stalls, cuts, lies about the framing or answers
for another request costs one try; with `agree` above 1, what decides money (see `agreement`) is given
only when that many endpoints say the same. What a node says is material: callers check it still.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, Protocol

import trio

from emcd.chain.agreement import (
    ABSENT,
    Answer,
    Comparison,
    at_block,
    compare_how,
    count_votes,
    describe_dissent,
    read_number,
    read_vote,
)
from emcd.chain.asking import HEDGE_S, Asker
from emcd.chain.endpoint import Endpoint, EndpointPool
from emcd.chain.revert import CallReverted
from emcd.chain.wire import Post, RpcRefused, Wire, error_from, post_http
from emcd.errors import RecoverableError

__all__ = ["CallReverted", "JsonRpc", "Rpc", "RpcRefused", "accuse", "error_from"]


STALE_S = 30.0
"""A head that has not moved for so long makes us ask the other endpoints for theirs."""
FAR_BEHIND = 3
"""Blocks behind the agreed head that are no longer a matter of moments."""
_HEIGHTS_KEPT = 256
"""Of how many questions we remember how high the answer was: a head, and a nonce of each account."""


class Rpc(Protocol):
    """What the chain's code needs of a node: over HTTP, or in process."""

    async def call(self, method: str, *params: Any) -> Any:
        """Raises: RecoverableError, RpcRefused, CallReverted, FatalError EMC-1501."""
        ...


class JsonRpc:
    """A chain behind one or more RPC URLs; `agree` of them must say the same where it decides money."""

    def __init__(
        self,
        urls: Sequence[str],
        chain_id: int,
        *,
        timeout_s: float = 10.0,
        agree: int = 1,
        post: Post = post_http,
    ) -> None:
        self.chain_id = chain_id
        self.agree = agree
        self._pool = EndpointPool(tuple(urls))
        if not 1 <= agree <= len(self._pool.endpoints):
            raise ValueError(f"{len(urls)} endpoints can't agree {agree} times")
        self._timeout_s = timeout_s
        self._asker = Asker(self._pool, Wire(post), chain_id)
        self._answered: dict[str, Endpoint] = {}
        self._split = ""
        self._head = (-1, 0.0)
        self._heights: dict[str, tuple[int, float]] = {}
        self._lag = ""

    @property
    def problem(self) -> str:
        """Endpoints that disagree, or were caught in an untrue answer; "" when all is well."""
        return "; ".join(text for text in (self._split, self._lag, self._pool.problem) if text)

    def list_endpoints(self) -> list[Endpoint]:
        """The endpoints and their last errors, for `emcd doctor`."""
        return list(self._pool.endpoints)

    async def call(self, method: str, *params: Any) -> Any:
        """Ask until one endpoint answers, or until enough of them say the same.

        Raises: RecoverableError EMC-1502 (none answers, or too few), EMC-1519 (they disagree),
            RpcRefused EMC-1503, CallReverted EMC-1504, FatalError EMC-1501 (an endpoint is on another
            chain).
        Cancellation: the node may have acted on the request.
        """
        deadline = trio.current_time() + self._timeout_s
        if method == "eth_sendRawTransaction":
            return await self._broadcast(method, params, deadline)
        how = compare_how(method, params) if self.agree > 1 else Comparison.NONE
        match how:
            case Comparison.NONE:
                answer = (await self._ask_several(method, params, deadline, 1))[0]
                if self._is_stale(method, params, answer):
                    answer = await self._find_newest(method, params, deadline) or answer
                return answer.give()
            case Comparison.EQUAL:
                return await self._ask_agreed(method, params, deadline)
            case Comparison.HEAD:
                return await self._ask_head(method, params, deadline)
            case Comparison.LEAST:
                return hex(await self._find_height(method, params, deadline))
            case Comparison.MOST:
                answers = await self._ask_several(method, params, deadline, self.agree)
                told = [answer for answer in answers if answer.refusal is None] or answers
                return hex(max(read_number(method, answer) for answer in told))
            case Comparison.STATE_AT_HEAD:
                head = await self._ask_head("eth_getBlockByNumber", ("latest", False), deadline)
                return await self._ask_agreed(method, at_block(method, params, head["hash"]), deadline)

    async def call_elsewhere(self, method: str, *params: Any, than: str) -> Any:
        """As `call`; one endpoint's word is not that of the one which answered the method `than` last."""
        endpoint = self._answered.get(than)
        if self.agree > 1 or endpoint is None:
            return await self.call(method, *params)
        now = trio.current_time()
        order = self._pool.order(now)
        candidates = deque([e for e in order if e is not endpoint] or order)
        heard = await self._asker.gather(method, params, now + self._timeout_s, candidates, 1)
        if not heard.answers:
            raise _too_few(method, 0, 1, heard.faults)
        return heard.answers[0].give()

    async def require_chain_id(self) -> None:
        """Check every endpoint that answers. Raises: FatalError EMC-1501, RecoverableError EMC-1502."""
        faults = []
        for endpoint in self._pool.endpoints:
            try:
                await self._asker.verify(endpoint, self._timeout_s)
            except RecoverableError as exc:
                self._asker.failed(endpoint, exc.detail)
                faults.append(exc.detail)
        if len(faults) == len(self._pool.endpoints):
            raise RecoverableError("EMC-1502", "; ".join(faults))

    def accuse(self, method: str, what: str) -> None:
        """Avoid the endpoint that answered a method last: its answer was found untrue."""
        endpoint = self._answered.get(method)
        if endpoint is not None:
            self._asker.caught(endpoint, what)

    def doubt(self, method: str, what: str) -> None:
        """Ask others for a while than the endpoint that answered a method last: it may be wrong."""
        endpoint = self._answered.get(method)
        if endpoint is not None:
            self._asker.failed(endpoint, f"{endpoint.shown}: {what}", rest_s=STALE_S)

    # ------------------------------------------------------------------ asking

    async def _ask_several(
        self, method: str, params: Sequence[Any], deadline: float, wanted: int
    ) -> list[Answer]:
        """Answers of `wanted` endpoints, whatever they say. Raises: RecoverableError EMC-1502."""
        candidates = deque(self._pool.order(trio.current_time()))
        heard = await self._asker.gather(method, params, deadline, candidates, wanted)
        if len(heard.answers) < wanted:
            raise _too_few(method, len(heard.answers), wanted, heard.faults)
        self._answered[method] = heard.answers[0].endpoint
        if self.agree == 1:
            self._pool.agreed(heard.answers[0].endpoint, trio.current_time())
        return heard.answers

    def _is_stale(self, method: str, params: Sequence[Any], answer: Answer) -> bool:
        """Whether the head that this answer gives has stood still or gone back, and others could be asked."""
        if compare_how(method, params) is not Comparison.HEAD or answer.result is None:
            return False
        now = trio.current_time()
        number = read_number(method, answer)
        if number > self._head[0]:
            self._head = number, now
        is_stale = number < self._head[0] or now - self._head[1] > STALE_S
        return is_stale and len(self._pool.endpoints) > 1

    async def _find_newest(self, method: str, params: Sequence[Any], deadline: float) -> Answer | None:
        """The newest head of all endpoints; those behind it are avoided for a while."""
        soon = min(deadline, trio.current_time() + HEDGE_S)
        everybody = deque(self._pool.order(trio.current_time()))
        heard = await self._asker.gather(method, params, soon, everybody, len(everybody))
        heads = [(read_number(method, a), a) for a in heard.answers if a.result is not None]
        newest = max((number for number, _ in heads), default=-1)
        for number, answer in heads:
            if number < newest:
                error = f"stands at block {number}, another is at {newest}"
                self._asker.failed(answer.endpoint, error, rest_s=STALE_S)
        self._head = newest, trio.current_time()
        return next((answer for number, answer in heads if number == newest), None)

    async def _ask_agreed(self, method: str, params: Sequence[Any], deadline: float) -> Any:
        """What `agree` endpoints say; further ones are heard while they differ.

        Raises: RecoverableError EMC-1519 naming who said what, EMC-1502 when too few answer.
        """
        now = trio.current_time()
        suspects = self._pool.list_suspects(now)
        candidates = deque(e for e in self._pool.order(now) if e not in suspects)
        candidates.extend(suspects)
        answers: list[Answer] = []
        faults: list[str] = []
        wanted = self.agree
        while True:
            heard = await self._asker.gather(method, params, deadline, candidates, wanted)
            answers += heard.answers
            faults += heard.faults
            is_last = not candidates or trio.current_time() >= deadline
            winner = count_votes(method, answers, self.agree, is_last=is_last)
            if winner is not None:
                unheard = deque(endpoint for endpoint in suspects if endpoint in candidates)
                if unheard:
                    soon = min(deadline, trio.current_time() + HEDGE_S)
                    answers += (await self._asker.gather(method, params, soon, unheard, len(unheard))).answers
                self._judge(method, answers, winner)
                return winner.give()
            if is_last:
                break
            wanted = 1
        if len(answers) < self.agree:
            raise _too_few(method, len(answers), self.agree, faults)
        dissent = describe_dissent(method, answers)
        self._split = f"EMC-1519: {dissent}"
        raise RecoverableError("EMC-1519", dissent)

    def _judge(self, method: str, answers: Sequence[Answer], winner: Answer) -> None:
        """Hold against those who said otherwise that they did, and believe the others again."""
        self._split = ""
        self._answered[method] = winner.endpoint
        vote = read_vote(method, winner)
        for answer in answers:
            match read_vote(method, answer):
                case said if said == vote:
                    self._pool.agreed(answer.endpoint, trio.current_time())
                case said if ABSENT not in (said, vote):
                    self._asker.caught(answer.endpoint, describe_dissent(method, (answer, winner)))

    async def _ask_head(self, method: str, params: Sequence[Any], deadline: float) -> Any:
        """The newest block that `agree` endpoints have, and have the same."""
        number = await self._find_height(method, params, deadline)
        return await self._ask_agreed(method, (hex(number), *params[1:]), deadline)

    async def _find_height(self, method: str, params: Sequence[Any], deadline: float) -> int:
        """What `agree` endpoints have reached. All are asked at first, when it stands still, or falls."""
        answers = await self._ask_several(method, params, deadline, self.agree)
        number = min(read_number(method, answer) for answer in answers)
        question = repr((method, params))
        before, since = self._heights.pop(question, (-1, 0.0))
        now = trio.current_time()
        is_still = before >= 0 and now - since > STALE_S
        if before < 0 or number < before or is_still:
            number, lag = await self._find_highest(method, params, deadline, number)
            since = now
            self._lag = lag if is_still else self._lag
        if number > before and method != "eth_getTransactionCount":
            self._lag = ""
        self._heights[question] = number, now if number > before else since
        if len(self._heights) > _HEIGHTS_KEPT:
            del self._heights[next(iter(self._heights))]
        return number

    async def _find_highest(
        self, method: str, params: Sequence[Any], deadline: float, found: int
    ) -> tuple[int, str]:
        """The highest that `agree` of all endpoints have reached, and who keeps it from being more.

        Those far behind are avoided for a while.
        """
        everybody = deque(self._pool.order(trio.current_time()))
        soon = min(deadline, trio.current_time() + HEDGE_S)
        heard = await self._asker.gather(method, params, soon, everybody, len(everybody))
        heights = []
        for answer in heard.answers:
            try:
                heights.append((read_number(method, answer), answer.endpoint))
            except (RecoverableError, RpcRefused, CallReverted):
                continue
        heights.sort(key=lambda one: one[0], reverse=True)
        if len(heights) < self.agree:
            return found, self._lag
        highest = heights[self.agree - 1][0]
        if method == "eth_getTransactionCount":
            return highest, self._lag
        for number, endpoint in heights:
            if number < highest - FAR_BEHIND:
                error = f"stands at block {number}, others are at {highest}"
                self._asker.failed(endpoint, error, rest_s=STALE_S)
        return highest, _describe_lag(heights[0], heights[self.agree - 1])

    async def _broadcast(self, method: str, params: Sequence[Any], deadline: float) -> Any:
        """Send a transaction to every endpoint: one that swallows it keeps it from nobody."""
        heard = await self._asker.broadcast(method, params, deadline)
        if not heard.answers:
            raise _too_few(method, 0, 1, heard.faults)
        taken = [answer for answer in heard.answers if answer.refusal is None]
        return (taken or heard.answers)[0].give()


def accuse(rpc: Rpc, method: str, what: str) -> None:
    """Tell a client of several endpoints that the last answer to a method was untrue."""
    if isinstance(rpc, JsonRpc):
        rpc.accuse(method, what)


async def call_elsewhere(rpc: Rpc, method: str, *params: Any, than: str) -> Any:
    """Ask another endpoint, where there are several, than the one that answered the method `than` last."""
    if isinstance(rpc, JsonRpc):
        return await rpc.call_elsewhere(method, *params, than=than)
    return await rpc.call(method, *params)


def doubt(rpc: Rpc, method: str, what: str) -> None:
    """Tell a client of several endpoints that the last answer to a method may have been wrong."""
    if isinstance(rpc, JsonRpc):
        rpc.doubt(method, what)


def _describe_lag(first: tuple[int, Endpoint], agreed: tuple[int, Endpoint]) -> str:
    if agreed[0] >= first[0] - FAR_BEHIND:
        return ""
    return f"{agreed[1].shown} is at block {agreed[0]}, {first[1].shown} at {first[0]}"


def _too_few(method: str, found: int, wanted: int, faults: Sequence[str]) -> RecoverableError:
    many = f"{found} of the {wanted} endpoints that must agree answered; " if wanted > 1 else ""
    return RecoverableError("EMC-1502", f"{method}: {many}{'; '.join(faults) or 'deadline passed'}")
