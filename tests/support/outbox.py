"""Doubles for the outbox: a store in memory, and wrappers that crash or lie at a chosen moment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

FINAL = ("confirmed", "failed", "replaced")


@dataclass(frozen=True)
class Row:
    sender: str
    key: str
    to_address: str
    data: bytes
    value_wei: int
    label: str
    gas: int
    state: str = "intent"
    nonce: int | None = None
    tx_hash: bytes | None = None
    block: int | None = None
    block_hash: bytes | None = None
    gas_used: int = 0
    fee_wei: int = 0
    error_name: str = ""
    detail: str = ""


@dataclass(frozen=True)
class Attempt:
    key: str
    tx_hash: bytes
    raw: bytes
    max_fee_wei: int
    tip_wei: int
    signed_at_ms: int = 0


class MemoryStore:
    """An OutboxStore that forgets at the end of the test."""

    def __init__(self) -> None:
        self.rows: dict[str, Row] = {}
        self.attempts: list[Attempt] = []

    async def add(self, sender: str, key: str, **fields: Any) -> Row:
        return self.rows.setdefault(key, Row(sender, key, **fields))

    async def find(self, sender: str, key: str) -> Row | None:
        return self.rows.get(key)

    async def list_open(self, sender: str) -> Sequence[Row]:
        return [r for r in self.rows.values() if r.state not in FINAL]

    async def assign(self, sender: str, key: str, *, least_nonce: int, gas: int) -> Row:
        row = self.rows[key]
        if row.nonce is None:
            used = [r.nonce + 1 for r in self.rows.values() if r.nonce is not None]
            self.rows[key] = replace(row, nonce=max([least_nonce, *used]), gas=gas, state="ready")
        return self.rows[key]

    async def add_attempt(self, sender: str, key: str, *, gas: int = 0, **fields: Any) -> None:
        if gas:
            self.rows[key] = replace(self.rows[key], gas=gas)
        if fields["tx_hash"] not in [a.tx_hash for a in self.attempts]:
            self.attempts.append(Attempt(key, **fields))

    async def list_attempts(self, sender: str, key: str) -> Sequence[Attempt]:
        return [a for a in self.attempts if a.key == key]

    async def set_state(self, sender: str, key: str, state: str, **fields: Any) -> None:
        row = self.rows[key]
        if row.state not in FINAL:
            blank = Row(
                row.sender, key, row.to_address, row.data, row.value_wei, row.label, row.gas, nonce=row.nonce
            )
            self.rows[key] = replace(blank, state=state, **fields)

    async def list_settled(self, sender: str, depth: int) -> Sequence[Row]:
        rows = [r for r in self.rows.values() if r.state in FINAL and r.block is not None]
        newest = max((r.block or 0 for r in rows), default=0)
        recent = [r for r in rows if (r.block or 0) > newest - depth]
        return sorted(recent, key=lambda r: (r.block or 0, r.nonce or 0), reverse=True)

    async def reopen(self, sender: str, key: str, *, detail: str) -> None:
        row = self.rows[key]
        if row.state in FINAL and row.nonce is not None:
            self.rows[key] = replace(
                row, state="ready", detail=detail, tx_hash=None, block=None, block_hash=None
            )

    async def fetch_promised_wei(self, sender: str, *, within_ms: int, besides: str) -> int:
        promised = 0
        for row in self.rows.values():
            fees = [a.max_fee_wei for a in self.attempts if a.key == row.key != besides]
            if fees and row.state != "replaced":
                promised += row.fee_wei or row.gas * max(fees)
        return promised


class Crash(Exception):
    """The process dies here."""


class CrashPoint:
    """Counts the steps of everything it wraps and dies before or after step number `at`."""

    def __init__(self, at: int, after: bool) -> None:
        self.left = at
        self.after = after
        self.crashed = False

    def wrap(self, target: Any) -> Any:
        return _Wrapped(target, self)


class _Wrapped:
    def __init__(self, target: Any, point: CrashPoint) -> None:
        self._target, self._point = target, point

    def __getattr__(self, name: str) -> Any:
        function = getattr(self._target, name)

        async def call(*args: Any, **kwargs: Any) -> Any:
            point = self._point
            point.left -= 1
            if point.left == 0 and not point.after:
                point.crashed = True
                raise Crash
            result = await function(*args, **kwargs)
            if point.left == 0:
                point.crashed = True
                raise Crash
            return result

        return call


class LyingRpc:
    """Passes calls on, except those that a test answers itself; keeps what was sent."""

    def __init__(self, rpc: Any) -> None:
        self.rpc = rpc
        self.sent: list[bytes] = []
        self.answers: dict[str, Any] = {}

    async def call(self, method: str, *params: Any) -> Any:
        if method == "eth_sendRawTransaction":
            self.sent.append(bytes.fromhex(params[0][2:]))
        if method in self.answers:
            answer = self.answers[method]
            answer = answer(*params) if callable(answer) else answer
            if isinstance(answer, Exception):
                raise answer
            return answer
        return await self.rpc.call(method, *params)
