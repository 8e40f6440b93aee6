"""What anybody may read of rounds and rewards, put together from the ledger.

Owns small caches of what never changes (totals of closed rounds, reward trees) and of one estimate.
It writes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import trio

from emcd.accounting.payout import Accrued, RewardPath
from emcd.accounting.reward_tree import RewardTree, build_reward_tree
from emcd.accounting.weights import effective_stake_floor
from emcd.clock import Clock
from emcd.ledger import Connection, Ledger
from emcd.proto.bundle import RevealEntry, SnapshotEntry
from emcd.proto.params import NetworkParams
from emcd.services import ParametersInForce
from emcd.types import Address
from emcd_hub.records.call_row import count_calls_between, sum_by_node
from emcd_hub.rounds.accrual import NodeSoFar, estimate_rewards
from emcd_hub.rounds.bundle_row import (
    BundleFacts,
    ResultRow,
    find_base,
    find_facts,
    list_facts,
    list_results,
    list_wallet_results,
)
from emcd_hub.rounds.chain_row import ClaimRow, PublicationRow, list_claims, list_publications
from emcd_hub.rounds.evidence_row import (
    list_attestations,
    list_refusals,
    list_reveals,
    list_statuses,
)
from emcd_hub.rounds.payout_path import make_reward_paths
from emcd_hub.rounds.state import (
    Stages,
    cover_rounds,
    find_tips,
    latest_publications,
    round_state,
    split_stages,
)
from emcd_hub.rounds.statement import Attestation
from emcd_hub.rounds.view_row import find_view

ROUNDS_LISTED = 50
RESULTS_LISTED = 200
_CACHED_ROUNDS = 8


@dataclass(frozen=True)
class RoundSummary:
    """A round in a list."""

    round: int
    state: str
    facts: BundleFacts | None
    publication: PublicationRow | None


@dataclass(frozen=True)
class RoundDetail:
    """A round with all that is known of it. `attestations` and `refusals` by the validator's 20 bytes."""

    summary: RoundSummary
    calls: int
    results: list[ResultRow]
    effective_stakes_wei: dict[Address, int]
    reveals: list[RevealEntry]
    attestations: dict[bytes, Attestation]
    refusals: dict[bytes, tuple[str, str]]


@dataclass(frozen=True)
class WalletRewards:
    """A wallet's rewards; `accrued` by open round, newest results last, `tree` of the newest active root."""

    accrued: tuple[Accrued, ...]
    stages: Stages
    results: list[RewardPath]
    active_round: int
    tree: RewardTree | None


class RoundReader:
    """Reads for the public pages."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        clock: Clock,
        parameters: ParametersInForce,
        is_attested: Callable[[int], bool],
    ) -> None:
        self._ledger = ledger
        self._clock = clock
        self._parameters = parameters
        self._params = parameters.schedule.clock
        self._is_attested = is_attested
        self._totals: dict[int, dict[Address, int]] = {}
        self._trees: dict[int, RewardTree] = {}
        self._estimate: dict[int, dict[Address, int]] = {}
        self._estimated_at_ms = -1

    def current_round(self) -> int:
        return self._params.round_at(self._clock.now_ms())

    def _rules(self, index: int) -> NetworkParams:
        """The parameters of a round, for people: as far as they are known."""
        return self._parameters.schedule.newest_readable_at(index).parameters.params

    async def list_rounds(self) -> list[RoundSummary]:
        """The last 50 rounds, oldest first."""
        current = self.current_round()
        first = max(0, current - ROUNDS_LISTED + 1)

        def read(con: Connection) -> list[RoundSummary]:
            closed = {facts.round: facts for facts in list_facts(con, ROUNDS_LISTED)}
            publications = self._payers(con, closed, first)
            return [self._summary(i, closed.get(i), publications.get(i)) for i in range(first, current + 1)]

        return [item for item in await self._ledger.read(read) if item.state]

    async def find_round(self, index: int) -> RoundDetail | None:
        """One round, or None when this hub has nothing of it."""
        return await self._ledger.read(lambda con: self._read_round(con, index))

    async def list_publications(self) -> list[PublicationRow]:
        return await self._ledger.read(lambda con: list_publications(con, 0))

    async def find_active_round(self) -> int:
        """The newest round whose root can be claimed from; -1 for none."""
        return find_tips(await self.list_publications(), self._clock.now_ms() // 1000)[1]

    async def fetch_wallet(self, wallet: Address) -> WalletRewards:
        """A wallet's rewards by stage, its last results, and the tree of its proof."""
        now_s = self._clock.now_ms() // 1000

        def read(
            con: Connection,
        ) -> tuple[list[PublicationRow], list[ResultRow], list[ClaimRow], list[BundleFacts]]:
            return (
                list_publications(con, 0),
                list_wallet_results(con, wallet, RESULTS_LISTED),
                list_claims(con, wallet),
                list_facts(con, 2 * self._rules(self.current_round()).void_after_rounds + 64),
            )

        rows, results, claims, closed = await self._ledger.read(read)
        published, active = find_tips(rows, now_s)
        publications = latest_publications(rows)
        publications = {**cover_rounds({f.round: f for f in closed}, publications), **publications}
        states = {f.round: self._summary(f.round, f, publications.get(f.round)).state for f in closed}
        newest = next((f.round for f in closed if states[f.round] != "void"), -1)
        totals = [await self._load_totals(index) for index in (newest, published, active)]
        old = {r.round: self._old_state(publications.get(r.round)) for r in results if r.round not in states}
        shown = make_reward_paths(
            results,
            states={**old, **states},
            payers=publications,
            settled_at_ms={facts.round: facts.closed_at_ms for facts in closed},
            claims=claims,
            now_s=now_s,
        )
        estimate = await self._load_estimate()
        return WalletRewards(
            tuple(
                Accrued(index, str(by_wallet[wallet]))
                for index, by_wallet in sorted(estimate.items())
                if by_wallet.get(wallet)
            ),
            split_stages(wallet, totals[0], totals[1], totals[2], sum(row.amount_wei for row in claims)),
            shown[::-1],
            active,
            await self._load_tree(active),
        )

    def _payers(
        self, con: Connection, closed: Mapping[int, BundleFacts], first: int
    ) -> dict[int, PublicationRow]:
        """The publication of each round from `first` on: its own, or the later one that pays it."""
        own = latest_publications(list_publications(con, first))
        return {**cover_rounds(closed, own), **own}

    def _old_state(self, publication: PublicationRow | None) -> str:
        if publication is None or publication.is_void:
            return "void"
        return "active"

    def _summary(
        self, index: int, facts: BundleFacts | None, publication: PublicationRow | None
    ) -> RoundSummary:
        state = round_state(
            index,
            self.current_round(),
            facts,
            publication,
            is_attested=self._is_attested(index),
            now_s=self._clock.now_ms() // 1000,
            void_after_rounds=self._rules(index).void_after_rounds,
        )
        return RoundSummary(index, state, facts, publication)

    def _read_round(self, con: Connection, index: int) -> RoundDetail | None:
        facts = find_facts(con, index)
        near = {item.round: item for item in list_facts(con, ROUNDS_LISTED, below=index + ROUNDS_LISTED)}
        publication = self._payers(con, near, index).get(index)
        summary = self._summary(index, facts, publication)
        if not summary.state or index > self.current_round():
            return None
        params = self._params
        view = find_view(con, index)
        seats = view.participants if view is not None else ()
        return RoundDetail(
            summary,
            count_calls_between(con, params.round_start_ms(index), params.round_end_ms(index)),
            list_results(con, index),
            {seat.node: _effective_stake_floor(self._rules(index), seat) for seat in seats},
            list_reveals(con, index),
            list_attestations(con, index),
            list_refusals(con, index),
        )

    async def _load_totals(self, index: int) -> dict[Address, int]:
        """Cumulative wei by wallet after a closed round."""
        if index < 0:
            return {}
        if index not in self._totals:
            base = await self._ledger.read(lambda con: find_base(con, index))
            while len(self._totals) >= _CACHED_ROUNDS:
                del self._totals[min(self._totals)]
            self._totals[index] = base.totals_wei if base is not None else {}
        return self._totals[index]

    async def _load_tree(self, index: int) -> RewardTree | None:
        totals = await self._load_totals(index)
        if not any(totals.values()):
            return None
        if index not in self._trees:
            tree = await trio.to_thread.run_sync(build_reward_tree, totals)
            while len(self._trees) >= 2:
                del self._trees[min(self._trees)]
            self._trees[index] = tree
        return self._trees[index]

    async def _load_estimate(self) -> dict[int, dict[Address, int]]:
        """Of all rounds that are not closed; made anew a few dozen times a round."""
        now_ms = self._clock.now_ms()
        if now_ms - self._estimated_at_ms > self._params.round_s * 1000 // 60:
            self._estimated_at_ms = now_ms
            self._estimate = await self._ledger.read(
                partial(self._read_estimate, now_ms=now_ms), timeout_s=60
            )
        return self._estimate

    def _read_estimate(self, con: Connection, now_ms: int) -> dict[int, dict[Address, int]]:
        params = self._params
        found: dict[int, dict[Address, int]] = {}
        current = params.round_at(now_ms)
        for index in range(max(0, current - 2), current + 1):
            view = find_view(con, index)
            if view is None or find_facts(con, index) is not None:
                continue
            start_ms = params.round_start_ms(index)
            nodes = {
                node: NodeSoFar(calls, vault)
                for node, calls, vault in sum_by_node(con, start_ms, params.round_end_ms(index))
            }
            online = frozenset(entry.status.node for entry in list_statuses(con, index))
            elapsed_bps = min(10_000, (now_ms - start_ms) * 10 // params.round_s)
            found[index] = estimate_rewards(view, self._rules(index), nodes, online, elapsed_bps)
        return found


def _effective_stake_floor(params: NetworkParams, seat: SnapshotEntry) -> int:
    stake_wei = int.from_bytes(seat.stake_wei, "big")
    return effective_stake_floor(params, stake_wei, seat.role, seat.lock_days)
