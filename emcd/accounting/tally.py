"""What the calls of a round add up to, taken group by group: a bundle's calls never all stand in memory."""

from __future__ import annotations

from dataclasses import dataclass, field

from emcd.types import Address


@dataclass
class NodeTally:
    """Of one node: calls in the bundle, those that count, and what they earned from the vault."""

    calls: int = 0
    counted_calls: int = 0
    vault_micro: int = 0


@dataclass(frozen=True)
class ProbedCall:
    """A call that a probe names; hashes are zero without a receipt.

    `router`: zero where the hub scheduled by itself. `is_proven`: all three records stand in signed
    batches.
    """

    node: Address
    router: Address
    model_hash: bytes
    request_hash: bytes
    response_hash: bytes
    receipt_hash: bytes
    started_at_ms: int
    is_proven: bool
    counts: bool


@dataclass
class CallTally:
    """Sums over calls; `probed` are those whose id a reveal names and that finished in the round."""

    nodes: dict[Address, NodeTally] = field(default_factory=dict)
    probed: dict[bytes, ProbedCall] = field(default_factory=dict)
    calls: int = 0
    counted_calls: int = 0
    vault_micro: int = 0
    """Of all calls, whether they count or not."""
