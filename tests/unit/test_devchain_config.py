"""The embedded chain's settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from emcd.config import decode
from emcd.errors import ConfigError
from emcd.ledger import Ledger
from emcd.proto.params import devnet_params
from emcd.role import HealthState
from emcd.testing import make_context, make_key
from emcd_devchain.config import DevchainConfig
from emcd_devchain.role import SPEC, Devchain
from tests.support.network import GENESIS_S


def test_decode_empty_table_has_usable_defaults(tmp_path: Path) -> None:
    config, faults = decode(DevchainConfig, {}, base=tmp_path)
    assert faults == []
    assert config is not None
    assert (config.listen.host, config.listen.port, config.chain_id) == ("127.0.0.1", 8545, 31337)


def test_decode_full_table_is_read(tmp_path: Path) -> None:
    table = {
        "listen": "127.0.0.1:0",
        "file": "c.sqlite",
        "chain_id": 5,
        "block_seconds": 2,
        "fund": [make_key("a").address],
        "origins": ["chrome-extension://x"],
    }
    config, faults = decode(DevchainConfig, table, base=tmp_path)
    assert faults == []
    assert config is not None
    assert config.file == tmp_path / "c.sqlite"
    assert config.fund == (make_key("a").address,)


@pytest.mark.parametrize(
    "table",
    [
        {"listen": "0.0.0.0:8545"},
        {"block_seconds": 0},
        {"chain_id": 0},
        {"fund": ["0x12"]},
        {"fund": [make_key("a").address.lower()]},
        {"blockseconds": 1},
    ],
)
def test_decode_wrong_setting_is_a_fault(table: dict[str, object]) -> None:
    config, faults = decode(DevchainConfig, table)
    assert config is None
    assert faults


def test_check_public_address_with_tls_is_refused_too(tmp_path: Path) -> None:
    for name in ("cert.pem", "key.pem"):
        (tmp_path / name).write_text("x")
    listen = {"host": "0.0.0.0", "port": 1, "tls_cert": "cert.pem", "tls_key": "key.pem"}
    config, faults = decode(DevchainConfig, {"listen": listen}, base=tmp_path)
    assert config is None
    assert "loopback only" in str(faults)


async def test_setup_network_on_another_chain_is_refused(ledger: Ledger) -> None:
    from emcd.proto.network import Deployment

    address = make_key("contract").address
    deployment = Deployment(5, *[address] * 5, 1, devnet_params(GENESIS_S))
    role = Devchain(DevchainConfig())
    assert role.health().state is HealthState.STARTING
    with pytest.raises(ConfigError) as caught:
        await role.setup(make_context("devchain", ledger, deployment=deployment))
    assert caught.value.code == "EMC-2201"


def test_spec_needs_no_network() -> None:
    assert (SPEC.kind, SPEC.needs_network) == ("devchain", False)
    assert isinstance(SPEC.build(DevchainConfig()), Devchain)
