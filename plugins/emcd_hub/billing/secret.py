"""Secrets that clients present: made here once, kept as hashes only.

A key is 256 random bits, so one SHA-256 is as good as any slow hash, and costs a microsecond.
Invariants: nothing here keeps or logs a secret; what is compared is a hash, in constant time.
"""

from __future__ import annotations

import hashlib
import hmac
from base64 import urlsafe_b64encode
from collections.abc import Callable

API_KEY_PREFIX = "emc_sk_"
API_KEY_CHARS = len(API_KEY_PREFIX) + 43
_PUBLIC_CHARS = 8


def make_secret(prefix: str, random_bytes: Callable[[int], bytes]) -> str:
    """A new secret: the prefix and 256 bits in 43 characters."""
    return prefix + urlsafe_b64encode(random_bytes(32)).rstrip(b"=").decode()


def hash_secret(secret: str) -> bytes:
    """The 32 bytes under which a secret is kept."""
    return hashlib.sha256(secret.encode()).digest()


def public_part(secret: str) -> str:
    """What may be shown and indexed: the kind and 48 of the 256 bits."""
    head, mark, rest = secret.partition("_sk_")
    return f"{head}{mark}{rest[:_PUBLIC_CHARS]}"


def equals(kept_hash: bytes, secret_hash: bytes) -> bool:
    """Constant-time comparison of two hashes."""
    return hmac.compare_digest(kept_hash, secret_hash)
