"""What publishers, liars, claimants and the guardian do to rounds in a random history."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, rule

from emcd.proto.messages import Extraction
from emcd.types import ParticipantRole as Role
from tests.chain.history.staking_rule import SEATS
from tests.chain.history.state import EARNERS, State
from tests.support.contract_network import (
    EPOCH_ROUNDS,
    GENESIS_S,
    NEVER_S,
    ROUND_S,
    TOKEN,
    WINDOW_ROUNDS,
    Member,
    actor,
    leaf_hash,
    merkle_tree,
    round_root,
)

DAY_S = 86_400


class RoundRules(State):
    """Time, rounds, claims."""

    @initialize()
    def start(self) -> None:
        self.network.to_round(0)
        self.note_epoch()

    @rule(rounds=st.sampled_from([1, 2, 6, 12, 12, 12, 24, 36]), offset_s=st.integers(0, ROUND_S - 1))
    def pass_time(self, rounds: int, offset_s: int) -> None:
        self.check_books()
        self.check_preview()
        target_s = GENESIS_S + (self.round() + rounds) * ROUND_S + offset_s
        self.network.evm.move_to(max(self.network.evm.now_s, target_s))
        self.settle_rotations()
        self.note_epoch()

    @rule(
        rounds=st.sampled_from([0, 1, 1, 1, 6]),
        back=st.sampled_from([1, 1, 1, 2, WINDOW_ROUNDS, WINDOW_ROUNDS + 1]),
        growth=st.lists(st.integers(0, 1_400), min_size=3, max_size=3),
    )
    def publish(self, rounds: int, back: int, growth: list[int]) -> None:
        if rounds:
            self.pass_time(rounds, 0)
        index = self.round() - back
        if index < 0:
            return
        before = self.shares[self.standing[-1].what.root] if self.standing else [0, 0, 0]
        totals = [old + new * TOKEN for old, new in zip(before, growth, strict=True)]
        root, proofs = merkle_tree(
            [leaf_hash(who.address, wei) for who, wei in zip(EARNERS, totals, strict=True)]
        )
        what = round_root(index, sum(totals), root)
        signers = self.seats(index // EPOCH_ROUNDS)
        newest = self.last_round
        if self.attempt(lambda: self.network.publish(what, signers)):
            assert index > newest
            assert back <= WINDOW_ROUNDS
            self.note_published(what)
            self.shares[root], self.proofs[root] = totals, proofs

    @rule(
        which=SEATS,
        strangers=st.sampled_from([0, 0, 1, 2]),
        lie=st.sampled_from(["", "", "twice", "backwards", "cut"]),
        fresh=st.booleans(),
    )
    def lie(self, which: list[int] | None, strangers: int, lie: str, fresh: bool) -> None:
        """Some of the set and some others sign a root that gives all to one; the list may be bent."""
        if fresh:
            self.pass_time(1, 0)
        index = self.round() - 1
        if index < 0:
            return
        epoch = index // EPOCH_ROUNDS
        signers = self.seats(epoch, which)
        others = [Member(actor(f"outsider {n}"), EARNERS[0], Role.VALIDATOR) for n in range(strangers)]
        past = self.standing[-1].what.cumulative_wei if self.standing else 0
        what = round_root(index, past + 4_000 * TOKEN, leaf_hash(EARNERS[0].address, past + 4_000 * TOKEN))
        signed = self.network.attest(what, [*signers, *others])
        bent = {"": signed, "twice": signed * 2, "backwards": signed[::-1], "cut": [b"".join(signed)[:-1]]}
        snapshot = self.network
        self.network = snapshot.fork()
        done = self.attempt(lambda: self.network.publish_signed(what, bent[lie]))
        power, total = self.power(epoch, signers)
        if done:
            assert not strangers
            assert power * 3 > total * 2
            assert lie == "" or len(signed) == 1
        self.network = snapshot.fork()
        self.network.evm.sent = snapshot.evm.sent

    @rule(back=st.integers(0, 5), which=SEATS)
    def veto(self, back: int, which: list[int] | None) -> None:
        if back >= len(self.standing):
            return
        entry = self.standing[-1 - back]
        epoch = entry.what.round // EPOCH_ROUNDS
        signers = self.seats(epoch, which)
        power, total = self.power(epoch, signers)
        done = self.attempt(lambda: self.network.veto(entry.what, signers))
        is_pending = self.network.evm.now_s < entry.active_at_s
        assert (done is not None) == (is_pending and power * 3 > total)
        if done:
            del self.standing[len(self.standing) - 1 - back :]

    @rule(index=st.integers(0, 2), as_request=st.booleans(), nonce=st.integers(0, 6))
    def claim(self, index: int, as_request: bool, nonce: int) -> None:
        active = self.active()
        if active is None:
            return
        who, wei = EARNERS[index], self.shares[active.root][index]
        wallet, proof = who.address, self.proofs[active.root][index]
        request = Extraction(wallet, wallet, 0, True, nonce, NEVER_S)
        least = self.network.distributor.view("extractionNonce", wallet)
        paused = self.network.evm.now_s < self.network.distributor.view("pausedUntil")
        outcome = self.attempt(
            lambda: (
                self.network.claim_for(request, who.key, wei, proof)
                if as_request
                else self.network.distributor.send(wallet, "claim", wallet, wei, proof, wallet)
            )
        )
        due_wei = wei - self.claimed_wei[index]
        allowed = not paused and (not as_request or nonce >= least)
        assert (outcome is not None) == (due_wei > 0 and allowed)
        if outcome:
            self.claimed_wei[index] = wei
            assert outcome.event("Claimed")["amountWei"] == due_wei

    @rule(which=st.integers(0, 3))
    def pay_fee(self, which: int) -> None:
        if which < len(self.standing):
            index = self.standing[-1 - which].what.round
            self.attempt(lambda: self.network.distributor.send(actor("anyone").address, "payFee", index))

    @rule(duration_s=st.sampled_from([0, 60, DAY_S, 7 * DAY_S, 7 * DAY_S + 1]), unpause=st.booleans())
    def pause(self, duration_s: int, unpause: bool) -> None:
        distributor, guardian = self.network.distributor, self.network.guardian.address
        allowed_s, now_s = distributor.view("pauseAllowedFrom"), self.network.evm.now_s
        done = self.attempt(lambda: distributor.send(guardian, "pause", duration_s))
        assert (done is not None) == (now_s >= allowed_s and 0 < duration_s <= 7 * DAY_S)
        if unpause:
            distributor.send(guardian, "unpause")

    @rule(which=st.integers(0, 10**6))
    def repeat_a_call(self, which: int) -> None:
        """A transaction that was taken before is sent again, by its sender: late, doubled, out of order."""
        sent = [entry for entry in self.network.evm.sent or [] if entry.contract in self.replayable()]
        sent = [entry for entry in sent if entry.name not in _CHANGES_THE_MODEL]
        if sent:
            again = sent[which % len(sent)]
            contract = self.contract_at(again.contract)
            self.attempt(lambda: contract.send(again.sender, again.name, *again.arguments))

    @rule(which=st.integers(0, 10**6))
    def repeat_what_counts_once(self, which: int) -> None:
        """What a signature or a nonce allowed once is refused for ever after."""
        sent = [entry for entry in self.network.evm.sent or [] if entry.name in _ONCE]
        if sent:
            again = sent[which % len(sent)]
            contract = self.contract_at(again.contract)
            assert self.attempt(lambda: contract.send(again.sender, again.name, *again.arguments)) is None

    def replayable(self) -> set[str]:
        return {self.network.staking.address, self.network.distributor.address}

    def teardown(self) -> None:
        self.check_books()
        self.check_history()

    @invariant()
    def no_wei_is_created_or_lost(self) -> None:
        self.check_wei()

    @invariant()
    def what_has_begun_never_changes(self) -> None:
        self.check_sets()


_ONCE = ("bind", "rotateKey", "slash", "publish", "veto", "claimFor", "change")
_CHANGES_THE_MODEL = (*_ONCE, "claim", "cancelRotation", "pause")
"""Those the model follows by their own rules."""
