"""The compiled contracts: ABI and creation code, read from `artifacts/`.

Sources stand in `src/`; `make contracts` (compile.py) writes the artifacts, and tests compare them with
the sources. Nothing here talks to a chain.
"""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Any

import msgspec

from emcd.errors import FatalError

CONTRACT_NAMES = ("EMCToken", "Parameters", "Staking", "Distributor", "CreditVault")


class Compiler(msgspec.Struct, frozen=True):
    """What produced the code; `settings` are solc's."""

    name: str
    version: str
    settings: dict[str, Any]


class Artifact(msgspec.Struct, frozen=True):
    """One contract as compiled. `sources` maps each source, OpenZeppelin's too, to its sha256 hex text."""

    contract: str
    compiler: Compiler
    sources_sha256: str
    sources: dict[str, str]
    abi: list[dict[str, Any]]
    bytecode: str
    deployed_bytes: int

    @property
    def creation_code(self) -> bytes:
        """What a creating transaction carries, before the ABI-encoded constructor arguments."""
        return bytes.fromhex(self.bytecode[2:])


@cache
def load_artifact(name: str) -> Artifact:
    """Read one of CONTRACT_NAMES. Raises: FatalError EMC-1590 when it is missing or damaged."""
    path = resources.files(__name__).joinpath("artifacts", f"{name}.json")
    try:
        return msgspec.json.decode(path.read_bytes(), type=Artifact)
    except (OSError, msgspec.MsgspecError) as exc:
        raise FatalError("EMC-1590", f"contract artifact {name}: {exc}") from exc
