"""Everything about a network's contracts at one block, as one JSON object; amounts in wei as text.

Asks, changes nothing. Invariant: all of it is read at the same block.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import trio

from emcd.accounting.emission import CAP_WEI, cumulative_wei
from emcd.chain import BlockRef, Chain, Participant, PublicationState, ValidatorSet
from emcd.chain.deploy import GENESIS_WEI, DeploymentPlan, contract_addresses
from emcd.chain.parameters import fetch_parameter_schedule
from emcd.cli.chain_view.endpoint import EndpointView
from emcd.cli.deployment.costing import rehearse
from emcd.cli.deployment.verify import compare_code
from emcd.errors import EmcdError
from emcd.proto.address import hex_hash
from emcd.proto.parameter_words import list_differences
from emcd.proto.parameters import ParameterSet
from emcd.types import ZERO_ADDRESS, Address, ParticipantRole

MAX_PENDING = 64
"""Rounds looked back for publications; the contract holds 16 that wait."""


async def gather_status(
    chain: Chain, endpoints: Sequence[EndpointView], expected: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """The whole status at the newest block. `expected`: the deployment record's validators of genesis.

    Raises: RecoverableError, FatalError EMC-1501, EMC-1515.
    """
    await chain.require_chain()
    head = await chain.head()
    participants = await chain.staking.fetch_participants(at=head)
    clock = _clock(chain, head)
    validators = await _validators(chain, head, participants, clock["epoch"])
    return {
        "chain_id": chain.deployment.chain_id,
        "head": {"block": head.number, "hash": hex_hash(head.hash), "time_s": head.timestamp_s,
                 "age_s": max(0, int(time.time()) - head.timestamp_s)},
        "endpoints": [_endpoint(view) for view in endpoints],
        "contracts": await _contracts(chain, head),
        "token": await _token(chain, head),
        "clock": clock,
        "emission": await _emission(chain, head, clock["round"]),
        "validators": validators,
        "staking": await _staking(chain, head, participants),
        "publications": await _publications(chain, head),
        "guardian": await _guardian(chain, head),
        "vault": await _vault(chain, head),
        "parameters": await _parameters(chain, head, clock["epoch"]),
        "expected": [_expectation(item, participants) for item in expected],
    }  # fmt: skip


def _endpoint(view: EndpointView) -> dict[str, Any]:
    return {
        "url": view.url,
        "ok": not view.problem,
        "block": None if view.head is None else view.head.number,
        "age_s": None if view.head is None else max(0, int(time.time()) - view.head.timestamp_s),
        "answered_ms": view.answered_ms,
        "problem": view.problem,
    }


async def _contracts(chain: Chain, head: BlockRef) -> list[dict[str, Any]]:
    """Each contract's code against what the artifacts here make of the deployment's parameters."""
    vault, deployment = chain.vault, chain.deployment
    treasury = Address(await vault.view_one("treasury", at=head))
    guardian = Address(await chain.distributor.view_one("guardian", at=head))
    plan = DeploymentPlan(
        chain_id=deployment.chain_id,
        holders={guardian: GENESIS_WEI},  # who began with token leaves no trace in the code
        guardian=guardian,
        params=deployment.params,
        prices=deployment.prices,
        treasury=None if treasury == ZERO_ADDRESS else treasury,
        treasury_bps=int(await vault.view_one("treasuryBps", at=head)),
        micro_per_token=await vault.fetch_micro_per_token(at=head),
    )
    addresses = contract_addresses(deployment)
    steps, faults, _ = await trio.to_thread.run_sync(
        rehearse, plan, guardian, 0, head.timestamp_s, tuple(addresses.values())
    )
    checks = {check.name.split()[0]: check for check in await compare_code(chain.rpc, steps)}
    found = []
    for name, address in addresses.items():
        check = checks.get(name)
        detail = check.detail if check else next((str(f) for f in faults), "could not be made here")
        found.append(
            {"contract": name, "address": address, "ok": check is not None and check.ok, "detail": detail}
        )
    return found


async def _token(chain: Chain, head: BlockRef) -> dict[str, Any]:
    supply = await chain.token.fetch_total_supply(at=head)
    minted = await chain.token.fetch_minted(at=head)
    return {
        "supply_wei": str(supply),
        "minted_wei": str(minted),
        "burnt_wei": str(GENESIS_WEI + minted - supply),
    }


def _clock(chain: Chain, head: BlockRef) -> dict[str, Any]:
    """By the time of the block, as the contracts see it; round and epoch are negative before genesis."""
    params = chain.deployment.params
    index = params.round_at(head.timestamp_s * 1000)
    epoch = params.epoch_of(index)
    return {
        "genesis_time_s": params.genesis_time_s,
        "round_s": params.round_s,
        "epoch_rounds": params.epoch_rounds,
        "round": index,
        "round_ends_s": params.round_end_ms(index) // 1000,
        "epoch": epoch,
        "epoch_ends_s": params.round_start_ms((epoch + 1) * params.epoch_rounds) // 1000,
    }


async def _emission(chain: Chain, head: BlockRef, index: int) -> dict[str, Any]:
    """What was published and claimed, against what the schedule would have issued by now."""
    tip = await chain.distributor.find_tip_round(at=head)
    issued = 0
    if tip is not None:
        issued = (await chain.distributor.fetch_publication(tip, at=head)).cumulative_wei
    ended = max(-1, index - 1)
    return {
        "scheduled_wei": str(cumulative_wei(ended, chain.deployment.params.epoch_rounds)),
        "scheduled_through_round": ended if ended >= 0 else None,
        "published_wei": str(issued),
        "claimed_wei": str(await chain.distributor.fetch_total_claimed(at=head)),
        "fees_wei": str(await chain.distributor.fetch_total_fees_paid(at=head)),
        "cap_wei": str(CAP_WEI),
    }


async def _validators(
    chain: Chain, head: BlockRef, participants: Sequence[Participant], epoch: int
) -> dict[str, Any]:
    """The set in force (before genesis: that of epoch 0 as it stands) and what the next epoch changes."""
    now = await chain.staking.fetch_validator_set(max(0, epoch), at=head)
    after = await chain.staking.fetch_validator_set(max(0, epoch) + 1, at=head)
    known = {p.node: p for p in participants} | {p.next_node: p for p in participants}
    total = now.total_wei
    return {
        "epoch": max(0, epoch),
        "is_preview": epoch < 0,
        "total_wei": str(total),
        "quorum_wei": str(2 * total // 3 + 1 if total else 0),
        "members": [_member(node, wei, total, known.get(node)) for node, wei in now.members],
        "joining": [node for node, _ in after.members if not _has(now, node)],
        "leaving": [node for node, _ in now.members if not _has(after, node)],
    }


def _has(found: ValidatorSet, node: Address) -> bool:
    return found.power_of(node) > 0


def _member(node: Address, wei: int, total: int, known: Participant | None) -> dict[str, Any]:
    return {
        "node": node,
        "wallet": known.wallet if known else "",
        "endpoint": known.endpoint if known else "",
        "power_wei": str(wei),
        "share_bps": wei * 10_000 // total if total else 0,
    }


async def _staking(chain: Chain, head: BlockRef, participants: Sequence[Participant]) -> dict[str, Any]:
    roles: dict[str, dict[str, int]] = {}
    for item in participants:
        row = roles.setdefault(item.role.name.lower(), {"bound": 0, "staked": 0, "exiting": 0})
        row["bound"] += 1
        row["staked"] += bool(item.stake_wei or item.pending_wei)
        row["exiting"] += bool(item.unbonding_wei)
    return {
        "total_wei": str(await chain.staking.fetch_total_staked(at=head)),
        "roles": {role.name.lower(): roles.get(role.name.lower()) for role in ParticipantRole},
        "rotations": [
            {"node": p.node, "next_node": p.next_node, "from_epoch": p.next_from_epoch}
            for p in participants
            if p.next_node != ZERO_ADDRESS
        ],
    }


async def _publications(chain: Chain, head: BlockRef) -> dict[str, Any]:
    """The last round ever published, the newest that stands, the active one, and those that wait."""
    distributor = chain.distributor
    last = await distributor.find_last_round(at=head)
    active = await distributor.find_active_root(at=head)
    pending, void = [], []
    if last is not None:
        first = max(0, last - MAX_PENDING, active.round + 1 if active else 0)
        for index in range(first, last + 1):
            found = await distributor.fetch_publication(index, at=head)
            if found.state is PublicationState.PENDING:
                pending.append(
                    {
                        "round": index,
                        "active_at_s": found.active_at_s,
                        "root": hex_hash(found.root),
                        "bundle_hash": hex_hash(found.bundle_hash),
                        "publisher": found.publisher,
                    }
                )
            elif found.state is PublicationState.VOID:
                void.append(index)
    return {
        "last_round": last,
        "tip_round": await distributor.find_tip_round(at=head),
        "active_round": active.round if active else None,
        "active_root": hex_hash(active.root) if active else None,
        "pending": pending,
        "void": void,
    }


async def _guardian(chain: Chain, head: BlockRef) -> dict[str, Any]:
    until = await chain.distributor.fetch_paused_until_s(at=head)
    return {
        "address": await chain.distributor.view_one("guardian", at=head),
        "paused": until > head.timestamp_s,
        "paused_until_s": until,
        "pause_allowed_from_s": int(await chain.distributor.view_one("pauseAllowedFrom", at=head)),
    }


async def _vault(chain: Chain, head: BlockRef) -> dict[str, Any]:
    treasury = await chain.vault.view_one("treasury", at=head)
    return {
        "micro_per_token": str(await chain.vault.fetch_micro_per_token(at=head)),
        "deposits": int(await chain.vault.view_one("depositCount", at=head)),
        "treasury": None if treasury == ZERO_ADDRESS else treasury,
        "treasury_bps": int(await chain.vault.view_one("treasuryBps", at=head)),
    }


async def _parameters(chain: Chain, head: BlockRef, epoch: int) -> dict[str, Any]:
    """Every version, which is in force, and what those to come change."""
    try:
        schedule = await fetch_parameter_schedule(chain, head)
    except EmcdError as exc:
        return {"problem": str(exc), "in_force": None, "versions": []}
    rows: list[dict[str, Any]] = []
    before: ParameterSet | None = None
    in_force = 1
    for version in schedule.versions:
        after = version.parameters
        is_coming = version.from_epoch > max(0, epoch)
        in_force = in_force if is_coming else version.number
        changes = [] if before is None else list(list_differences(before, after))
        rows.append({"version": version.number, "from_epoch": version.from_epoch, "changes": changes})
        before = after
    problem = "; ".join(f"version {gap.number}: {gap.reason}" for gap in schedule.unreadable)
    return {"problem": problem, "in_force": in_force, "versions": rows}


def _expectation(item: dict[str, Any], participants: Sequence[Participant]) -> dict[str, Any]:
    """Whether a validator of the plan is there: bound, and staked with at least what was planned."""
    found = [
        p for p in participants
        if p.role is ParticipantRole.VALIDATOR
        and p.wallet == item["wallet"]
        and item.get("node") in (None, p.node, p.account)
    ]  # fmt: skip
    staked = max((p.stake_wei + p.pending_wei for p in found), default=0)
    state = "missing" if not found else "bound" if not staked else "staked"
    if staked and staked < int(item["stake_wei"]):
        state = "staked too little"
    return {**item, "state": state, "staked_wei": str(staked)}
