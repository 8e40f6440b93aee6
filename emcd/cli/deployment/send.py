"""Sends a deployment, contract after contract, and goes on where an earlier run was cut.

Each contract has one nonce for ever. What is signed is written down before it is sent; a run that
finds such a transaction sends the same bytes again, or pays more for the same nonce. So a crash, a
second run, a dropped transaction or a reorganisation never makes a second contract.
Cancellation: what was sent stays on chain; run again to go on.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import trio

from emcd.chain import Call, CallReverted, Rpc, RpcRefused, TxReceipt
from emcd.chain.blocks import fetch_head
from emcd.chain.market import fetch_fees
from emcd.chain.quantity import ask_quantity
from emcd.chain.sender import explain_failure, find_receipt
from emcd.chain.tx import FeePolicy, Fees, TxSigner, compute_bump, sign_transaction
from emcd.cli.deployment.costing import ContractStep
from emcd.cli.deployment.progress import Attempt, Progress, StepState, save_progress
from emcd.cli.layout_text import format_gwei
from emcd.errors import ConfigError, FatalError, RecoverableError
from emcd.proto.address import hex_hash, parse_hash
from emcd.types import Hash

T = TypeVar("T")
Say = Callable[[str], None]

SURE_POLLS = 5
"""How often a nonce must be seen used, and no receipt, before it is believed: behind a load balancer
one node may know the one and another not yet the other."""


@dataclass(frozen=True)
class SendPolicy:
    """How patient the sender is, and how deep is deep enough."""

    fees: FeePolicy
    confirmations: int = 2
    poll_s: float = 1.0
    timeout_s: float = 3600.0


class DeploymentSender:
    """One run of `--send`."""

    def __init__(
        self,
        rpc: Rpc,
        key: TxSigner,
        steps: Sequence[ContractStep],
        progress: Progress,
        file: Path,
        policy: SendPolicy,
        say: Say,
    ) -> None:
        self._rpc = rpc
        self._key = key
        self._codes = {step.contract: step.code for step in steps}
        self._progress = progress
        self._file = file
        self._policy = policy
        self._say = say
        self._excuse = ""

    async def run(self) -> dict[str, TxReceipt]:
        """Create what is not created yet; returns every contract's receipt, deep enough.

        Raises: FatalError EMC-2156 (a nonce was used otherwise), CallReverted EMC-1504 (a constructor
            refused on chain), RecoverableError EMC-1513 (not mined in time).
        """
        with trio.move_on_after(self._policy.timeout_s):
            total = len(self._progress.steps)
            for number, step in enumerate(self._progress.steps, 1):
                await self._create(step, f"{number} of {total}")
            return await self._confirm()
        raise RecoverableError("EMC-1513", f"the deployment after {self._policy.timeout_s:.0f} s; run again")

    async def _create(self, step: StepState, place: str) -> None:
        receipt = await self._find(step)
        if receipt is not None:
            self._say(f"{place}  {step.contract} is at {step.address} since block {receipt.block}")
            return
        if not step.attempts:
            await self._sign(step, await self._fetch_fees())
        self._say(f"{place}  {step.contract} in transaction {step.attempts[-1].tx_hash}")
        receipt = await self._watch(step)
        self._say(
            f"{place}  {step.contract} is at {step.address}, block {receipt.block}, gas {receipt.gas_used:,}"
        )

    async def _watch(self, step: StepState) -> TxReceipt:
        """Send until it is in a block; pay more when it is not within the policy's time."""
        await self._broadcast(step)
        sent_at = trio.current_time()
        taken = 0
        while (receipt := await self._find(step)) is None:
            taken = taken + 1 if await self._is_nonce_used(step) else 0
            if taken >= SURE_POLLS:
                raise FatalError(
                    "EMC-2156", f"nonce {step.nonce} of {self._key.address}, for {step.contract}"
                )
            is_due = time.time() - step.attempts[-1].signed_at_s >= self._policy.fees.bump_after_s
            is_bumped = is_due and await self._bump(step)
            if is_bumped or trio.current_time() - sent_at >= self._policy.fees.resend_after_s:
                await self._broadcast(step)
                sent_at = trio.current_time()
            await trio.sleep(self._policy.poll_s)
        return receipt

    async def _find(self, step: StepState) -> TxReceipt | None:
        """The receipt of one of the attempts. Raises: CallReverted, FatalError EMC-1518."""
        for attempt in step.attempts:
            tx_hash = Hash(parse_hash(attempt.tx_hash))
            receipt = await self._patiently(partial(find_receipt, self._rpc, tx_hash))
            if receipt is None:
                continue
            if not receipt.succeeded:
                call = Call(None, self._codes[step.contract])
                reason = await explain_failure(self._rpc, call, self._key.address, receipt)
                raise CallReverted(reason, f"deploy {step.contract}")
            if receipt.contract != step.address:
                raise FatalError("EMC-1518", f"{step.contract} is at {receipt.contract}, not {step.address}")
            return receipt
        return None

    async def _is_nonce_used(self, step: StepState) -> bool:
        """Whether the account is past this nonce, though none of the attempts has a receipt (yet)."""
        account = self._key.address
        used = await self._patiently(
            lambda: ask_quantity(self._rpc, "eth_getTransactionCount", account, "latest")
        )
        return used > step.nonce

    async def _patiently(self, ask: Callable[[], Awaitable[T]]) -> T:
        """Ask until the node answers; the run's deadline ends it."""
        while True:
            try:
                answer = await ask()
            except RecoverableError as exc:
                if exc.detail != self._excuse:
                    self._say(f"        waiting: {exc.detail}")
                self._excuse = exc.detail
                await trio.sleep(self._policy.poll_s)
                continue
            self._excuse = ""
            return answer

    async def _sign(self, step: StepState, fees: Fees) -> None:
        call = Call(None, self._codes[step.contract], label=f"deploy {step.contract}")
        chain_id = self._progress.chain_id
        tx_hash, raw = await trio.to_thread.run_sync(
            sign_transaction, self._key, chain_id, step.nonce, call, step.gas_limit, fees
        )
        step.attempts.append(
            Attempt(
                hex_hash(tx_hash),
                "0x" + raw.hex(),
                str(fees.max_fee_wei),
                str(fees.tip_wei),
                int(time.time()),
            )
        )
        await trio.to_thread.run_sync(save_progress, self._file, self._progress)

    async def _fetch_fees(self) -> Fees:
        return await self._patiently(partial(fetch_fees, self._rpc, self._policy.fees))

    async def _bump(self, step: StepState) -> bool:
        """Sign a replacement that pays more; False at the ceiling."""
        last = step.attempts[-1]
        before = Fees(int(last.max_fee_wei), int(last.tip_wei))
        fees = compute_bump(before, await self._fetch_fees(), self._policy.fees)
        if fees is None:
            return False
        await self._sign(step, fees)
        self._say(f"        not mined yet: offering {format_gwei(fees.max_fee_wei)} gwei a unit of gas")
        return True

    async def _broadcast(self, step: StepState) -> None:
        """Known already, or mined meanwhile, is as good."""
        try:
            raw = step.attempts[-1].raw
            await self._patiently(lambda: self._rpc.call("eth_sendRawTransaction", raw))
        except RpcRefused as exc:
            if "insufficient funds" in exc.message.lower():
                raise ConfigError("EMC-2157", f"{self._key.address}: {exc.message}") from exc
            if "already" not in exc.message.lower():
                self._say(f"        the node says: {exc.message}")

    async def _confirm(self) -> dict[str, TxReceipt]:
        """Wait until every creation is deep enough, through reorganisations."""
        said = -1
        while True:
            head = await self._patiently(partial(fetch_head, self._rpc))
            found = {step.contract: await self._find(step) for step in self._progress.steps}
            lost = [step for step in self._progress.steps if found[step.contract] is None]
            for step in lost:
                self._say(f"        a reorganisation took {step.contract} away: sending it again")
                await self._watch(step)
            known = {name: receipt for name, receipt in found.items() if receipt is not None}
            depth = min((head.number - receipt.block + 1 for receipt in known.values()), default=0)
            if not lost and depth >= self._policy.confirmations:
                return known
            if depth != said:
                self._say(f"        {max(depth, 0)} of {self._policy.confirmations} confirmations")
                said = depth
            await trio.sleep(self._policy.poll_s)
