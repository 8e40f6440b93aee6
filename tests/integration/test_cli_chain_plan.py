"""A deployment's plan: read strictly, judged at once, and what a dry run without a chain says."""

from __future__ import annotations

import time
import tomllib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from emcd.cli.deployment.plan_check import CODE, build_plan, check_plan, list_notes
from emcd.cli.deployment.plan_file import PlanFile, read_plan
from emcd.cli.deployment.plan_template import make_template
from emcd.config import Fault
from emcd.money import decode_wei
from emcd.testing import make_key
from tests.support.chain_cli import VALIDATORS, make_holders, run_cli, wallet_of

NOW_S = 1_800_000_000
GENESIS = "2027-01-15T10:00:00Z"
GUARDIAN = make_key("guardian").address
STRANGER = make_key("stranger").address


def document(**changes: Any) -> dict[str, Any]:
    """A sound devnet plan as parsed TOML, with some keys replaced (None: left out)."""
    table: dict[str, Any] = {
        "profile": "devnet",
        "chain_id": 31_338,
        "genesis_time": GENESIS,
        "guardian": GUARDIAN,
        "chain": {"rpc_urls": ["http://127.0.0.1:1"]},
        "params": {"validator_set_size": 4},
        "validators": [
            {"name": n, "wallet": wallet_of(n).address, "node": make_key(n).address} for n in VALIDATORS
        ],
        **tomllib.loads(make_holders()),
    }
    return {key: value for key, value in {**table, **changes}.items() if value is not None}


def read(**changes: Any) -> tuple[PlanFile | None, list[Fault]]:
    plan, faults = read_plan(document(**changes))
    return plan, faults


def sound(**changes: Any) -> PlanFile:
    plan, faults = read(**changes)
    assert faults == []
    assert plan is not None
    return plan


def faults_of(plan: PlanFile, now_s: int = NOW_S) -> list[str]:
    found = check_plan(plan, now_s)
    assert {fault.code for fault in found} <= {CODE}
    return [f"{fault.where}: {fault.message}" for fault in found]


def with_holder(address: str, amount: str, take_from: int) -> dict[str, str]:
    holders: dict[str, str] = tomllib.loads(make_holders())["holders"]
    rich = make_key("holder").address
    return {**holders, rich: str(int(holders[rich]) - take_from), address: amount}


def test_sound_plan_has_no_fault_and_becomes_the_contracts_plan() -> None:
    plan = sound(
        params={"validator_set_size": 4, "compute_minimum_token": "2_500.5", "compute_locks": {"30": 28_000}},
        prices={"default": {"minimum_micro": 7}, "models": {"0x" + "ab" * 32: {"input_micro_per_mtok": 5}}},
        vault={"credits_per_token": 500, "treasury": STRANGER, "treasury_bps": 1_000},
    )

    assert faults_of(plan) == []
    built = build_plan(plan)
    built.require_sound()
    assert sum(built.holders.values()) == 900_000_000 * 10**18
    assert decode_wei(built.params.compute_minimum_wei) == 2_500_500_000_000_000_000_000
    assert dict(built.params.compute_locks)[30] == 28_000
    assert built.params.genesis_time_s == plan.genesis.time_s
    assert built.params.round_s == 15
    assert built.prices.default.minimum_micro == 7
    assert dict(built.prices.models)["0x" + "ab" * 32].input_micro_per_mtok == 5
    assert (built.treasury, built.treasury_bps, built.micro_per_token) == (STRANGER, 1_000, 500_000_000)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"typo": 1}, "typo: unknown key"),
        ({"chain_id": None}, "chain_id: is required"),
        ({"chain_id": 0}, "0 is below 1"),
        ({"chain_id": "1"}, "expected an integer"),
        ({"profile": "testnet"}, "expected one of mainnet, devnet"),
        ({"genesis_time": "soon"}, "is no time"),
        ({"genesis_time": "2027-01-15T10:00:00"}, "has no zone"),
        ({"genesis_time": "2027-01-15T10:00:00.5Z"}, "fraction of a second"),
        ({"guardian": GUARDIAN.lower()}, "fails the EIP-55 checksum"),
        ({"guardian": "0x12"}, "is not an address"),
        ({"holders": {STRANGER: 900_000_000}}, "expected a table"),
        ({"holders": {STRANGER: "9e30 EMC"}}, "is not a decimal number"),
        ({"chain": {"rpc_url": ["http://x"]}}, "did you mean 'rpc_urls'"),
        ({"vault": {"treasury_bps": 10_001}}, "is above 10000"),
        ({"params": {"validator_set_sise": 4}}, "did you mean 'validator_set_size'"),
        ({"params": {"validator_set_size": "four"}}, "is no whole number"),
        ({"params": {"genesis_time_s": 5}}, "write genesis_time at the top"),
        ({"params": {"version": 5}}, "there is no parameter 'version'"),
        ({"params": 3}, "expected a table"),
        ({"prices": {"default": {"output": 3}}}, "a price has input_micro_per_mtok"),
        ({"prices": {"defaults": {"minimum_micro": 3}}}, "prices are named"),
        ({"validators": [{"stake": "1000000"}]}, "wallet: is required"),
        ({"validators": [{"wallet": STRANGER, "stake": "-1"}]}, "non-negative"),
    ],
)
def test_plan_file_that_is_wrong_is_named_with_its_place(changes: dict[str, Any], words: str) -> None:
    _, faults = read(**changes)

    assert any(words in str(fault) for fault in faults), [str(fault) for fault in faults]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"holders": with_holder(STRANGER, "0", 0)}, "the amount is zero"),
        ({"holders": with_holder("0x" + "0" * 40, "5", 5)}, "the zero address owns nothing"),
        ({"holders": with_holder("0xabc", "5", 5)}, "is not an address"),
        ({"holders": with_holder(STRANGER.lower(), "5", 5)}, "fails the EIP-55 checksum"),
        ({"holders": with_holder(STRANGER, "5", 4)}, "holders: 1 EMC too much"),
        ({"holders": with_holder(STRANGER, "4.999999999999999999", 5)}, "0.000000000000000001 EMC missing"),
        ({"genesis_time": "2027-01-15T10:00:07Z"}, "is no multiple of the round, 15 s"),
        ({"vault": {"treasury": STRANGER}}, "treasury and treasury_bps belong together"),
        ({"vault": {"treasury_bps": 5}}, "treasury and treasury_bps belong together"),
        ({"vault": {"treasury": "0x" + "0" * 40, "treasury_bps": 5}}, "leave it out to burn everything"),
        ({"chain": {"rpc_urls": ["ftp://x"]}}, "is no http:// or https:// address"),
        ({"params": {"validator_set_size": 5}}, "is not 3F + 1"),
        ({"params": {"validator_set_size": 4, "unbonding_rounds": 12}}, "longer than unbonding_rounds"),
        ({"params": {"validator_set_size": 4, "minimum_judges": 5}}, "minimum_judges 5"),
        ({"validators": document()["validators"][:3]}, "no verdict would ever stand"),
        ({"validators": [{"wallet": STRANGER}]}, f"{STRANGER} is to stake 1,000,000 EMC and begins with 0"),
        (
            {"validators": [{**v, "stake": "999999"} for v in document()["validators"]]},
            "validators[3].stake: is below the minimum, 1,000,000 EMC",
        ),
        (
            {"validators": [{**v, "node": STRANGER} for v in document()["validators"]]},
            f"validators[1].node: {STRANGER} stands twice",
        ),
        (
            {"validators": [{**v, "node": v["wallet"]} for v in document()["validators"]]},
            "node key and wallet are two keys",
        ),
    ],
)
def test_plan_that_contradicts_itself_is_refused(changes: dict[str, Any], words: str) -> None:
    found = faults_of(sound(**changes))

    assert any(words in text for text in found), found


@pytest.mark.parametrize(
    ("ahead_s", "words"), [(-1, "is over"), (0, "is over"), (29, "is 29 s from now"), (30, "")]
)
def test_genesis_leaves_validators_two_rounds(ahead_s: int, words: str) -> None:
    plan = sound()
    found = faults_of(plan, plan.genesis.time_s - ahead_s)

    assert bool(found) == bool(words)
    assert all(words in text for text in found)
    assert check_plan(plan, plan.genesis.time_s + 5, resumes=True) == []


def test_notes_name_who_holds_an_unexpected_power() -> None:
    rich = document()["validators"]
    rich[0] = {**rich[0], "stake": "9_000_000"}
    holders = with_holder(rich[0]["wallet"], "9000000", 8_000_000)
    plan = sound(validators=rich, holders=holders, deployer=GUARDIAN)
    notes = "\n".join(list_notes(plan))

    assert "v1 holds 75 % of the power: it alone is a quorum" in notes
    assert "begins with more than half of the supply" in notes
    assert "the deployer is the guardian" in notes
    assert "nobody has to be there" in "\n".join(list_notes(sound(validators=None)))
    assert "nobody can ever pause" in "\n".join(list_notes(sound(guardian="0x" + "0" * 40)))


def test_every_fault_is_told_at_once_and_numbered(tmp_path: Path) -> None:
    file = tmp_path / "plan.toml"
    file.write_text(
        'profile = "devnet"\nchain_id = 31338\ngenesis_time = 2020-01-01T00:00:07Z\n'
        f'guardian = "0x{"0" * 40}"\ntypo = 1\n[holders]\n"0xabc" = "5"\n[params]\nvalidator_set_size = 5\n'
        "[prices.default]\ninput = 4\n"
    )

    done = run_cli("chain", "deploy", file, "--from", STRANGER)

    assert done.code == 1
    said = done.out.split("what is wrong with it\n")[1].split("\n\n")[0].splitlines()
    assert [line.split(".")[0].strip() for line in said] == [str(n) for n in range(1, len(said) + 1)]
    for words in (
        "typo",
        "a price has",
        "0xabc",
        "missing",
        "no multiple",
        "is over",
        "3F + 1",
        "rpc",
    ):
        assert any(words in line for line in said), words
    assert done.out.endswith("Nothing was sent.\n")


def test_template_is_a_plan_once_its_addresses_are_filled_in(tmp_path: Path) -> None:
    made = run_cli("chain", "plan", "--profile", "mainnet", "--out", tmp_path / "plan.toml")
    again = run_cli("chain", "plan", "--out", tmp_path / "plan.toml")
    text = (tmp_path / "plan.toml").read_text()
    for name in ("guardian", "deployer", "holder", "v1-wallet", "treasury", "first", "node"):
        text = text.replace('"0x..."', f'"{make_key(name).address}"', 1)
    uncommented = "\n".join(
        line.removeprefix("# ")
        if line.startswith("# ") and ("= " in line or line.startswith("# ["))
        else line
        for line in text.splitlines()
    )
    plan, faults = read_plan(tomllib.loads(uncommented))

    assert made.code == 0
    assert (again.code, again.err[:8]) == (1, "EMC-2159")
    assert faults == []
    assert plan is not None
    assert plan.genesis.time_s > time.time() + 13 * 86_400
    assert plan.genesis.time_s % 7_200 == 0
    assert (plan.parameters.params.round_s, plan.chain.confirmations) == (7_200, 12)
    assert 'profile = "devnet"' in make_template("devnet", datetime.now(UTC))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "give a PLAN or --profile"),
        (("--profile", "devnet"), "--profile needs --chain-id"),
        (("--profile", "devnet", "--chain-id", "5"), "--profile needs --keystore or --from"),
        (("--profile", "devnet", "--chain-id", "5", "--from", STRANGER, "--genesis", "soon"), "is no time"),
        (("--profile", "devnet", "--chain-id", "5", "--send"), "--send needs --keystore"),
    ],
)
def test_deploy_without_what_it_needs_says_so(arguments: tuple[str, ...], words: str) -> None:
    done = run_cli("chain", "deploy", *arguments)

    assert done.code == 2
    assert words in done.err
