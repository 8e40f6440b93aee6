"""The chain's client: JSON-RPC, proxies of the contracts, outbox, watcher.

What a role needs is exported here. `emcd.chain.deploy` and `emcd.chain.sender` are imported by name;
web3 is imported by `deploy` alone, when it runs.
"""

from __future__ import annotations

from emcd.chain.access import Chain, ChainConfig
from emcd.chain.blocks import BlockRef
from emcd.chain.call import Call, TxReceipt
from emcd.chain.cost import CostEstimate, estimate_cost
from emcd.chain.outbox import Outbox, OutboxPolicy, TxIntent
from emcd.chain.outcome import Confirmed, Failed, Replaced, TxOutcome
from emcd.chain.proxies import (
    LOST_RACE,
    ActiveRoot,
    Deposit,
    Participant,
    Publication,
    PublicationState,
    ValidatorSet,
)
from emcd.chain.revert import CallReverted, Revert
from emcd.chain.rpc import JsonRpc, Rpc, RpcRefused
from emcd.chain.watcher import ChainEvent, EventSink, Watcher

__all__ = [
    "LOST_RACE",
    "ActiveRoot",
    "BlockRef",
    "Call",
    "CallReverted",
    "Chain",
    "ChainConfig",
    "ChainEvent",
    "Confirmed",
    "CostEstimate",
    "Deposit",
    "EventSink",
    "Failed",
    "JsonRpc",
    "Outbox",
    "OutboxPolicy",
    "Participant",
    "Publication",
    "PublicationState",
    "Replaced",
    "Revert",
    "Rpc",
    "RpcRefused",
    "TxIntent",
    "TxOutcome",
    "TxReceipt",
    "ValidatorSet",
    "Watcher",
    "estimate_cost",
]
