"""The hub API keys of a validator: like a user's, several, retired in turn, never shown.

A hub that learns a key knows its probes from then on. So a probe's key is drawn, not taken in turn; a key
is retired after so many probes or days; and the file is read again while the daemon runs: an operator
appends new keys, and takes out those that are retired. Without a fresh one the least used goes on, and
the role says so.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from emcd.errors import ConfigError
from emcd.keys import require_private
from emcd.log import register_secret
from emcd.proto.hashing import keccak
from emcd_validator.queries.key_uses import KeyUse

MAX_KEYS = 64
FEW_KEYS = 3
"""With fewer fresh keys the role warns: each of them asks too large a part of the probes."""
_UNUSED = KeyUse(0, 0)


@dataclass(frozen=True)
class Retirement:
    """When a key has done its share."""

    probes: int = 2_000
    days: int = 30

    def is_due(self, use: KeyUse, now_ms: int) -> bool:
        return use.probes >= self.probes or (
            use.probes > 0 and now_ms - use.first_at_ms >= self.days * 86_400_000
        )


class ApiKeys:
    """One or more keys; which one a probe uses is drawn by its plan among those that are not retired."""

    def __init__(self, keys: tuple[str, ...], retirement: Retirement | None = None) -> None:
        self._keys = {key_hash(key): key for key in keys}
        self._retirement = retirement or Retirement()

    def __repr__(self) -> str:
        return f"ApiKeys({len(self._keys)})"

    def __len__(self) -> int:
        return len(self._keys)

    @property
    def hashes(self) -> frozenset[bytes]:
        return frozenset(self._keys)

    def pick(self, number: int, uses: Mapping[bytes, KeyUse], now_ms: int) -> str:
        """The key for a drawn number; the least used one when all are retired."""
        fresh = self._list_fresh(uses, now_ms)
        if fresh:
            return self._keys[fresh[number % len(fresh)]]
        return self._keys[min(self._keys, key=lambda hashed: (uses.get(hashed, _UNUSED), hashed))]

    def find(self, hashed: bytes | None) -> str | None:
        """The key with this hash, while it stands in the file."""
        return None if hashed is None else self._keys.get(hashed)

    def find_complaint(self, uses: Mapping[bytes, KeyUse], now_ms: int) -> str:
        """What an operator should do about the keys, or an empty text."""
        if self._keys and not self._list_fresh(uses, now_ms):
            return "EMC-1859: every API key is retired; append new ones to the key file"
        return ""

    def count_fresh(self, uses: Mapping[bytes, KeyUse], now_ms: int) -> int:
        return len(self._list_fresh(uses, now_ms))

    def replace(self, newer: ApiKeys) -> None:
        """Take the keys that were read later."""
        self._keys = newer._keys

    def _list_fresh(self, uses: Mapping[bytes, KeyUse], now_ms: int) -> list[bytes]:
        return [
            hashed
            for hashed in sorted(self._keys)
            if not self._retirement.is_due(uses.get(hashed, _UNUSED), now_ms)
        ]


def key_hash(key: str) -> bytes:
    """What the ledger knows a key by."""
    return keccak(b"emcd api key " + key.encode())


def load_api_keys(file: Path | None, variable: str) -> ApiKeys:
    """Read the keys from a file (one a line) or an environment variable (separated by commas).

    Raises: ConfigError EMC-1805 when there is none, EMC-1106 when everybody may read the file.
    """
    if file is not None:
        try:
            require_private(file)
            lines = file.read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as exc:
            raise ConfigError("EMC-1805", f"{file} can't be read") from exc
    else:
        lines = os.environ.get(variable, "").split(",")
    keys = tuple(key for line in lines if (key := line.strip()) and not key.startswith("#"))
    where = file or f"the environment variable {variable}"
    if not 0 < len(keys) <= MAX_KEYS or not all(key.isascii() and key.isprintable() for key in keys):
        raise ConfigError("EMC-1805", f"{where} holds no API key, or more than {MAX_KEYS}")
    for key in keys:
        register_secret(key)
    return ApiKeys(keys)
