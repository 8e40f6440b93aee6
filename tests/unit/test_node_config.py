"""A node's settings: what stands, and every way they can be wrong."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from emcd.config import Fault, decode
from emcd.inference.minilm import MINILM_NAME
from emcd_node.config import NodeConfig
from tests.support.node_network import HUB_KEY

BASE = f'key = "node.json"\nhub_address = "{HUB_KEY.address}"\n'
ENGINE = '{kind = "engine", name = "m", url = "http://h/v1"'
EMBEDDED = f'{{kind = "embedded", name = "{MINILM_NAME}"'


def _decode(text: str) -> tuple[NodeConfig | None, list[Fault]]:
    return decode(NodeConfig, tomllib.loads(BASE + text), "node", base=Path("/data"))


def test_node_config_minimal_serves_the_embedded_model() -> None:
    config, faults = _decode("")
    assert not faults
    assert config is not None
    assert [model.name for model in config.model] == [MINILM_NAME]
    assert config.models_dir == Path("/data/models")


def test_node_config_engines_and_embedded_stand_together() -> None:
    config, faults = _decode(f"""
        hub_url = "wss://hub.example.org:8421"
        [[model]]
        kind = "embedded"
        name = "{MINILM_NAME}"
        threads = 0
        [[model]]
        kind = "engine"
        name = "llama"
        url = "http://10.0.0.5:8000/v1"
        api_key_env = "KEY"
    """)
    assert not faults
    assert config is not None
    assert [model.kind for model in config.model] == ["embedded", "engine"]


@pytest.mark.parametrize(
    ("text", "where", "code"),
    [
        ('hub_url = "http://127.0.0.1:8421"', "hub_url", "EMC-2011"),
        ('hub_url = "ws://hub.example.org:8421"', "hub_url", "EMC-2011"),
        ('hub_url = "ws://127.0.0.1.evil.org:8421"', "hub_url", "EMC-2011"),
        ('hub_url = "wss://user:pw@hub.example.org"', "hub_url", "EMC-2011"),
        ("model = []", "model", "EMC-1003"),
        ('model = [{kind = "embedded", name = "../other"}]', "name", "EMC-2012"),
        ('model = [{kind = "embedded", name = ".hidden"}]', "name", "EMC-2012"),
        (f'model = [{EMBEDDED}, manifest = "folder"}}]', "manifest", "EMC-2012"),
        (f'model = [{EMBEDDED}, serve_instead = "fewer-layers"}}]', "serve_instead", "EMC-2012"),
        (f'model = [{EMBEDDED}, serve_instead = "nothing"}}]', "serve_instead", "EMC-1003"),
        (f'model = [{ENGINE}, manifest = "a/b"}}]', "manifest", "EMC-2012"),
        (f'model = [{ENGINE}, manifest = "m", quantization = "int4"}}]', "quantization", "EMC-2012"),
        ('model = [{kind = "engine", name = "m"}]', "url", "EMC-2012"),
        ('model = [{kind = "engine", name = "m", url = "http://127.0.0.1/v1?key=1"}]', "url", "EMC-2012"),
        (f"model = [{ENGINE}}}, {ENGINE}}}]", "name", "EMC-2012"),
        (f'model = [{ENGINE}, api_key_env = "A", api_key_file = "b"}}]', "model", "EMC-2012"),
        (f'model = [{ENGINE}, serve_instead = "int8"}}]', "serve_instead", "EMC-2012"),
        (f'model = [{ENGINE}, endpoints = ["chat", "chat"]}}]', "endpoints", "EMC-2012"),
        (f'model = [{ENGINE}, endpoints = ["video"]}}]', "endpoints", "EMC-1003"),
        (f'model = [{EMBEDDED}, endpoints = ["embeddings"]}}]', "endpoints", "EMC-2012"),
        (f'model = [{EMBEDDED}, url = "http://h/v1"}}]', "url", "EMC-2012"),
        (f'model = [{EMBEDDED}, serve_instead = "int8"}}]', "serve_instead", "EMC-2010"),
        ("max_parallel_calls = 0", "max_parallel_calls", "EMC-1003"),
        ("hub_adress = 1", "hub_adress", "EMC-1002"),
    ],
)
def test_node_config_fault_is_named(text: str, where: str, code: str) -> None:
    config, faults = _decode(text)
    assert config is None
    assert any(fault.code == code and where in fault.where for fault in faults), faults


def test_node_config_cheat_stands_with_its_switch() -> None:
    config, faults = _decode(f'allow_cheating_demo = true\nmodel = [{EMBEDDED}, serve_instead = "int8"}}]')
    assert not faults
    assert config is not None
    assert config.model[0].serve_instead == "int8"
