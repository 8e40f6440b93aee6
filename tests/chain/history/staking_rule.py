"""What stakers, thieves and the quorum do to stakes, keys and rules in a random history."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import rule

from emcd.proto.messages import Slash
from emcd.types import ParticipantRole as Role
from tests.chain.history.state import BUYER, PEOPLE, ROLES, State
from tests.support.contract_network import COMPUTE_MIN, TOKEN, VALIDATOR_MIN, actor, stranger

ANYONE = st.integers(0, PEOPLE - 1)
SEATS = st.one_of(st.none(), st.sets(st.integers(0, 6), max_size=5).map(sorted))
SENDERS_RIGHT = (
    "bind", "rotateKey", "cancelRotation", "approveWallet", "release", "setEndpoint", "stake", "topUp",
    "extend", "requestExit", "withdraw", "claim", "cancelExtractions", "pause", "unpause",
)  # fmt: skip
"""What only its sender may do."""


class StakingRules(State):
    """Stakes, keys, rules."""

    @rule(index=ANYONE, units=st.integers(1, 4))
    def bind_and_stake(self, index: int, units: int) -> None:
        person = self.people[index]
        who = person.now()
        if self.attempt(lambda: self.network.bind(who, nonce=person.nonce + 1)):
            person.nonce += 1
        unit_wei = VALIDATOR_MIN if who.role == Role.VALIDATOR else COMPUTE_MIN
        self.attempt(lambda: self.network.stake(who, units * unit_wei, 0))

    @rule(index=ANYONE, units=st.integers(1, 3))
    def top_up(self, index: int, units: int) -> None:
        self.attempt(lambda: self.network.top_up(self.people[index].now(), units * VALIDATOR_MIN // 2))

    @rule(index=ANYONE)
    def leave(self, index: int) -> None:
        """The next step out: the exit, the withdrawal or the release."""
        who = self.people[index].first
        found = self.network.participant(who)
        held = found.stakeWei + found.pendingWei
        name = "withdraw" if found.exitRound else "requestExit" if held else "release"
        self.attempt(lambda: self.network.staking.send(who.wallet.address, name, who.node.address))

    @rule(index=ANYONE)
    def rotate(self, index: int) -> None:
        person, key = self.people[index], actor(f"key {self.next_serial()}")
        outcome = self.attempt(lambda: self.network.rotate(person.now(), key, nonce=person.nonce + 1))
        if outcome:
            assert person.first.role != Role.COMPUTE
            assert person.waiting is None
            person.nonce += 1
            person.waiting = (key, outcome.event("RotationRequested")["fromEpoch"])

    @rule(index=ANYONE)
    def cancel_rotation(self, index: int) -> None:
        person = self.people[index]
        wallet, node = person.first.wallet.address, person.first.node.address
        done = self.attempt(lambda: self.network.staking.send(wallet, "cancelRotation", node))
        assert (done is not None) == (person.waiting is not None)
        person.waiting = None

    @rule(index=ANYONE, bps=st.integers(1, 5_000), back=st.integers(0, 1), old=st.booleans(), which=SEATS)
    def slash(self, index: int, bps: int, back: int, old: bool, which: list[int] | None) -> None:
        """By any of the accused's keys."""
        epoch = max(0, self.epoch() - back)
        signers, person = self.seats(epoch, which), self.people[index]
        node = person.first.node if old else person.now().node
        before_wei = self.held(index)
        order = Slash(node.address, bps, self.next_serial().to_bytes(32, "big"), epoch)
        outcome = self.attempt(lambda: self.network.slash(order, signers))
        if outcome:
            signed, total = self.power(epoch, signers)
            assert signed * 3 > total * 2
            burnt = outcome.event("Slashed")["amountWei"]
            assert 0 <= before_wei * bps // 10_000 - burnt <= 1
            assert self.held(index) == before_wei - burnt
            self.burnt_wei += burnt
        else:
            assert self.held(index) == before_wei

    def held(self, index: int) -> int:
        found = self.network.participant(self.people[index].first)
        exiting: int = found.unbondingWei
        return exiting if found.exitRound else int(found.stakeWei + found.pendingWei)

    @rule(
        ahead=st.integers(-1, 18),
        size=st.sampled_from([1, 4, 7]),
        double=st.booleans(),
        which=SEATS,
    )
    def change_rules(self, ahead: int, size: int, double: bool, which: list[int] | None) -> None:
        epoch = self.epoch()
        signers = self.seats(epoch, which)
        roles = [*ROLES[:2], (VALIDATOR_MIN * (2 if double else 1), 0), ROLES[3]]
        from_epoch = max(0, epoch + 1 + ahead)
        done = self.attempt(
            lambda: self.network.change(
                from_epoch, signers, str(self.next_serial()), set_size=size, roles=roles
            )
        )
        if done:
            signed, total = self.power(epoch, signers)
            assert signed * 3 > total * 2
            assert epoch + 2 <= from_epoch <= epoch + 17

    @rule(back=st.integers(0, 3))
    def freeze(self, back: int) -> None:
        epoch = max(0, self.epoch() - back)
        self.network.staking.send(actor("anyone").address, "freezeSet", epoch)

    @rule(index=ANYONE)
    def enroll(self, index: int) -> None:
        node = self.people[index].now().node.address
        self.attempt(lambda: self.network.staking.send(actor("anyone").address, "enroll", node))

    @rule(amount_wei=st.sampled_from([10**12, 7 * 10**15, 3 * TOKEN, 0]))
    def buy_credits(self, amount_wei: int) -> None:
        self.network.fund(BUYER.address, amount_wei, self.network.vault)
        arguments = (b"\x07" * 32, amount_wei)
        if self.attempt(lambda: self.network.vault.send(BUYER.address, "buy", *arguments)):
            self.burnt_wei += amount_wei

    @rule(which=st.integers(0, 10**6))
    def thief_repeats_anothers_call(self, which: int) -> None:
        """Whatever anybody ever sent and had the right to send: a stranger sends it, and is refused."""
        sent = [entry for entry in self.network.evm.sent or [] if entry.name in SENDERS_RIGHT]
        if not sent:
            return
        again = sent[which % len(sent)]
        contract = self.contract_at(again.contract)
        done = self.attempt(lambda: contract.send(stranger("thief"), again.name, *again.arguments))
        assert done is None
