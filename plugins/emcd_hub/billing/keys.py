"""The API keys in memory: from what a client presents to an account, in a microsecond.

Invariants: a key is known by its hash alone, and found by nothing else: how long a look-up takes
can only tell of hashes, which nobody can choose a secret by, and a table of hashes compares two of
them only where their randomised hashes are equal; a constant-time comparison accepts it. A revoked
key is gone at once; changed limits hold for the next call.
"""

from __future__ import annotations

from hashlib import sha256
from hmac import compare_digest

from emcd_hub.billing.key_limits import KeyLimits
from emcd_hub.billing.key_meter import KeyMeter
from emcd_hub.billing.secret import API_KEY_CHARS


class ApiKey:
    """One key. `shown` is its public part; `limits` is None for most: then nothing is looked at."""

    __slots__ = ("account_id", "key_hash", "key_id", "limits", "meter", "shown")

    def __init__(
        self, key_id: str, account_id: str, key_hash: bytes, shown: str, limits: KeyLimits | None = None
    ) -> None:
        self.key_id = key_id
        self.account_id = account_id
        self.key_hash = key_hash
        self.shown = shown
        self.limits = limits
        self.meter = KeyMeter()

    def may_use(self, model: str) -> bool:
        """Whether calls of a model may be made with it."""
        return self.limits is None or self.limits.allows(model)


class KeyIndex:
    """Every key that is not revoked."""

    def __init__(self) -> None:
        self._by_hash: dict[bytes, ApiKey] = {}
        self._by_id: dict[str, ApiKey] = {}

    def add(self, key: ApiKey) -> None:
        self._by_hash[key.key_hash] = key
        self._by_id[key.key_id] = key

    def remove(self, key_id: str) -> bool:
        """Forget a key. Returns: whether it was there."""
        key = self._by_id.pop(key_id, None)
        if key is not None:
            del self._by_hash[key.key_hash]
        return key is not None

    def find_by_id(self, key_id: str) -> ApiKey | None:
        return self._by_id.get(key_id)

    def find(self, secret: bytes) -> ApiKey | None:
        """The key behind a secret, or None: malformed, unknown and revoked look the same."""
        if len(secret) != API_KEY_CHARS:
            return None
        secret_hash = sha256(secret).digest()
        key = self._by_hash.get(secret_hash)
        return key if key is not None and compare_digest(key.key_hash, secret_hash) else None
