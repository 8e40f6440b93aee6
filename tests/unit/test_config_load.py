"""A whole file: tables, variables, role selection, and every fault in one exception."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from emcd.config import (
    Config,
    ConfigFaults,
    KeyFile,
    Listen,
    find_config_file,
    list_key_files,
    list_values,
    load_config,
    load_daemon_config,
    setting,
)
from emcd.errors import ConfigError


@dataclass(frozen=True)
class HubConfig:
    listen: Listen = Listen("127.0.0.1", 8420)
    key: KeyFile = KeyFile(Path("keys/hub.json"))


@dataclass(frozen=True)
class NodeConfig:
    hub_url: str
    slots: int = setting(4, minimum=1)


class Kinds:
    """Two installed roles, and one whose import fails; counts what is imported."""

    def __init__(self) -> None:
        self.imported: list[str] = []

    def list_kinds(self) -> list[str]:
        return ["broken", "hub", "node"]

    def load_config_type(self, kind: str) -> type:
        self.imported.append(kind)
        if kind == "broken":
            raise ConfigError("EMC-1016", "its import fails")
        return {"hub": HubConfig, "node": NodeConfig}[kind]


def load(tmp_path: Path, text: str, *select: str, **environment: str) -> Config:
    file = tmp_path / "emcd.toml"
    file.write_text(text)
    return load_config(file, Kinds(), select=select, environment=environment)


def faults(tmp_path: Path, text: str, *select: str, **environment: str) -> list[tuple[str, str]]:
    with pytest.raises(ConfigFaults) as caught:
        load(tmp_path, text, *select, **environment)
    assert all(fault.file == str(tmp_path / "emcd.toml") for fault in caught.value.faults)
    return [(fault.code, fault.where) for fault in caught.value.faults]


GOOD = """
[daemon]
data_dir = "data"
[chain]
rpc_urls = ["http://127.0.0.1:8545"]
[[role]]
kind = "hub"
[[role]]
kind = "node"
name = "box-1"
hub_url = "ws://${HUB:-127.0.0.1}:8421"
slots = "${SLOTS:-8}"
"""


def test_load_good_file(tmp_path: Path) -> None:
    config = load(tmp_path, GOOD, HUB="hub.example")
    assert config.daemon.data_dir == tmp_path / "data"
    assert config.network.deployment == tmp_path / "data" / "deployment.json"
    assert config.ledger_path == tmp_path / "data" / "ledger.db"
    assert [(role.kind, role.name) for role in config.roles] == [("hub", "hub"), ("node", "box-1")]
    assert config.roles[1].config == NodeConfig("ws://hub.example:8421", 8)
    ((place, key),) = list_key_files(config.roles)
    assert (place, key.file) == ("[[role]] hub.key", tmp_path / "data" / "keys" / "hub.json")
    assert [where for where, _ in list_values(config.roles[0].config, Listen)] == ["listen"]


def test_load_selected_kind_imports_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "emcd.toml").write_text(GOOD)
    kinds = Kinds()
    config = load_config(tmp_path / "emcd.toml", kinds, select=["node"], environment={})
    assert [role.name for role in config.roles] == ["box-1"]
    assert kinds.imported == ["node"]


def test_load_selected_kind_without_a_table_gets_its_defaults(tmp_path: Path) -> None:
    config = load(tmp_path, "", "hub")
    assert [(role.kind, role.name) for role in config.roles] == [("hub", "hub")]
    assert faults(tmp_path, "", "node") == [("EMC-1004", "[[role]] node.hub_url")]


def test_load_without_a_file_uses_defaults(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EMCD_DATA_DIR", str(tmp_path / "here"))
    config = load_config(None, Kinds(), select=["hub"], environment={})
    assert config.daemon.data_dir == tmp_path / "here"
    assert config.file is None


def test_load_every_fault_of_the_file_at_once(tmp_path: Path) -> None:
    text = """
    [deamon]
    [daemon]
    log_level = "loud"
    status_listen = "0.0.0.0:9"
    [chain]
    rpc_urls = ["localhost:8545", "http://ok"]
    confirmations = 0
    [[role]]
    kind = "hub"
    listen = "0.0.0.0:80"
    [[role]]
    name = "x"
    [[role]]
    kind = "nod"
    [[role]]
    kind = "node"
    name = "Bad Name"
    hub_url = "${NOWHERE}"
    [[role]]
    kind = "hub"
    [[role]]
    kind = "broken"
    """
    assert faults(tmp_path, text) == [
        ("EMC-1002", "deamon"),
        ("EMC-1003", "[daemon].log_level"),
        ("EMC-1003", "[chain].confirmations"),
        ("EMC-1010", "[[role]] hub.listen"),
        ("EMC-1004", "[[role]] 2.kind"),
        ("EMC-1012", "[[role]] 3.kind"),
        ("EMC-1003", "[[role]] 4.name"),
        ("EMC-1005", "[[role]] node-4.hub_url"),
        ("EMC-1016", "[[role]] broken"),
        ("EMC-1013", "[[role]] hub"),
    ]


def test_load_status_listen_off_loopback_is_refused(tmp_path: Path) -> None:
    text = '[daemon]\nstatus_listen = "0.0.0.0:9"\n[[role]]\nkind = "hub"'
    assert faults(tmp_path, text) == [("EMC-1011", "[daemon].status_listen")]


def test_load_rpc_url_without_a_scheme_is_refused(tmp_path: Path) -> None:
    text = '[chain]\nrpc_urls = ["http://ok", "localhost:8545"]\n[[role]]\nkind = "hub"'
    assert faults(tmp_path, text) == [("EMC-1003", "[chain].rpc_urls[1]")]


@pytest.mark.parametrize(
    ("text", "select", "codes"),
    [
        ("", [], ["EMC-1014"]),
        ("[role]\nkind = 'hub'", [], ["EMC-1003", "EMC-1014"]),
        ("role = 3", [], ["EMC-1003", "EMC-1014"]),
        ("[[role]]\nkind = 'hub'", ["hbu"], ["EMC-1012"]),
        ("[[role]]\nkind = 3", [], ["EMC-1012"]),
        ("[[role]]\nkind = 'hub'\nname = 7", [], ["EMC-1003"]),
        ("this is no toml", [], ["EMC-1001"]),
        ("daemon = 1\n[[role]]\nkind = 'hub'", [], ["EMC-1003"]),
    ],
)
def test_load_bad_document_is_a_fault(tmp_path: Path, text: str, select: list[str], codes: list[str]) -> None:
    assert [code for code, _ in faults(tmp_path, text, *select)] == codes


def test_load_missing_or_binary_file_is_a_fault(tmp_path: Path) -> None:
    with pytest.raises(ConfigFaults, match="EMC-1001"):
        load_config(tmp_path / "none.toml", Kinds())
    (tmp_path / "bin.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigFaults, match="EMC-1001"):
        load_config(tmp_path / "bin.toml", Kinds())


def test_load_unset_variable_hides_no_other_fault(tmp_path: Path) -> None:
    text = '[[role]]\nkind = "node"\nhub_url = "${A}"\nslots = "${B}"\nslot = 1'
    assert faults(tmp_path, text) == [
        ("EMC-1005", "[[role]] node.hub_url"),
        ("EMC-1005", "[[role]] node.slots"),
        ("EMC-1002", "[[role]] node.slot"),
    ]


def test_load_unset_variable_of_a_role_that_is_not_selected_does_not_matter(tmp_path: Path) -> None:
    text = '[[role]]\nkind = "hub"\n[[role]]\nkind = "node"\nhub_url = "${A}"'
    assert [role.name for role in load(tmp_path, text, "hub").roles] == ["hub"]


def test_load_name_may_come_from_the_environment(tmp_path: Path) -> None:
    text = '[[role]]\nkind = "hub"\nname = "hub-${BOX}"'
    assert load(tmp_path, text, BOX="7").roles[0].name == "hub-7"
    assert faults(tmp_path, text) == [("EMC-1005", "[[role]] 1.name")]


def test_load_dollar_brace_can_be_written_literally(tmp_path: Path) -> None:
    config = load(tmp_path, '[[role]]\nkind = "node"\nhub_url = "$${HUB} costs $5"')
    assert config.roles[0].config == NodeConfig("${HUB} costs $5")


def test_faults_are_numbered_and_carry_a_suggestion(tmp_path: Path) -> None:
    with pytest.raises(ConfigFaults) as caught:
        load(tmp_path, '[[role]]\nkind = "nod"\n[[role]]\nkind = "node"\nhub_ulr = "x"\nhub_url = "y"')
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("1. EMC-1012: ") and "did you mean 'node'" in lines[0]
    assert lines[1].startswith("2. EMC-1002: ") and "did you mean 'hub_url'" in lines[1]


def test_find_config_file_prefers_what_is_given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("EMCD_CONFIG", raising=False)
    (tmp_path / "emcd.toml").touch()
    assert find_config_file(None) == Path("emcd.toml")
    monkeypatch.setenv("EMCD_CONFIG", "other.toml")
    assert find_config_file(None) == Path("other.toml")
    assert find_config_file(Path("given.toml")) == Path("given.toml")


def test_load_daemon_config_judges_no_role(tmp_path: Path) -> None:
    file = tmp_path / "emcd.toml"
    file.write_text('[daemon]\ndata_dir = "${D}"\n[[role]]\nkind = "nonsense"')
    assert load_daemon_config(file, {"D": "here"}).data_dir == tmp_path / "here"
    with pytest.raises(ConfigFaults, match="EMC-1005"):
        load_daemon_config(file, {})
