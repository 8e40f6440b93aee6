"""One class per contract: views pinned to a block, and calls for the outbox.

The race rule, in three steps: check the precondition at one block (a view, or `Chain.require_can`),
estimate (the outbox does), send. Between them others act: what then fails is an outcome, and
`LOST_RACE` names the errors which mean that another transaction got there first.
"""

from __future__ import annotations

from emcd.chain.proxies.distributor import ActiveRoot, DistributorProxy, Publication, PublicationState
from emcd.chain.proxies.parameters import ParametersProxy, Version
from emcd.chain.proxies.staking import Participant, StakingProxy, ValidatorSet
from emcd.chain.proxies.token import TokenProxy
from emcd.chain.proxies.vault import Deposit, VaultProxy

LOST_RACE = frozenset(("NothingToClaim", "NonceUsed", "RoundNotNewer"))

__all__ = [
    "LOST_RACE",
    "ActiveRoot",
    "Deposit",
    "DistributorProxy",
    "ParametersProxy",
    "Participant",
    "Publication",
    "PublicationState",
    "StakingProxy",
    "TokenProxy",
    "ValidatorSet",
    "VaultProxy",
    "Version",
]
