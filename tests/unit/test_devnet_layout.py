"""Where the devnet keeps its files and which ports it takes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from emcd.errors import ConfigError
from emcd_devchain.devnet.layout import DevnetLayout, read_layout

CONFIG = Path(__file__).parents[2] / "conf" / "devnet.toml"


def test_layout_without_variables_is_the_documented_one() -> None:
    layout = read_layout({})

    assert layout.folder == Path.cwd() / ".devnet"
    assert (layout.hub_port, layout.tunnel_port, layout.rpc_port, layout.admin_port) == (
        8420,
        8421,
        8545,
        8422,
    )
    assert layout.router_port == 8423
    assert layout.validator_ports == (8431, 8432, 8433, 8434)
    assert layout.hub_url == "http://127.0.0.1:8420"
    assert layout.summary == Path.cwd() / ".devnet" / "devnet.json"


def test_layout_ports_not_named_follow_the_hubs() -> None:
    layout = read_layout({"EMCD_HUB_PORT": "20000"})

    assert (layout.tunnel_port, layout.admin_port, layout.router_port) == (20001, 20002, 20003)
    assert layout.rpc_port == 20020
    assert layout.validator_ports == (20011, 20012, 20013, 20014)


def test_layout_named_ports_and_folder_are_taken(tmp_path: Path) -> None:
    layout = read_layout(
        {
            "EMCD_DEVNET_DIR": str(tmp_path / "net"),
            "EMCD_HUB_PORT": "20000",
            "EMCD_RPC_PORT": "9",
            "EMCD_VALIDATOR_3_PORT": "65535",
        }
    )

    assert layout.folder == tmp_path / "net"
    assert layout.rpc_url == "http://127.0.0.1:9"
    assert layout.validator_ports == (20011, 20012, 65535, 20014)


def test_layout_empty_variable_counts_as_not_set() -> None:
    assert read_layout({"EMCD_HUB_PORT": "", "EMCD_DEVNET_DIR": ""}) == read_layout({})


def test_layout_relative_folder_is_made_absolute() -> None:
    assert read_layout({"EMCD_DEVNET_DIR": "here"}).folder == Path.cwd() / "here"


@pytest.mark.parametrize(
    "text", ["0", "65536", "-1", "http", "84.20", " 8420", "８４２０", "99999999999999999999"]
)
def test_layout_port_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_layout({"EMCD_TUNNEL_PORT": text})

    assert caught.value.code == "EMC-2230"
    assert "EMCD_TUNNEL_PORT" in caught.value.detail


@pytest.mark.parametrize(
    "environ",
    [
        {"EMCD_TUNNEL_PORT": "8420"},
        {"EMCD_HUB_PORT": "8545", "EMCD_RPC_PORT": "8545"},
        {"EMCD_VALIDATOR_2_PORT": "8431"},
        {"EMCD_ADMIN_PORT": "8421"},
        {"EMCD_ROUTER_PORT": "8434"},
    ],
)
def test_layout_port_taken_twice_is_refused(environ: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="share a port") as caught:
        read_layout(environ)

    assert caught.value.code == "EMC-2230"


def test_layout_port_past_the_last_by_derivation_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        read_layout({"EMCD_HUB_PORT": "65535"})

    assert caught.value.code == "EMC-2230"


def test_layout_environment_sets_every_variable_that_the_config_reads(tmp_path: Path) -> None:
    layout = read_layout({"EMCD_DEVNET_DIR": str(tmp_path), "EMCD_HUB_PORT": "20000"})

    variables = layout.environment("0x" + "1" * 40, "0x" + "2" * 40, "a" * 64)

    assert set(variables) == set(re.findall(r"\$\{(\w+)", CONFIG.read_text()))
    assert variables["EMCD_DEVNET_DIR"] == str(tmp_path)
    assert variables["EMCD_VALIDATOR_4_PORT"] == "20014"


def test_layout_environment_gives_the_same_layout_again(tmp_path: Path) -> None:
    layout = read_layout({"EMCD_DEVNET_DIR": str(tmp_path), "EMCD_HUB_PORT": "30000"})

    assert read_layout(layout.environment("0x" + "1" * 40, "0x" + "2" * 40, "a" * 64)) == layout


def test_layout_every_file_is_inside_the_folder(tmp_path: Path) -> None:
    layout = read_layout({"EMCD_DEVNET_DIR": str(tmp_path)})
    names = [name for name, value in vars(DevnetLayout).items() if isinstance(value, property)]
    files = [value for name in names if isinstance(value := getattr(layout, name), Path)]

    assert len(files) == 10
    assert all(file.parent == tmp_path for file in files)
    assert layout.api_key("demo").is_relative_to(tmp_path)
