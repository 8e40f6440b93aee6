"""Who stands in a round's snapshot."""

from __future__ import annotations

from typing import Any, cast

from emcd.chain.blocks import BlockRef
from emcd.chain.proxies.staking import Participant, StakingProxy
from emcd.testing import make_key
from emcd.types import Epoch, ParticipantRole, Round, Wei

ETHER = 10**18


def bound(name: str, role: ParticipantRole = ParticipantRole.COMPUTE, **wei: int) -> Participant:
    amounts = {key: Wei(wei.get(key, 0)) for key in ("stake_wei", "pending_wei", "unbonding_wei")}
    return Participant(
        node=make_key(name).address,
        wallet=make_key("wallet").address,
        role=role,
        lock_days=0,
        multiplier_bps=10_000,
        active_from_epoch=Epoch(0),
        exit_round=Round(0),
        nonce=1,
        endpoint="",
        lock_end_s=0,
        **amounts,
    )


async def test_free_bindings_take_no_room_in_a_bundle() -> None:
    kept = [
        bound("staked", stake_wei=ETHER),
        bound("pending", ParticipantRole.VALIDATOR, pending_wei=ETHER),
        bound("leaving", unbonding_wei=1),
        bound("hub", ParticipantRole.HUB),
    ]
    free = [bound("free"), bound("free judge", ParticipantRole.VALIDATOR)]

    class Staking(StakingProxy):
        def __init__(self) -> None:
            pass

        async def fetch_participants(self, *, at: BlockRef) -> list[Participant]:
            return [*free, *kept]

    snapshot = await Staking().fetch_snapshot(cast(Any, None))
    assert [entry.node for entry in snapshot] == [item.node for item in kept]
