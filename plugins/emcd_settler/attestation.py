"""Attestations: read, checked, and grouped until one outcome has its quorum. Pure.

Invariants: only a member of the epoch's frozen set counts, and once; who signed two outcomes of a
round counts for neither.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import msgspec

from emcd.errors import RemoteProtocolError
from emcd.proto.address import hex_hash
from emcd.proto.eip712 import Domain
from emcd.proto.json_form import from_json
from emcd.proto.messages import RoundRoot
from emcd.proto.signing import require_signer
from emcd.types import ZERO_HASH, Address

CODE = "EMC-1970"


@dataclass(frozen=True)
class Attestation:
    """One validator's signed outcome of a round."""

    validator: Address
    root: RoundRoot
    signature: bytes


@dataclass(frozen=True)
class Quorum:
    """An outcome with the signatures of more than 2/3 of the set's power."""

    root: RoundRoot
    signatures: dict[Address, bytes]


class _Wire(msgspec.Struct, frozen=True):
    round_root: dict[str, object]
    signature: str


def read_attestation(domain: Domain, body: bytes, index: int, validator: Address) -> Attestation:
    """Read what a validator's endpoint answered, and check that it is its own word on this round.

    Raises: RemoteProtocolError EMC-1970.
    """
    try:
        wire = msgspec.json.decode(body, type=_Wire)
        root = from_json(RoundRoot, wire.round_root)
        signature = bytes.fromhex(wire.signature.removeprefix("0x"))
        if root.round != index:
            raise RemoteProtocolError(CODE, f"it is about round {root.round}")
        if root.root == ZERO_HASH:
            raise RemoteProtocolError(CODE, "nobody has earned anything yet: there is no root to publish")
        require_signer(domain, root, signature, validator)
    except RemoteProtocolError as exc:
        raise RemoteProtocolError(CODE, f"{validator}, round {index}: {exc.detail}") from exc
    except (msgspec.MsgspecError, ValueError, RecursionError) as exc:
        raise RemoteProtocolError(CODE, f"{validator}, round {index}: {exc}") from exc
    return Attestation(validator, root, signature)


def list_equivocators(attestations: Iterable[Attestation]) -> set[Address]:
    """Who signed two outcomes of one round."""
    first: dict[Address, RoundRoot] = {}
    return {
        item.validator for item in attestations if first.setdefault(item.validator, item.root) != item.root
    }


def find_quorum(powers: Mapping[Address, int], attestations: Iterable[Attestation]) -> Quorum | None:
    """The outcome that more than 2/3 of all power signed, if there is one."""
    known = list(attestations)
    liars = list_equivocators(known)
    groups: dict[RoundRoot, dict[Address, bytes]] = {}
    for item in known:
        if item.validator in powers and item.validator not in liars:
            groups.setdefault(item.root, {})[item.validator] = item.signature
    for root, signatures in groups.items():
        if 3 * sum(powers[validator] for validator in signatures) > 2 * sum(powers.values()):
            return Quorum(root, signatures)
    return None


def describe_split(powers: Mapping[Address, int], attestations: Iterable[Attestation]) -> str:
    """How far a round is from its quorum, for people."""
    known = [item for item in attestations if item.validator in powers]
    total = sum(powers.values())
    parts: dict[RoundRoot, int] = {}
    for item in known:
        parts[item.root] = parts.get(item.root, 0) + powers[item.validator]
    shares = [
        f"{hex_hash(root.bundle_hash)[:10]}: {power * 100 // (total or 1)} %" for root, power in parts.items()
    ]
    return ", ".join(shares) or "nobody has attested it"
