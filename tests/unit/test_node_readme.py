"""The README's configuration is one that the program takes."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import emcd_node
from emcd.config import decode
from emcd_node.config import NodeConfig

README = Path(emcd_node.__file__).with_name("README.md")


def test_readme_configuration_decodes() -> None:
    blocks = re.findall(r"```toml\n(.*?)```", README.read_text("utf-8"), re.DOTALL)
    assert blocks
    for block in blocks:
        for role in tomllib.loads(block)["role"]:
            assert role.pop("kind") == "node"
            role.pop("name")
            _, faults = decode(NodeConfig, role)
            assert not faults
