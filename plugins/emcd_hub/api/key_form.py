"""A key's settings as they come and go over HTTP. Amounts are decimal strings of micro-credits."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from emcd_hub.api.error import ApiError
from emcd_hub.billing.key_limits import NO_LIMITS, KeyLimits
from emcd_hub.billing.key_meter import Spent
from emcd_hub.billing.key_office import KeyView
from emcd_hub.billing.keys import ApiKey
from emcd_hub.billing.period import Period, period_end_ms

MAX_LABEL_CHARS = 100
_MAX_DIGITS = 20


class KeySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is not named stays as it is; null (an empty list of models) lifts a limit.

    Attributes:
        expires_in_s: instead of expires_at_ms, from now on the hub's clock.
    """

    label: str | UnsetType = UNSET
    models: list[str] | UnsetType | None = UNSET
    expires_at_ms: int | UnsetType | None = UNSET
    expires_in_s: int | UnsetType = UNSET
    requests_per_minute: int | UnsetType | None = UNSET
    tokens_per_minute: int | UnsetType | None = UNSET
    parallel_calls: int | UnsetType | None = UNSET
    budget_micro: str | UnsetType | None = UNSET
    period: Period | UnsetType | None = UNSET

    def apply(self, limits: KeyLimits, now_ms: int) -> KeyLimits:
        """The limits that these settings make of others. Raises: ApiError EMC-1741."""
        expires_at_ms = self.expires_at_ms
        if self.expires_in_s is not UNSET:
            if expires_at_ms is not UNSET:
                raise _wrong("expires_in_s", "can't be given together with expires_at_ms")
            expires_at_ms = now_ms + 1000 * self.expires_in_s
        budget_micro = _or(self.budget_micro, limits.budget_micro)
        if isinstance(budget_micro, str):
            budget_micro = _read_amount(budget_micro)
        period = _or(self.period, limits.period) or Period.NONE
        if budget_micro is None and self.period is UNSET:
            period = Period.NONE
        models = _or(self.models, limits.models) or ()
        made = KeyLimits(
            models=tuple(dict.fromkeys(models)),
            expires_at_ms=_or(expires_at_ms, limits.expires_at_ms),
            requests_per_minute=_or(self.requests_per_minute, limits.requests_per_minute),
            tokens_per_minute=_or(self.tokens_per_minute, limits.tokens_per_minute),
            parallel_calls=_or(self.parallel_calls, limits.parallel_calls),
            budget_micro=budget_micro,
            period=period,
        )
        fault = made.find_fault()
        if fault is not None:
            raise _wrong(*fault)
        return made

    @property
    def new_label(self) -> str | None:
        return None if self.label is UNSET else self.label[:MAX_LABEL_CHARS]


def show_view(view: KeyView, now_ms: int) -> dict[str, Any]:
    """A key as the operator sees it."""
    row = view.row
    return {
        "key_id": row.key_id,
        "account_id": row.account_id,
        "shown": row.shown,
        "label": row.label,
        "created_at_ms": row.created_at_ms,
        "revoked_at_ms": row.revoked_at_ms,
        "limits": show_limits(row.limits),
        "calls": view.use.calls,
        "last_used_at_ms": view.use.last_at_ms or None,
        **_show_budget(row.limits, _spent_in(view.use.spent, row.limits.period), view.live, now_ms),
        **_show_now(view.live, now_ms),
    }


def show_own(key: ApiKey, now_ms: int) -> dict[str, Any]:
    """A key as its holder sees it."""
    limits = key.limits or NO_LIMITS
    return {
        "key_id": key.key_id,
        "account_id": key.account_id,
        "shown": key.shown,
        "limits": show_limits(limits),
        "last_used_at_ms": key.meter.last_used_at_ms or None,
        **_show_budget(limits, key.meter.spent_micro(limits.period, now_ms), key, now_ms),
        **_show_now(key, now_ms),
    }


def show_limits(limits: KeyLimits) -> dict[str, Any]:
    """Null, or no models: no such limit."""
    return {
        "models": list(limits.models),
        "expires_at_ms": limits.expires_at_ms,
        "requests_per_minute": limits.requests_per_minute,
        "tokens_per_minute": limits.tokens_per_minute,
        "parallel_calls": limits.parallel_calls,
        "budget_micro": None if limits.budget_micro is None else str(limits.budget_micro),
        "period": limits.period.value,
    }


def _show_budget(limits: KeyLimits, spent_micro: int, live: ApiKey | None, now_ms: int) -> dict[str, Any]:
    """What was spent in the budget's period, or ever; what is left of it beside what calls hold."""
    held = 0 if live is None else live.meter.held_micro
    left = None if limits.budget_micro is None else max(0, limits.budget_micro - spent_micro - held)
    return {
        "spent_micro": str(spent_micro),
        "held_micro": str(held),
        "left_micro": None if left is None else str(left),
        "resets_at_ms": period_end_ms(limits.period, now_ms),
    }


def _show_now(live: ApiKey | None, now_ms: int) -> dict[str, Any]:
    meter = None if live is None else live.meter
    requests = None if meter is None or meter.requests is None else meter.requests.left_floor(now_ms)
    tokens = None if meter is None or meter.tokens is None else meter.tokens.left_floor(now_ms)
    return {
        "calls_in_flight": 0 if meter is None else meter.calls,
        "requests_left": requests,
        "tokens_left": tokens,
    }


def _spent_in(spent: Spent, period: Period) -> int:
    match period:
        case Period.HOUR:
            return spent.hour
        case Period.DAY:
            return spent.day
        case Period.WEEK:
            return spent.week
        case Period.MONTH:
            return spent.month
        case Period.NONE:
            return spent.ever


def _or(value: Any, otherwise: Any) -> Any:
    return otherwise if value is UNSET else value


def _read_amount(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > _MAX_DIGITS:
        raise _wrong("budget_micro", "is micro-credits in decimal digits")
    return int(text)


def _wrong(name: str, what: str) -> ApiError:
    return ApiError("EMC-1741", f"{name} {what}", 400, param=name)
