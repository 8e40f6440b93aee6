"""How a round is shown: from the hub's public JSON to a table. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from emcd.accounting.verdict import EMBED_TAU_E12, NumericClass
from emcd.money import format_credits_floor, format_token_floor

STRIKES = ("FAIL", "GROSS")
CONVICTED = ("verdict", "suspended")
ALLOWED = EMBED_TAU_E12[NumericClass.FP32] / 1e12
_REASONS = {
    "unbound": "not bound to a wallet",
    "understaked": "stake under the minimum",
    "suspended": "suspended",
    "offline": "no signed status in the round",
    "verdict": "does not run the model it sells",
    "no-success": "no successful call",
    "no-plan": "did not reveal its plan",
}


def round_table(detail: Mapping[str, Any], names: Mapping[str, str]) -> Table:
    """The participants of a closed round: probes, credits, weight, reward.

    Args:
        names: what to call an address.
    """
    table = Table(title=f"round {detail['round']}", title_justify="left", pad_edge=False)
    table.add_column("participant", no_wrap=True)
    table.add_column("probes", no_wrap=True)
    for column in ("credits", "stake x lock", "reward EMC"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in sorted(detail["participants"], key=lambda p: names.get(p["node"], p["node"])):
        table.add_row(
            names.get(row["node"], row["node"]),
            _probes(row),
            format_credits_floor(int(row["credits_micro"])),
            format_token_floor(int(row["effective_stake_wei"]), 0),
            format_token_floor(int(row["reward_wei"])),
        )
    total = sum(int(row["reward_wei"]) for row in detail["participants"])
    issue = format_token_floor(int(detail["issue_wei"]))
    table.caption = f"issue {issue} EMC = sum of rewards {format_token_floor(total)} EMC"
    table.caption_justify = "left"
    return table


def unpaid_lines(detail: Mapping[str, Any], names: Mapping[str, str]) -> list[str]:
    """A line for everybody who earned nothing: why."""
    return [
        f"  {names.get(row['node'], row['node'])} earned nothing: {why_not(row)}"
        for row in sorted(detail["participants"], key=lambda p: names.get(p["node"], p["node"]))
        if int(row["reward_wei"]) == 0
    ]


def why_not(row: Mapping[str, Any]) -> str:
    """The reason in plain words, with the number that convicted a node."""
    reason = str(row["reason"])
    text = _REASONS.get(reason, reason)
    if reason == "" and int(row["credits_micro"]) == 0:
        return "no probe was drawn for it"
    worst = worst_statistic(row)
    if reason not in CONVICTED or worst is None:
        return text
    return f"{text}: relative L2 {worst:.1e}, allowed {ALLOWED:.1e}"


def worst_statistic(row: Mapping[str, Any]) -> float | None:
    """The largest statistic of a participant's strikes in the round, or None."""
    values = [int(v["statistic_e12"]) / 1e12 for v in row["verdicts"] if v["verdict"] in STRIKES]
    return max(values, default=None)


def _probes(row: Mapping[str, Any]) -> str:
    return " ".join(str(verdict["verdict"]) for verdict in row["verdicts"])


def state_line(entry: Mapping[str, Any]) -> str:
    """One line for a round that entered a state."""
    number, state = entry["round"], entry["state"]
    match state:
        case "open":
            return f"round {number} is open: calls are recorded, probes go out"
        case "grace":
            return f"round {number} is over: receipts, reveals and verdicts come in"
        case "closed":
            bundle, root = _short(entry.get("bundle_hash")), _short(entry.get("root"))
            return f"round {number} closed: bundle {bundle}, root {root}"
        case "attested":
            return f"round {number} attested by a quorum of validators"
        case "published":
            transaction = _short(entry.get("tx_hash"))
            return f"round {number} published in transaction {transaction}; the challenge delay runs"
        case "active":
            return f"round {number} is active: providers can claim"
        case _:
            return f"round {number}: {state}"


def _short(hexed: object) -> str:
    return f"{hexed[:12]}..." if isinstance(hexed, str) else "?"
