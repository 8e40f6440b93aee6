"""The state of a deployment under way: one JSON file, written before anything is sent.

Invariants: a contract's transaction stands here, signed, before it leaves; its nonce never changes, so
whatever happens between two contracts, each is created once or not at all; one process at a time.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from emcd.cli.deployment.costing import ContractStep
from emcd.errors import ConfigError
from emcd.proto.address import hex_hash
from emcd.types import Address

FORMAT = 1


class Attempt(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A signed transaction of a step; a later one pays more for the same nonce."""

    tx_hash: str
    raw: str
    max_fee_wei: str
    tip_wei: str
    signed_at_s: int


class StepState(msgspec.Struct, forbid_unknown_fields=True):
    """One contract. `creation_hash`: of its creation code with arguments."""

    contract: str
    address: Address
    nonce: int
    creation_hash: str
    gas_limit: int
    attempts: list[Attempt] = []


class Progress(msgspec.Struct, forbid_unknown_fields=True):
    """A deployment under way. `chain_hash` is the hash of the chain's first block: which chain it is."""

    format: int
    chain_id: int
    chain_hash: str
    deployer: Address
    steps: list[StepState]

    @classmethod
    def begin(
        cls, chain_id: int, chain_hash: str, deployer: Address, steps: Sequence[ContractStep]
    ) -> Progress:
        states = [
            StepState(s.contract, s.address, s.nonce, hex_hash(s.creation_hash), s.gas_limit) for s in steps
        ]
        return cls(FORMAT, chain_id, chain_hash, deployer, states)

    @property
    def has_begun(self) -> bool:
        """Whether anything may have been sent."""
        return any(step.attempts for step in self.steps)

    def fits(self, other: Progress) -> bool:
        """Whether both are the same contracts by the same account on the same chain."""
        mine, theirs = ([(s.contract, s.address, s.creation_hash) for s in p.steps] for p in (self, other))
        return (self.chain_id, self.chain_hash, self.deployer, mine) == (
            other.chain_id,
            other.chain_hash,
            other.deployer,
            theirs,
        )


def progress_file(folder: Path, chain_id: int) -> Path:
    return folder / f"{chain_id}.progress.json"


def load_progress(file: Path) -> Progress | None:
    """None when there is none. Raises: ConfigError EMC-2154 when it can't be read."""
    try:
        found = msgspec.json.decode(file.read_bytes(), type=Progress)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError) as exc:
        raise ConfigError("EMC-2154", f"{file}: {exc}") from exc
    if found.format != FORMAT:
        raise ConfigError("EMC-2154", f"{file} is of format {found.format}")
    return found


def save_progress(file: Path, progress: Progress) -> None:
    """Durable when it returns."""
    write_whole(file, msgspec.json.format(msgspec.json.encode(progress), indent=1).decode() + "\n")


@contextmanager
def only_one(folder: Path, chain_id: int) -> Iterator[None]:
    """Keep a second deployment of this chain out. Raises: ConfigError EMC-2155 while one runs."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f".{chain_id}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            raise ConfigError("EMC-2155", f"another process deploys to chain {chain_id} in {folder}") from exc
        yield


def write_whole(file: Path, text: str) -> None:
    """Write a file whole or not at all, durable when it returns."""
    fresh = file.with_name(file.name + ".new")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    fresh.replace(file)
    folder = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_json(file: Path, table: Any) -> None:
    write_whole(file, json.dumps(table, indent=2) + "\n")
