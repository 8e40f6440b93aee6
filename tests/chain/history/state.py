"""What a random history knows of itself: a model beside the contracts, and what must always hold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from hypothesis.stateful import RuleBasedStateMachine

from emcd.types import Address
from emcd.types import ParticipantRole as Role
from tests.support.contract_network import (
    COMPUTE_MIN,
    DELAY_ROUNDS,
    GENESIS_S,
    ROUND_S,
    TOKEN,
    VALIDATOR_MIN,
    Actor,
    Member,
    Network,
    Root,
    actor,
    build_network,
    member,
)
from tests.support.evm import Contract, Outcome, Reverted

ROLES = [(COMPUTE_MIN, 0), (1, 0), (VALIDATOR_MIN, 0), (0, 0)]
GENESIS_WEI = 900_000_000 * TOKEN
EARNERS = [actor(f"earner {index}") for index in range(3)]
BUYER = actor("buyer")
OTHERS = {Role.VALIDATOR: 4, Role.COMPUTE: 2, Role.ROUTER: 1}
"""Who joins beside the four founding validators."""


def prepare() -> Network:
    """No locks, so that exits, slashing and sets mix within few epochs."""
    return build_network(lock_days=0, rules={"roles": ROLES})


PREPARED = prepare()
CAST = [member(f"{role.name} {index}", role) for role, count in OTHERS.items() for index in range(count)]
PEOPLE = len(PREPARED.validators) + len(CAST)


@dataclass
class Person:
    """A member with every key it ever had; `waiting` is the one that a rotation brings, and when."""

    first: Member
    nonce: int = 0
    keys: list[Actor] = field(default_factory=list)
    waiting: tuple[Actor, int] | None = None

    def now(self) -> Member:
        return replace(self.first, node=self.keys[-1] if self.keys else self.first.node)


@dataclass
class Published:
    """A publication that stands."""

    what: Root
    active_at_s: int


class State(RuleBasedStateMachine):
    """The network, the model, and the checks."""

    def __init__(self) -> None:
        super().__init__()
        self.network: Network = PREPARED.fork()
        self.network.evm.sent = []
        self.people = [Person(who, 1) for who in PREPARED.validators] + [Person(who) for who in CAST]
        self.sets: dict[int, dict[Address, int]] = {}
        self.rules_seen: dict[int, object] = {}
        self.standing: list[Published] = []
        self.last_round = -1
        self.proofs: dict[bytes, list[list[bytes]]] = {}
        self.shares: dict[bytes, list[int]] = {}
        self.claimed_wei = [0, 0, 0]
        self.burnt_wei = 0
        self.serial = 0
        self.looked = 0

    # ------------------------------------------------------------------ acting

    def attempt(self, act: Callable[[], Outcome]) -> Outcome | None:
        """What came of it; None when a contract refused for a reason that it names."""
        try:
            return act()
        except Reverted as refusal:
            assert refusal.name not in ("Panic", "OutOfGas", "InvalidInstruction"), refusal
            return None

    def next_serial(self) -> int:
        self.serial += 1
        return self.serial

    def epoch(self) -> int:
        found: int = self.network.staking.view("currentEpoch")
        return found

    def round(self) -> int:
        return (self.network.evm.now_s - GENESIS_S) // ROUND_S

    def contract_at(self, address: str) -> Contract:
        every = (
            self.network.token, self.network.parameters, self.network.staking,
            self.network.distributor, self.network.vault,
        )  # fmt: skip
        (found,) = [contract for contract in every if contract.address == address]
        return found

    def key_of(self, node: Address) -> Actor:
        """The key of an address in a set, whoever had it."""
        for person in self.people:
            for key in [person.first.node, *person.keys]:
                if key.address == node:
                    return key
        raise AssertionError(f"nobody has the key of {node}")

    def seats(self, epoch: int, which: Sequence[int] | None = None) -> list[Member]:
        """The members of an epoch's set, as signers: all, or those of some positions."""
        nodes = sorted(self.network.validator_set(epoch), key=lambda node: int(node, 16))
        chosen = nodes if which is None else [nodes[i] for i in sorted(set(which)) if i < len(nodes)]
        return [Member(self.key_of(node), EARNERS[0], Role.VALIDATOR) for node in chosen]

    def power(self, epoch: int, signers: Sequence[Member]) -> tuple[int, int]:
        """The power of distinct members, and the set's."""
        found = self.network.validator_set(epoch)
        return sum(found[address] for address in {who.node.address for who in signers}), sum(found.values())

    def settle_rotations(self) -> None:
        """What the clock has brought into force."""
        for person in self.people:
            if person.waiting and person.waiting[1] <= self.epoch():
                person.keys.append(person.waiting[0])
                person.waiting = None

    def active(self) -> Root | None:
        """The newest publication that stands and whose delay is over."""
        ripe = [entry.what for entry in self.standing if self.network.evm.now_s >= entry.active_at_s]
        return ripe[-1] if ripe else None

    def note_published(self, what: Root) -> None:
        self.standing.append(Published(what, self.network.evm.now_s + DELAY_ROUNDS * ROUND_S))
        self.last_round = what.round

    # ------------------------------------------------------------------ what must hold

    def check_wei(self) -> None:
        """After every step: nothing was created or lost."""
        token, staking = self.network.token, self.network.staking
        assert token.view("balanceOf", staking.address) == staking.view("totalStakedWei")
        supply_wei, minted_wei = token.view("totalSupply"), token.view("mintedWei")
        assert supply_wei == GENESIS_WEI + minted_wei - self.burnt_wei

    def check_sets(self) -> None:
        """The set of an epoch that has begun never changes: the newest's and the one before by turns."""
        self.looked += 1
        epoch = sorted(self.sets)[-2:][self.looked % min(2, len(self.sets))]
        assert self.network.validator_set(epoch) == self.sets[epoch]

    def check_history(self) -> None:
        """The same for every epoch seen, and for its rules."""
        for epoch, seen in self.sets.items():
            assert self.network.validator_set(epoch) == seen
            assert self.network.parameters.view("rulesAt", epoch) == self.rules_seen[epoch]

    def note_epoch(self) -> None:
        """Keep the running epoch's set and rules as first seen."""
        epoch = self.epoch()
        if epoch not in self.sets:
            rules = self.rules_seen[epoch] = self.network.parameters.view("rulesAt", epoch)
            self.sets[epoch] = self.network.validator_set(epoch)
            assert self.sets[epoch] == self.expected_set(rules.setSize, rules.roles[2].minimumWei)

    def expected_set(self, size: int, minimum_wei: int) -> dict[Address, int]:
        """The largest stakes of the candidates that weigh now, under the keys of the model."""
        keys = {person.now().node.address for person in self.people}
        candidates = set(self.network.staking.view("candidates"))
        weighing = [
            (-found.stakeWei, int(found.node, 16), found.node)
            for found in self.network.staking.view("participants", 0, 100)
            if found.node in keys & candidates and found.stakeWei >= minimum_wei
        ]
        return {node: -negative for negative, _, node in sorted(weighing)[:size]}

    def check_preview(self) -> None:
        """What is seen of the next epoch is what it brings when nothing happens before."""
        epoch = self.network.staking.view("nextEpoch")
        preview, here_s = self.network.validator_set(epoch), self.network.evm.now_s
        self.network.to_epoch(epoch)
        assert self.network.validator_set(epoch) == preview
        self.network.evm.move_to(here_s)

    def check_books(self) -> None:
        """Registry, balances and distributor add up and agree with the model."""
        listed = self.network.staking.view("participants", 0, 100)
        exiting = sum(found.unbondingWei for found in listed)
        staying = sum(found.stakeWei + found.pendingWei for found in listed if found.exitRound == 0)
        assert exiting + staying == self.network.staking.view("totalStakedWei")
        assert len({found.account for found in listed}) == self.network.staking.view("participantCount")
        assert len({found.node for found in listed}) == len(listed)
        by_account = {found.account: found for found in listed}
        for person in self.people:
            if found := by_account.get(person.first.node.address):
                assert found.node == person.now().node.address
                assert found.nextFromEpoch == (person.waiting[1] if person.waiting else 0)
        holders = {
            *(person.first.wallet.address for person in self.people),
            *(who.address for who in (*EARNERS, BUYER, self.network.holder, self.network.publisher)),
            self.network.staking.address,
        }
        balances = sum(self.network.token.view("balanceOf", holder) for holder in holders)
        assert balances == self.network.token.view("totalSupply")
        self.check_distributor()

    def check_distributor(self) -> None:
        """What was minted is claimed or fees, within root and schedule; the roots are the model's."""
        distributor, active = self.network.distributor, self.active()
        claimed, fees = distributor.view("totalClaimedWei"), distributor.view("totalFeesPaidWei")
        minted = self.network.token.view("mintedWei")
        assert minted == claimed + fees
        assert minted <= distributor.view("scheduledWei", max(0, self.round()))
        found = distributor.view("activeRoot")
        assert claimed == sum(self.claimed_wei) <= found.cumulativeWei
        assert found.root == (active.root if active else bytes(32))
        assert found.round == (active.round if active else 0)
        tip, last = distributor.view("tipRound"), distributor.view("lastRound")
        assert (last.round if last.exists else -1) == self.last_round
        assert tip.exists == bool(self.standing)
        if tip.exists:
            newest = self.standing[-1].what
            assert tip.round == newest.round
            promised = sum(distributor.view("published", e.what.round).feeWei for e in self.standing)
            assert newest.cumulative_wei + promised <= distributor.view("scheduledWei", tip.round)
