"""Committing to a round's plan before it begins, and fixing the plan once the beacon is known.

Seed and salt come from the operating system; they are on disk before the commitment is signed.
"""

from __future__ import annotations

import secrets
from functools import partial

import trio

from emcd.accounting.plan import compute_commitment
from emcd.errors import RecoverableError
from emcd.ledger import Connection
from emcd.proto.bundle import CommitmentEntry
from emcd.proto.messages import PlanCommitment
from emcd.types import Address
from emcd_validator.corpus import Corpus, RoundCorpus
from emcd_validator.corpus_store import CorpusStore, is_low
from emcd_validator.entry import commitment_item, read_commitment_item
from emcd_validator.events import PROBE, ProbeMoved
from emcd_validator.plan import SEED_BYTES, Draws, PlannedProbe, draw_plan, own_slots
from emcd_validator.queries.items import Kind
from emcd_validator.queries.rounds import (
    ProbeRow,
    RoundRow,
    find_round,
    forget_leaves,
    has_unplanned_round,
    insert_plan,
    insert_round,
    list_used_leaves,
)
from emcd_validator.signatory import find_own, issue
from emcd_validator.validator import Validator
from emcd_validator.view import RoundView


class Committer:
    """Commitments and plans of one validator; owns the corpus in memory."""

    def __init__(self, validator: Validator, store: CorpusStore) -> None:
        self._validator = validator
        self._store = store
        self._corpus: Corpus | None = None
        self._lock = trio.Lock()
        self.complaint = ""
        """Why no plan can be made or will soon not be, for the role's health."""

    async def open(self) -> None:
        """Load or generate the corpus. Raises: ConfigError EMC-1804."""
        self._corpus = await trio.to_thread.run_sync(self._store.ensure)

    async def run(self) -> None:
        """Commit to every round from its predecessor's second half on. Runs until cancelled."""
        validator = self._validator
        while True:
            following = max(0, validator.current_round() + 1)
            try:
                await self.commit(following)
            except RecoverableError as exc:
                self.complaint = f"no plan for round {following} yet: {exc.code}"
                validator.log.warning("commitment delayed", code=exc.code, detail=exc.detail)
                await trio.sleep(validator.poll_s)
                continue
            await validator.sleep_until(
                validator.params.round_start_ms(following) + validator.params.round_s * 500
            )

    async def commit(self, round_index: int) -> CommitmentEntry | None:
        """Commit to a round that has not begun. Returns: None when it has, or no leaf is left.

        Raises: RecoverableError with several keys, while the chain can't say which of them speaks.
        """
        validator = self._validator
        async with self._lock:
            known = await self._find(round_index)
            if known is not None or validator.now_ms() >= validator.params.round_start_ms(round_index):
                return known
            author = await validator.find_speaker(round_index)
            row = await validator.read(lambda con: find_round(con, validator.address, round_index))
            if row is None:
                self.complaint = ""
                tree = await self._build_tree(round_index, may_top_up=True)
                if tree is None:
                    self.complaint = f"the corpus has no unused leaf for round {round_index}"
                    validator.log.error("corpus exhausted", code="EMC-1812", round=round_index)
                    return None
                row = _draw_secret(round_index, tree)
            return await self._sign(row, author)

    async def plan(self, view: RoundView) -> bool:
        """Fix the plan of a round that was committed to. Returns: False when there is no plan to fix.

        Idempotent: a plan that was fixed stays, whatever the corpus is now.
        """
        validator = self._validator
        row = await validator.read(lambda con: find_round(con, validator.address, view.round))
        signed = await self._find(view.round)
        if row is None or signed is None or signed.commitment.validator != validator.speaker(view.members):
            return False
        if row.beacon_hash is not None:
            return True
        async with self._lock:
            tree = await self._build_tree(view.round, may_top_up=False)
        if tree is None or tree.root != row.corpus_root:
            self.complaint = f"the corpus changed after the commitment to round {view.round}"
            validator.log.error("no plan", code="EMC-1813", round=view.round)
            return False
        await self._fix(view, row, tree)
        return True

    async def _fix(self, view: RoundView, row: RoundRow, tree: RoundCorpus) -> None:
        validator = self._validator
        params = validator.params_at(view.round)
        slots = own_slots(view.assignments(params), validator.speaker(view.members))
        draws = Draws(row.seed, view.beacon_hash)
        planned = draw_plan(draws, slots, tree.count, params, view.round)
        probes = [
            _probe_row(view.round, item, tree, item.leaf_index)
            for item in planned
            if item.leaf_index is not None
        ]
        if len(probes) < len(planned):
            self.complaint = f"the corpus has too few unused leaves for round {view.round}"
        hashes = [tree.levels[0][item.leaf_index] for item in planned if item.leaf_index is not None]
        write = partial(
            insert_plan,
            instance=validator.address,
            round_index=view.round,
            beacon_hash=view.beacon_hash,
            probes=probes,
            leaf_hashes=hashes,
        )
        await validator.write(write)
        for probe in probes:
            validator.bus.publish(
                PROBE, ProbeMoved(validator.address, view.round, probe.node, probe.slot, "planned")
            )

    async def _find(self, round_index: int) -> CommitmentEntry | None:
        item = await find_own(self._validator, Kind.COMMITMENT, round_index)
        return read_commitment_item(item) if item is not None and item.signature is not None else None

    async def _sign(self, row: RoundRow, author: Address) -> CommitmentEntry:
        validator = self._validator
        commitment = compute_commitment(row.seed, row.corpus_root, row.salt)
        statement = PlanCommitment(author, row.round, commitment, validator.now_ms())

        def keep(con: Connection) -> None:
            insert_round(con, validator.address, row)

        item = await issue(
            validator, commitment_item(CommitmentEntry(statement, b""), validator.now_ms()), keep
        )
        return read_commitment_item(item)

    async def _build_tree(self, round_index: int, *, may_top_up: bool) -> RoundCorpus | None:
        validator = self._validator
        if self._corpus is None:
            await self.open()
        assert self._corpus is not None
        used = await validator.read(lambda con: list_used_leaves(con, validator.address))
        if may_top_up and await trio.to_thread.run_sync(is_low, self._corpus, used):
            current = validator.current_round()
            if not await validator.read(lambda con: has_unplanned_round(con, validator.address, current)):
                await self._refill(used)
        return await trio.to_thread.run_sync(self._corpus.of_round, round_index, used)

    async def _refill(self, used: frozenset[bytes]) -> None:
        validator, corpus = self._validator, self._corpus
        assert corpus is not None
        if not self._store.is_generated:
            self.complaint = (
                "less than a quarter of the corpus is unused: build a new one with emcd corpus build"
            )
            return
        self._corpus = await trio.to_thread.run_sync(self._store.top_up, corpus, used)
        gone = used - set(self._corpus.hashes)
        await validator.write(lambda con: forget_leaves(con, validator.address, gone))


def _draw_secret(round_index: int, tree: RoundCorpus) -> RoundRow:
    return RoundRow(
        round=round_index,
        seed=secrets.token_bytes(SEED_BYTES),
        salt=secrets.token_bytes(SEED_BYTES),
        corpus_root=tree.root,
        leaf_count=tree.count,
        beacon_hash=None,
    )


def _probe_row(round_index: int, item: PlannedProbe, tree: RoundCorpus, leaf_index: int) -> ProbeRow:
    return ProbeRow(
        round=round_index,
        node=item.slot.node,
        slot=item.slot.slot,
        due_at_ms=item.due_at_ms,
        leaf_index=leaf_index,
        leaf_count=tree.count,
        leaf=tree.leaves[leaf_index],
        leaf_path=tree.path(leaf_index),
    )
