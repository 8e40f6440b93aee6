"""The topics that roles of one daemon share. Small frozen facts-have-changed notices.

Every event names what changed by its key; the reader looks the rest up. A topic that only one
role publishes and hears belongs into that role.
"""

from __future__ import annotations

from dataclasses import dataclass

from emcd.bus import Topic
from emcd.types import Address, Round


@dataclass(frozen=True)
class HeadMoved:
    """The chain has a new block."""

    number: int
    timestamp_s: int


@dataclass(frozen=True)
class RoundMoved:
    """A round entered another state of its life."""

    round: Round
    state: str


@dataclass(frozen=True)
class RewardsChanged:
    """What a wallet sees of its rewards changed."""

    wallet: Address


@dataclass(frozen=True)
class NodeMoved:
    """A node came, went, or changed its status."""

    node: Address
    online: bool


CHAIN_HEAD: Topic[HeadMoved] = Topic("chain.head")
ROUND_STATE: Topic[RoundMoved] = Topic("round.state")
REWARDS: Topic[RewardsChanged] = Topic("rewards.changed")
NODES: Topic[NodeMoved] = Topic("nodes.moved")
