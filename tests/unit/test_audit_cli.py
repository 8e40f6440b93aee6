"""`emcd audit` and `emcd vectors` as a person calls them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from emcd.cli import audit as audit_module
from emcd.cli.audit import WRONG, audit
from emcd.cli.audit_report import Source
from emcd.cli.vectors import vectors
from emcd.command import CommandContext
from emcd.errors import ConfigError
from emcd.proto.network import Deployment, encode_deployment
from emcd.proto.signing import sign
from tests.support.round_world import CHAIN_ID, DISTRIBUTOR, STAKING, World, address_of, secret_of

WORLD = World()
CLOSED = WORLD.close()
VECTORS = Path(__file__).parent.parent / "vectors"


def run(command: Any, *args: Any) -> Result:
    context = CommandContext(config_file=None, run_daemon=lambda *_: 0, load=lambda: pytest.fail("no config"))
    return CliRunner().invoke(command, [str(arg) for arg in args], obj=context)


@pytest.fixture
def bundle_file(tmp_path: Path) -> Path:
    path = tmp_path / "bundle.bin"
    path.write_bytes(CLOSED.data)
    return path


def test_audit_file_prints_the_round(bundle_file: Path) -> None:
    result = run(audit, bundle_file)

    assert result.exit_code == 0
    assert "round 7" in result.output
    assert "every byte, signature and number is reproduced" in result.output
    assert address_of("node-1") in result.output


def test_audit_file_as_json(bundle_file: Path) -> None:
    document = json.loads(run(audit, bundle_file, "--json").output)

    assert document["ok"] is True
    assert document["seal"] == "none"
    assert document["root"] == "0x" + CLOSED.result.root.hex()
    assert document["issue_wei"] == str(CLOSED.result.issue_wei)
    assert len(document["results"]) == len(CLOSED.result.results)


def test_audit_damaged_file_names_the_record_and_fails(tmp_path: Path) -> None:
    path = tmp_path / "damaged.bin"
    path.write_bytes(CLOSED.data[:-1] + b"!")

    result = run(audit, path)
    document = json.loads(run(audit, path, "--json").output)

    assert result.exit_code == WRONG
    assert "DIFFERENCE EMC-1901: results[6]" in result.output
    assert document["difference"]["section"] == "results"
    assert document["ok"] is False


def test_audit_missing_file_is_refused(tmp_path: Path) -> None:
    result = run(audit, tmp_path / "nothing.bin")

    assert isinstance(result.exception, ConfigError)
    assert result.exception.code == "EMC-1941"


@pytest.mark.parametrize(("chain_id", "code"), [(CHAIN_ID, 0), (1, WRONG)])
def test_audit_compares_with_the_deployment(
    bundle_file: Path, tmp_path: Path, chain_id: int, code: int
) -> None:
    deployment = Deployment(chain_id, STAKING, STAKING, DISTRIBUTOR, STAKING, STAKING, 0, WORLD.params)
    path = tmp_path / "deployment.json"
    path.write_text(encode_deployment(deployment))

    assert run(audit, bundle_file, "--deployment", path).exit_code == code


def test_audit_compares_with_the_bundle_before(bundle_file: Path, tmp_path: Path) -> None:
    following = World(round=8, node_names=("node-4",))
    totals = {t.wallet: int.from_bytes(t.cumulative_wei, "big") for t in CLOSED.result.totals_after}
    fitting = following.close({"totals": totals, "previous_bundle_hash": CLOSED.bundle_hash})
    strange = following.close()
    path = tmp_path / "next.bin"

    path.write_bytes(fitting.data)
    fits = run(audit, path, "--previous", bundle_file)
    path.write_bytes(strange.data)
    differs = run(audit, path, "--previous", bundle_file)

    assert fits.exit_code == WRONG, "node-4 repeats call ids of the round before"
    assert "EMC-1915" in fits.output
    assert "EMC-1906" in differs.output


def test_audit_previous_that_is_no_bundle_is_refused(bundle_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "nonsense.bin"
    path.write_bytes(b"nonsense")

    result = run(audit, bundle_file, "--previous", path)

    assert isinstance(result.exception, ConfigError)
    assert result.exception.code == "EMC-1941"


@pytest.mark.parametrize(
    ("signer", "asked", "code", "text"),
    [
        ("hub", 7, 0, "seal is valid"),
        ("node-1", 7, WRONG, "SEAL IS NOT VALID"),
        ("hub", 8, WRONG, "EMC-1906"),
    ],
)
def test_audit_round_is_fetched_and_its_seal_checked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, signer: str, asked: int, code: int, text: str
) -> None:
    seal = sign(WORLD.domain, CLOSED.seal, secret_of(signer))

    async def fetch(hub_url: str, index: int, path: Path, progress: object) -> Source:
        assert (hub_url, index, progress) == ("http://hub", asked, None)
        path.write_bytes(CLOSED.data)
        return Source("hub", path, seal)

    monkeypatch.setattr(audit_module, "fetch_bundle", fetch)
    saved = tmp_path / "saved.bin"

    result = run(audit, asked, "--hub", "http://hub/", "--save", saved)

    assert result.exit_code == code
    assert text in result.output
    assert saved.read_bytes() == CLOSED.data


def test_vectors_command_reproduces_ours() -> None:
    result = run(vectors, VECTORS / "emission.json", VECTORS / "messages.json")

    assert result.exit_code == 0
    assert "emission, 52 values reproduced" in result.output


def test_vectors_command_names_the_first_difference_and_fails(tmp_path: Path) -> None:
    table = json.loads((VECTORS / "settlement.json").read_bytes())
    table["cases"][2]["participants"][1]["reward_wei"] = "17"
    path = tmp_path / "wrong.json"
    path.write_text(json.dumps(table))

    result = run(vectors, VECTORS / "emission.json", path)
    document = json.loads(run(vectors, path, "--json").output)

    assert result.exit_code == 1
    assert "DIFFERENCE" in result.output
    assert "case 2" in document["files"][0]["difference"]
    assert document["ok"] is False


@pytest.mark.parametrize("content", [None, b"", b"{", b"[]", b"{}", b"[" * 100_000])
def test_vectors_command_refuses_other_files(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "file.json"
    if content is not None:
        path.write_bytes(content)

    result = run(vectors, path)

    assert isinstance(result.exception, ConfigError)
    assert result.exception.code == "EMC-1950"
    assert str(path) in result.exception.detail
