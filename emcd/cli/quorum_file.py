"""What several validators sign, as a file that goes from hand to hand: a veto, a change of parameters.

One JSON object: what is signed, for which chain and contract, and the signatures so far. A signed copy is
the same file with one signature more; copies of one statement are merged when they are submitted.
Invariant: a signature counts by the address that it recovers to, never by the name it stands under.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec

from emcd.chain import ValidatorSet
from emcd.errors import ConfigError, EmcdError
from emcd.keys import SigningKey
from emcd.money import format_token_floor
from emcd.proto.address import hex_hash, parse_address
from emcd.proto.eip712 import Domain, TypedStruct
from emcd.proto.json_form import from_json, to_json
from emcd.proto.messages import Veto
from emcd.proto.parameters import ParametersChange
from emcd.proto.signing import recover
from emcd.types import Address, Wei

FORMAT = 1
MAX_FILE_BYTES = 1 << 20
KINDS: dict[str, type[TypedStruct]] = {"veto": Veto, "parameters": ParametersChange}


@dataclass(frozen=True)
class Statement:
    """What is signed, and by whom so far. `document` and `before`: the parameters' texts, else empty."""

    kind: str
    domain: Domain
    struct: TypedStruct
    document: str = ""
    before: str = ""
    signatures: dict[Address, bytes] = field(default_factory=dict)

    def is_same(self, other: Statement) -> bool:
        """Whether a signature of the one is one of the other."""
        return (self.domain, self.struct, self.document) == (other.domain, other.struct, other.document)

    def sign(self, key: SigningKey) -> Statement:
        """With this key's signature added."""
        return replace(self, signatures={**self.signatures, key.address: key.sign(self.domain, self.struct)})


class _Wire(msgspec.Struct, forbid_unknown_fields=True):
    format: int
    kind: str
    chain_id: int
    contract: str
    statement: dict[str, Any]
    document: str = ""
    before: str = ""
    signatures: list[str] = []


def write_statement(file: Path, statement: Statement) -> None:
    """Into a new file. Raises: ConfigError EMC-2159 when it exists, EMC-2167 when it can't be written."""
    wire = _Wire(
        FORMAT,
        statement.kind,
        statement.domain.chain_id,
        statement.domain.verifying_contract,
        to_json(statement.struct),
        statement.document,
        statement.before,
        [hex_hash(statement.signatures[signer]) for signer in sorted(statement.signatures)],
    )
    text = msgspec.json.format(msgspec.json.encode(wire), indent=1).decode() + "\n"
    try:
        with file.open("x", encoding="utf-8") as stream:
            stream.write(text)
    except FileExistsError:
        raise ConfigError("EMC-2159", f"{file} exists already") from None
    except OSError as exc:
        raise ConfigError("EMC-2167", f"{file}: {exc.strerror}") from exc


def load_statement(file: Path, kind: str) -> Statement:
    """Read one. Raises: ConfigError EMC-2167 when it is none of that kind, or a signature recovers nobody."""
    try:
        if file.stat().st_size > MAX_FILE_BYTES:
            raise ValueError(f"has more than {MAX_FILE_BYTES} bytes")
        wire = msgspec.json.decode(file.read_bytes(), type=_Wire)
        if wire.format != FORMAT or wire.kind != kind:
            raise ValueError(f"is a {wire.kind} of format {wire.format}, not a {kind} of format {FORMAT}")
        domain = Domain(wire.chain_id, parse_address(wire.contract))
        struct = from_json(KINDS[kind], wire.statement)
        signed = [bytes.fromhex(text.removeprefix("0x")) for text in wire.signatures]
        signatures = {recover(domain, struct, signature): signature for signature in signed}
    except (OSError, ValueError, msgspec.MsgspecError, RecursionError) as exc:
        raise ConfigError("EMC-2167", f"{file}: {exc}") from exc
    except EmcdError as exc:
        raise ConfigError("EMC-2167", f"{file}: {exc.detail}") from exc
    return Statement(kind, domain, struct, wire.document, wire.before, signatures)


def merge_statements(files: Sequence[Path], kind: str) -> Statement:
    """All signatures of copies of one statement. Raises: ConfigError EMC-2167, EMC-2168 (not of one)."""
    merged = load_statement(files[0], kind)
    for file in files[1:]:
        other = load_statement(file, kind)
        if not merged.is_same(other):
            raise ConfigError("EMC-2168", f"{file} and {files[0]}")
        merged = replace(merged, signatures={**merged.signatures, **other.signatures})
    return merged


@dataclass(frozen=True)
class Tally:
    """How much of an epoch's power stands behind a statement. `strangers` are in no set and count nothing."""

    counted: dict[Address, bytes]
    signed_wei: Wei
    total_wei: Wei
    missing: tuple[tuple[Address, Wei], ...]
    strangers: tuple[Address, ...]

    def is_more_than(self, numerator: int, denominator: int) -> bool:
        """More than this share of the whole power has signed."""
        return self.signed_wei * denominator > self.total_wei * numerator


def tally(statement: Statement, members: ValidatorSet) -> Tally:
    """Count the members' signatures."""
    powers = dict(members.members)
    counted = {who: sig for who, sig in statement.signatures.items() if who in powers}
    return Tally(
        counted=counted,
        signed_wei=Wei(sum(powers[who] for who in counted)),
        total_wei=members.total_wei,
        missing=tuple((who, wei) for who, wei in members.members if who not in counted),
        strangers=tuple(who for who in statement.signatures if who not in powers),
    )


def tally_lines(found: Tally, needed: str) -> list[str]:
    """How it stands, for people; `needed` such as "more than 2/3"."""
    share = found.signed_wei * 10_000 // found.total_wei if found.total_wei else 0
    power = f"{format_token_floor(found.signed_wei)} of {format_token_floor(found.total_wei)} EMC"
    count = f"{len(found.counted)} of {len(found.counted) + len(found.missing)} validators"
    lines = [f"signed by {count}: {power}, {share / 100:.2f} % of the power; {needed} is needed"]
    lines += [f"  signed   {who}" for who in found.counted]
    lines += [f"  missing  {who}  {format_token_floor(wei)} EMC" for who, wei in found.missing]
    lines += [f"  STRANGER {who} is not in the set: its signature counts nothing" for who in found.strangers]
    return lines


def tally_json(found: Tally) -> dict[str, Any]:
    """The same for scripts."""
    return {
        "signed_wei": str(found.signed_wei),
        "total_wei": str(found.total_wei),
        "signed": list(found.counted),
        "missing": [who for who, _ in found.missing],
        "strangers": list(found.strangers),
    }


def signed_copy(file: Path, signer: Address, out: Path | None) -> Path:
    """Where a signed copy goes: beside the draft, named after the signer."""
    return out or file.with_name(f"{file.stem}-{signer[2:10].lower()}{file.suffix}")
