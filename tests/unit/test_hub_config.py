"""The hub's configuration: strict, and sensible as a whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from emcd.config import decode
from emcd_hub.config import HubConfig
from emcd_hub.role import SPEC

HASH = "a" * 64


def read(**table: Any) -> tuple[HubConfig | None, list[str]]:
    config, faults = decode(HubConfig, {"key": "keys/hub.json", **table}, "hub", base=Path("/data"))
    return config, [f"{fault.where}: {fault.message}" for fault in faults]


def test_defaults_listen_on_loopback_alone() -> None:
    config, faults = read()
    assert faults == []
    assert config is not None
    assert [str(item) for item in (config.listen, config.tunnel_listen, config.admin_listen)] == [
        "127.0.0.1:8420",
        "127.0.0.1:8421",
        "127.0.0.1:8422",
    ]
    assert config.call_limits.max_attempts == 3


@pytest.mark.parametrize(
    ("table", "complaint"),
    [
        ({"lisen": "127.0.0.1:1"}, "did you mean 'listen'"),
        ({"listen": "0.0.0.0:8420"}, "has no TLS"),
        ({"tunnel_listen": "0.0.0.0:8421"}, "has no TLS"),
        ({"admin_listen": "[::]:8422"}, "has no TLS"),
        ({"admin_listen": "127.0.0.1:8420"}, "must differ"),
        ({"admit": "anybody"}, "expected one of"),
        ({"admit": "listed"}, "no node may join"),
        ({"max_attempts": 0}, "below 1"),
        ({"admin_tokens": [{"name": "a", "token_hash": "secret", "scopes": ["read"]}]}, "must match"),
        ({"admin_tokens": [{"name": "a", "token_hash": HASH, "scopes": ["root"]}]}, "expected one of"),
        ({"admin_tokens": [{"name": "a", "token_hash": HASH, "scopes": []}]}, "below 1"),
        ({"admin_tokens": [{"name": "a", "token_hash": HASH, "scopes": ["read"]}] * 2}, "one name"),
        ({"allowed_nodes": ["0x12"]}, "not an address"),
        ({"manifests": {"m": ["0x12"]}}, "not a hash"),
    ],
)
def test_faults_are_named(table: dict[str, Any], complaint: str) -> None:
    config, faults = read(**table)
    assert config is None
    assert any(complaint in fault for fault in faults), faults


def test_faults_repeat_no_token_hash() -> None:
    _, faults = read(admin_tokens=[{"name": "a", "token_hash": "my secret", "scopes": ["read"]}])
    assert not any("my secret" in fault for fault in faults)


def test_spec_is_the_hub() -> None:
    assert (SPEC.kind, SPEC.config) == ("hub", HubConfig)
    assert [step.number for step in SPEC.migrations] == list(range(1, len(SPEC.migrations) + 1))
