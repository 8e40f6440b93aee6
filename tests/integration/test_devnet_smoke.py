"""The whole network, from wallet to claim, by the command that users run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from emcd.keys import load_keystore
from tests.support.devnet import CONFIG, Devnet


@pytest.fixture(scope="module")
def smoked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Devnet, dict[str, Any]]]:
    """One run of `emcd devnet smoke --json`, shared by the tests of this file."""
    devnet = Devnet(tmp_path_factory.mktemp("smoke") / "devnet")
    done = devnet.run("devnet", "smoke", "--config", str(CONFIG), "--json")
    assert done.returncode == 0, done.stderr[-3000:] + devnet.read_log()[-6000:]
    yield devnet, json.loads(done.stdout)
    devnet.stop()


def test_devnet_smoke_ends_with_a_confirmed_claim(smoked: tuple[Devnet, dict[str, Any]]) -> None:
    _, shown = smoked
    assert int(shown["claimed_wei"]) > 0


def test_devnet_smoke_pays_the_issue_to_the_last_wei(smoked: tuple[Devnet, dict[str, Any]]) -> None:
    _, shown = smoked
    rewards = [int(row["reward_wei"]) for row in shown["participants"]]
    assert sum(rewards) in (4166666666666666666666, 4166666666666666666667)


def test_devnet_smoke_convicts_both_cheats_and_says_why(smoked: tuple[Devnet, dict[str, Any]]) -> None:
    devnet, shown = smoked
    addresses = {p["name"]: p["node_address"] for p in devnet.summary["participants"]}
    for name in ("node-3", "node-4"):
        cheat = next(row for row in shown["participants"] if row["node"] == addresses[name])
        assert (cheat["reward_wei"], cheat["reason"]) == ("0", "verdict")
    convictions = shown["convictions"]
    assert sorted(convictions) == ["node-3", "node-4"]
    assert convictions["node-3"]["statistic"] > 1e-3
    assert convictions["node-4"]["statistic"] > 10  # times the threshold
    assert "asked for vectors: the vectors are off by" in convictions["node-3"]["reason"]
    assert "1.0e-04 is allowed" in convictions["node-3"]["reason"]
    assert "the log-probabilities" in convictions["node-4"]["reason"]


def test_devnet_log_and_commands_hold_no_secret(smoked: tuple[Devnet, dict[str, Any]]) -> None:
    devnet, _ = smoked
    secrets = _collect_secrets(devnet)
    assert len(secrets) > 20
    check = devnet.run("check", str(CONFIG), "--json")
    spoken = {"log": devnet.read_log(), "check": check.stdout + check.stderr}
    for where, text in spoken.items():
        assert text
        found = [name for name, secret in secrets.items() if secret in text]
        assert not found, f"{where} holds the secret of {found}"


def _collect_secrets(devnet: Devnet) -> dict[str, str]:
    """Every secret the run used: private keys, password, admin token, API keys."""
    password = (devnet.folder / "password").read_text().strip()
    secrets = {"password": password, "admin token": (devnet.folder / "admin.token").read_text().strip()}
    for file in (devnet.folder / "api-keys").iterdir():
        secrets[f"api key {file.name}"] = file.read_text().strip()
    for file in (devnet.folder / "keys").iterdir():
        secrets[f"key {file.stem}"] = load_keystore(Path(file), password).reveal().hex()
    return secrets
