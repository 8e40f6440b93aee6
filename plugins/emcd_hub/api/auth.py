"""Who is asking: bearer credentials of a request, and a limit on wrong ones.

Invariant: an unknown, malformed, revoked or missing key gets one and the same answer, and a
source that fails too often gets no more of it for a while. A right key is never locked out.
"""

from __future__ import annotations

from collections.abc import Iterable

import trio

from emcd.clock import Clock
from emcd.net.http_exchange import Scope
from emcd.net.ratelimit import FailureLimiter
from emcd_hub.api.error import ApiError, bad_key, too_many_failures
from emcd_hub.api.key_error import expired_key
from emcd_hub.billing.keys import ApiKey, KeyIndex

RETRY_AFTER_S = 60
_SCHEME = b"bearer "


def find_bearer(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    """The bearer token of a request's headers, or None."""
    for name, value in headers:
        if name == b"authorization":
            if value[:7].lower() != _SCHEME:
                return None
            try:
                return value[7:].strip().decode("ascii")
            except UnicodeDecodeError:
                return None
    return None


class FailureGuard:
    """Counts failed authentications by source."""

    def __init__(self, limiter: FailureLimiter) -> None:
        self._limiter = limiter

    def refuse(self, scope: Scope) -> ApiError:
        """Count a failure. Returns: the answer to it."""
        client = scope.get("client")
        source = client[0] if client else "unknown"
        now_s = trio.current_time()
        if not self._limiter.check_allowed(source, now_s):
            return too_many_failures(RETRY_AFTER_S)
        self._limiter.add_failure(source, now_s)
        return bad_key()


class KeyGate:
    """Authentication by API key."""

    def __init__(self, keys: KeyIndex, guard: FailureGuard, clock: Clock) -> None:
        self._keys = keys
        self._guard = guard
        self._clock = clock

    def require_key(self, scope: Scope) -> ApiKey:
        """The key of a request. Raises: ApiError 401, 429."""
        for name, value in scope["headers"]:
            if name == b"authorization":
                if value[:7].lower() == _SCHEME:
                    key = self._keys.find(value[7:].strip())
                    if key is not None:
                        if self._is_expired(key):
                            raise expired_key()
                        return key
                break
        raise self._guard.refuse(scope)

    def is_live(self, key: ApiKey) -> bool:
        """Whether a key that was found before is good still: neither revoked nor expired."""
        return self._keys.find_by_id(key.key_id) is key and not self._is_expired(key)

    def _is_expired(self, key: ApiKey) -> bool:
        return key.limits is not None and key.limits.is_expired(self._clock.now_ms())
