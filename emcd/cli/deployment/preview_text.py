"""A dry run as text and as JSON."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from emcd.cli.deployment.preview import Market, Preview
from emcd.cli.deployment.record import plan_table
from emcd.cli.layout_text import columns, format_ether_ceil, format_gwei, format_when
from emcd.money import decode_wei, format_token_floor
from emcd.proto.address import hex_hash
from emcd.types import Wei


def preview_text(shown: Preview) -> str:
    """For people, within 80 columns where addresses allow it."""
    lines = [*_facts(shown)]
    if shown.steps and shown.market is not None:
        lines += ["", *_steps(shown, shown.market)]
    if shown.plan.validators:
        lines += ["", "expected to stake before genesis", *_validators(shown)]
    if shown.notes:
        lines += ["", "worth knowing", *(f"  - {note}" for note in shown.notes)]
    if shown.faults:
        lines += [
            "",
            "what is wrong with it",
            *(f"  {n}. {fault}" for n, fault in enumerate(shown.faults, 1)),
        ]
    return "\n".join(lines)


def preview_json(shown: Preview) -> dict[str, Any]:
    """Everything, amounts in wei as text."""
    market = shown.market
    return {
        "chain_id": shown.plan.chain_id,
        "deployer": shown.deployer,
        "resumes": shown.resumes,
        "plan": plan_table(shown.plan),
        "market": market
        and {
            "rpc_url": market.url,
            "block": market.head.number,
            "base_fee_wei": str(market.base_fee_wei),
            "max_fee_wei": str(market.fees.max_fee_wei),
            "tip_wei": str(market.fees.tip_wei),
            "balance_wei": str(market.balance_wei),
        },
        "contracts": [
            {
                "contract": step.contract,
                "address": step.address,
                "nonce": step.nonce,
                "gas": step.gas,
                "gas_limit": step.gas_limit,
                "creation_hash": hex_hash(step.creation_hash),
                "code_bytes": len(step.runtime),
            }
            for step in shown.steps
        ],
        "expected_cost_wei": str(shown.expected_wei),
        "max_cost_wei": str(shown.most_wei),
        "notes": shown.notes,
        "faults": [{"code": f.code, "where": f.where, "message": f.message} for f in shown.faults],
    }


def _facts(shown: Preview) -> list[str]:
    plan, market, now_s = shown.plan, shown.market, int(time.time())
    params = plan.parameters.params
    rows = [("chain", f"{plan.chain_id}, profile {plan.profile}")]
    if market is not None:
        head = f"block {market.head.number:,}, base fee {format_gwei(market.base_fee_wei)} gwei"
        rows += [("endpoint", market.url), ("head", head)]
    if shown.deployer is not None:
        owns = (
            f", owns {format_token_floor(Wei(market.balance_wei), 6)} ETH, nonce {market.nonce}"
            if market
            else ""
        )
        rows.append(("deployer", f"{shown.deployer}{owns}"))
    clock = f"rounds of {params.round_s:,} s, epochs of {params.epoch_rounds} rounds"
    rows += [
        ("genesis", format_when(plan.genesis.time_s, now_s)),
        ("clock", clock),
        (
            "set",
            f"{params.validator_set_size} validators of {_token(params.validator_minimum_wei)} EMC or more",
        ),
        ("supply", f"900,000,000 EMC to {len(plan.holders)} holders; 100,000,000 to be earned"),
        ("guardian", plan.guardian),
        (
            "treasury",
            f"{plan.vault.treasury} gets {plan.vault.treasury_bps / 100:g} %"
            if plan.vault.treasury
            else "none: what credits cost is burnt",
        ),
        ("credits", f"{plan.vault.credits_per_token:,} for one token"),
    ]
    if shown.resumes:
        rows.append(("goes on", "an earlier run was cut; what it created stays"))
    return columns(rows)


def _steps(shown: Preview, market: Market) -> Iterator[str]:
    rows = [("", "contract", "address", "gas", "ETH now")]
    for number, step in enumerate(shown.steps, 1):
        cost = format_ether_ceil(step.expected_wei(market.base_fee_wei, market.fees))
        rows.append((str(number), step.contract, step.address, f"{step.gas:,}", cost))
    total = sum(step.gas for step in shown.steps)
    rows.append(("", "together", "", f"{total:,}", format_ether_ceil(shown.expected_wei)))
    yield from columns(rows, right=(3, 4))
    ceiling = format_gwei(market.fees.max_fee_wei)
    yield f"at most {format_ether_ceil(shown.most_wei)} ETH: {ceiling} gwei and a quarter more gas"


def _validators(shown: Preview) -> Iterator[str]:
    rows = []
    for validator in shown.plan.validators:
        stake = f"{format_token_floor(Wei(validator.stake.wei), 0)} EMC"
        rows.append((validator.name or "-", "wallet", validator.wallet, stake))
        if validator.node is not None:
            rows.append(("", "node", validator.node, ""))
    yield from ("  " + line for line in columns(rows, right=(3,)))


def _token(blob: bytes) -> str:
    return format_token_floor(decode_wei(blob), 0)
