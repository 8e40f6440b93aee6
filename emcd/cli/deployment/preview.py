"""A dry run: what `--send` would do now, at which addresses, for how much, and what is in its way.

Asks the chain, changes nothing. Invariant: every fault is gathered; one that makes the next question
pointless (no endpoint, a plan that contradicts itself) leaves that question out.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import trio

from emcd.chain import BlockRef, JsonRpc
from emcd.chain.blocks import fetch_block, fetch_head
from emcd.chain.market import fetch_market
from emcd.chain.quantity import ask_quantity
from emcd.chain.tx import GWEI, FeePolicy, Fees
from emcd.cli.deployment.costing import ContractStep, rehearse
from emcd.cli.deployment.plan_check import CODE, build_plan, check_plan, list_notes
from emcd.cli.deployment.plan_file import PlanFile
from emcd.cli.deployment.progress import Progress, load_progress, progress_file
from emcd.cli.deployment.record import find_record
from emcd.cli.layout_text import format_ether_ceil
from emcd.config import Fault
from emcd.errors import EmcdError, RecoverableError
from emcd.proto.address import hex_hash
from emcd.types import Address

TOO_POOR, EXISTS, CHANGED, NO_CHAIN = "EMC-2157", "EMC-2152", "EMC-2153", "EMC-1502"


@dataclass(frozen=True)
class Market:
    """The chain as it is now."""

    url: str
    head: BlockRef
    chain_hash: str
    base_fee_wei: int
    fees: Fees
    block_gas_limit: int
    balance_wei: int
    nonce: int


@dataclass
class Preview:
    """Everything that a dry run shows. `resumes`: an earlier run was cut, and this one goes on with it."""

    plan: PlanFile
    deployer: Address | None
    folder: Path
    market: Market | None = None
    steps: list[ContractStep] = field(default_factory=list)
    progress: Progress | None = None
    resumes: bool = False
    faults: list[Fault] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def expected_wei(self) -> int:
        if self.market is None:
            return 0
        return sum(s.expected_wei(self.market.base_fee_wei, self.market.fees) for s in self.steps)

    @property
    def most_wei(self) -> int:
        return 0 if self.market is None else sum(s.most_wei(self.market.fees) for s in self.steps)


async def preview_deployment(
    plan: PlanFile,
    deployer: Address | None,
    rpc: JsonRpc | None,
    folder: Path,
    *,
    anew: bool,
    faults: Sequence[Fault] = (),
) -> Preview:
    """Gather it. `anew`: an earlier deployment of this chain id, finished or cut, is set aside.

    `faults`: what is wrong with the plan's file already.
    """
    shown = Preview(plan, deployer, folder, faults=list(faults), notes=list_notes(plan))
    begun = None if anew else load_progress(progress_file(folder, plan.chain_id))
    if begun is not None and begun.has_begun:
        shown.progress, shown.resumes = begun, True
    shown.faults += check_plan(plan, int(time.time()), resumes=shown.resumes)
    if deployer is None:
        shown.faults.append(Fault("deployer", "whose addresses? give --keystore, --from or `deployer`", CODE))
    elif plan.deployer not in (None, deployer):
        shown.faults.append(
            Fault("deployer", f"the plan is for {plan.deployer}, the key is {deployer}", CODE)
        )
    if rpc is None:
        shown.faults.append(Fault("chain.rpc_urls", "is empty, and there is no --rpc", CODE))
        return shown
    shown.market = await _ask_market(rpc, plan, deployer, shown.faults)
    if shown.market is None or deployer is None:
        return shown
    _judge_earlier(shown, shown.market, anew)
    if faults or any(fault.code == CODE for fault in shown.faults):
        return shown
    nonce = shown.progress.steps[0].nonce if shown.progress is not None else shown.market.nonce
    built = build_plan(plan)
    shown.steps, refused, _ = await trio.to_thread.run_sync(
        rehearse, built, deployer, nonce, max(int(time.time()), shown.market.head.timestamp_s)
    )
    shown.faults += refused
    await _judge_chain(shown, shown.market, rpc)
    return shown


def fee_policy(plan: PlanFile) -> FeePolicy:
    ceiling = plan.chain.max_fee_gwei * GWEI
    tip_ceiling = min(ceiling, FeePolicy().tip_ceiling_wei)
    return FeePolicy(ceiling_wei=ceiling, tip_ceiling_wei=tip_ceiling, max_transaction_cost_wei=0)


async def _ask_market(
    rpc: JsonRpc, plan: PlanFile, deployer: Address | None, faults: list[Fault]
) -> Market | None:
    try:
        await rpc.require_chain_id()
        head, first = await fetch_head(rpc), await fetch_block(rpc, 0)
        raw = await rpc.call("eth_getBlockByNumber", hex(head.number), False)
        prices = await fetch_market(rpc, fee_policy(plan))
        has = deployer is not None
        return Market(
            url=next((e.shown for e in rpc.list_endpoints() if e.was_right), ""),
            head=head,
            chain_hash=hex_hash(first.hash),
            base_fee_wei=prices.base_fee_wei,
            fees=prices.fees(fee_policy(plan)),
            block_gas_limit=int(raw["gasLimit"], 16),
            balance_wei=await ask_quantity(rpc, "eth_getBalance", deployer, "latest") if has else 0,
            nonce=await ask_quantity(rpc, "eth_getTransactionCount", deployer, "pending") if has else 0,
        )
    except EmcdError as exc:
        faults.append(Fault("chain", exc.detail, exc.code))
    except (KeyError, TypeError, ValueError, AttributeError) as exc:
        faults.append(Fault("chain", f"the node's newest block can't be read: {exc}", NO_CHAIN))
    return None


def _judge_earlier(shown: Preview, market: Market, anew: bool) -> None:
    """What an earlier run, finished or cut, has to say."""
    begun, chain_id = shown.progress, shown.plan.chain_id
    if begun is not None and begun.chain_hash != market.chain_hash:
        text = f"was cut on another chain of id {chain_id}, whose first block is {begun.chain_hash}"
        shown.faults.append(Fault("an earlier run", f"{text}; --new sets it aside", CHANGED))
    elif begun is not None and begun.deployer != shown.deployer:
        text = f"was cut, sent by {begun.deployer}: go on with that key, or set it aside with --new"
        shown.faults.append(Fault("an earlier run", text, CHANGED))
    record = find_record(shown.folder, chain_id)
    if record is None or anew:
        return
    if begun is None or {s.contract: s.address for s in begun.steps} != dict(record.addresses):
        text = (
            f"{record.file} holds a deployment since block {record.block}; --new keeps it under another name"
        )
        shown.faults.append(Fault(f"chain {chain_id}", text, EXISTS))


async def _judge_chain(shown: Preview, market: Market, rpc: JsonRpc) -> None:
    assert shown.deployer is not None
    planned = Progress.begin(shown.plan.chain_id, market.chain_hash, shown.deployer, shown.steps)
    if shown.progress is not None:
        if shown.steps and not planned.fits(shown.progress):
            text = "was cut with another plan, or another version of the contracts: finish it with those"
            shown.faults.append(Fault("an earlier run", f"{text}, or --new sets it aside", CHANGED))
        return
    for step in shown.steps:
        if step.gas_limit > market.block_gas_limit:
            text = f"needs {step.gas_limit:,} gas, a block holds {market.block_gas_limit:,}"
            shown.faults.append(Fault(step.contract, text, CODE))
        if await _has_code(rpc, step.address):
            shown.faults.append(Fault(step.contract, f"{step.address} has code already", CODE))
    if market.balance_wei < shown.most_wei:
        lack = shown.most_wei - market.balance_wei
        text = f"{shown.deployer} lacks {format_ether_ceil(lack)} ETH for the gas"
        shown.faults.append(Fault("deployer", text, TOO_POOR))
    pending = market.nonce - await ask_quantity(rpc, "eth_getTransactionCount", shown.deployer, "latest")
    if pending:
        text = f"{pending} transactions of {shown.deployer} wait in the pool: let them be mined first"
        shown.faults.append(Fault("deployer", text, CODE))
    shown.progress = planned


async def _has_code(rpc: JsonRpc, address: Address) -> bool:
    code = await rpc.call("eth_getCode", address, "latest")
    if not isinstance(code, str):
        raise RecoverableError("EMC-1507", f"eth_getCode is {code!r:.40}")
    return len(code) > 2
