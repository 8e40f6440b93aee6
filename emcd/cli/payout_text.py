"""The way of rewards and extraction requests in words: the same steps as the hub's JSON has them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from emcd.money import format_token_floor

_STEPS = (
    ("accrued_wei", "accrued", "open rounds, an estimate"),
    ("settled_wei", "settled", "in closed rounds"),
    ("published_wei", "published", "in a root on chain"),
    ("claimable_wei", "claimable", "in the active root, not yet claimed"),
    ("claimed_wei", "claimed", "paid by the contract"),
)
ROUNDS_SHOWN = 12
EXTRACTIONS_SHOWN = 5


def list_reward_lines(found: Mapping[str, Any]) -> list[str]:
    """A wallet's rewards by stage, and its last rounds with the transactions that moved them."""
    lines = [f"rewards of {found['wallet']}"]
    for key, name, meaning in _STEPS:
        lines.append(f"  {name:<10} {format_token_floor(int(found[key])):>20} EMC   {meaning}")
    for entry in found["rounds"][-ROUNDS_SHOWN:]:
        amount = format_token_floor(int(entry["reward_wei"]))
        lines.append(f"  round {entry['round']:>6} {amount:>18} EMC   {describe_reward(entry)}")
    return lines


def describe_reward(entry: Mapping[str, Any]) -> str:
    """The state of one round's reward, with the evidence of its last step."""
    state = str(entry["state"])
    published, claimed = entry.get("published"), entry.get("claimed")
    if state == "claimed" and claimed:
        return f"claimed in block {claimed['block']}, {claimed['tx_hash']}"
    if state == "claimable" and published:
        return f"claimable since {_time(published['active_at_s'])}, root of round {published['round']}"
    if state == "published" and published:
        return f"published, claimable from {_time(published['active_at_s'])}, {published['tx_hash']}"
    return state if entry.get("reason", "eligible") == "eligible" else f"{state} ({entry['reason']})"


def list_extraction_lines(path: Mapping[str, Any]) -> list[str]:
    """A request: its state, and every step that it took."""
    lines = [f"extraction {path['id']} through round {path['through_round']}: {path['state']}"]
    lines.append(f"  {'requested':<13} {_ms(path['requested_at_ms'])}")
    published, submitted, claimed = path["published"], path["submitted"], path["claimed"]
    if path["settled_at_ms"] is not None:
        lines.append(f"  {'settled':<13} {_ms(path['settled_at_ms'])}")
    if published:
        when = "" if published["at_s"] is None else _time(published["at_s"]) + ", "
        lines.append(
            f"  {'published':<13} {when}root of round {published['round']}, block {published['block']},"
            f" {published['tx_hash']}"
        )
        lines.append(f"  {'synchronised':<13} claimable from {_time(published['active_at_s'])}")
    if submitted:
        lines.append(
            f"  {'submitted':<13} {_ms(submitted['at_ms'])} by {submitted['by']}, {submitted['tx_hash']}"
        )
    if claimed:
        amount = format_token_floor(int(claimed["amount_wei"]))
        lines.append(
            f"  {'claimed':<13} {amount} EMC to {claimed['recipient']}, block {claimed['block']},"
            f" {claimed['tx_hash']}"
        )
    if path["reason"]:
        lines.append(f"  {path['state']:<13} {path['reason']}")
    if path["note"]:
        lines.append(f"  {'held':<13} {path['note']['text']} (says {path['note']['by']})")
    if path["went_back"]:
        back = path["went_back"]
        lines.append(f"  {'went back':<13} {_ms(back['at_ms'])} from {back['state']} by a {back['why']}")
    return lines


def _time(at_s: int) -> str:
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _ms(at_ms: int) -> str:
    return _time(at_ms // 1000)
