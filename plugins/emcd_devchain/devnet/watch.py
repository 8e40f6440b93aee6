"""Follows a running devnet through the hub's public API and tells what happens.

Reads only what anybody could read. It must not reach into the daemon.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from typing import Any

import trio
from rich.console import Console

from emcd.errors import FatalError, RecoverableError
from emcd.money import format_token_floor
from emcd.net.http_client import request
from emcd.proto.network import Deployment
from emcd_devchain.devnet.layout import DevnetLayout
from emcd_devchain.devnet.process import require_alive
from emcd_devchain.devnet.roster import NODES
from emcd_devchain.devnet.view import round_table, state_line, unpaid_lines
from emcd_devchain.devnet.why import fetch_reasons

POLL_S = 0.4
START_S = 120.0
_ORDER = ("open", "grace", "closed", "attested", "published", "active")


async def fetch_json(url: str, timeout_s: float = 10.0, max_bytes: int = 16 << 20) -> Any:
    """GET a JSON document. Raises: RecoverableError when it can't be had."""
    answer = await request("GET", url, timeout_s=timeout_s, max_bytes=max_bytes)
    if answer.status != 200:
        raise RecoverableError("EMC-2234", f"{url} answers {answer.status}")
    return answer.json()


async def wait_until_ready(layout: DevnetLayout) -> None:
    """Wait until the hub says that every role is ready.

    Raises: FatalError EMC-2233 when the daemon ends, EMC-2234 after two minutes.
    """
    with trio.move_on_after(START_S):
        while True:
            require_alive(layout)
            try:
                answer = await request("GET", f"{layout.hub_url}/readyz", timeout_s=2.0)
                if answer.status == 200:
                    return
            except RecoverableError:
                pass
            await trio.sleep(0.2)
    raise FatalError("EMC-2234", f"the hub at {layout.hub_url} is not ready after {START_S:.0f} s")


async def wait_until_open(deployment: Deployment, say: Callable[[str], None]) -> None:
    """Wait for the first round: the hub takes no calls before it."""
    left_s = deployment.params.genesis_time_s - time.time()
    if left_s > 0:
        say(f"the first round begins in {left_s:.0f} s")
        await trio.sleep(left_s)


def load_names(layout: DevnetLayout) -> dict[str, str]:
    """What to call the addresses of this devnet."""
    summary = json.loads(layout.summary.read_text())
    return {p["node_address"]: p["name"] for p in summary["participants"]}


async def print_round(
    layout: DevnetLayout, console: Console, detail: Mapping[str, Any], names: Mapping[str, str]
) -> None:
    """The table of a round, and why who got nothing."""
    reasons = await fetch_reasons(layout, detail, names)
    console.print(round_table(detail, names))
    for line in unpaid_lines(detail, names, reasons):
        console.print(line, highlight=False)


class RoundTeller:
    """Tells each step of each round once, in order."""

    def __init__(self, layout: DevnetLayout, console: Console, names: Mapping[str, str]) -> None:
        self._layout = layout
        self._console = console
        self._names = names
        self._told: dict[int, str] = {}

    async def tell_news(self) -> None:
        """Look at the hub's rounds once and print what is new."""
        rounds = (await fetch_json(f"{self._layout.hub_url}/api/rounds"))["rounds"]
        for entry in sorted(rounds, key=lambda r: int(r["round"])):
            number, state = int(entry["round"]), str(entry["state"])
            told = self._told.get(number)
            if told == state:
                continue
            self._told[number] = state
            for step in _steps_between(told, state):
                self._console.print(state_line({**entry, "state": step}), highlight=False)
                if step == "closed":
                    detail = await fetch_json(f"{self._layout.hub_url}/api/rounds/{number}")
                    await print_round(self._layout, self._console, detail, self._names)
        for gone in [number for number in self._told if number < max(self._told) - 100]:
            del self._told[gone]


def _steps_between(told: str | None, state: str) -> list[str]:
    """The states to tell: all that were passed, but a first sight tells the last one only."""
    if told is None or told not in _ORDER or state not in _ORDER:
        return [state]
    return list(_ORDER[_ORDER.index(told) + 1 : _ORDER.index(state) + 1])


async def watch(layout: DevnetLayout, console: Console, is_done: Callable[[], bool]) -> None:
    """Tell what happens until `is_done`. Raises: FatalError EMC-2233 when the daemon ends."""
    teller = RoundTeller(layout, console, load_names(layout))
    balances: dict[str, int] = {}
    while not is_done():
        require_alive(layout)
        try:
            await teller.tell_news()
            await _tell_claims(layout, console, balances)
        except RecoverableError as exc:
            console.print(f"[dim]the hub is slow to answer: {exc.code}[/dim]")
        await trio.sleep(POLL_S)


async def _tell_claims(layout: DevnetLayout, console: Console, claimed: dict[str, int]) -> None:
    summary = json.loads(layout.summary.read_text())
    providers = {member.name for member in NODES}
    for participant in summary["participants"]:
        if participant["name"] not in providers:
            continue
        wallet = participant["wallet_address"]
        rewards = await fetch_json(f"{layout.hub_url}/api/wallets/{wallet}/rewards")
        amount_wei = int(rewards["claimed_wei"])
        if amount_wei > claimed.get(wallet, 0):
            console.print(f"{participant['name']} has claimed {format_token_floor(amount_wei)} EMC on chain")
        claimed[wallet] = amount_wei
