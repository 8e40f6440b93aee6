"""A request's way to the money, over the hub's own tables: it goes on, or back for a reason that has a name."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from emcd.accounting.payout import EXTRACTION_ORDER, Back, ExtractionPath, ExtractionState, RewardState
from emcd.money import encode_wei
from emcd.proto.bundle import ResultEntry
from emcd.proto.settler_report import ReportKind, SettlerReport
from emcd_hub.rounds.bundle_row import ResultRow
from emcd_hub.rounds.chain_row import list_claims, list_publications
from emcd_hub.rounds.payout_path import Reported, make_reward_paths, take_report
from tests.support.payout_ledger import SETTLER, WALLET, PayoutLedger

NONCE = st.integers(0, 5)
ROUND = st.integers(0, 6)
REWARD_ORDER = list(RewardState)


class PayoutMachine(RuleBasedStateMachine):
    """Wallet, settlers, contract and a chain that forks, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.world = PayoutLedger()
        self.tip = -1
        self.before: dict[int, ExtractionPath] = {}
        self.rewards: dict[int, RewardState] = {}

    def settle(self, back: Back | None = None) -> None:
        """Look at every request after an event, and compare."""
        after = self.world.paths()
        for nonce, old in self.before.items():
            new = after[nonce]
            fell = EXTRACTION_ORDER[new.state] < EXTRACTION_ORDER[old.state]
            left_end = old.state is not new.state and old.state in (
                ExtractionState.CLAIMED,
                ExtractionState.REFUSED,
            )
            if fell or left_end:
                assert back is not None, f"{old.state} -> {new.state} for no reason"
            if fell:
                assert new.went_back is not None
                assert (new.went_back.state, new.went_back.why) == (old.state, back)
            elif not left_end:
                assert new.went_back == old.went_back
        self.before = after
        rewards = self.read_rewards()
        for index, was in self.rewards.items():
            if REWARD_ORDER.index(rewards[index]) < REWARD_ORDER.index(was):
                assert back in (Back.VETO, Back.REORGANISATION), f"{was} -> {rewards[index]} for no reason"
        self.rewards = rewards

    def read_rewards(self) -> dict[int, RewardState]:
        """A reward of 1 wei in every closed round, by the hub's rows."""
        con, entry = self.world.con, ResultEntry(WALLET, 1, bytes(64), encode_wei(1), "eligible")
        closed = [row[0] for row in con.execute("SELECT round FROM hub_bundles")]
        standing = [row for row in list_publications(con, 0) if not row.is_void]
        paths = make_reward_paths(
            [ResultRow(index, WALLET, WALLET, 1, entry, 1) for index in closed],
            states={},
            payers={i: row for row in reversed(standing) for i in closed if i <= row.round},
            settled_at_ms={},
            claims=list_claims(con, WALLET),
            now_s=self.world.now_s,
        )
        return {path.round: path.state for path in paths}

    @rule(nonce=NONCE, index=ROUND, lasts_s=st.integers(1, 400), submit=st.booleans())
    def ask(self, nonce: int, index: int, lasts_s: int, submit: bool) -> None:
        self.world.ask(nonce, index, lasts_s=lasts_s, submit=submit)
        self.settle()

    @rule(seconds=st.integers(1, 120))
    def wait(self, seconds: int) -> None:
        self.world.now_s += seconds
        self.settle()

    @rule(index=ROUND)
    def close(self, index: int) -> None:
        self.world.close(index)
        self.settle()

    @rule(step=st.integers(1, 3), delay_s=st.integers(10, 60))
    def publish(self, step: int, delay_s: int) -> None:
        self.tip += step
        self.world.publish(self.tip, delay_s)
        self.settle()

    @rule(index=ROUND)
    def veto(self, index: int) -> None:
        """Only what is not active can be vetoed, by the chain's clock, 5 s behind; what came after it goes too."""
        rows = self.world.con.execute(
            "SELECT round FROM hub_publications WHERE round >= ? AND active_at_s > ? AND void_block IS NULL",
            (index, self.world.now_s - 5),
        ).fetchall()
        for row in rows:
            self.world.veto(row[0])
            self.settle(Back.VETO)

    @rule(nonce=st.none() | NONCE)
    def claim(self, nonce: int | None) -> None:
        row = self.world.con.execute(
            "SELECT max(round) FROM hub_publications WHERE active_at_s <= ? AND void_block IS NULL",
            (self.world.now_s,),
        ).fetchone()
        if row[0] is not None:
            self.world.claim(row[0], nonce)
            self.settle()

    @rule(nonce=NONCE)
    def cancel(self, nonce: int) -> None:
        self.world.cancel(nonce)
        self.settle()

    @rule(depth=st.integers(1, 6))
    def reorganise(self, depth: int) -> None:
        self.world.reorganise(max(0, self.world.block - depth))
        self.settle(Back.REORGANISATION)

    @rule(nonce=NONCE, kind=st.sampled_from(ReportKind), age_ms=st.integers(-5, 5))
    def report(self, nonce: int, kind: ReportKind, age_ms: int) -> None:
        tx_hash = b"t" * 32 if kind is ReportKind.SUBMITTED else bytes(32)
        at_ms = self.world.now_ms + age_ms
        word = SettlerReport(SETTLER, WALLET, nonce, int(kind), "because", tx_hash, at_ms)
        outcome = take_report(self.world.con, word, self.world.now_ms)
        if outcome is not Reported.TAKEN:
            assert self.world.paths() == self.before
        self.settle(None if kind is ReportKind.SUBMITTED else Back.CLAIM_FAILED)

    @invariant()
    def every_state_shows_its_evidence(self) -> None:
        for path in self.world.paths().values():
            state = path.state
            if state in (ExtractionState.PUBLISHED, ExtractionState.SYNCHRONISED, ExtractionState.SUBMITTED):
                assert path.published is not None
                assert path.published.round >= path.through_round
                assert (self.world.now_s >= path.published.active_at_s) is (
                    state is not ExtractionState.PUBLISHED
                )
            if state is ExtractionState.SUBMITTED:
                assert path.submitted is not None
            if state is ExtractionState.CLAIMED:
                assert path.claimed is not None
                assert path.ended_at_ms is not None
            if state in (ExtractionState.REFUSED, ExtractionState.EXPIRED):
                assert path.reason
            assert (path.ended_at_ms is None) is state.is_open


PayoutMachine.TestCase.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)
TestPayout = PayoutMachine.TestCase
