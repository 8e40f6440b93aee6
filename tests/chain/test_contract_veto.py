"""Distributor, veto: a third of the power stops a pending root and what stands on it."""

from __future__ import annotations

import pytest

from emcd.proto.eip712 import Domain
from emcd.proto.messages import Veto
from emcd.types import ParticipantRole as Role
from tests.support.contract_network import (
    TOKEN,
    VALIDATOR_MIN,
    Network,
    Root,
    build_network,
    round_root,
    signatures,
    stranger,
)
from tests.support.evm import CHAIN_ID, refused

PENDING, ACTIVE, VOID = 1, 2, 3


@pytest.fixture
def roots(running: Network) -> list[Root]:
    """Rounds 0 to 3, published as each is over."""
    found = [round_root(index, (index + 1) * 100 * TOKEN) for index in range(4)]
    for what in found:
        running.publish_at_end(what)
    return found


def state(network: Network, index: int) -> int:
    found: int = network.distributor.view("published", index).state
    return found


def test_veto_by_more_than_a_third_voids_the_root_and_all_later_ones(
    running: Network, roots: list[Root]
) -> None:
    outcome = running.veto(roots[1], running.validators[:2])
    assert [event.values["round"] for event in outcome.events] == [3, 2, 1]
    assert [state(running, index) for index in range(4)] == [PENDING, VOID, VOID, VOID]
    running.activate(3)
    found = running.distributor.view("activeRoot")
    assert (found.round, found.cumulativeWei) == (0, 100 * TOKEN)


def test_veto_by_a_third_or_less_is_refused(running: Network, roots: list[Root]) -> None:
    for count in (0, 1):
        with refused("NoQuorum"):
            running.veto(roots[0], running.validators[:count])
    three = build_network(validators=3)
    three.publish_at_end(round_root(0, TOKEN))
    with refused("NoQuorum"):
        three.veto(round_root(0, TOKEN), three.validators[:1])


def test_veto_of_an_active_a_void_or_an_unpublished_root_is_refused(
    running: Network, roots: list[Root]
) -> None:
    running.veto(roots[2], running.validators)
    with refused("NotPending"):
        running.veto(roots[2], running.validators)
    with refused("NotPending"):
        running.veto(round_root(9, TOKEN), running.validators)
    running.activate(0)
    with refused("NotPending"):
        running.veto(roots[0], running.validators)
    running.veto(roots[1], running.validators)


def test_veto_until_the_last_second_counts(running: Network, roots: list[Root]) -> None:
    running.activate(0)
    running.evm.move_to(running.evm.now_s - 1)
    running.veto(roots[0], running.validators[:2])
    assert running.distributor.view("tipRound").exists is False


def test_veto_for_another_root_than_the_published_is_refused(running: Network, roots: list[Root]) -> None:
    for other in (round_root(0, 100 * TOKEN, b"\x22" * 32), round_root(0, 99 * TOKEN)):
        with refused("WrongRoot"):
            running.veto(other, running.validators)


def test_veto_signed_for_another_round_chain_or_contract_is_refused(
    running: Network, roots: list[Root]
) -> None:
    what = roots[0]
    good = Veto(what.round, what.bundle_hash, what.root)
    for domain, signed in (
        (running.distributor_domain, Veto(1, what.bundle_hash, what.root)),
        (running.distributor_domain, what.struct()),
        (Domain(CHAIN_ID + 1, running.distributor.address), good),
        (Domain(CHAIN_ID, running.staking.address), good),
    ):
        forged = b"".join(signatures(domain, signed, running.validators[:2]))
        with refused("(NotInSet|SignaturesUnsorted)"):
            running.distributor.send(stranger(), "veto", 0, what.bundle_hash, what.root, forged)


def test_veto_by_instant_power_is_refused(running: Network, roots: list[Root]) -> None:
    attacker = running.join("attacker", Role.VALIDATOR, 500 * VALIDATOR_MIN)
    with refused("NotInSet"):
        running.veto(roots[0], [attacker])


def test_publish_of_a_void_round_again_is_refused(running: Network, roots: list[Root]) -> None:
    running.veto(roots[1], running.validators)
    for what in roots[1:]:
        with refused("RoundNotNewer"):
            running.publish(what)
    assert running.distributor.view("lastRound").round == 3
    assert running.distributor.view("tipRound").round == 0


def test_publish_after_a_veto_builds_on_the_last_root_that_stands(
    running: Network, roots: list[Root]
) -> None:
    running.veto(roots[1], running.validators)
    running.to_round(5)
    with refused("CumulativeFell"):
        running.publish(round_root(4, 100 * TOKEN - 1))
    running.publish(round_root(4, 101 * TOKEN))
    running.activate(4)
    assert running.distributor.view("activeRoot").cumulativeWei == 101 * TOKEN
    with refused("NoFee"):
        running.distributor.send(stranger(), "payFee", 2)


def test_publication_after_all_pending_were_vetoed_waits_its_own_delay(running: Network) -> None:
    first, second = round_root(0, TOKEN), round_root(1, 2 * TOKEN)
    running.publish_at_end(first)
    running.veto(first, running.validators)
    running.to_round(4)
    running.publish(second)
    running.activate(0)
    assert state(running, 1) == PENDING
    assert running.distributor.view("activeRoot").root == bytes(32)
    running.activate(1)
    assert running.distributor.view("activeRoot").round == 1


def test_active_root_stays_while_what_followed_a_veto_is_pending(running: Network) -> None:
    base, vetoed, last = round_root(0, TOKEN), round_root(8, 2 * TOKEN), round_root(9, 3 * TOKEN)
    running.publish_at_end(base)
    running.activate(0)
    running.publish_at_end(vetoed)
    running.veto(vetoed, running.validators)
    running.to_round(12)
    running.publish(last)
    running.activate(8)
    assert running.distributor.view("activeRoot").round == 0
    running.activate(9)
    assert running.distributor.view("activeRoot").round == 9


def test_veto_of_the_newest_pending_leaves_the_older_ones_to_become_active(running: Network) -> None:
    for index in range(3):
        running.publish_at_end(round_root(index, (index + 1) * TOKEN))
    running.veto(round_root(2, 3 * TOKEN), running.validators)
    running.activate(0)
    running.publish(round_root(5, 4 * TOKEN))
    for index in (0, 1, 5):
        running.activate(index)
        assert running.distributor.view("activeRoot").round == index
