"""What is wrong with a plan, everything at once, and what its author should know. Pure.

A fault keeps the plan from being sent; a note says who holds a power that others may not expect.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from emcd.chain.deploy import GENESIS_WEI, DeploymentPlan
from emcd.cli.deployment.plan_file import PlanFile, micro_per_token
from emcd.config import Fault
from emcd.errors import EmcdError
from emcd.money import decode_wei, format_token_floor
from emcd.proto.address import parse_address
from emcd.proto.parameter_rule import list_faults
from emcd.proto.parameters import MAX_DOCUMENT_BYTES, encode_document
from emcd.types import ZERO_ADDRESS, Address, Wei

CODE = "EMC-2150"
MAX_HOLDERS = 500
"""Each costs about 25,000 gas in the token's constructor, which is one transaction."""
LEAD_ROUNDS = 2
"""Between deploying and genesis the validators of genesis bind and stake."""


def build_plan(plan: PlanFile) -> DeploymentPlan:
    """What the contracts are made from. Only for a plan without faults."""
    return DeploymentPlan(
        chain_id=plan.chain_id,
        holders={Address(holder): amount.wei for holder, amount in plan.holders.items()},
        guardian=plan.guardian,
        params=plan.parameters.params,
        prices=plan.parameters.prices,
        treasury=plan.vault.treasury,
        treasury_bps=plan.vault.treasury_bps,
        micro_per_token=micro_per_token(plan.vault),
    )


def check_plan(plan: PlanFile, now_s: int, *, resumes: bool = False) -> list[Fault]:
    """Every fault that shows without asking the chain. `resumes`: the genesis time can't be moved any more."""
    lead = [] if resumes else _lead_faults(plan, now_s)
    return [
        *_holder_faults(plan),
        *_clock_faults(plan),
        *lead,
        *_power_faults(plan),
        *_parameter_faults(plan),
        *_validator_faults(plan),
    ]


def list_notes(plan: PlanFile) -> list[str]:
    """What is allowed and worth a second look."""
    notes = []
    total = sum(v.stake.wei for v in plan.validators)
    if not plan.validators:
        notes.append(
            "no [[validators]]: nobody has to be there at genesis, and no round is attested without them"
        )
    for validator in plan.validators:
        share = 0 if not total else validator.stake.wei * 100 // total
        label = validator.name or validator.wallet
        if 3 * validator.stake.wei > 2 * total:
            notes.append(f"{label} holds {share} % of the power: it alone is a quorum")
        elif 3 * validator.stake.wei > total:
            notes.append(f"{label} holds {share} % of the power: it alone can veto and withhold a quorum")
    for holder, amount in plan.holders.items():
        if 2 * amount.wei > GENESIS_WEI and len(plan.holders) > 1:
            notes.append(f"{holder} begins with more than half of the supply")
    if plan.guardian == ZERO_ADDRESS:
        notes.append("the guardian is the zero address: nobody can ever pause")
    if plan.deployer == plan.guardian:
        notes.append("the deployer is the guardian: it may pause publishing and claiming, 7 days at most")
    if plan.vault.treasury is not None:
        notes.append(
            f"{plan.vault.treasury_bps / 100:g} % of what credits cost goes to {plan.vault.treasury}, the rest is burnt"
        )
    return notes


def _holder_faults(plan: PlanFile) -> Iterator[Fault]:
    seen: set[str] = set()
    for holder, amount in plan.holders.items():
        where = f"holders.{holder}"
        try:
            if parse_address(holder) == ZERO_ADDRESS:
                yield Fault(where, "the zero address owns nothing", CODE)
        except EmcdError as exc:
            yield Fault(where, exc.detail, CODE)
        if holder.lower() in seen:
            yield Fault(where, "stands twice", CODE)
        seen.add(holder.lower())
        if amount.wei == 0:
            yield Fault(where, "the amount is zero", CODE)
    if len(plan.holders) > MAX_HOLDERS:
        yield Fault(
            "holders", f"{len(plan.holders)} are more than one transaction takes, {MAX_HOLDERS}", CODE
        )
    off = sum(amount.wei for amount in plan.holders.values()) - GENESIS_WEI
    if off:
        word = "too much" if off > 0 else "missing"
        whole = format_token_floor(GENESIS_WEI, 0)
        yield Fault("holders", f"{_exact(abs(off))} EMC {word}: together they own exactly {whole}", CODE)


def _clock_faults(plan: PlanFile) -> Iterator[Fault]:
    round_s = plan.parameters.params.round_s
    if round_s > 0 and plan.genesis.time_s % round_s:
        yield Fault("genesis_time", f"is no multiple of the round, {round_s} s", CODE)


def _lead_faults(plan: PlanFile, now_s: int) -> Iterator[Fault]:
    params = plan.parameters.params
    ahead = plan.genesis.time_s - now_s
    if ahead < LEAD_ROUNDS * params.round_s:
        what = "is over" if ahead <= 0 else f"is {ahead} s from now"
        why = f"validators need {LEAD_ROUNDS} rounds ({LEAD_ROUNDS * params.round_s} s) to bind and stake"
        yield Fault("genesis_time", f"{what}: {why}", CODE)


def _power_faults(plan: PlanFile) -> Iterator[Fault]:
    vault = plan.vault
    if (vault.treasury is None) != (vault.treasury_bps == 0):
        yield Fault("vault", "treasury and treasury_bps belong together", CODE)
    if vault.treasury == ZERO_ADDRESS:
        yield Fault("vault.treasury", "is the zero address; leave it out to burn everything", CODE)
    for url in plan.chain.rpc_urls:
        if not url.startswith(("http://", "https://")):
            yield Fault("chain.rpc_urls", f"{url!r} is no http:// or https:// address", CODE)


def _parameter_faults(plan: PlanFile) -> Iterator[Fault]:
    params, prices = plan.parameters.params, plan.parameters.prices
    found = list_faults(params, prices)
    for message in found:
        yield Fault("params", message, CODE)
    if not found and (size := len(encode_document(params, prices))) > MAX_DOCUMENT_BYTES:
        yield Fault("prices", f"the document has {size} bytes of at most {MAX_DOCUMENT_BYTES}", CODE)


def _validator_faults(plan: PlanFile) -> Iterator[Fault]:
    params = plan.parameters.params
    minimum = decode_wei(params.validator_minimum_wei)
    staked: defaultdict[Address, int] = defaultdict(int)
    nodes: set[Address] = set()
    for number, validator in enumerate(plan.validators):
        where = f"validators[{number}]"
        staked[validator.wallet] += validator.stake.wei
        if validator.stake.wei < minimum:
            yield Fault(f"{where}.stake", f"is below the minimum, {_exact(minimum)} EMC", CODE)
        if validator.node is not None:
            if validator.node in nodes:
                yield Fault(f"{where}.node", f"{validator.node} stands twice", CODE)
            if validator.node == validator.wallet:
                yield Fault(f"{where}.node", "is the wallet: node key and wallet are two keys", CODE)
            nodes.add(validator.node)
    held = {holder.lower(): amount.wei for holder, amount in plan.holders.items()}
    for wallet, wei in staked.items():
        owned = held.get(wallet.lower(), 0)
        if owned < wei:
            text = f"{wallet} is to stake {_exact(wei)} EMC and begins with {_exact(owned)}"
            yield Fault("validators", text, CODE)
    if plan.validators and len(plan.validators) < params.minimum_judges:
        text = f"{len(plan.validators)} are fewer than params.minimum_judges, {params.minimum_judges}"
        yield Fault("validators", f"{text}: no verdict would ever stand", CODE)


def _exact(wei: int) -> str:
    """Token without rounding: an amount that is one wei off must show."""
    text = format_token_floor(Wei(wei), 18)
    return text.rstrip("0").rstrip(".")
