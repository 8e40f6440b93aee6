"""[chain]: what an operator writes becomes what the chain's code obeys; contradictions are faults."""

from __future__ import annotations

import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from emcd.chain import ChainConfig
from emcd.chain.tx import FeePolicy
from emcd.config import ChainConfig as Settings
from emcd.config.decode import decode
from emcd.config.template import render_template

CONF = Path(__file__).parents[2] / "conf"
URLS = ["http://one:1", "http://two:2"]


def read(**table: Any) -> Settings:
    settings, faults = decode(Settings, table, "[chain]")
    assert faults == []
    assert settings is not None
    return settings


def test_from_settings_defaults_are_the_policys() -> None:
    assert ChainConfig.from_settings(Settings()) == ChainConfig(())
    assert ChainConfig.from_settings(Settings()).fees == FeePolicy()


def test_from_settings_every_setting_arrives() -> None:
    table = {
        "rpc_urls": URLS,
        "agree": 2,
        "confirmations": 12,
        "timeout_s": 3.0,
        "poll_s": 4.0,
        "max_fee_per_gas_wei": 1_000,
        "max_tip_per_gas_wei": 900,
        "least_tip_per_gas_wei": 7,
        "bump_bps": 2_000,
        "bump_after_s": 60.0,
        "resend_after_s": 20.0,
        "max_transaction_cost_wei": 11,
        "max_day_cost_wei": 12,
    }
    assert sorted(table) == sorted(field.name for field in fields(Settings))
    fees = FeePolicy(1_000, 900, 7, 2_000, 60.0, 20.0, 11, 12)
    assert ChainConfig.from_settings(read(**table)) == ChainConfig(tuple(URLS), 12, 3.0, 4.0, fees, 2)


@pytest.mark.parametrize(
    ("table", "where"),
    [
        ({"rpc_urls": URLS, "agree": 3}, "[chain].agree"),
        ({"rpc_urls": URLS, "agree": 0}, "[chain].agree"),
        ({"rpc_urls": [URLS[0], URLS[0]]}, "[chain].rpc_urls"),
        ({"max_fee_per_gas_wei": 5}, "[chain].max_tip_per_gas_wei"),
        ({"max_tip_per_gas_wei": 5}, "[chain].least_tip_per_gas_wei"),
        ({"max_fee_per_gas_wei": "500 gwei"}, "[chain].max_fee_per_gas_wei"),
        ({"max_fee_per_gas_wei": 1.5}, "[chain].max_fee_per_gas_wei"),
        ({"bump_bps": 999}, "[chain].bump_bps"),
        ({"max_fee_per_gas": 1}, "[chain].max_fee_per_gas"),
    ],
)
def test_settings_that_contradict_themselves_are_faults(table: dict[str, Any], where: str) -> None:
    settings, faults = decode(Settings, table, "[chain]")
    assert settings is None
    assert [fault.where for fault in faults] == [where]


def test_template_of_any_role_explains_every_setting() -> None:
    text = render_template("x", "x", Settings, {})
    section = text.partition("[chain]")[2].partition("[[role]]")[0]
    for field in fields(Settings):
        assert f"\n# {field.name} = " in section
        assert field.metadata["doc"] in section


@pytest.mark.parametrize("name", sorted(path.stem for path in CONF.glob("*.toml")))
def test_conf_files_have_a_chain_table_without_a_fault(name: str) -> None:
    table = tomllib.loads((CONF / f"{name}.toml").read_text()).get("chain", {})
    assert read(**{key: value for key, value in table.items() if key != "rpc_urls"})
