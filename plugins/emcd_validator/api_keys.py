"""The hub API keys of a validator: like a user's, several in turn, never shown.

The file is read again while the daemon runs: keys rotate, and may come after the first start.
"""

from __future__ import annotations

import os
from pathlib import Path

from emcd.errors import ConfigError
from emcd.keys import require_private
from emcd.log import register_secret

MAX_KEYS = 64


class ApiKeys:
    """One or more keys; which one a probe uses follows from its plan."""

    def __init__(self, keys: tuple[str, ...]) -> None:
        self._keys = keys

    def __repr__(self) -> str:
        return f"ApiKeys({len(self._keys)})"

    def __len__(self) -> int:
        return len(self._keys)

    def pick(self, number: int) -> str:
        """The key for a drawn number."""
        return self._keys[number % len(self._keys)]

    def replace(self, newer: ApiKeys) -> None:
        """Take the keys that were read later."""
        self._keys = newer._keys


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
