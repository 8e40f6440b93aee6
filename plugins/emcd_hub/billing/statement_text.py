"""A statement as people and spreadsheets read it. Pure."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from emcd.money import MICRO_PER_CREDIT

COLUMNS = ("round", "at", "kind", "calls", "granted_micro", "vault_micro", "note", "uncounted_tokens")


def list_statement_lines(found: Mapping[str, Any]) -> list[str]:
    """Opening, every movement, usage by round, closing; in credits."""
    head = f"{found['account_id']}, rounds {found['from_round']} to {found['to_round']}"
    lines = [head, f"  {'':<24} {'granted':>18} {'vault':>18}", _line("opening", found["opening"])]
    for item in found["movements"]:
        lines.append(_line(f"{item['kind']} (round {item['round']})", item, item["note"]))
    for item in found["usage"]:
        hidden = item["uncounted_tokens"]
        note = f"{hidden:,} tokens of hidden reasoning, which nobody can count" if hidden else ""
        lines.append(_line(f"{item['calls']} calls of round {item['round']}", _minus(item), note))
    lines.append(_line("closing", found["closing"]))
    if int(found["reserved_micro"]):
        held = format_credits(int(found["reserved_micro"]))
        lines.append(f"  of it {held} are held by {found['calls_in_flight']} calls in flight")
    return lines


def write_csv(found: Mapping[str, Any]) -> str:
    """One line for the opening, each movement, each round's calls, the closing; the amounts add up."""
    out = io.StringIO()
    rows = csv.DictWriter(out, COLUMNS, restval="", extrasaction="ignore", lineterminator="\n")
    rows.writeheader()
    rows.writerow({"round": found["from_round"], "kind": "opening", **found["opening"]})
    for item in found["movements"]:
        rows.writerow({**item, "at": _time(item["at_ms"])})
    for item in found["usage"]:
        rows.writerow({**item, **_minus(item), "kind": "calls"})
    rows.writerow({"round": found["to_round"], "kind": "closing", **found["closing"]})
    return out.getvalue()


def format_credits(micro: int) -> str:
    """All six decimals: a statement is exact."""
    sign, micro = ("-", -micro) if micro < 0 else ("", micro)
    return f"{sign}{micro // MICRO_PER_CREDIT:,}.{micro % MICRO_PER_CREDIT:06d}"


def _line(name: str, amounts: Mapping[str, Any], note: str = "") -> str:
    granted, vault = (format_credits(int(amounts[key])) for key in ("granted_micro", "vault_micro"))
    return f"  {name:<24} {granted:>18} {vault:>18}  {note}".rstrip()


def _minus(item: Mapping[str, Any]) -> dict[str, str]:
    return {key: str(-int(item[key])) for key in ("granted_micro", "vault_micro")}


def _time(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
