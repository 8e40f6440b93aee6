"""Telling what happens: every step of every round once, in order."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import trio
from rich.console import Console

from emcd.errors import FatalError, RecoverableError
from emcd.net.http_client import Response
from emcd.proto.network import Deployment
from emcd.proto.params import devnet_params
from emcd.types import Address
from emcd_devchain.devnet import watch as watch_module
from emcd_devchain.devnet.layout import DevnetLayout, read_layout
from emcd_devchain.devnet.watch import (
    RoundTeller,
    fetch_json,
    load_names,
    wait_until_open,
    wait_until_ready,
    watch,
)

NODE = Address("0x" + "A" * 40)
WALLET = Address("0x" + "B" * 40)
HUB = "http://127.0.0.1:8420"


class FakeHub:
    """Answers `fetch_json` from a script; what was asked stands in `asked`."""

    def __init__(self) -> None:
        self.rounds: list[dict[str, Any]] = []
        self.claimed_wei = 0
        self.asked: list[str] = []
        self.fault: Exception | None = None

    async def fetch(self, url: str, *_: Any) -> Any:
        self.asked.append(url.removeprefix(HUB))
        if self.fault is not None:
            raise self.fault
        match url.removeprefix(HUB).split("/")[2:]:
            case ["rounds"]:
                return {"rounds": self.rounds}
            case ["rounds", number]:
                participant = {
                    "node": NODE,
                    "credits_micro": "0",
                    "effective_stake_wei": "0",
                    "reward_wei": "0",
                    "reason": "offline",
                    "verdicts": [],
                }
                return {"round": int(number), "issue_wei": "0", "participants": [participant]}
            case ["wallets", _, "rewards"]:
                return {"claimed_wei": str(self.claimed_wei)}
        raise AssertionError(url)

    def set(self, **states: str) -> None:
        """`set(r0="closed", r1="open")`."""
        self.rounds = [{"round": int(name[1:]), "state": state} for name, state in states.items()]


class Heard:
    """A teller, its hub, and the lines it has told since the last look."""

    def __init__(self, layout: DevnetLayout, hub: FakeHub) -> None:
        self.hub = hub
        self._file = io.StringIO()
        self.console = Console(file=self._file, width=200)
        self.teller = RoundTeller(layout, self.console, {NODE: "node-1"})

    async def tell(self, **states: str) -> list[str]:
        self.hub.set(**states)
        await self.teller.tell_news()
        return self.take()

    def take(self) -> list[str]:
        text = self._file.getvalue()
        self._file.truncate(0)
        self._file.seek(0)
        return [line for line in text.splitlines() if line.startswith("round ") and len(line.split()) > 2]

    @property
    def text(self) -> str:
        return self._file.getvalue()


@pytest.fixture
def layout(tmp_path: Path) -> DevnetLayout:
    made = read_layout({"EMCD_DEVNET_DIR": str(tmp_path)})
    participants = [{"node_address": NODE, "wallet_address": WALLET, "name": "node-1"}]
    participants.append({"node_address": WALLET, "wallet_address": NODE, "name": "validator-1"})
    made.summary.write_text(json.dumps({"participants": participants}))
    return made


@pytest.fixture
def heard(layout: DevnetLayout, monkeypatch: pytest.MonkeyPatch) -> Heard:
    hub = FakeHub()
    monkeypatch.setattr(watch_module, "fetch_json", hub.fetch)
    return Heard(layout, hub)


async def test_teller_first_sight_tells_the_present_state_only(heard: Heard) -> None:
    assert await heard.tell(r0="published", r1="open") == [
        "round 0 published in transaction ?; the challenge delay runs",
        "round 1 is open: calls are recorded, probes go out",
    ]


async def test_teller_state_is_told_once(heard: Heard) -> None:
    await heard.tell(r0="open")

    assert await heard.tell(r0="open") == []


async def test_teller_states_passed_between_two_looks_are_told_in_order(heard: Heard) -> None:
    await heard.tell(r0="open")

    assert await heard.tell(r0="active") == [
        "round 0 is over: receipts, reveals and verdicts come in",
        "round 0 closed: bundle ?, root ?",
        "round 0 attested by a quorum of validators",
        "round 0 published in transaction ?; the challenge delay runs",
        "round 0 is active: providers can claim",
    ]


async def test_teller_rounds_come_by_number_whatever_the_hubs_order(heard: Heard) -> None:
    lines = await heard.tell(r10="open", r9="grace", r2="closed")

    assert [line.split()[1] for line in lines] == ["2", "9", "10"]


async def test_teller_closed_round_is_shown_with_its_table_once(heard: Heard) -> None:
    await heard.tell(r7="grace")
    heard.hub.set(r7="attested")
    await heard.teller.tell_news()

    assert "node-1 earned nothing: no signed status in the round" in heard.text
    assert heard.hub.asked.count("/api/rounds/7") == 1
    await heard.tell(r7="active")
    assert heard.hub.asked.count("/api/rounds/7") == 1


async def test_teller_void_round_is_told(heard: Heard) -> None:
    await heard.tell(r0="published")

    assert await heard.tell(r0="void") == ["round 0: void"]


async def test_teller_forgets_rounds_long_past(heard: Heard) -> None:
    for number in range(250):
        heard.hub.set(**{f"r{number}": "open"})
        await heard.teller.tell_news()

    assert len(heard.teller._told) <= 101


async def test_watch_tells_a_claim_once_and_of_providers_only(
    heard: Heard, layout: DevnetLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch_module, "POLL_S", 0)
    monkeypatch.setattr(watch_module, "require_alive", lambda _: None)
    heard.hub.claimed_wei = 12 * 10**18
    looks = iter([False, False, False, True])

    await watch(layout, heard.console, lambda: next(looks))

    assert heard.text.splitlines() == ["node-1 has claimed 12.0000 EMC on chain"]


async def test_watch_outlives_a_hub_that_does_not_answer(
    heard: Heard, layout: DevnetLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch_module, "POLL_S", 0)
    monkeypatch.setattr(watch_module, "require_alive", lambda _: None)
    heard.hub.fault = RecoverableError("EMC-1301", "no connection")
    looks = iter([False, False, True])

    await watch(layout, heard.console, lambda: next(looks))

    assert heard.text.count("the hub is slow to answer: EMC-1301") == 2


async def test_watch_ends_when_the_daemon_does(heard: Heard, layout: DevnetLayout) -> None:
    with pytest.raises(FatalError) as caught:
        await watch(layout, heard.console, lambda: False)

    assert caught.value.code == "EMC-2233"


async def test_wait_until_ready_ends_when_the_daemon_does(layout: DevnetLayout) -> None:
    with pytest.raises(FatalError) as caught:
        await wait_until_ready(layout)

    assert caught.value.code == "EMC-2233"


async def test_wait_until_ready_waits_for_200(
    layout: DevnetLayout, monkeypatch: pytest.MonkeyPatch, jumping_clock: Any
) -> None:
    answers: list[Any] = [RecoverableError("EMC-1301", ""), 503, 200]

    async def request(_: str, url: str, **__: Any) -> Response:
        assert url == f"{HUB}/readyz"
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return Response(answer, {}, b"", url)

    monkeypatch.setattr(watch_module, "require_alive", lambda _: None)
    monkeypatch.setattr(watch_module, "request", request)

    await wait_until_ready(layout)

    assert answers == []


async def test_wait_until_ready_gives_up(
    layout: DevnetLayout, monkeypatch: pytest.MonkeyPatch, jumping_clock: Any
) -> None:
    async def request(*_: Any, **__: Any) -> Response:
        return Response(503, {}, b"", "")

    monkeypatch.setattr(watch_module, "START_S", 1.0)
    monkeypatch.setattr(watch_module, "require_alive", lambda _: None)
    monkeypatch.setattr(watch_module, "request", request)

    with pytest.raises(FatalError) as caught:
        await wait_until_ready(layout)

    assert caught.value.code == "EMC-2234"


@pytest.mark.parametrize(("ahead_s", "lines"), [(9, ["the first round begins in 9 s"]), (-9, [])])
async def test_wait_until_open_waits_for_the_first_round(
    jumping_clock: Any, monkeypatch: pytest.MonkeyPatch, ahead_s: int, lines: list[str]
) -> None:
    genesis_s = 1_800_000_000
    deployment = Deployment(1, *[NODE] * 5, 0, devnet_params(genesis_s))
    monkeypatch.setattr(watch_module.time, "time", lambda: genesis_s - ahead_s)
    said: list[str] = []
    began = trio.current_time()

    await wait_until_open(deployment, said.append)

    assert said == lines
    assert trio.current_time() - began == pytest.approx(max(0, ahead_s), abs=0.5)


async def test_fetch_json_other_status_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    async def request(*_: Any, **__: Any) -> Response:
        return Response(404, {}, b"{}", "")

    monkeypatch.setattr(watch_module, "request", request)

    with pytest.raises(RecoverableError) as caught:
        await fetch_json(f"{HUB}/api/rounds/9")

    assert caught.value.code == "EMC-2234"


def test_load_names_are_those_of_the_summary(layout: DevnetLayout) -> None:
    assert load_names(layout) == {NODE: "node-1", WALLET: "validator-1"}
