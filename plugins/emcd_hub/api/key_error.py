"""What a key's holder is told when the key's limits stop a call: OpenAI's status, type and code."""

from __future__ import annotations

from typing import assert_never

from emcd_hub.api.error import ApiError, no_credit, too_many_calls
from emcd_hub.api.rate_header import list_rate_headers
from emcd_hub.billing.admission import Barred
from emcd_hub.billing.book import Refused
from emcd_hub.billing.bucket import Bucket
from emcd_hub.billing.keys import ApiKey
from emcd_hub.billing.period import period_end_ms

RETRY_AFTER_S = 1
_LIMITED = "rate_limit_exceeded"


class KeyLimitError(ApiError):
    """A refusal by a key's limits: it says what is left of them."""

    def __init__(
        self, code: str, detail: str, key: ApiKey, now_ms: int, *, kind: str, retry_after_s: int
    ) -> None:
        super().__init__(code, detail, 429, kind=kind, openai_code=_LIMITED, retry_after_s=retry_after_s)
        self._rates = list_rate_headers(key.meter, now_ms)

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        return super().headers + self._rates


def expired_key() -> ApiError:
    return ApiError("EMC-1782", "the API key has expired", 401, openai_code="invalid_api_key")


def barred_model(model: str) -> ApiError:
    detail = f"this key may not use the model {model[:80]!r}"
    return ApiError("EMC-1783", detail, 403, openai_code="model_not_found", param="model")


def barred_call(barred: Barred, key: ApiKey, model: str, now_ms: int) -> ApiError:
    """The answer to a call that a limited key may not begin."""
    limits, meter = key.limits, key.meter
    match barred:
        case Barred.MODEL:
            return barred_model(model)
        case Barred.PARALLEL:
            most = limits.parallel_calls if limits is not None else 0
            detail = f"the key's limit of {most} calls at a time is reached"
            return KeyLimitError(
                "EMC-1786", detail, key, now_ms, kind="requests", retry_after_s=RETRY_AFTER_S
            )
        case Barred.REQUESTS:
            return _too_fast("EMC-1784", "requests", meter.requests, 1, key, now_ms)
        case Barred.TOKENS:
            return _too_fast("EMC-1785", "tokens", meter.tokens, 1, key, now_ms)
        case _:
            assert_never(barred)


def refused_credit(refused: Refused, key: ApiKey, tokens: int, now_ms: int) -> ApiError:
    """The answer to a call that gets no reservation."""
    match refused:
        case Refused.NO_ACCOUNT | Refused.INSUFFICIENT:
            return no_credit()
        case Refused.TOO_MANY_CALLS:
            return too_many_calls(RETRY_AFTER_S)
        case Refused.OVER_TOKENS:
            return _too_fast("EMC-1785", "tokens", key.meter.tokens, tokens, key, now_ms)
        case Refused.OVER_BUDGET:
            return _over_budget(key, now_ms)
        case Refused.HELD | Refused.HELD_BY_KEY:
            whose = "account" if refused is Refused.HELD else "key"
            return ApiError(
                "EMC-1788", f"calls in flight hold the credits that this {whose} has left", 429,
                kind="requests", openai_code=_LIMITED, retry_after_s=RETRY_AFTER_S,
            )  # fmt: skip
        case _:
            assert_never(refused)


def _too_fast(
    code: str, kind: str, bucket: Bucket | None, count: int, key: ApiKey, now_ms: int
) -> KeyLimitError:
    most = bucket.per_minute if bucket is not None else 0
    wait_ms = bucket.wait_ms(bucket.fitting(count), now_ms) if bucket is not None else 0
    detail = f"the key's limit of {most} {kind} a minute is reached; this call needs {count}"
    return KeyLimitError(
        code, detail, key, now_ms, kind=kind, retry_after_s=max(RETRY_AFTER_S, -(-wait_ms // 1000))
    )


def _over_budget(key: ApiKey, now_ms: int) -> ApiError:
    """A budget that begins anew says when; one that does not is for its owner to raise."""
    ends_ms = None if key.limits is None else period_end_ms(key.limits.period, now_ms)
    return ApiError(
        "EMC-1787", "what is left of the key's budget does not cover this call", 429,
        kind="insufficient_quota", openai_code="insufficient_quota",
        retry_after_s=None if ends_ms is None else max(RETRY_AFTER_S, -(-(ends_ms - now_ms) // 1000)),
    )  # fmt: skip
