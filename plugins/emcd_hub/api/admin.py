"""The operator's listener: accounts, keys, grants; scoped bearer tokens, nothing else.

Invariants: every route names the scope it needs; a token is compared by its hash, in constant
time, with every token there is; amounts are decimal strings of micro-credits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from emcd.clock import Clock
from emcd.ledger import Ledger
from emcd_hub.api.account import StatementDesk, show_account
from emcd_hub.api.auth import FailureGuard, find_bearer
from emcd_hub.api.error import ApiError
from emcd_hub.api.keys import KeyPages, no_account, require_name
from emcd_hub.api.page import Handler, answer, read_json
from emcd_hub.billing.office import BillingOffice
from emcd_hub.billing.queries import (
    Granted,
    list_accounts,
    list_held_deposits,
    list_movements,
    list_usage,
)
from emcd_hub.billing.secret import equals, hash_secret
from emcd_hub.config import AdminToken, Scope

STATEMENT_ROWS = 200
MAX_GRANT_MICRO = 10**15


class NewAccount(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str


class NewGrant(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    account_id: str
    credits_micro: str
    key: str
    note: str = ""


class AdminPages:
    """Handlers of the admin listener."""

    def __init__(
        self,
        *,
        office: BillingOffice,
        ledger: Ledger,
        tokens: Sequence[AdminToken],
        guard: FailureGuard,
        desk: StatementDesk,
        clock: Clock,
    ) -> None:
        self._keys = KeyPages(office, clock)
        self._office = office
        self._desk = desk
        self._ledger = ledger
        self._tokens = [(bytes.fromhex(token.token_hash), frozenset(token.scopes)) for token in tokens]
        self._guard = guard

    def routes(self) -> list[Route]:
        return [
            Route("/admin/accounts", self._needs("keys", self.create_account), methods=["POST"]),
            Route("/admin/accounts", self._needs("read", self.list_accounts), methods=["GET"]),
            Route("/admin/accounts/{account_id}", self._needs("read", self.get_account), methods=["GET"]),
            Route(
                "/admin/accounts/{account_id}/statement",
                self._needs("read", self.get_statement),
                methods=["GET"],
            ),
            Route("/admin/deposits", self._needs("read", self.list_deposits), methods=["GET"]),
            Route("/admin/api-keys", self._needs("keys", self._keys.create_key), methods=["POST"]),
            Route("/admin/api-keys", self._needs("read", self._keys.list_keys), methods=["GET"]),
            Route("/admin/api-keys/{key_id}", self._needs("read", self._keys.get_key), methods=["GET"]),
            Route("/admin/api-keys/{key_id}", self._needs("keys", self._keys.change_key), methods=["PATCH"]),
            Route("/admin/api-keys/{key_id}", self._needs("keys", self._keys.revoke_key), methods=["DELETE"]),
            Route("/admin/credits", self._needs("credits", self.grant), methods=["POST"]),
        ]

    def _needs(self, scope: Scope, handler: Handler) -> Handler:
        async def guarded(request: Request) -> Response:
            self._require(request, scope)
            return await handler(request)

        return guarded

    def _require(self, request: Request, scope: Scope) -> None:
        """Raises: ApiError 401 (no such token), 403 (not in its scopes), 429."""
        secret = find_bearer(request.scope["headers"])
        wanted = hash_secret(secret or "")
        scopes: frozenset[str] | None = None
        for kept, granted in self._tokens:
            if equals(kept, wanted):
                scopes = granted
        if secret is None or scopes is None:
            raise self._guard.refuse(request.scope)
        if scope not in scopes:
            raise ApiError("EMC-1740", f"the token lacks the scope {scope!r}", 403, openai_code="forbidden")

    async def create_account(self, request: Request) -> Response:
        name = require_name((await read_json(request, NewAccount)).name)
        return answer(show_account(await self._office.create_account(name)), 201)

    async def list_accounts(self, _: Request) -> Response:
        rows = await self._ledger.read(list_accounts)
        return answer({"accounts": [show_account(row) for row in rows]})

    async def get_account(self, request: Request) -> Response:
        """An account with its statement: movements and usage by round, newest first."""
        account_id = request.path_params["account_id"]
        account = await self._office.find_account(account_id)
        if account is None:
            raise no_account(account_id)
        movements, usage = await self._ledger.read(
            lambda con: (
                list_movements(con, account_id, STATEMENT_ROWS),
                list_usage(con, account_id, STATEMENT_ROWS),
            )
        )
        return answer({**show_account(account), "movements": _amounts(movements), "usage": _amounts(usage)})

    async def get_statement(self, request: Request) -> Response:
        """An account's books of some rounds, `from` through `to`."""
        account_id = request.path_params["account_id"]
        found = await self._desk.find(request, account_id)
        if found is None:
            raise no_account(account_id)
        return answer(found)

    async def list_deposits(self, request: Request) -> Response:
        """Purchases for accounts that are not this hub's: held, credited to nobody. Newest first."""
        text = request.query_params.get("before", str(2**62))
        if not text.isascii() or not text.isdigit() or len(text) > 19:
            raise ApiError("EMC-1744", "before is the index of a deposit", 400, param="before")
        before = min(int(text), 2**62)
        rows = await self._ledger.read(lambda con: list_held_deposits(con, before, STATEMENT_ROWS))
        return answer({"held": rows})

    async def grant(self, request: Request) -> Response:
        wanted = await read_json(request, NewGrant)
        amount = _require_amount(wanted.credits_micro)
        if not 0 < len(wanted.key) <= 200:
            raise ApiError("EMC-1741", "key, the grant's own name, must have 1 to 200 characters", 400)
        outcome = await self._office.grant(wanted.account_id, amount, wanted.key, wanted.note[:200])
        if outcome is Granted.NO_ACCOUNT:
            raise no_account(wanted.account_id)
        if outcome is Granted.CONFLICT:
            raise ApiError("EMC-1743", "this key was used for another grant", 409)
        account = await self._office.find_account(wanted.account_id)
        assert account is not None
        return answer({**show_account(account), "repeated": outcome is Granted.REPEATED})


def _require_amount(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 0 < (amount := int(text[:20])) <= MAX_GRANT_MICRO:
        raise ApiError(
            "EMC-1741",
            f"credits_micro must be 1 to {MAX_GRANT_MICRO} in decimal digits",
            400,
            param="credits_micro",
        )
    return amount


def _amounts(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {name: str(value) if name.endswith("_micro") else value for name, value in row.items()}
        for row in rows
    ]
