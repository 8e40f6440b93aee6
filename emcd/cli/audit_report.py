"""What `emcd audit` says: as one JSON object, and for people."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emcd.accounting.audit import AuditOutcome
from emcd.bundle_file import open_bundle
from emcd.money import format_credits_floor, format_token_floor
from emcd.proto.address import hex_hash
from emcd.proto.bundle_codec import Section, iter_section
from emcd.proto.json_form import to_json
from emcd.types import Address, ParticipantRole


@dataclass(frozen=True)
class Source:
    """A bundle's file, where it came from, and the hub's seal where it gave one."""

    name: str
    path: Path
    seal: bytes = b""


@dataclass(frozen=True)
class Verdict:
    """What an audit came to; `sealed` is None where there was no seal to check."""

    source: Source
    outcome: AuditOutcome
    sealed: bool | None
    seconds: float
    parameters: str = ""
    """Which versions of the parameters the bundle names, and who vouches for them."""

    @property
    def ok(self) -> bool:
        return self.outcome.ok and self.sealed is not False


def make_document(verdict: Verdict) -> dict[str, Any]:
    outcome = verdict.outcome
    header, result, difference = outcome.header, outcome.result, outcome.difference
    return {
        "source": verdict.source.name,
        "ok": verdict.ok,
        "round": header.round if header else None,
        "bundle_hash": hex_hash(outcome.bundle_hash) if outcome.bundle_hash else None,
        "bytes": verdict.source.path.stat().st_size,
        "parameters": {
            "version": header.params.version,
            "prices": [table.version for table in header.prices],
            "prices_from": list(header.prices_from),
        }
        if header
        else None,
        "seal": {True: "valid", False: "invalid", None: "none"}[verdict.sealed],
        "calls": outcome.calls,
        "counted_calls": outcome.counted_calls,
        "seconds": round(verdict.seconds, 3),
        "issue_wei": str(result.issue_wei) if result else None,
        "cumulative_wei": str(result.cumulative_wei) if result else None,
        "root": hex_hash(result.root) if result else None,
        "results": [to_json(entry) for entry in result.results] if result else [],
        "difference": None
        if difference is None
        else {
            "code": difference.code,
            "section": difference.section,
            "index": difference.index,
            "record": difference.record,
            "detail": difference.detail,
            "effect": difference.effect,
        },
    }


def make_report(verdict: Verdict) -> str:
    source, outcome = verdict.source, verdict.outcome
    lines = [f"{source.name}: {source.path.stat().st_size:,} bytes"]
    if outcome.header is not None and outcome.bundle_hash is not None:
        lines.append(f"round {outcome.header.round} of hub {outcome.header.hub}")
        lines.append(f"bundle hash {hex_hash(outcome.bundle_hash)}")
    if verdict.parameters:
        lines.append(verdict.parameters)
    if verdict.sealed is not None:
        lines.append("the hub's seal is valid" if verdict.sealed else "THE HUB'S SEAL IS NOT VALID")
    if outcome.difference is not None:
        return "\n".join([*lines, f"DIFFERENCE {outcome.difference}"])
    return "\n".join([*lines, *_result_lines(verdict)])


def _result_lines(verdict: Verdict) -> list[str]:
    outcome, result = verdict.outcome, verdict.outcome.result
    assert result is not None
    roles = _read_roles(verdict.source.path)
    lines = [
        f"{outcome.calls} calls, {outcome.counted_calls} of them count; audited in {verdict.seconds:.1f} s",
        "",
        f"{'participant':<42} {'role':<9} {'credits':>14} {'reward':>20}  why not",
    ]
    for entry in result.results:
        reward = format_token_floor(int.from_bytes(entry.reward_wei, "big"))
        credits_text = format_credits_floor(entry.credits_micro)
        role = roles.get(entry.node, "-")
        lines.append(f"{entry.node:<42} {role:<9} {credits_text:>14} {reward:>20}  {entry.reason}".rstrip())
    return [
        *lines,
        "",
        f"issued      {format_token_floor(result.issue_wei):>24} EMC",
        f"cumulative  {format_token_floor(result.cumulative_wei):>24} EMC",
        f"root        {hex_hash(result.root)}",
        "every byte, signature and number is reproduced",
    ]


def _read_roles(path: Path) -> dict[Address, str]:
    with open_bundle(path) as data:
        return {
            entry.node: ParticipantRole(entry.role).name.lower()
            for entry in iter_section(data, Section.PARTICIPANTS)
        }
