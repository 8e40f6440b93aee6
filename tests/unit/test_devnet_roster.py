"""Who takes part in the devnet: its numbers must fit the network's rules."""

from __future__ import annotations

from emcd.accounting.eligibility import minimum_stake_wei
from emcd.accounting.offence import SLASH_BPS, OffenceKind
from emcd.money import WEI_PER_TOKEN, encode_wei
from emcd.proto.params import devnet_params
from emcd.types import ParticipantRole
from emcd_devchain.devnet import roster
from emcd_devchain.devnet.layout import VALIDATOR_COUNT
from emcd_devchain.devnet.provision import BUYERS

PARAMS = devnet_params(1_800_000_000)


def test_roster_holdings_leave_the_foundation_a_rest_of_the_supply() -> None:
    others = sum(member.holding_wei for member in roster.MEMBERS if member is not roster.FOUNDATION)

    assert 0 < others < roster.GENESIS_SUPPLY_WEI == 900_000_000 * WEI_PER_TOKEN


def test_roster_stakes_reach_the_roles_minimum_and_can_be_paid() -> None:
    for member in (*roster.VALIDATORS, roster.ROUTER, *roster.NODES):
        assert member.role is not None
        stake_wei = member.stake_token * WEI_PER_TOKEN
        assert encode_wei(stake_wei) >= minimum_stake_wei(PARAMS, member.role), member.name
        assert stake_wei <= member.holding_wei


def test_roster_hub_has_something_to_lose() -> None:
    stake_wei = roster.HUB.stake_token * WEI_PER_TOKEN
    assert stake_wei * SLASH_BPS[OffenceKind.DOUBLE_SEAL] // 10_000 > 0
    assert encode_wei(stake_wei) >= PARAMS.hub_minimum_wei
    assert stake_wei <= roster.HUB.holding_wei


def test_roster_locks_are_those_of_the_contract() -> None:
    days = {days for days, _ in PARAMS.compute_locks}

    assert all(node.lock_days in days for node in roster.NODES)
    assert all(validator.lock_days == 360 for validator in roster.VALIDATORS)


def test_roster_validators_are_as_many_as_the_network_needs() -> None:
    assert len(roster.VALIDATORS) == VALIDATOR_COUNT >= PARAMS.minimum_judges


def test_roster_names_and_wallets_are_all_different() -> None:
    names = [member.name for member in roster.MEMBERS]
    wallets = [member.wallet_name for member in roster.MEMBERS]

    assert len(set(names)) == len(names)
    assert len(set(wallets)) == len(wallets)
    assert all(member.wallet_name != member.name for member in roster.BOUND)


def test_roster_bound_members_are_those_with_a_role() -> None:
    assert [member for member in roster.MEMBERS if member.role is not None] == list(roster.BOUND)
    assert [m.name for m in roster.BOUND if m.role is ParticipantRole.HUB] == ["hub"]


def test_roster_user_can_pay_every_purchase() -> None:
    assert len(BUYERS) * roster.PURCHASE_TOKEN * WEI_PER_TOKEN <= roster.USER.holding_wei
