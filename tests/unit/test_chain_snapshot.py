"""Who stands in a round's snapshot."""

from __future__ import annotations

from dataclasses import replace

import pytest

from emcd.chain.blocks import BlockRef
from emcd.chain.proxies.staking import Participant, StakingProxy
from emcd.testing import make_key
from emcd.types import ZERO_HASH, Epoch, ParticipantRole, Round, Wei

ETHER = 10**18


NEXT = make_key("next").address
AT = BlockRef(7, ZERO_HASH, 1_800_000_000, ZERO_HASH)


def bound(
    name: str, role: ParticipantRole = ParticipantRole.COMPUTE, lock: tuple[int, int] = (0, 0), **wei: int
) -> Participant:
    amounts = {key: Wei(wei.get(key, 0)) for key in ("stake_wei", "pending_wei", "unbonding_wei")}
    return Participant(
        node=make_key(name).address,
        wallet=make_key("wallet").address,
        role=role,
        lock_days=lock[0],
        multiplier_bps=10_000,
        active_from_epoch=Epoch(0),
        exit_round=Round(0),
        nonce=1,
        endpoint="",
        lock_end_s=lock[1],
        **amounts,
    )


class Staking(StakingProxy):
    """A contract with these participants."""

    def __init__(self, *found: Participant) -> None:
        self.found = list(found)

    async def fetch_participants(self, *, at: BlockRef) -> list[Participant]:
        return self.found


async def test_free_bindings_take_no_room_in_a_bundle() -> None:
    kept = [
        bound("staked", stake_wei=ETHER),
        bound("pending", ParticipantRole.VALIDATOR, pending_wei=ETHER),
        bound("leaving", unbonding_wei=1),
        bound("hub", ParticipantRole.HUB),
    ]
    free = [bound("free"), bound("free judge", ParticipantRole.VALIDATOR)]

    snapshot = await Staking(*free, *kept).fetch_snapshot(AT)
    assert {entry.node for entry in snapshot} == {item.node for item in kept}


@pytest.mark.parametrize(
    ("role", "end_s", "days"),
    [
        (ParticipantRole.COMPUTE, AT.timestamp_s + 1, 30),
        (ParticipantRole.COMPUTE, AT.timestamp_s, 0),
        (ParticipantRole.VALIDATOR, AT.timestamp_s - 1, 30),
    ],
)
async def test_snapshot_counts_a_compute_lock_only_while_it_runs(
    role: ParticipantRole, end_s: int, days: int
) -> None:
    (entry,) = await Staking(bound("a", role, (30, end_s), stake_wei=ETHER)).fetch_snapshot(AT)

    assert entry.lock_days == days


@pytest.mark.parametrize(("epoch", "is_next"), [(4, False), (5, True), (6, True)])
async def test_snapshot_names_the_key_that_is_in_force_in_the_epoch_of_the_round(
    epoch: int, is_next: bool
) -> None:
    rotating = replace(
        bound("a", ParticipantRole.VALIDATOR, stake_wei=ETHER), next_node=NEXT, next_from_epoch=5
    )
    others = [bound(name, stake_wei=ETHER) for name in "bcdef"]
    entries = await Staking(rotating, *others).fetch_snapshot(AT, epoch)

    assert {entry.node for entry in entries} == {
        NEXT if is_next else rotating.node,
        *(item.node for item in others),
    }
    assert [entry.node for entry in entries] == sorted(
        (entry.node for entry in entries), key=lambda node: int(node, 16)
    )
