"""Who takes part in the devnet, with which stake and how many tokens. Pure data.

One hub, four validators, one router, four nodes (the third sells an int8 copy as the real embedder, the
fourth a text model without its last layer as the whole one), one settler, one user who buys credits in
the vault.
"""

from __future__ import annotations

from dataclasses import dataclass

from emcd.money import WEI_PER_TOKEN
from emcd.types import ParticipantRole

GENESIS_SUPPLY_WEI = 900_000_000 * WEI_PER_TOKEN
GAS_WEI = 1_000 * 10**18
"""Native coin of the embedded chain that every wallet starts with."""

ALLOWANCE_CREDITS = 1_000_000
"""Granted to each validator for its probes; grants weigh nothing."""

PURCHASE_TOKEN = 10_000
"""What the user burns in the vault for credits."""


@dataclass(frozen=True)
class Member:
    """One participant. `stake_token` 0: bound without a stake; `role` None: a wallet only."""

    name: str
    role: ParticipantRole | None
    stake_token: int = 0
    lock_days: int = 0

    @property
    def wallet_name(self) -> str:
        return f"{self.name}-wallet" if self.role else self.name

    @property
    def holding_wei(self) -> int:
        """Token of its wallet at genesis: the stake, and a little to try things with."""
        return (self.stake_token + 50_000) * WEI_PER_TOKEN


HUB = Member("hub", ParticipantRole.HUB, 10_000)
"""Its stake weighs nothing in rewards: it is what a second seal of a round costs it half of."""
VALIDATORS = tuple(Member(f"validator-{n}", ParticipantRole.VALIDATOR, 1_000_000, 360) for n in range(1, 5))
ROUTER = Member("router-1", ParticipantRole.ROUTER, 100_000, 180)
"""Two of the nodes reach the hub through it."""
NODES = (
    Member("node-1", ParticipantRole.COMPUTE, 3_000, 180),
    Member("node-2", ParticipantRole.COMPUTE, 6_000, 30),
    Member("node-3", ParticipantRole.COMPUTE, 5_000, 90),
    Member("node-4", ParticipantRole.COMPUTE, 5_000, 90),
)
CHEATS = NODES[2:]
SETTLER = Member("settler", None)
USER = Member("user", None)
FOUNDATION = Member("foundation", None)
"""Deploys the contracts, holds what nobody else does, and is the guardian that may pause."""

BOUND = (HUB, *VALIDATORS, ROUTER, *NODES)
MEMBERS = (*BOUND, SETTLER, USER, FOUNDATION)
