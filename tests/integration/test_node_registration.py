"""`emcd node register`: the binding that the node signs, and the wallet's sending of it."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import trio
from click.testing import CliRunner, Result
from eth_account import Account

from emcd.chain import CallReverted
from emcd.command import CommandContext
from emcd.config import ChainConfig, Config, DaemonConfig, KeyFile, NetworkConfig, RoleEntry
from emcd.errors import ConfigError, EmcdError
from emcd.keys import write_keystore
from emcd.proto.json_form import from_json
from emcd.proto.messages import Binding
from emcd.proto.network import encode_deployment
from emcd.proto.signing import require_signer
from emcd.testing import make_key
from emcd.types import ParticipantRole
from emcd_node.cli import node
from emcd_node.config import NodeConfig
from emcd_node.registration import fetch_next_nonce, send_binding, sign_binding
from tests.support.network import HOLDER, deploy, empty_chain
from tests.support.node_network import DEPLOYMENT, DOMAIN, HUB_KEY, NODE_KEY

WALLET = make_key("wallet")
COMPUTE = ParticipantRole.COMPUTE


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("register")
    write_keystore(folder / "node.json", NODE_KEY, "node password", kdf="light")
    write_keystore(folder / "wallet.json", WALLET, "wallet password", kdf="light")
    (folder / "deployment.json").write_text(encode_deployment(DEPLOYMENT))
    (folder / "wallet.txt").write_text("wallet password\n")
    return folder


def _run(folder: Path, *arguments: str, names: tuple[str, ...] = ("node-1",), **chain: Any) -> Result:
    key = KeyFile(folder / "node.json", password_env="NODE_PASSWORD")
    config = Config(
        file=None,
        daemon=DaemonConfig(data_dir=folder),
        network=NetworkConfig(folder / "deployment.json"),
        chain=ChainConfig(**chain),
        roles=tuple(RoleEntry("node", name, NodeConfig(key, HUB_KEY.address)) for name in names),
    )
    context = CommandContext(None, lambda _file, _roles: 0, lambda: config)
    environment = {"NODE_PASSWORD": "node password"}
    return CliRunner().invoke(node, ["register", *arguments], obj=context, env=environment)


def _sending(folder: Path) -> tuple[str, ...]:
    keystore, password = folder / "wallet.json", folder / "wallet.txt"
    return ("--send", "--wallet-keystore", str(keystore), "--wallet-password-file", str(password))


def _code(result: Result) -> str:
    assert isinstance(result.exception, EmcdError), result.output
    return result.exception.code


def test_register_prints_a_binding_that_verifies(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "binding.json"
    result = _run(folder, "--wallet", WALLET.address, "--nonce", "3", "--json", "--out", str(out))
    assert result.exit_code == 0, result.output
    printed = json.loads(result.output)
    assert json.loads(out.read_text()) == printed
    binding = from_json(Binding, printed["binding"])
    signature = bytes.fromhex(printed["signature"][2:])
    require_signer(DOMAIN, binding, signature, NODE_KEY.address)
    assert (binding.wallet, binding.role, binding.nonce) == (WALLET.address, COMPUTE, 3)
    assert 86_000 < binding.deadline - time.time() < 87_000
    signed = Account.sign_typed_data(NODE_KEY.reveal(), full_message=printed["typed_data"])
    assert bytes(signed.signature) == signature  # any wallet's library agrees on what was signed


def test_register_text_says_who_earns(folder: Path) -> None:
    result = _run(folder, "--wallet", WALLET.address, "--nonce", "1", "--role", "compute")
    assert result.exit_code == 0
    for part in (NODE_KEY.address, WALLET.address, "compute", DEPLOYMENT.staking):
        assert part in result.output
    assert "password" not in result.output


@pytest.mark.parametrize(
    ("wallet", "code"),
    [
        (WALLET.address.lower(), "EMC-1491"),
        (WALLET.address[:-1] + ("0" if WALLET.address[-1] != "0" else "1"), "EMC-1491"),
        (WALLET.address[:-1], "EMC-1490"),
        ("vitalik.eth", "EMC-1490"),
        ("", "EMC-1490"),
        (NODE_KEY.address, "EMC-2022"),
    ],
)
def test_register_wrong_wallet_is_numbered(folder: Path, wallet: str, code: str) -> None:
    result = _run(folder, "--wallet", wallet, "--nonce", "1")
    assert result.exit_code != 0
    assert _code(result) == code


def test_register_which_node_must_be_clear(folder: Path) -> None:
    arguments = ("--wallet", WALLET.address, "--nonce", "1")
    assert _code(_run(folder, *arguments, names=("a", "b"))) == "EMC-2020"
    assert _code(_run(folder, *arguments, names=())) == "EMC-2020"
    assert _code(_run(folder, *arguments, "--role", "validator")) == "EMC-2020"
    assert _run(folder, *arguments, "--name", "b", names=("a", "b")).exit_code == 0


def test_register_without_a_chain_says_so(folder: Path) -> None:
    assert _code(_run(folder, "--wallet", WALLET.address)) == "EMC-1007"


def test_register_send_needs_the_wallets_keystore(folder: Path) -> None:
    result = _run(folder, "--wallet", WALLET.address, "--send")
    assert result.exit_code == 2
    assert "--wallet-keystore" in result.output


def test_register_send_with_another_wallets_keystore_is_refused(folder: Path) -> None:
    wallet = (
        "--wallet-keystore",
        str(folder / "wallet.json"),
        "--wallet-password-file",
        str(folder / "wallet.txt"),
    )
    result = _run(
        folder, "--wallet", HOLDER.address, "--nonce", "1", "--send", "--yes", *wallet,
        rpc_urls=("http://127.0.0.1:1",),
    )  # fmt: skip
    assert _code(result) == "EMC-2021"


def test_register_send_is_asked_before_it_is_done(folder: Path) -> None:
    wallet = (
        "--wallet-keystore",
        str(folder / "wallet.json"),
        "--wallet-password-file",
        str(folder / "wallet.txt"),
    )
    result = _run(
        folder,
        "--wallet",
        WALLET.address,
        "--nonce",
        "1",
        "--send",
        *wallet,
        rpc_urls=("http://127.0.0.1:1",),
    )
    assert result.exit_code == 1
    assert result.exception is None or isinstance(result.exception, SystemExit)


async def test_send_binding_registers_once_and_only_as_signed(tmp_path: Path) -> None:
    with empty_chain(tmp_path / "chain.sqlite", WALLET) as rpc:
        network = await deploy(rpc)
        chain, deployment = network.chain, network.deployment
        deadline = (await chain.head()).timestamp_s + 3600
        assert await fetch_next_nonce(chain, NODE_KEY.address) == 1
        signed = sign_binding(deployment, NODE_KEY, WALLET.address, COMPUTE, 1, deadline)
        with pytest.raises(ConfigError) as caught:
            await send_binding(chain, signed, HOLDER)
        assert caught.value.code == "EMC-2021"
        with trio.fail_after(20):
            assert (await send_binding(chain, signed, WALLET)).succeeded
        participant = await chain.staking.find_participant(NODE_KEY.address)
        assert participant is not None
        assert (participant.wallet, participant.role) == (WALLET.address, COMPUTE)
        with pytest.raises(CallReverted):
            await send_binding(chain, signed, WALLET)  # replayed
        assert await fetch_next_nonce(chain, NODE_KEY.address) == 2
        for wrong in (
            sign_binding(DEPLOYMENT, NODE_KEY, WALLET.address, COMPUTE, 2, deadline),  # another network's
            sign_binding(deployment, NODE_KEY, WALLET.address, COMPUTE, 2, 1),  # too late
        ):
            with pytest.raises(CallReverted):
                await send_binding(chain, wrong, WALLET)
