"""Why a node was convicted, in words with numbers: read from the evidence that validators publish.

Reads only what anybody could read. A reason that can't be had leaves the round's own words.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from emcd.accounting.verdict import STATISTIC_SCALE
from emcd.errors import RecoverableError
from emcd.net.http_client import request
from emcd_devchain.devnet.layout import HOST, DevnetLayout
from emcd_devchain.devnet.roster import VALIDATORS
from emcd_devchain.devnet.view import CONVICTED, find_worst

FETCH_S = 3.0
MAX_EVIDENCE_BYTES = 32 << 20
_ASKED = {
    "embed": "asked for vectors",
    "gen.seeded": "asked for text drawn with a seed",
    "gen.greedy": "asked for text at temperature 0",
    "gen.free": "asked for text",
    "first": "asked for one token after a long prompt",
}
_FOUND = {
    "l2": "the vectors are off by {value} (relative L2), {tau} is allowed",
    "d": "the log-probabilities it reports are off by {value} a token, {tau} is allowed",
    "m": "its tokens fall short of those that the seed draws by {value}, {tau} is allowed",
    "w": "16 tokens in a row fall short by {value}, {tau} is allowed",
    "first": "the log-probabilities of the token are off by {value}, {tau} is allowed",
    "count": "it wants to be paid for {value} times the tokens that it delivered",
}


async def fetch_reasons(
    layout: DevnetLayout, detail: Mapping[str, Any], names: Mapping[str, str]
) -> dict[str, str]:
    """By address of each convicted node: who caught it with what, and the numbers."""
    reasons = {}
    for row in detail["participants"]:
        worst = find_worst(row) if row["reason"] in CONVICTED else None
        if worst is None or not worst.get("call_id"):
            continue
        prober = names.get(worst["validator"], "")
        words = tell_own(await _fetch_own(layout, prober, worst["call_id"]))
        if words:
            reasons[row["node"]] = f"{prober} {words} (`emcd verdict show {worst['call_id']}`)"
    return reasons


def tell_own(own: object) -> str:
    """What a validator says of its own probe, in words; empty when it does not say it in numbers."""
    numbers = own.get("numbers") if isinstance(own, dict) else None
    if not isinstance(numbers, dict):
        return ""
    values, taus = numbers.get("values"), numbers.get("taus")
    if not isinstance(values, dict) or not isinstance(taus, dict):
        return ""
    found = [
        words.format(value=_short(values[name]), tau=_short(taus[name]))
        for name, words in _FOUND.items()
        if isinstance(values.get(name), int) and isinstance(taus.get(name), int) and values[name] > taus[name]
    ]
    return ": ".join([_ASKED.get(str(numbers.get("kind")), "asked"), "; ".join(found)]) if found else ""


async def _fetch_own(layout: DevnetLayout, prober: str, call_id: str) -> object:
    known = [member.name for member in VALIDATORS]
    if prober not in known:
        return None
    url = f"http://{HOST}:{layout.validator_ports[known.index(prober)]}/evidence/{call_id}"
    try:
        answer = await request("GET", url, timeout_s=FETCH_S, max_bytes=MAX_EVIDENCE_BYTES)
        page = answer.json() if answer.status == 200 else None
    except RecoverableError:
        return None
    return page.get("own") if isinstance(page, dict) else None


def _short(value_e12: int) -> str:
    value = value_e12 / STATISTIC_SCALE
    return f"{value:.2g}" if 0.01 <= value < 1000 else f"{value:.1e}"
