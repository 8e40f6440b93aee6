"""The API keys in memory: from what a client presents to an account, in a few microseconds.

Invariants: a key is known by its hash alone; the public part finds it, a constant-time comparison
of the hash accepts it; a revoked key is gone at once.
"""

from __future__ import annotations

from typing import NamedTuple

from emcd_hub.billing.secret import equals, hash_secret, is_well_formed, public_part


class ApiKey(NamedTuple):
    """One key. `shown` is its public part."""

    key_id: str
    account_id: str
    key_hash: bytes
    shown: str


class KeyIndex:
    """Every key that is not revoked."""

    def __init__(self) -> None:
        self._by_public: dict[str, list[ApiKey]] = {}

    def add(self, key: ApiKey) -> None:
        self._by_public.setdefault(key.shown, []).append(key)

    def remove(self, key_id: str) -> bool:
        """Forget a key. Returns: whether it was there."""
        for shown, keys in self._by_public.items():
            for key in keys:
                if key.key_id == key_id:
                    keys.remove(key)
                    if not keys:
                        del self._by_public[shown]
                    return True
        return False

    def find(self, secret: str) -> ApiKey | None:
        """The key behind a secret, or None: malformed, unknown and revoked look the same."""
        if not is_well_formed(secret):
            return None
        secret_hash = hash_secret(secret)
        for key in self._by_public.get(public_part(secret), ()):
            if equals(key.key_hash, secret_hash):
                return key
        return None
