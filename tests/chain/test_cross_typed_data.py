"""docs/typed-data.md says what the code signs: every type, domain, number, and an example that runs."""

from __future__ import annotations

import importlib
import json
import pkgutil
import re
import subprocess
from enum import IntEnum
from pathlib import Path

import pytest

import emcd.chain.contracts as contracts
import emcd.proto
from emcd.accounting.offence import OffenceKind
from emcd.accounting.reward_tree import build_reward_tree
from emcd.proto.address import hex_hash
from emcd.proto.eip712 import Domain, TypedStruct
from emcd.proto.hashing import keccak
from emcd.proto.messages import RoundRoot, Verdict
from emcd.proto.records import BATCH_RECORDS, CallStatus, RecordKind
from emcd.proto.settler_report import ReportKind
from emcd.proto.signing import sign
from emcd.types import ParticipantRole
from emcd_validator.statement import write_round_root
from tests.crosscheck.judge import HERE, node_and_packages
from tests.support.round_world import CHAIN_ID, DISTRIBUTOR, address_of, secret_of

DOCUMENT = Path(__file__).parents[2] / "docs" / "typed-data.md"
TEXT = DOCUMENT.read_text("utf-8")
SECTION = re.compile(
    r"^### (\w+)\n```\n(.+)\n```\n- domain: (.+)\n- type hash: (0x[0-9a-f]{64})\n- signed by: (.+)$",
    re.MULTILINE,
)
SECTIONS = {name: (text, domain, hashed) for name, text, domain, hashed, _ in SECTION.findall(TEXT)}
SOURCES = "".join(path.read_text() for path in (Path(contracts.__file__).parent / "src").glob("*.sol"))
NUMBERS: dict[str, type[IntEnum]] = {
    "Binding.role": ParticipantRole,
    "RecordBatch.kind": RecordKind,
    "Delivery.status": CallStatus,
    "Vote.verdict": Verdict,
    "Offence.kind": OffenceKind,
    "SettlerReport.kind": ReportKind,
}


def list_structs() -> list[type[TypedStruct]]:
    for module in pkgutil.iter_modules(emcd.proto.__path__):
        importlib.import_module(f"emcd.proto.{module.name}")
    ours = [struct for struct in TypedStruct.__subclasses__() if struct.__module__.startswith("emcd.")]
    return sorted(ours, key=lambda struct: struct.__name__)


def test_document_has_every_type_and_no_other() -> None:
    assert sorted(SECTIONS) == [struct.__name__ for struct in list_structs()]


@pytest.mark.parametrize("struct", list_structs(), ids=lambda struct: struct.__name__)
def test_type_in_the_document_is_that_of_the_code(struct: type[TypedStruct]) -> None:
    text, _, hashed = SECTIONS[struct.__name__]

    assert text == struct.type_string()
    assert hashed == hex_hash(keccak(struct.type_string().encode()))


@pytest.mark.parametrize("name", sorted(SECTIONS))
def test_type_that_a_contract_checks_stands_in_its_source(name: str) -> None:
    """By the chapter: what is said to be checked by a contract is, and the rest is not."""
    checked = TEXT.split("## What the contracts check")[1].split("\n## ")[0]
    _, domain, _ = SECTIONS[name]
    joined = re.sub(r"\"\s*\"", "", SOURCES)

    assert (f"### {name}\n" in checked) == (f'"{SECTIONS[name][0]}"' in joined)
    assert domain in ("staking", "distributor", "parameters", "none, it is hashed only")


def test_domains_are_those_of_the_deployment() -> None:
    table = TEXT.split("## Domains")[1].split("\n## ")[0]
    assert re.findall(r"^\| (\w+) \| `(\w+)` \|", table, re.MULTILINE) == [
        ("staking", "staking"),
        ("distributor", "distributor"),
        ("parameters", "parameters"),
    ]
    assert "name `emcd` and version `1`" in " ".join(table.split())


@pytest.mark.parametrize("field", sorted(NUMBERS))
def test_numbers_in_the_document_are_those_of_the_code(field: str) -> None:
    (row,) = [
        line for line in TEXT.splitlines() if line.startswith("| ") and f"{field}" in line.split("|")[1]
    ]
    told = dict(re.findall(r"(\w+) (\d+)", row.split("|")[2]))

    assert told == {member.name: str(member.value) for member in NUMBERS[field]}


def test_batch_limit_in_the_document_is_that_of_the_code() -> None:
    assert f"at most {BATCH_RECORDS} records" in TEXT


def test_javascript_side_has_the_types_of_the_document() -> None:
    """verify.mjs writes them out by hand; here it is seen that nobody forgot one of its fields."""
    source = (HERE / "verify.mjs").read_text()
    block = source.split("const TYPES = {")[1].split("\n};")[0]
    found = re.findall(r"(\w+): \[\s*((?:\[\"[\w\[\]]+\", \"\w+\"\],?\s*)+)\]", block)
    assert len(found) >= 9
    for name, body in found:
        fields = ",".join(
            f"{kind} {field}" for kind, field in re.findall(r'\["([\w\[\]]+)", "(\w+)"\]', body)
        )
        assert SECTIONS[name][0] == f"{name}({fields})"


@pytest.mark.node
def test_example_in_the_document_runs(tmp_path: Path) -> None:
    """The js block as a third party would use it, on a proof and an attestation of ours."""
    node, packages = node_and_packages()
    (example,) = re.findall(r"```js\n(.*?)```", TEXT, re.DOTALL)
    (tmp_path / "node_modules").symlink_to(packages / "node_modules")
    (tmp_path / "example.mjs").write_text(example)
    wallet = address_of("wallet")
    tree = build_reward_tree({wallet: 7, address_of("other"): 8, address_of("third"): 9})
    outcome = RoundRoot(7, b"\x11" * 32, bytes(tree.root), 24)
    signature = sign(Domain(CHAIN_ID, DISTRIBUTOR), outcome, secret_of("validator-1"))
    rewards = {
        "wallet": wallet,
        "proof": {
            "root": hex_hash(tree.root),
            "cumulative_wei": "7",
            "proof": [hex_hash(item) for item in tree.proof(wallet)],
        },
    }
    data = {
        "rewards": rewards,
        "false": {**rewards, "proof": {**rewards["proof"], "cumulative_wei": "8"}},  # type: ignore[dict-item]
        "attestation": write_round_root(outcome, signature),
        "deployment": {"chain_id": CHAIN_ID, "distributor": DISTRIBUTOR},
    }
    (tmp_path / "run.mjs").write_text(
        'import { isProven, whoAttested } from "./example.mjs";\n'
        f"const data = {json.dumps(data)};\n"
        "const signer = await whoAttested(data.attestation, data.deployment);\n"
        "console.log(JSON.stringify([isProven(data.rewards), isProven(data.false), signer]));\n"
    )
    done = subprocess.run(
        [*node, "run.mjs"], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [True, False, address_of("validator-1")]
