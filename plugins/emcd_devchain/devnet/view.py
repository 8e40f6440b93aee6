"""How a round is shown: from the hub's public JSON to a table. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from rich.table import Table

from emcd.money import format_credits_floor, format_token_floor

STRIKES = ("FAIL", "GROSS", "CLASS")
CONVICTED = ("verdict", "suspended")
_REASONS = {
    "unbound": "not bound to a wallet",
    "understaked": "stake under the minimum",
    "suspended": "suspended",
    "offline": "no signed status in the round",
    "verdict": "does not run the model it sells",
    "no-success": "no successful call",
    "no-plan": "did not reveal its plan",
    "mistake": "a verdict of its own was proven wrong",
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


def unpaid_lines(
    detail: Mapping[str, Any], names: Mapping[str, str], reasons: Mapping[str, str] = MappingProxyType({})
) -> list[str]:
    """A line for everybody who earned nothing: why.

    Args: `reasons`: by address, what is known of a conviction beyond the round's own words.
    """
    return [
        f"  {names.get(row['node'], row['node'])} earned nothing: {why_not(row, reasons.get(row['node'], ''))}"
        for row in sorted(detail["participants"], key=lambda p: names.get(p["node"], p["node"]))
        if int(row["reward_wei"]) == 0
    ]


def why_not(row: Mapping[str, Any], found: str = "") -> str:
    """The reason in plain words; of a convicted node what was `found`, or else the verdict."""
    reason = str(row["reason"])
    text = _REASONS.get(reason, reason)
    if reason == "" and int(row["credits_micro"]) == 0:
        return "no probe was drawn for it"
    worst = find_worst(row)
    if reason not in CONVICTED or worst is None:
        return text
    return f"{text}: {found or worst['verdict'] + ' by a statistic of ' + _statistic(worst)}"


def find_worst(row: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The strike with the largest statistic of a participant in the round, or None."""
    strikes = [verdict for verdict in row["verdicts"] if verdict["verdict"] in STRIKES]
    return max(strikes, key=lambda verdict: int(verdict["statistic_e12"]), default=None)


def worst_statistic(row: Mapping[str, Any]) -> float | None:
    """The largest statistic of a participant's strikes in the round, or None."""
    worst = find_worst(row)
    return None if worst is None else int(worst["statistic_e12"]) / 1e12


def _statistic(verdict: Mapping[str, Any]) -> str:
    return f"{int(verdict['statistic_e12']) / 1e12:.1e}"


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
