"""How a round is shown: tables and lines from the hub's public JSON."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table

from emcd.accounting.eligibility import Reason
from emcd_devchain.devnet import view
from emcd_devchain.devnet.view import round_table, state_line, unpaid_lines, why_not, worst_statistic

A, B, C = "0x" + "A" * 40, "0x" + "B" * 40, "0x" + "C" * 40
NAMES = {A: "node-1", B: "node-2"}
TOKEN = 10**18


def row(node: str = A, **fields: Any) -> dict[str, Any]:
    """One participant as `/api/rounds/{n}` shows it."""
    return {
        "node": node,
        "credits_micro": "200000000",
        "effective_stake_wei": str(30_000 * TOKEN),
        "reward_wei": str(7 * TOKEN),
        "reason": "",
        "verdicts": [],
        **fields,
    }


def verdict(name: str, statistic_e12: int) -> dict[str, Any]:
    return {"verdict": name, "statistic_e12": str(statistic_e12)}


def detail(*rows: dict[str, Any]) -> dict[str, Any]:
    return {"round": 12, "issue_wei": str(14 * TOKEN), "participants": list(rows)}


def drawn(table: Table) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(table)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_round_table_shows_every_participant_by_name() -> None:
    cheat = row(
        B, reward_wei="0", credits_micro="13520000", verdicts=[verdict("GROSS", 1), verdict("PASS", 0)]
    )
    title, *lines = drawn(round_table(detail(cheat, row(A)), NAMES)).splitlines()

    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines]
    assert title.strip() == "round 12"
    assert [row for row in cells if row and row[0].startswith("node")] == [
        ["node-1", "", "200.00", "30,000", "7.0000"],
        ["node-2", "GROSS PASS", "13.52", "30,000", "0.0000"],
    ]


def test_round_table_caption_compares_issue_and_sum() -> None:
    text = drawn(round_table(detail(row(A), row(B)), NAMES))

    assert "issue 14.0000 EMC = sum of rewards 14.0000 EMC" in text


def test_round_table_stranger_is_shown_by_its_address() -> None:
    assert C in drawn(round_table(detail(row(C)), NAMES))


def test_round_table_of_nobody_is_empty() -> None:
    assert "sum of rewards 0.0000" in drawn(round_table(detail(), {}))


def test_unpaid_lines_name_who_earned_nothing_in_order() -> None:
    lines = unpaid_lines(
        detail(row(B, reward_wei="0", reason="offline"), row(A, reward_wei="0", reason="unbound"), row(C)),
        NAMES,
    )

    assert lines == [
        "  node-1 earned nothing: not bound to a wallet",
        "  node-2 earned nothing: no signed status in the round",
    ]


@pytest.mark.parametrize("reason", [reason for reason in Reason if reason is not Reason.ELIGIBLE])
def test_why_not_says_every_reason_of_the_protocol_in_words(reason: Reason) -> None:
    assert why_not(row(reason=reason.value)) == view._REASONS[reason.value] != ""


def test_why_not_of_an_unknown_reason_repeats_it() -> None:
    assert why_not(row(reason="comet")) == "comet"


def test_why_not_without_credits_says_that_no_probe_was_drawn() -> None:
    assert why_not(row(credits_micro="0")) == "no probe was drawn for it"


@pytest.mark.parametrize(
    ("reason", "words"), [("verdict", "does not run the model it sells"), ("suspended", "suspended")]
)
def test_why_not_of_a_convicted_node_gives_the_number(reason: str, words: str) -> None:
    verdicts = [verdict("FAIL", 3_100_000_000), verdict("GROSS", 564_000_000_000), verdict("PASS", 10**13)]

    convicted = row(reason=reason, verdicts=verdicts)

    assert why_not(convicted) == f"{words}: GROSS by a statistic of 5.6e-01"
    assert why_not(convicted, "the vectors are off") == f"{words}: the vectors are off"
    line = unpaid_lines(detail({**convicted, "reward_wei": "0"}), NAMES, {A: "the vectors are off"})
    assert line == [f"  node-1 earned nothing: {words}: the vectors are off"]


def test_why_not_without_a_strike_in_the_round_gives_no_number() -> None:
    assert why_not(row(reason="suspended", verdicts=[verdict("PASS", 5)])) == "suspended"
    assert why_not(row(reason="offline", verdicts=[verdict("FAIL", 5)])) == "no signed status in the round"


def test_worst_statistic_counts_strikes_only() -> None:
    assert worst_statistic(row(verdicts=[verdict("TEMPLATE", 9), verdict("ERROR", 8)])) is None
    assert worst_statistic(row(verdicts=[verdict("FAIL", 2 * 10**12), verdict("FAIL", 10**12)])) == 2.0


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ("open", "round 3 is open: calls are recorded, probes go out"),
        ("grace", "round 3 is over: receipts, reveals and verdicts come in"),
        ("closed", "round 3 closed: bundle 0x1234567890..., root 0xabcdef0123..."),
        ("attested", "round 3 attested by a quorum of validators"),
        ("published", "round 3 published in transaction 0x5555555555...; the challenge delay runs"),
        ("active", "round 3 is active: providers can claim"),
        ("void", "round 3: void"),
    ],
)
def test_state_line_of_each_state_says_what_happens(state: str, words: str) -> None:
    entry = {
        "round": 3,
        "state": state,
        "bundle_hash": "0x1234567890abcdef",
        "root": "0xabcdef0123456789",
        "tx_hash": "0x5555555555555555",
    }

    assert state_line(entry) == words


def test_state_line_without_hashes_says_so() -> None:
    assert state_line({"round": 3, "state": "closed"}) == "round 3 closed: bundle ?, root ?"
    assert "transaction ?;" in state_line({"round": 3, "state": "published", "tx_hash": None})
