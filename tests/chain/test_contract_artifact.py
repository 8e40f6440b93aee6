"""The committed artifacts are what the committed sources compile to."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

import emcd.chain.contracts as contracts
from emcd.chain.contracts import CONTRACT_NAMES, load_artifact
from emcd.chain.contracts.compile import ToolUnavailable, compile_contracts
from emcd.errors import FatalError
from emcd.proto.eip712 import TypedStruct
from emcd.proto.messages import Binding, Extraction, RoundRoot, Slash, Veto
from emcd.proto.parameters import ParametersChange

FOLDER = Path(contracts.__file__).parent
MAX_CODE_BYTES = 24_576
"""EIP-170."""


@pytest.mark.parametrize("name", CONTRACT_NAMES)
def test_artifact_names_the_compiler_and_fits_a_block(name: str) -> None:
    artifact = load_artifact(name)
    package = json.loads((FOLDER / "package.json").read_text())["dependencies"]
    assert artifact.contract == name
    assert artifact.compiler.version.startswith(package["solc"] + "+commit.")
    assert artifact.compiler.settings["optimizer"] == {"enabled": True, "runs": 200}
    assert artifact.compiler.settings["evmVersion"] == "cancun"
    assert 0 < artifact.deployed_bytes <= MAX_CODE_BYTES
    assert artifact.deployed_bytes < len(artifact.creation_code)


@pytest.mark.parametrize("name", CONTRACT_NAMES)
def test_artifact_carries_the_hash_of_every_source(name: str) -> None:
    artifact = load_artifact(name)
    ours = {path.name: path for path in (FOLDER / "src").glob("*.sol")}
    assert {source[4:] for source in artifact.sources if source.startswith("src/")} == set(ours)
    for source, digest in artifact.sources.items():
        if source.startswith("src/"):
            assert hashlib.sha256(ours[source[4:]].read_bytes()).hexdigest() == digest, (
                f"{source}: run `make contracts`"
            )
        else:
            assert source.startswith("@openzeppelin/contracts/")
    listed = "".join(f"{digest}  {source}\n" for source, digest in artifact.sources.items())
    assert hashlib.sha256(listed.encode()).hexdigest() == artifact.sources_sha256


def test_artifact_that_is_missing_or_damaged_is_a_numbered_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contracts, "resources", SimpleNamespace(files=lambda _name: tmp_path))
    (tmp_path / "artifacts").mkdir()
    (tmp_path / "artifacts" / "Damaged.json").write_text("{}")
    for name in ("Missing", "Damaged"):
        with pytest.raises(FatalError, match="EMC-1590"):
            load_artifact(name)


def test_package_lock_pins_every_package_and_names_no_registry() -> None:
    lock = json.loads((FOLDER / "package-lock.json").read_text())
    wanted = json.loads((FOLDER / "package.json").read_text())["dependencies"]
    assert all(re.fullmatch(r"\d+\.\d+\.\d+", version) for version in wanted.values())
    assert lock["packages"][""]["dependencies"] == wanted
    for path, package in lock["packages"].items():
        assert "resolved" not in package
        assert not path or package["integrity"].startswith("sha512-")


@pytest.mark.parametrize("struct", [Binding, Slash, RoundRoot, Veto, Extraction, ParametersChange])
def test_typed_structs_in_the_sources_are_those_of_the_protocol(struct: type[TypedStruct]) -> None:
    sources = "".join(path.read_text() for path in (FOLDER / "src").glob("*.sol"))
    assert f'keccak256("{struct.type_string()}")' in re.sub(
        r"keccak256\(\s*\"", 'keccak256("', sources
    ).replace('"\n    )', '")')


def test_errors_of_one_selector_have_the_same_argument_names_everywhere() -> None:
    seen: dict[str, list[str]] = {}
    for name in CONTRACT_NAMES:
        for entry in load_artifact(name).abi:
            if entry["type"] == "error":
                kinds = ",".join(item["type"] for item in entry["inputs"])
                names = [item["name"] for item in entry["inputs"]]
                assert seen.setdefault(f"{entry['name']}({kinds})", names) == names


@pytest.mark.node
def test_artifacts_compiled_anew_are_the_committed_ones(tmp_path: Path) -> None:
    try:
        compile_contracts(tmp_path)
    except ToolUnavailable as exc:
        pytest.skip(f"no compiler here: {exc}")
    for name in CONTRACT_NAMES:
        committed = (FOLDER / "artifacts" / f"{name}.json").read_text()
        assert (tmp_path / f"{name}.json").read_text() == committed, f"{name}: run `make contracts`"
