"""What the calls of a round add up to, taken one by one: a bundle's calls never all stand in memory."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from emcd.accounting.call_rule import CallHashes, CallStanding
from emcd.accounting.terms import RoundTerms
from emcd.proto.records import Delivery, Forward, Receipt
from emcd.types import ZERO_ADDRESS, ZERO_HASH, Address

ROUTER_SLICES = 12
"""A router is up in a slice of the round when a call that counts finished through it there."""


@dataclass
class NodeTally:
    """Of one node: calls in the bundle, those that count, and what they earned from the vault."""

    calls: int = 0
    counted_calls: int = 0
    vault_micro: int = 0


@dataclass(frozen=True)
class ProbedCall:
    """A call that a probe names; hashes are zero without a receipt.

    `is_proven`: all three records stand in signed batches.
    """

    node: Address
    request_hash: bytes
    response_hash: bytes
    receipt_hash: bytes
    started_at_ms: int
    is_proven: bool
    counts: bool


class CallTally:
    """Sums over calls; `probed` keeps those whose id a reveal names and that finished in the round."""

    def __init__(self, terms: RoundTerms, probed_ids: Collection[bytes]) -> None:
        self.nodes: dict[Address, NodeTally] = {}
        self.router_slices: dict[Address, set[int]] = {}
        self.probed: dict[bytes, ProbedCall] = {}
        self.calls = 0
        self.counted_calls = 0
        self._terms = terms
        self._probed_ids = probed_ids

    def add(
        self,
        forward: Forward,
        receipt: Receipt | None,
        delivery: Delivery,
        hashes: CallHashes,
        standing: CallStanding,
        *,
        is_proven: bool,
    ) -> None:
        """Count one call that passed its checks."""
        node = self.nodes.setdefault(forward.node, NodeTally())
        counts = standing is CallStanding.COUNTS
        node.calls += 1
        self.calls += 1
        if counts:
            node.counted_calls += 1
            node.vault_micro += delivery.vault_micro
            self.counted_calls += 1
            if forward.router != ZERO_ADDRESS:
                self.router_slices.setdefault(forward.router, set()).add(
                    self._slice_of(delivery.finished_at_ms)
                )
        if forward.call_id in self._probed_ids and delivery.round == self._terms.round:
            self.probed[forward.call_id] = ProbedCall(
                forward.node,
                forward.request_hash,
                ZERO_HASH if receipt is None else receipt.response_hash,
                hashes.receipt,
                forward.started_at_ms,
                is_proven,
                counts,
            )

    def _slice_of(self, at_ms: int) -> int:
        elapsed = (
            (at_ms - self._terms.start_ms) * ROUTER_SLICES // (self._terms.end_ms - self._terms.start_ms)
        )
        return elapsed % ROUTER_SLICES
