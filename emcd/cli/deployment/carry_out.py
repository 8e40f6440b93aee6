"""A deployment from the first signature to the record: send, compare, write down."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

from emcd.chain import BlockRef, Rpc, TxReceipt
from emcd.chain.blocks import fetch_block
from emcd.chain.deploy import build_deployment
from emcd.chain.tx import TxSigner
from emcd.cli.deployment.costing import ContractStep, rehearse
from emcd.cli.deployment.plan_check import build_plan
from emcd.cli.deployment.plan_file import PlanFile
from emcd.cli.deployment.preview import Preview, fee_policy
from emcd.cli.deployment.progress import progress_file, save_progress
from emcd.cli.deployment.record import deployment_file, record_file, set_aside, write_record
from emcd.cli.deployment.send import DeploymentSender, Say, SendPolicy
from emcd.cli.deployment.verify import (
    Check,
    compare_code,
    compare_holders,
    compare_parameters,
    compare_views,
)
from emcd.errors import FatalError
from emcd.proto.network import Deployment


@dataclass(frozen=True)
class Outcome:
    """What was deployed, and where it is written down."""

    deployment: Deployment
    record: dict[str, Any]
    checks: list[Check]
    cost_wei: int
    record_file: Path
    deployment_file: Path


async def carry_out(
    shown: Preview, key: TxSigner, rpc: Rpc, say: Say, *, poll_s: float, anew: bool
) -> Outcome:
    """Send a preview without faults, or go on with it.

    Raises: what `DeploymentSender.run` raises; FatalError EMC-2158 when the chain holds something else
        than was planned: nothing is recorded then.
    Cancellation: what was sent stays on chain; run again to go on.
    """
    assert shown.progress is not None
    plan, folder = shown.plan, shown.folder
    if anew:
        for path in set_aside(folder, plan.chain_id):
            say(f"        set aside: {path}")
    file = progress_file(folder, plan.chain_id)
    await trio.to_thread.run_sync(save_progress, file, shown.progress)
    policy = SendPolicy(fee_policy(plan), confirmations=plan.chain.confirmations, poll_s=poll_s)
    sender = DeploymentSender(rpc, key, shown.steps, shown.progress, file, policy, say)
    receipts = await sender.run()
    last = await fetch_block(rpc, max(receipt.block for receipt in receipts.values()))
    say("        comparing code, state and parameters with the plan")
    checks = await compare_all(plan, rpc, shown.steps, shown, last)
    if wrong := [check for check in checks if not check.ok]:
        raise FatalError("EMC-2158", "; ".join(f"{check.name}: {check.detail}" for check in wrong))
    first_block = min(receipt.block for receipt in receipts.values())
    deployment = build_deployment(build_plan(plan), [step.address for step in shown.steps], first_block)
    record = write_record(folder, plan, key.address, deployment, shown.steps, receipts, checks)
    file.unlink()
    return Outcome(
        deployment=deployment,
        record=record,
        checks=checks,
        cost_wei=await _cost(rpc, receipts),
        record_file=record_file(folder, plan.chain_id),
        deployment_file=deployment_file(folder, plan.chain_id),
    )


async def compare_all(
    plan: PlanFile, rpc: Rpc, steps: list[ContractStep], shown: Preview, at: BlockRef
) -> list[Check]:
    """The chain at the deployment's last block against a rehearsal with that block's time."""
    assert shown.deployer is not None
    built = build_plan(plan)
    addresses = [step.address for step in steps]
    anew, _, replay = await trio.to_thread.run_sync(
        rehearse, built, shown.deployer, steps[0].nonce, at.timestamp_s, addresses
    )
    by_name = {step.contract: step.address for step in anew}
    return [
        *await compare_code(rpc, anew),
        *await compare_views(rpc, anew, replay, at),
        await compare_holders(rpc, built, by_name["EMCToken"], at),
        await compare_parameters(rpc, built, by_name["Parameters"], at),
    ]


async def _cost(rpc: Rpc, receipts: Mapping[str, TxReceipt]) -> int:
    """What the transactions took; by the gas price that the node says was paid."""
    total = 0
    for receipt in receipts.values():
        raw = await rpc.call("eth_getTransactionReceipt", "0x" + receipt.tx_hash.hex())
        price = raw.get("effectiveGasPrice") if isinstance(raw, dict) else None
        total += receipt.gas_used * int(price or "0x0", 16)
    return total
