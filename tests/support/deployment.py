"""Deployments that are cut: the command's inside with an RPC that dies at a chosen transaction."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import trio

from emcd.chain import JsonRpc
from emcd.chain.contracts import CONTRACT_NAMES
from emcd.cli.deployment.carry_out import carry_out
from emcd.cli.deployment.plan_file import load_plan
from emcd.cli.deployment.preview import preview_deployment
from emcd.testing import make_key
from tests.support.anvil import CHAIN_ID
from tests.support.chain_cli import Done, Office

DEPLOYER = make_key("deployer")
STEPS = len(CONTRACT_NAMES)


def deploy(office: Office, plan: Path, *arguments: object) -> Done:
    return office.run("chain", "deploy", plan, "--keystore", office.key("deployer"), *arguments)


def send(office: Office, plan: Path, *arguments: object) -> Done:
    return deploy(office, plan, "--send", "--yes", "--json", *arguments)


def error_of(done: Done) -> dict[str, Any]:
    """The error that --json prints."""
    text = done.err[done.err.index('{\n  "error"') :]
    return dict(json.loads(text)["error"])


class Cut(Exception):
    """The process dies here."""


class CuttingRpc(JsonRpc):
    """Dies at the n-th transaction: before it left, or when it was sent and nobody has noted it."""

    def __init__(self, url: str, number: int, after: bool) -> None:
        super().__init__([url], CHAIN_ID)
        self.left, self.after = number, after

    async def call(self, method: str, *params: Any) -> Any:
        if method == "eth_sendRawTransaction":
            self.left -= 1
            if self.left == 0 and not self.after:
                raise Cut
            result = await super().call(method, *params)
            if self.left == 0:
                raise Cut
            return result
        return await super().call(method, *params)


def run_sender(office: Office, plan: Path, rpc: JsonRpc) -> Any:
    """The command's inside, in this process, so that it can be cut."""
    folder = office.home / "deployments"
    folder.mkdir(exist_ok=True)
    read, _ = load_plan(plan)
    assert read is not None

    async def run() -> Any:
        shown = await preview_deployment(read, DEPLOYER.address, rpc, folder, anew=False)
        assert shown.faults == []
        return await carry_out(shown, DEPLOYER, rpc, lambda _: None, poll_s=0.02, anew=False)

    return trio.run(run)
