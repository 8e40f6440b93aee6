"""The operator's commands against anvil: a node that tests move in time, and a shell beside it."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest import mock

import httpx
import trio

from emcd.chain import Call, Chain, ChainConfig, TxReceipt
from emcd.cli.main import main
from emcd.keys import SigningKey, write_keystore
from emcd.proto.messages import Binding, RoundRoot
from emcd.proto.network import decode_deployment
from emcd.testing import make_key
from emcd.types import Address, ParticipantRole
from tests.support.anvil import CHAIN_ID, find_anvil
from tests.support.devchain import ETHER

PASSWORD = "a long password"
VALIDATORS = ("v1", "v2", "v3", "v4")
START_S = 20.0


class Node:
    """anvil as a process, spoken to without trio. Blocks are mined by transactions."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._client = httpx.Client(timeout=20)

    def close(self) -> None:
        self._client.close()

    def call(self, method: str, *params: Any) -> Any:
        body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
        answer = self._client.post(self.url, json=body).json()
        assert "error" not in answer, answer
        return answer["result"]

    def fund(self, address: str, wei: int = 10 * ETHER) -> None:
        self.call("anvil_setBalance", address, hex(wei))

    def nonce(self, address: str) -> int:
        return int(self.call("eth_getTransactionCount", address, "latest"), 16)

    def now_s(self) -> int:
        return int(self.call("eth_getBlockByNumber", "latest", False)["timestamp"], 16)

    def move_to(self, time_s: int) -> None:
        """Mine a block at a time."""
        self.call("evm_setNextBlockTimestamp", hex(time_s))
        self.call("anvil_mine", "0x1")

    def mine(self, blocks: int = 1) -> None:
        self.call("anvil_mine", hex(blocks))


@contextmanager
def anvil_node(*arguments: str, chain_id: int = CHAIN_ID) -> Iterator[Node]:
    """Skips the test when anvil can't be had here."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    command = [str(find_anvil()), "--port", str(port), "--chain-id", str(chain_id), "--accounts", "1"]
    process = subprocess.Popen(
        [*command, "--hardfork", "cancun", *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    node = Node(f"http://127.0.0.1:{port}")
    try:
        deadline = time.monotonic() + START_S
        while True:
            try:
                node.call("eth_chainId")
                break
            except httpx.TransportError:
                assert time.monotonic() < deadline, "anvil does not start"
                time.sleep(0.05)
        yield node
    finally:
        node.close()
        process.terminate()
        process.wait(10)


@dataclass(frozen=True)
class Done:
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def run_cli(*arguments: object) -> Done:
    """One command in this process."""
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        mock.patch.object(sys, "stdin", io.StringIO()),
    ):
        try:
            main([str(argument) for argument in arguments])
            code = 0
        except SystemExit as exc:
            code = exc.code if isinstance(exc.code, int) else 1
    return Done(code, out.getvalue(), err.getvalue())


@dataclass
class Office:
    """A folder with keystores and plans beside a node; commands run in it."""

    node: Node
    home: Path
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def key(self, name: str) -> Path:
        """The keystore of a name's key; it owns ether."""
        file = self.home / f"{name}.json"
        if not file.exists():
            write_keystore(file, make_key(name), PASSWORD, kdf="light")
        self.node.fund(make_key(name).address)
        return file

    def run(self, *arguments: object, **variables: str) -> Done:
        with (
            contextlib.chdir(self.home),
            mock.patch.dict(os.environ, {"EMCD_KEY_PASSWORD": PASSWORD, **variables}),
        ):
            return run_cli(*arguments)

    def plan(self, genesis_in_s: int = 600, **changes: Any) -> Path:
        """A plan for a devnet of four validators; `changes` are lines that replace those of their key."""
        genesis_s = (int(time.time()) + genesis_in_s) // 15 * 15
        lines = {
            "profile": 'profile = "devnet"',
            "chain_id": f"chain_id = {CHAIN_ID}",
            "genesis_time": f"genesis_time = {datetime.fromtimestamp(genesis_s, UTC):%Y-%m-%dT%H:%M:%SZ}",
            "guardian": f'guardian = "{make_key("guardian").address}"',
            "chain": f'[chain]\nrpc_urls = ["{self.node.url}"]\nconfirmations = 1',
            "holders": make_holders(),
            "params": "[params]\nvalidator_set_size = 4",
            "validators": "\n".join(
                f'[[validators]]\nname = "{name}"\nwallet = "{wallet_of(name).address}"\n'
                f'node = "{make_key(name).address}"'
                for name in VALIDATORS
            ),
        }
        assert changes.keys() <= lines.keys() | {"deployer", "vault", "prices", "extra"}
        top = {name: text for name, text in changes.items() if name == "deployer"}
        file = self.home / f"plan-{next(self._numbers)}.toml"
        file.write_text("\n".join({**top, **lines, **changes}.values()) + "\n", "utf-8")
        return file


def make_holders(extra: Mapping[str, int] | None = None) -> str:
    """[holders]: a million for each validator's wallet, the rest for "holder"."""
    amounts = {wallet_of(name).address: 1_000_000 for name in VALIDATORS} | dict(extra or {})
    amounts[make_key("holder").address] = 900_000_000 - sum(amounts.values())
    return "[holders]\n" + "\n".join(f'"{who}" = "{amount}"' for who, amount in amounts.items())


def wallet_of(name: str) -> SigningKey:
    return make_key(f"{name}-wallet")


@dataclass
class Network:
    """A deployed network and the shell beside it."""

    office: Office
    deployment_file: Path
    chain: Chain

    @property
    def options(self) -> tuple[str, ...]:
        return ("--deployment", str(self.deployment_file), "--rpc", self.office.node.url)

    def run(self, *arguments: object, **variables: str) -> Done:
        return self.office.run(*arguments, *self.options, **variables)

    def send(self, key: SigningKey, call: Call) -> TxReceipt:
        self.office.node.fund(key.address)
        return trio.run(self.chain.send, key, call)

    def bind(self, name: str, role: ParticipantRole = ParticipantRole.VALIDATOR) -> None:
        """Bind a node to its wallet."""
        node, wallet = make_key(name), wallet_of(name)
        binding = Binding(node.address, wallet.address, int(role), 1, 2**40)
        signature = node.sign(self.chain.deployment.staking_domain, binding)
        self.send(wallet, self.chain.staking.submit_bind(binding, signature))

    def join(self, name: str) -> None:
        """Bind and stake a validator of a million."""
        self.bind(name)
        wallet, amount = wallet_of(name), 1_000_000 * ETHER
        self.send(wallet, self.chain.token.submit_approve(self.chain.staking.address, amount))
        self.send(wallet, self.chain.staking.submit_stake(make_key(name).address, amount, 360))

    def to_round(self, index: int) -> None:
        params = self.chain.deployment.params
        self.office.node.move_to(params.round_start_ms(index) // 1000 + 1)

    def publish(self, index: int, signers: Sequence[str] = VALIDATORS) -> RoundRoot:
        """Publish some root for a round that is over."""
        root = RoundRoot(index, b"\x22" * 32, bytes([index + 1]) * 32, 10**18 * (index + 1))
        domain = self.chain.deployment.distributor_domain
        signed: dict[Address, bytes] = {make_key(n).address: make_key(n).sign(domain, root) for n in signers}
        self.send(make_key("publisher"), self.chain.distributor.submit_publish(root, signed))
        return root


def open_network(office: Office, deployment_file: Path) -> Network:
    deployment = decode_deployment(deployment_file.read_bytes())
    config = ChainConfig((office.node.url,), confirmations=1, poll_s=0.05)
    return Network(office, deployment_file, Chain(config, deployment))


def deploy_network(office: Office, **changes: Any) -> Network:
    """Deploy by the command itself."""
    done = office.run("chain", "deploy", office.plan(**changes), "--keystore", office.key("deployer"), "--yes",
                      "--send", "--json")  # fmt: skip
    assert done.code == 0, done.err
    return open_network(office, office.home / done.json["deployment_file"])


@contextmanager
def begun_network(home: Path, *computes: str) -> Iterator[Network]:
    """Deployed by the command, four validators staked, compute nodes bound; in round 13 (epoch 1)."""
    with anvil_node() as node:
        holders = make_holders({wallet_of(name).address: 10_000 for name in computes})
        network = deploy_network(Office(node, home), holders=holders)
        for name in VALIDATORS:
            network.join(name)
        for name in computes:
            network.bind(name, ParticipantRole.COMPUTE)
        network.to_round(13)
        yield network


@contextmanager
def restored(network: Network, home: Path) -> Iterator[Network]:
    """The network with a folder of its own; chain and clock go back at the end."""
    node = network.office.node
    snapshot, now_s = node.call("evm_snapshot"), node.now_s()
    yield Network(Office(node, home), network.deployment_file, network.chain)
    node.call("evm_revert", snapshot)
    node.call("evm_setTime", now_s)


def code_of(done: Done) -> str:
    """The number of the error that was printed."""
    return done.err.strip().splitlines()[-1][:8] if done.code else ""
