"""The operator's pages of API keys: made, shown, limited, revoked. `AdminPages` guards them by scopes."""

from __future__ import annotations

from functools import partial

from starlette.requests import Request
from starlette.responses import Response

from emcd.clock import Clock
from emcd_hub.api.error import ApiError
from emcd_hub.api.key_form import KeySettings, show_limits, show_view
from emcd_hub.api.page import answer, read_json
from emcd_hub.billing.key_limits import NO_LIMITS
from emcd_hub.billing.key_office import KeyChange, NoSuch
from emcd_hub.billing.office import BillingOffice


class NewApiKey(KeySettings, frozen=True):
    """Of an account by its id, or by its name, which is made when it is new."""

    account_id: str = ""
    account_name: str = ""


class KeyPages:
    """Handlers of the admin listener."""

    def __init__(self, office: BillingOffice, clock: Clock) -> None:
        self._office = office
        self._clock = clock

    async def create_key(self, request: Request) -> Response:
        wanted = await read_json(request, NewApiKey)
        if bool(wanted.account_id) == bool(wanted.account_name):
            raise ApiError("EMC-1741", "give account_id or account_name", 400)
        limits = wanted.apply(NO_LIMITS, self._clock.now_ms())
        account_id = wanted.account_id
        if wanted.account_name:
            account_id = (await self._office.create_account(require_name(wanted.account_name))).account_id
        created = await self._office.keys.create_key(account_id, wanted.new_label or "", limits)
        if isinstance(created, NoSuch):
            raise no_account(account_id)
        body = {
            "key_id": created.key.key_id,
            "api_key": created.secret,
            "account_id": account_id,
            "limits": show_limits(limits),
        }
        return answer(body, 201)

    async def list_keys(self, _: Request) -> Response:
        now_ms = self._clock.now_ms()
        return answer({"api_keys": [show_view(view, now_ms) for view in await self._office.keys.list_keys()]})

    async def get_key(self, request: Request) -> Response:
        """One key: limits, what it spent in this period, what is left."""
        return answer(await self._show(request.path_params["key_id"]))

    async def change_key(self, request: Request) -> Response:
        """Set or lift limits: they hold for the next call, and break none in flight."""
        key_id = request.path_params["key_id"]
        wanted = await read_json(request, KeySettings)
        change = KeyChange(partial(wanted.apply, now_ms=self._clock.now_ms()), wanted.new_label)
        if await self._office.keys.change_key(key_id, change) is NoSuch.KEY:
            raise no_key(key_id)
        return answer(await self._show(key_id))

    async def revoke_key(self, request: Request) -> Response:
        key_id = request.path_params["key_id"]
        if await self._office.keys.revoke_key(key_id) is NoSuch.KEY:
            raise no_key(key_id)
        return answer({"key_id": key_id, "revoked": True})

    async def _show(self, key_id: str) -> dict[str, object]:
        view = await self._office.keys.find_key(key_id)
        if view is None:
            raise no_key(key_id)
        return show_view(view, self._clock.now_ms())


def require_name(name: str) -> str:
    """An account's name. Raises: ApiError EMC-1741."""
    if not 0 < len(name) <= 100 or not name.isprintable() or name != name.strip():
        raise ApiError("EMC-1741", "a name has 1 to 100 printable characters", 400, param="name")
    return name


def no_account(account_id: str) -> ApiError:
    return ApiError("EMC-1742", f"there is no account {account_id[:80]!r}", 404)


def no_key(key_id: str) -> ApiError:
    return ApiError("EMC-1742", f"there is no API key {key_id[:80]!r}", 404)
