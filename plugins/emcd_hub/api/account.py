"""An account's own pages: its balance, its statement, and the key that asks, for whoever holds one."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from emcd.clock import Clock
from emcd.ledger import Ledger
from emcd.proto.address import hex_hash
from emcd.proto.params import NetworkParams
from emcd_hub.api.auth import KeyGate
from emcd_hub.api.error import ApiError
from emcd_hub.api.key_form import show_own
from emcd_hub.api.page import answer
from emcd_hub.billing.book import AccountBook
from emcd_hub.billing.queries import AccountRow, find_account
from emcd_hub.billing.statement import MAX_ROUNDS, Amounts, RoundUsage, Statement, read_statement

DEFAULT_ROUNDS = 360
"""A month of rounds of two hours."""
MAX_ROUND = 1 << 40


class StatementDesk:
    """Makes statements, for the account's pages and the operator's."""

    def __init__(self, *, ledger: Ledger, clock: Clock, params: NetworkParams, book: AccountBook) -> None:
        self._ledger = ledger
        self._clock = clock
        self._params = params
        self._book = book

    async def find(self, request: Request, account_id: str) -> dict[str, Any] | None:
        """The statement of the rounds that a request names by `from` and `to`, both included.

        Raises: ApiError 400.
        """
        current = max(0, self._params.round_at(self._clock.now_ms()))
        last = _read_round(request, "to", current)
        first = _read_round(request, "from", max(0, last - DEFAULT_ROUNDS + 1))
        if not first <= last < first + MAX_ROUNDS:
            raise ApiError(
                "EMC-1744",
                f"a statement covers 1 to {MAX_ROUNDS} rounds, from the lower one",
                400,
                param="from",
            )
        made = await self._ledger.read(
            lambda con: read_statement(con, account_id, self._params, first, last), timeout_s=30
        )
        return None if made is None else self._show(made)

    async def find_balance(self, account_id: str) -> dict[str, Any] | None:
        """What an account has now."""
        row = await self._ledger.read(lambda con: find_account(con, account_id))
        return None if row is None else {**show_account(row), **self._show_held(account_id)}

    def _show(self, made: Statement) -> dict[str, Any]:
        return {
            "account_id": made.account_id,
            "from_round": made.from_round,
            "to_round": made.to_round,
            "opening": _amounts(made.opening),
            "movements": [
                {"kind": m.kind, "round": m.round, "at_ms": m.at_ms, **_amounts(m.amounts), "note": m.note}
                for m in made.movements
            ],
            "moved": _amounts(made.moved),
            "usage": [_show_usage(usage) for usage in made.usage],
            "used": _amounts(made.used),
            "closing": _amounts(made.closing),
            "balance": _amounts(made.balance),
            **self._show_held(made.account_id),
        }

    def _show_held(self, account_id: str) -> dict[str, Any]:
        """What calls in flight hold now: part of the balance until they end."""
        account = self._book.find(account_id)
        return {
            "reserved_micro": str(account.reserved_micro if account else 0),
            "calls_in_flight": account.calls if account else 0,
            "free_micro": str(account.free_micro if account else 0),
        }


class AccountPages:
    """Handlers of the public listener."""

    def __init__(self, gate: KeyGate, desk: StatementDesk, clock: Clock) -> None:
        self._gate = gate
        self._desk = desk
        self._clock = clock

    def routes(self) -> list[Route]:
        return [
            Route("/api/account", self.get_account),
            Route("/api/account/key", self.get_key),
            Route("/api/account/statement", self.get_statement),
        ]

    async def get_account(self, request: Request) -> Response:
        found = await self._desk.find_balance(self._gate.require_key(request.scope).account_id)
        assert found is not None
        return answer(found)

    async def get_key(self, request: Request) -> Response:
        """The limits of the key that asks, and what is left of them."""
        return answer(show_own(self._gate.require_key(request.scope), self._clock.now_ms()))

    async def get_statement(self, request: Request) -> Response:
        found = await self._desk.find(request, self._gate.require_key(request.scope).account_id)
        assert found is not None
        return answer(found)


def show_account(row: AccountRow) -> dict[str, Any]:
    """An account as the operator and its own keys see it."""
    return {
        "account_id": row.account_id,
        "name": row.name,
        "vault_account": hex_hash(row.vault_account),
        "granted_micro": str(row.granted_micro),
        "vault_micro": str(row.usable_vault_micro),
        "debt_micro": str(row.debt_micro),
        "created_at_ms": row.created_at_ms,
    }


def _amounts(amounts: Amounts) -> dict[str, str]:
    return {"granted_micro": str(amounts.granted_micro), "vault_micro": str(amounts.vault_micro)}


def _show_usage(usage: RoundUsage) -> dict[str, Any]:
    return {
        "round": usage.round,
        "calls": usage.calls,
        **_amounts(usage.amounts),
        "uncounted_tokens": usage.uncounted_tokens,
    }


def _read_round(request: Request, name: str, default: int) -> int:
    text = request.query_params.get(name, "")
    if not text:
        return default
    if not text.isascii() or not text.isdigit() or len(text) > 13 or int(text) >= MAX_ROUND:
        raise ApiError("EMC-1744", "a round is a number from 0", 400, param=name)
    return int(text)
