"""The status for people: one section after the other, amounts in token."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from emcd.cli.layout_text import columns, format_span, format_when
from emcd.money import MICRO_PER_CREDIT, format_token_floor
from emcd.types import Wei

Table = dict[str, Any]


def status_text(status: Table) -> str:
    """Lines within 100 columns, but for addresses and endpoints that are longer."""
    now_s = max(int(time.time()), status["head"]["time_s"])
    sections = [
        _head(status, now_s),
        _contracts(status),
        _money(status),
        _clock(status, now_s),
        _validators(status),
        _publications(status, now_s),
        _parameters(status),
        _expected(status),
    ]
    return "\n\n".join("\n".join(lines) for lines in (list(section) for section in sections) if lines)


def _token(wei: str) -> str:
    return format_token_floor(Wei(int(wei)))


def _head(status: Table, now_s: int) -> Iterator[str]:
    head, guardian = status["head"], status["guardian"]
    yield f"chain {status['chain_id']}, block {head['block']:,}, {format_span(head['age_s'])} old"
    rows = []
    for item in status["endpoints"]:
        block = "-" if item["block"] is None else f"{item['block']:,}"
        rows.append((item["url"], block, f"{item['answered_ms']} ms", item["problem"] or "ok"))
    yield from ("  " + line for line in columns(rows, right=(1, 2)))
    if guardian["paused"]:
        yield f"PAUSED until {format_when(guardian['paused_until_s'], now_s)}: no publishing, no claims"


def _contracts(status: Table) -> Iterator[str]:
    bad = sum(not item["ok"] for item in status["contracts"])
    yield (
        f"contracts: {bad} DIFFER from the artifacts" if bad else "contracts: code as these artifacts make it"
    )
    guardian, vault = status["guardian"], status["vault"]
    rows = [
        (item["contract"], item["address"], "ok" if item["ok"] else "DIFFERS") for item in status["contracts"]
    ]
    rows.append(("guardian", guardian["address"], "may pause for 7 days at most"))
    if vault["treasury"]:
        share = f"gets {vault['treasury_bps'] / 100:g} % of what credits cost"
        rows.append(("treasury", vault["treasury"], share))
    yield from ("  " + line for line in columns(rows))
    yield from (f"  {item['contract']}: {item['detail']}" for item in status["contracts"] if not item["ok"])
    yield from (f"  DIFFERS from the deployment's record: {text}" for text in status["differs_from_record"])


def _money(status: Table) -> Iterator[str]:
    token, emission, staking, vault = (status[key] for key in ("token", "emission", "staking", "vault"))
    through = emission["scheduled_through_round"]
    schedule = "nothing before genesis" if through is None else f"through round {through}"
    yield "token"
    rows = [
        ("supply", token["supply_wei"], ""),
        ("minted", token["minted_wei"], f"of {_token(emission['cap_wei'])} at most"),
        ("burnt", token["burnt_wei"], "by buying credits and by slashing"),
        ("staked", staking["total_wei"], ""),
        ("schedule", emission["scheduled_wei"], schedule),
        ("published", emission["published_wei"], "in roots that stand"),
        ("claimed", emission["claimed_wei"], ""),
        ("fees", emission["fees_wei"], "to publishers"),
    ]
    table = [(name, f"{_token(wei)} EMC", note) for name, wei, note in rows]
    yield from ("  " + line for line in columns(table, right=(1,)))
    credits = int(vault["micro_per_token"]) // MICRO_PER_CREDIT
    yield f"  one token buys {credits:,} credits; {vault['deposits']:,} purchases so far"


def _clock(status: Table, now_s: int) -> Iterator[str]:
    clock = status["clock"]
    if clock["round"] < 0:
        yield f"genesis {format_when(clock['genesis_time_s'], now_s)}; rounds of {clock['round_s']:,} s"
        return
    ends = format_when(clock["round_ends_s"], now_s)
    yield f"round {clock['round']:,} until {ends}"
    yield f"epoch {clock['epoch']:,} until {format_when(clock['epoch_ends_s'], now_s)}"


def _validators(status: Table) -> Iterator[str]:
    found, roles = status["validators"], status["staking"]["roles"]
    counts = ", ".join(
        f"{name} {row['staked']}" + (f" ({row['exiting']} leaving)" if row["exiting"] else "")
        for name, row in roles.items()
        if row
    )
    yield f"participants with a stake: {counts or 'none'}"
    when = "as it stands before genesis" if found["is_preview"] else f"of epoch {found['epoch']}"
    if not found["members"]:
        yield f"validator set {when}: EMPTY, no round can be attested"
    else:
        quorum = f"quorum {_token(found['quorum_wei'])} of {_token(found['total_wei'])} EMC"
        yield f"validator set {when}: {len(found['members'])}, {quorum}"
    rows = [
        (
            item["node"],
            f"{_token(item['power_wei'])} EMC",
            f"{item['share_bps'] / 100:.2f} %",
            item["endpoint"] or "no endpoint",
        )
        for item in found["members"]
    ]
    yield from ("  " + line for line in columns(rows, right=(1, 2)))
    for word in ("joining", "leaving"):
        for node in found[word]:
            yield f"  {word} in epoch {found['epoch'] + 1}: {node}"
    for item in status["staking"]["rotations"]:
        yield f"  key of {item['node']} becomes {item['next_node']} in epoch {item['from_epoch']}"


def _publications(status: Table, now_s: int) -> Iterator[str]:
    found = status["publications"]
    if found["last_round"] is None:
        yield "published: nothing yet"
        return
    active = (
        "none"
        if found["active_round"] is None
        else f"round {found['active_round']}, root {found['active_root']}"
    )
    yield f"active: {active}"
    tip = "none" if found["tip_round"] is None else f"round {found['tip_round']}"
    yield f"last published: round {found['last_round']}; newest that stands: {tip}"
    for item in found["pending"]:
        yield f"  round {item['round']} becomes active {format_when(item['active_at_s'], now_s)}, unless vetoed"
    for index in found["void"]:
        yield f"  round {index} is void"


def _parameters(status: Table) -> Iterator[str]:
    found = status["parameters"]
    if found["problem"]:
        yield f"parameters: {found['problem']}"
    for item in found["versions"]:
        now = item["version"] == found["in_force"]
        state = "in force" if now else "past" if item["version"] < (found["in_force"] or 0) else "to come"
        yield f"parameters version {item['version']}: {state}, from epoch {item['from_epoch']}"
        yield from (f"  {change}" for change in item["changes"])


def _expected(status: Table) -> Iterator[str]:
    if not status["expected"] or status["clock"]["round"] >= 0:
        return
    there = sum(item["state"] == "staked" for item in status["expected"])
    yield f"validators of genesis: {there} of {len(status['expected'])} have staked"
    rows = [
        (item["name"] or "-", item["wallet"], item["state"], f"{_token(item['staked_wei'])} EMC")
        for item in status["expected"]
    ]
    yield from ("  " + line for line in columns(rows, right=(3,)))
