"""Credits that weigh, by role. Source: DESIGN 2.4. Rounding is down, pro rata."""

from __future__ import annotations

from emcd.proto.params import NetworkParams
from emcd.types import Micro


def compute_node_credits_floor(params: NetworkParams, vault_micro: int, passed: int) -> Micro:
    """Vault-paid calls that count, and the standard task pro rata of passed probes."""
    return Micro(vault_micro + params.standard_task_micro * passed // params.probes_per_node)


def validator_credits_floor(params: NetworkParams, done: int, planned: int) -> Micro:
    """The validator's round pro rata of its planned probes; nothing planned earns nothing."""
    return Micro(params.validator_round_micro * done // planned if planned else 0)


def router_credits_floor(params: NetworkParams, forwarded: int, due: int) -> Micro:
    """The router's round pro rata of its nodes' probes that went through it and were answered."""
    return Micro(params.router_round_micro * forwarded // due if due else 0)
