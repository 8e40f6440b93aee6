"""What the money commands print of the way to the money, and what they ask before they sign."""

from __future__ import annotations

import io
import json
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from emcd.accounting.payout import ExtractionState
from emcd.cli import extract as extract_module
from emcd.cli import rewards as rewards_module
from emcd.cli.main import main
from emcd.cli.payout_text import describe_reward, list_extraction_lines
from emcd.errors import RecoverableError
from emcd.keys import generate_key, write_keystore
from emcd.proto.network import Deployment, encode_deployment
from emcd.proto.settler_report import ReportKind, SettlerReport
from emcd_hub.rounds.payout_path import take_report
from tests.support.payout_ledger import SETTLER, WALLET, PayoutLedger
from tests.support.round_world import CHAIN_ID, DISTRIBUTOR, STAKING, World

DEPLOYMENT = Deployment(CHAIN_ID, STAKING, STAKING, DISTRIBUTOR, STAKING, STAKING, 0, World().params)


def shown(world: PayoutLedger) -> dict[str, Any]:
    """The request as the hub's JSON has it."""
    document: dict[str, Any] = json.loads(msgspec.json.encode(world.path(0)))
    return document


def test_extraction_lines_show_every_step_with_time_and_transaction() -> None:
    world = PayoutLedger()
    world.ask(0, 3)
    world.close(3)
    assert [line.split()[0] for line in list_extraction_lines(shown(world))] == [
        "extraction", "requested", "settled",
    ]  # fmt: skip
    world.publish(3, 0)
    sent = SettlerReport(SETTLER, WALLET, 0, int(ReportKind.SUBMITTED), "", b"t" * 32, world.now_ms)
    take_report(world.con, sent, world.now_ms)
    tx_hash = world.claim(3, 0, amount_wei=5 * 10**18)

    lines = list_extraction_lines(shown(world))

    names = ["extraction", "requested", "settled", "published", "synchronised", "submitted", "claimed"]
    assert [line.split()[0] for line in lines] == names
    assert lines[0].endswith(": claimed")
    assert f"by {SETTLER}, 0x{(b't' * 32).hex()}" in lines[5]
    assert "5.0000 EMC" in lines[6]
    assert tx_hash.hex() in lines[6]


def test_extraction_lines_say_why_it_is_held_ended_or_went_back() -> None:
    world = PayoutLedger()
    world.ask(0, 3, lasts_s=50)
    world.close(3)
    world.publish(3, 60)
    world.veto(3)
    back = list_extraction_lines(shown(world))[-1]
    world.publish(4, 0)
    word = SettlerReport(SETTLER, WALLET, 0, int(ReportKind.HELD), "too little", bytes(32), world.now_ms)
    take_report(world.con, word, world.now_ms)
    held = next(line for line in list_extraction_lines(shown(world)) if "held" in line)
    world.now_s += 60
    ended = next(line for line in list_extraction_lines(shown(world)) if line.startswith("  expired"))

    assert "from published by a veto" in back
    assert f"too little (says {SETTLER})" in held
    assert ended.endswith("the deadline has passed")


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"state": "settled", "reason": "eligible"}, "settled"),
        ({"state": "settled", "reason": "verdict"}, "settled (verdict)"),
        ({"state": "void", "reason": "eligible"}, "void"),
        (
            {"state": "published", "published": {"round": 4, "active_at_s": 0, "tx_hash": "0xab"}},
            "published, claimable from 1970-01-01 00:00:00 UTC, 0xab",
        ),
        (
            {"state": "claimable", "published": {"round": 4, "active_at_s": 0, "tx_hash": "0xab"}},
            "claimable since 1970-01-01 00:00:00 UTC, root of round 4",
        ),
        ({"state": "claimed", "claimed": {"block": 9, "tx_hash": "0xcd"}}, "claimed in block 9, 0xcd"),
    ],
)
def test_reward_is_described_by_its_last_step(entry: dict[str, Any], words: str) -> None:
    assert describe_reward(entry) == words


# ------------------------------------------------------------------------------------ watching


def streaming(*states: dict[str, Any]) -> Any:
    async def watch(*_: object) -> AsyncGenerator[dict[str, Any], None]:
        for state in states:
            yield state

    return watch


async def test_extract_watches_its_own_request_until_it_has_ended(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    world = PayoutLedger()
    world.ask(0, 3)
    first = shown(world)
    world.publish(3, 0)
    second = shown(world)
    world.claim(3, 0)
    last = shown(world)
    others = {**first, "id": "somebody else's"}
    states = [
        {"extractions": items}
        for items in ([], [others], [others, first], [first], [second], [last], [others])
    ]
    monkeypatch.setattr(extract_module, "watch_wallet", streaming(*states))

    ended = await extract_module._watch("http://hub", WALLET, first["id"], as_json=True)

    printed = [json.loads(line)["state"] for line in capsys.readouterr().out.splitlines()]
    assert printed == ["requested", "synchronised", "claimed"]
    assert ended["state"] == ExtractionState.CLAIMED


async def test_extract_whose_stream_ends_early_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extract_module, "watch_wallet", streaming({"extractions": []}))

    with pytest.raises(RecoverableError, match="EMC-2137"):
        await extract_module._watch("http://hub", WALLET, "x", as_json=True)


async def test_rewards_prints_each_state_as_one_line_of_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rewards = dict.fromkeys(
        ("accrued_wei", "settled_wei", "published_wei", "claimable_wei", "claimed_wei"), "0"
    )
    state = {"rewards": {"wallet": WALLET, "rounds": [], **rewards}, "extractions": []}
    monkeypatch.setattr(rewards_module, "watch_wallet", streaming(state, state))

    await rewards_module._watch("http://hub", WALLET, as_json=True)
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == [state, state]
    await rewards_module._watch("http://hub", WALLET, as_json=False)
    assert capsys.readouterr().out.count(f"rewards of {WALLET}") == 2


def test_extract_to_another_address_asks_before_it_signs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    deployment = tmp_path / "deployment.json"
    deployment.write_text(encode_deployment(DEPLOYMENT))
    keystore = tmp_path / "wallet.json"
    key = generate_key()
    write_keystore(keystore, key, "a password", kdf="light")
    monkeypatch.setenv("EMCD_KEY_PASSWORD", "a password")
    monkeypatch.setattr("sys.stdin", io.StringIO())
    other = generate_key().address
    options = ["--keystore", str(keystore), "--deployment", str(deployment), "--hub", "http://127.0.0.1:9"]

    with pytest.raises(SystemExit) as stopped:
        main(["extract", "--recipient", other, *options])

    assert stopped.value.code == 130
    assert f"paid to {other}?" in capsys.readouterr().err
