"""The README's configuration is one that the program takes; its commands are commands."""

from __future__ import annotations

import re
import tomllib
from dataclasses import fields
from pathlib import Path
from unittest.mock import patch

import emcd_hub
from emcd.config import decode
from emcd_hub.api.openapi import OPENAPI
from emcd_hub.cli import api_key, credits
from emcd_hub.config import HubConfig

README = Path(emcd_hub.__file__).with_name("README.md")
TEXT = README.read_text("utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


def test_configuration_is_taken() -> None:
    (block,) = blocks("toml")
    (table,) = tomllib.loads(block)["role"]
    assert (table.pop("kind"), table.pop("name")) == ("hub", "hub")
    with patch("os.access", return_value=True):  # the certificates are an example
        config, faults = decode(HubConfig, table, "hub")
    assert faults == []
    assert config is not None


def test_every_setting_is_mentioned() -> None:
    assert [field.name for field in fields(HubConfig) if field.name not in TEXT] == []


def test_commands_exist_with_their_options() -> None:
    groups = {"api-key": api_key, "credits": credits}
    lines = [line for line in blocks("sh")[0].splitlines() if line.startswith("emcd ")]
    assert len(lines) == 8
    for line in lines:
        _, group, name, *arguments = line.partition("#")[0].split()
        command = groups[group].commands[name]
        options = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in arguments if word.startswith("--")} <= options


def test_paths_named_are_served() -> None:
    for path in ("/api/wallets/{address}/rewards", "/openapi.json", "/metrics", "/readyz"):
        assert path in TEXT
        assert path in OPENAPI["paths"]
