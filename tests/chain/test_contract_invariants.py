"""Random histories of all contracts: what must hold after every step, whoever acts and whenever."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from emcd.proto.messages import Slash
from emcd.types import Address
from emcd.types import ParticipantRole as Role
from tests.support.contract_network import (
    COMPUTE_MIN,
    GENESIS_S,
    ROUND_S,
    TOKEN,
    VALIDATOR_MIN,
    Member,
    Network,
    Root,
    actor,
    build_network,
    leaf_hash,
    member,
    merkle_tree,
    round_root,
)
from tests.support.evm import Outcome, Reverted

EARNERS = [actor(f"earner {index}") for index in range(3)]
PREPARED = build_network(lock_days=0, roles=[(COMPUTE_MIN, 0), (0, 0), (VALIDATOR_MIN, 0), (0, 0)])
CAST = [member(f"cast {index}", Role.VALIDATOR if index < 4 else Role.COMPUTE) for index in range(6)]


class Histories(RuleBasedStateMachine):
    """Locks are 0 days, so that exits, slashing and sets mix within few epochs."""

    def __init__(self) -> None:
        super().__init__()
        self.network: Network = PREPARED.fork()
        self.sets: dict[int, dict[Address, int]] = {}
        self.standing: list[Root] = []
        self.proofs: dict[bytes, list[list[bytes]]] = {}
        self.shares: dict[bytes, list[int]] = {}
        self.claimed_wei = [0, 0, 0]
        self.evidence = 0
        self.nonces: dict[str, int] = {}

    @initialize()
    def start(self) -> None:
        self.network.to_round(0)
        self.sets[0] = self.network.validator_set(0)

    def attempt(self, act: Callable[[], Outcome]) -> Outcome | None:
        try:
            return act()
        except Reverted as refusal:
            if refusal.name in ("Panic", "OutOfGas"):
                raise
            return None

    def everyone(self) -> list[Member]:
        return [*self.network.validators, *CAST]

    @rule(rounds=st.sampled_from([1, 2, 5, 12, 24]), offset_s=st.integers(0, ROUND_S - 1))
    def pass_time(self, rounds: int, offset_s: int) -> None:
        self.check_books()
        self.check_preview()
        here = (self.network.evm.now_s - GENESIS_S) // ROUND_S
        self.network.evm.move_to(
            max(self.network.evm.now_s, GENESIS_S + (here + rounds) * ROUND_S + offset_s)
        )
        now = self.network.staking.view("currentEpoch")
        self.sets.setdefault(now, self.network.validator_set(now))

    @rule(index=st.integers(0, 9), units=st.integers(1, 4))
    def bind_and_stake(self, index: int, units: int) -> None:
        who = self.everyone()[index]
        nonce = self.nonces.get(who.node.address, 1) + 1
        if self.attempt(lambda: self.network.bind(who, nonce=nonce)):
            self.nonces[who.node.address] = nonce
        minimum_wei = VALIDATOR_MIN if who.role == Role.VALIDATOR else COMPUTE_MIN
        self.attempt(lambda: self.network.stake(who, units * minimum_wei, 0))

    @rule(index=st.integers(0, 9), units=st.integers(1, 3))
    def top_up(self, index: int, units: int) -> None:
        self.attempt(lambda: self.network.top_up(self.everyone()[index], units * VALIDATOR_MIN // 2))

    @rule(index=st.integers(0, 9))
    def leave(self, index: int) -> None:
        who = self.everyone()[index]
        found = self.network.participant(who)
        held = found.stakeWei + found.pendingWei
        name = "withdraw" if found.exitRound else "requestExit" if held else "release"
        self.attempt(lambda: self.network.staking.send(who.wallet.address, name, who.node.address))

    @rule(index=st.integers(0, 9), bps=st.integers(1, 5_000), back=st.integers(0, 1))
    def slash(self, index: int, bps: int, back: int) -> None:
        epoch = max(0, self.network.staking.view("currentEpoch") - back)
        signers = [who for who in self.everyone() if who.node.address in self.network.validator_set(epoch)]
        self.evidence += 1
        order = Slash(self.everyone()[index].node.address, bps, self.evidence.to_bytes(32, "big"), epoch)
        self.attempt(lambda: self.network.slash(order, signers))

    @rule()
    def freeze(self) -> None:
        epoch = self.network.staking.view("currentEpoch")
        self.network.staking.send(actor("anyone").address, "freezeSet", epoch)

    @rule(
        rounds=st.sampled_from([0, 1, 1, 1, 6]),
        back=st.sampled_from([1, 1, 1, 2, 18, 19]),
        growth=st.lists(st.integers(0, 1_500), min_size=3, max_size=3),
    )
    def publish(self, rounds: int, back: int, growth: list[int]) -> None:
        self.pass_time(rounds, 0)
        index = self.network.staking.view("currentRound") - back
        if index < 0:
            return
        before = self.shares[self.standing[-1].root] if self.standing else [0, 0, 0]
        totals = [old + new * TOKEN for old, new in zip(before, growth, strict=True)]
        root, proofs = merkle_tree(
            [leaf_hash(who.address, wei) for who, wei in zip(EARNERS, totals, strict=True)]
        )
        what = round_root(index, sum(totals), root)
        epoch = index // 12
        signers = [who for who in self.everyone() if who.node.address in self.network.validator_set(epoch)]
        if self.attempt(lambda: self.network.publish(what, signers)):
            self.standing.append(what)
            self.shares[root], self.proofs[root] = totals, proofs

    @rule(which=st.integers(0, 5))
    def veto(self, which: int) -> None:
        if which >= len(self.standing):
            return
        what = self.standing[-1 - which]
        epoch = what.round // 12
        signers = [who for who in self.everyone() if who.node.address in self.network.validator_set(epoch)]
        if self.attempt(lambda: self.network.veto(what, signers)):
            del self.standing[len(self.standing) - 1 - which :]

    @rule(index=st.integers(0, 2))
    def claim(self, index: int) -> None:
        active = self.network.distributor.view("activeRoot").root
        if active not in self.shares:
            return
        wallet, wei = EARNERS[index].address, self.shares[active][index]
        proof = self.proofs[active][index]
        outcome = self.attempt(
            lambda: self.network.distributor.send(wallet, "claim", wallet, wei, proof, wallet)
        )
        due_wei = wei - self.claimed_wei[index]
        assert (outcome is not None) == (due_wei > 0)
        if outcome:
            self.claimed_wei[index] = wei
            assert outcome.event("Claimed")["amountWei"] == due_wei

    @rule(which=st.integers(0, 3))
    def pay_fee(self, which: int) -> None:
        if which < len(self.standing):
            index = self.standing[-1 - which].round
            self.attempt(lambda: self.network.distributor.send(actor("anyone").address, "payFee", index))

    def teardown(self) -> None:
        self.check_books()
        for epoch, seen in self.sets.items():
            assert self.network.validator_set(epoch) == seen
            assert len(seen) <= 4
            assert all(power >= VALIDATOR_MIN for power in seen.values())

    @invariant()
    def staking_owes_what_it_holds(self) -> None:
        owed = self.network.staking.view("totalStakedWei")
        assert self.network.token.view("balanceOf", self.network.staking.address) == owed

    @invariant()
    def a_set_once_begun_never_changes(self) -> None:
        for epoch in sorted(self.sets)[-2:]:
            assert self.network.validator_set(epoch) == self.sets[epoch]

    def check_preview(self) -> None:
        """What is seen of the next epoch is what it brings when nothing happens before."""
        epoch = self.network.staking.view("nextEpoch")
        preview, here_s = self.network.validator_set(epoch), self.network.evm.now_s
        self.network.to_epoch(epoch)
        assert self.network.validator_set(epoch) == preview
        self.network.evm.move_to(here_s)

    def check_books(self) -> None:
        """The registry adds up to what is owed; nothing is minted beyond the active root and the schedule."""
        listed = self.network.staking.view("participants", 0, 100)
        exiting = sum(found.unbondingWei for found in listed)
        staying = sum(found.stakeWei + found.pendingWei for found in listed if found.exitRound == 0)
        assert exiting + staying == self.network.staking.view("totalStakedWei")
        assert len({found.node for found in listed}) == self.network.staking.view("participantCount")
        distributor = self.network.distributor
        claimed, fees = distributor.view("totalClaimedWei"), distributor.view("totalFeesPaidWei")
        assert self.network.token.view("mintedWei") == claimed + fees
        assert claimed == sum(self.claimed_wei) <= distributor.view("activeRoot").cumulativeWei
        tip = distributor.view("tipRound")
        assert tip.exists == bool(self.standing)
        if tip.exists:
            assert tip.round == self.standing[-1].round
            promised = sum(distributor.view("published", what.round).feeWei for what in self.standing)
            assert self.standing[-1].cumulative_wei + promised <= distributor.view("scheduledWei", tip.round)


class TestHistories(Histories.TestCase):  # type: ignore[misc,valid-type]
    settings = settings(max_examples=20, stateful_step_count=40, deadline=None)
