"""The validator's configuration: every fault at once; the README's example is one."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from emcd.config import decode
from emcd.testing import make_key
from emcd_validator.config import ValidatorConfig
from emcd_validator.peer_client import PeerClient
from emcd_validator.profile import Profile, load_profile
from emcd_validator.role import SPEC

README = Path(__file__).parents[2] / "plugins" / "emcd_validator" / "README.md"
TABLE: dict[str, Any] = {
    "key": "validator-1.json",
    "listen": "127.0.0.1:8431",
    "hub_url": "http://127.0.0.1:8420",
    "hub_address": make_key("hub").address,
    "api_key_file": "validator-1.keys",
}


def faults_of(**changes: Any) -> list[str]:
    table = {key: value for key, value in {**TABLE, **changes}.items() if value is not None}
    _, faults = decode(ValidatorConfig, table)
    return [str(fault) for fault in faults]


def test_config_minimal_is_enough() -> None:
    config, faults = decode(ValidatorConfig, TABLE)
    assert not faults
    assert config is not None
    assert config.models == ("all-MiniLM-L6-v2",)
    assert config.corpus_leaves >= 20_000


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"api_key_file": None}, "api_key_file"),
        ({"api_key_env": "KEYS"}, "api_key_file"),
        ({"models": ["../llama"]}, "models"),
        ({"models": []}, "models"),
        ({"hub_url": "ftp://hub"}, "hub_url"),
        ({"hub_address": "0x12"}, "hub_address"),
        ({"listen": "0.0.0.0:8431"}, "EMC-1010"),
        ({"corpus_leaves": 3}, "corpus_leaves"),
        ({"key_probes": 1}, "key_probes"),
        ({"key_days": 0}, "key_days"),
        ({"reference_threads": 0}, "reference_threads"),
        ({"corpus_leavs": 300}, "did you mean"),
    ],
)
def test_config_fault_names_its_key(changes: dict[str, Any], word: str) -> None:
    faults = faults_of(**changes)
    assert faults
    assert any(word in fault for fault in faults)


def test_readme_examples_are_valid_configurations() -> None:
    blocks = re.findall(r"```toml\n(.*?)```", README.read_text("utf-8"), re.DOTALL)
    assert blocks
    for block in blocks:
        for role in tomllib.loads(block)["role"]:
            assert role.pop("kind") == SPEC.kind
            role.pop("name")
            role["hub_address"] = make_key("hub").address
            _, faults = decode(ValidatorConfig, role)
            assert not faults


def test_readme_profile_is_one_and_names_every_field(tmp_path: Path) -> None:
    (block,) = re.findall(r"```toml profile\n(.*?)```", README.read_text("utf-8"), re.DOTALL)
    file = tmp_path / "profile.toml"
    file.write_text(block, "utf-8")
    load_profile(file)
    assert set(tomllib.loads(block)) == set(Profile.__struct_fields__)


def test_readme_names_every_setting() -> None:
    text = README.read_text("utf-8")
    for name in ValidatorConfig.__dataclass_fields__:
        assert f"`{name}`" in text or f"{name} =" in text, name


@pytest.mark.parametrize(
    "endpoint",
    [
        "http://validator.example",
        "https://10.0.0.1",
        "https://127.0.0.1",
        "https://localhost",
        "file:///etc",
        "",
    ],
)
async def test_peer_endpoint_that_is_not_public_https_is_never_asked(endpoint: str) -> None:
    client = PeerClient(allow_loopback=False, timeout_s=1)
    with pytest.raises(Exception, match="EMC-1810"):
        await client.find_page(endpoint, "votes", 1)


async def test_peer_endpoint_on_loopback_is_asked_on_a_devnet_alone() -> None:
    client = PeerClient(allow_loopback=True, timeout_s=1)
    with pytest.raises(Exception, match="EMC-1301"):
        await client.find_page("http://127.0.0.1:1", "votes", 1)
    with pytest.raises(Exception, match="EMC-1810"):
        await client.find_page("http://192.168.1.1", "votes", 1)
