"""The faults of the whole project: numbered, with a remedy. Standard library only.

Expected failures are outcomes (enums, small dataclasses) and are returned; what is here is
raised. Every code has a row in `emcd/catalogue/*.toml` (`[EMC-1301] summary = ..., remedy = ...`);
a test compares the rows with the codes used in the code. Ranges: 10 start and config, 11 keys,
12 ledger, 13 HTTP and TLS, 14 tunnel and its authentication, 15 chain, 16 inference, 17 hub and
its API, 18 validator, 19 settlement and bundle, 20 node, 21 command line, 22 devnet.
"""

from __future__ import annotations

import tomllib
from functools import cache
from importlib import resources
from typing import NamedTuple


class CatalogueRow(NamedTuple):
    """One error of the catalogue."""

    code: str
    summary: str
    remedy: str


@cache
def load_catalogue() -> dict[str, CatalogueRow]:
    """Read the error catalogue. Raises: ValueError when a code stands in it twice."""
    rows: dict[str, CatalogueRow] = {}
    for entry in sorted(resources.files("emcd").joinpath("catalogue").iterdir(), key=lambda e: e.name):
        if not entry.name.endswith(".toml"):
            continue
        for code, row in tomllib.loads(entry.read_text("utf-8")).items():
            if code in rows:
                raise ValueError(f"{code} stands twice in the error catalogue")
            rows[code] = CatalogueRow(code, row["summary"], row["remedy"])
    return rows


class EmcdError(Exception):
    """A fault with a stable code; `detail` names the thing at hand, the catalogue the remedy."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(code, detail)
        self.code = code
        self.detail = detail

    @property
    def remedy(self) -> str:
        row = load_catalogue().get(self.code)
        return row.remedy if row else ""

    def __str__(self) -> str:
        return f"{self.code}: {self.detail}" + (f" ({self.remedy})" if self.remedy else "")


class ConfigError(EmcdError):
    """The configuration, a file or an argument given by the operator is at fault."""


class ProtocolError(EmcdError):
    """A message broke the protocol."""


class LocalProtocolError(ProtocolError):
    """We were about to break it: our bug."""


class RemoteProtocolError(ProtocolError):
    """A peer broke it. `status` is the HTTP status that fits an answer."""

    def __init__(self, code: str, detail: str, status: int = 400) -> None:
        super().__init__(code, detail)
        self.status = status


class RecoverableError(EmcdError):
    """It may work if tried again: a peer is away, a deadline passed."""


class FatalError(EmcdError):
    """The daemon can't go on: it stops, and systemd starts it anew."""
