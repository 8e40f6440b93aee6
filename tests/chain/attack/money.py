"""Attacks on what is paid out: roots, claims, vetoes, pauses. Each says whether the attacker won."""

from __future__ import annotations

from emcd.proto.eip712 import Domain
from emcd.proto.messages import Extraction, Veto
from emcd.types import ParticipantRole as Role
from tests.chain.attack.world import (
    NO_LOCKS,
    THIEF,
    VICTIM,
    World,
    balance,
    can_claim,
    order,
    payout,
    publish_with,
    steals_by,
    succeeds,
    thief_contract,
)
from tests.support.contract_network import (
    COMPUTE_MIN,
    EPOCH_ROUNDS,
    NEVER_S,
    TOKEN,
    UNBONDING_ROUNDS,
    VALIDATOR_MIN,
    Actor,
    Member,
    actor,
    by_address,
    fields,
    stranger,
)
from tests.support.evm import CHAIN_ID

WEEK_S = 7 * 86_400


def instant_power(world: World) -> bool:
    """Buy more than everybody's stake, and outvote them in the same epoch."""
    network = world.network()
    rich = network.join("rich", Role.VALIDATOR, 500 * VALIDATOR_MIN)
    return steals_by(network, lambda loot: network.publish(loot.what, [rich]))


def duplicate_signatures(world: World) -> bool:
    """One validator's signature, given four times."""
    network = world.network()
    liar = network.validators[:1]
    return steals_by(
        network, lambda loot: network.publish_signed(loot.what, network.attest(loot.what, liar) * 4)
    )


def empty_signature_list(world: World) -> bool:
    """No signature at all: none of them is wrong."""
    network = world.network()
    return steals_by(network, lambda loot: network.publish_signed(loot.what, []))


def quorum_of_nobody(world: World) -> bool:
    """Two thirds of nothing are nothing: publish in an epoch that has no validator."""
    network = world.network(validators=0)
    return steals_by(network, lambda loot: network.publish_signed(loot.what, []))


def quorum_of_two_thirds(world: World) -> bool:
    """Two of three equal validators, when more than two thirds are asked for."""
    network = world.network(validators=3)
    return steals_by(network, lambda loot: network.publish(loot.what, network.validators[:2]))


def signatures_of_another_network(world: World) -> bool:
    """What the same validators signed for their test network, on another chain, is sent to this one."""
    network = world.network()
    elsewhere = Domain(CHAIN_ID + 1, stranger("the test network's distributor"))
    return steals_by(
        network,
        lambda loot: publish_with(
            network, loot.what, world.sign(elsewhere, loot.what.struct(), network.validators)
        ),
    )


def shrunken_set(world: World) -> bool:
    """Half of the power publishes once the other half has asked to leave, in an epoch that counts both."""
    network = world.free_to_leave()
    network.to_epoch(1)
    for leaver in network.validators[2:]:
        network.staking.send(leaver.wallet.address, "requestExit", leaver.node.address)
    return steals_by(network, lambda loot: network.publish(loot.what, network.validators[:2]), EPOCH_ROUNDS)


def publish_after_leaving(world: World) -> bool:
    """All sign, leave, take their stakes along, and publish when there is nothing left to slash."""
    network = world.free_to_leave()
    for leaver in network.validators:
        network.staking.send(leaver.wallet.address, "requestExit", leaver.node.address)
    network.to_round(EPOCH_ROUNDS + UNBONDING_ROUNDS)
    for leaver in network.validators:
        network.staking.send(leaver.wallet.address, "withdraw", leaver.node.address)
    loot = payout(0, {THIEF: 4_000 * TOKEN})
    return succeeds(lambda: network.publish(loot.what))


def signature_withdrawn(world: World) -> bool:
    """A validator makes the signature that it gave worthless by another key, and a round fails."""
    network = world.network()
    fair = payout(0, {VICTIM: 4_000 * TOKEN})
    given = network.attest(fair.what, network.validators[:3])
    network.rotate(network.validators[0], actor("another key"))
    network.to_round(1)
    return not succeeds(lambda: network.publish_signed(fair.what, given))


def over_schedule(world: World) -> bool:
    """A quorum issues all there ever is in the first round."""
    network = world.network()
    network.to_round(1)
    loot = payout(0, {THIEF: 100_000_000 * TOKEN})
    return succeeds(lambda: network.publish(loot.what))


def falling_cumulative(world: World) -> bool:
    """A quorum takes back what an earlier round gave."""
    network = world.network()
    fair, foul = payout(0, {VICTIM: 4_000 * TOKEN}), payout(1, {THIEF: 1})
    network.publish_at_end(fair.what)
    succeeds(lambda: network.publish_at_end(foul.what))
    network.to_round(20)
    return not can_claim(network, fair, VICTIM)


def round_republished(world: World) -> bool:
    """A quorum signs a second outcome of a published round, with the same total for other wallets."""
    network = world.network()
    fair, foul = payout(0, {VICTIM: 4_000 * TOKEN}), payout(0, {THIEF: 4_000 * TOKEN})
    network.publish_at_end(fair.what)
    succeeds(lambda: network.publish(foul.what))
    network.to_round(20)
    return can_claim(network, foul, THIEF)


def claim_beyond_root(world: World) -> bool:
    """A tree promises three times the total that the quorum signed."""
    network = world.network()
    thieves = [actor(f"thief {index}") for index in range(3)]
    loot = payout(0, dict.fromkeys(thieves, 1_000 * TOKEN), cumulative_wei=1_000 * TOKEN)
    network.publish_at_end(loot.what)
    network.activate(0)
    for thief in thieves:
        can_claim(network, loot, thief)
    return bool(network.token.view("mintedWei") > loot.what.cumulative_wei)


def double_claim(world: World) -> bool:
    """The same proof twice, before others have claimed theirs."""
    network = world.network()
    due = payout(0, {THIEF: 1_000 * TOKEN, VICTIM: 1_000 * TOKEN})
    network.publish_at_end(due.what)
    network.activate(0)
    for _ in range(2):
        can_claim(network, due, THIEF)
    return balance(network, THIEF.address) > 1_000 * TOKEN


def forged_proof(world: World) -> bool:
    """A proof from a tree of the thief's own."""
    network = world.network()
    fair, forged = payout(0, {VICTIM: 1_000 * TOKEN}), payout(0, {THIEF: 1_000 * TOKEN})
    network.publish_at_end(fair.what)
    network.activate(0)
    return can_claim(network, forged, THIEF)


def claim_for_another(world: World) -> bool:
    """Proofs are public: claim the victim's to the thief's account."""
    network = world.network()
    due = payout(0, {VICTIM: 1_000 * TOKEN})
    network.publish_at_end(due.what)
    network.activate(0)
    wallet = VICTIM.address
    arguments = (wallet, due.shares[wallet], due.proofs[wallet], THIEF.address)
    return succeeds(lambda: network.distributor.send(THIEF.address, "claim", *arguments))


def extraction_replayed(world: World) -> bool:
    """A request that was served is sent again later: new rewards go where the old ones went."""
    network = world.network()
    request = Extraction(VICTIM.address, THIEF.address, 0, True, 0, NEVER_S)
    for index, wei in enumerate((1_000 * TOKEN, 3_000 * TOKEN)):
        due = payout(index, {VICTIM: wei})
        network.publish_at_end(due.what)
        network.activate(index)
        succeeds(lambda wei=wei: network.claim_for(request, VICTIM.key, wei))  # type: ignore[misc]
    return balance(network, THIEF.address) > 1_000 * TOKEN


def reentrant_claim(world: World) -> bool:
    """A token that calls its recipient, and a recipient that claims again before the claim is booked."""
    network = world.network(token_name="HostileToken")
    thief = thief_contract(network)
    due = payout(0, {Actor(b"", thief.address): 1_000 * TOKEN, VICTIM: 3_000 * TOKEN})
    network.publish_at_end(due.what)
    network.activate(0)
    arguments = (thief.address, 1_000 * TOKEN, due.proofs[thief.address], thief.address)
    order(thief, network.distributor, "claim", *arguments, repeats=3)
    return balance(network, thief.address) > 1_000 * TOKEN


def minted_by_anybody(world: World) -> bool:
    """The mint function, called by who is not the distributor."""
    network = world.network()
    return succeeds(lambda: network.token.send(THIEF.address, "mint", THIEF.address, TOKEN))


def veto_by_outsiders(world: World) -> bool:
    """Signatures of keys that have no stake."""
    network = world.network()
    due = payout(0, {VICTIM: 1_000 * TOKEN})
    network.publish_at_end(due.what)
    highest = int(by_address(network.validators)[-1].node.address, 16)
    keys = [actor(f"outsider {index}") for index in range(40)]
    outsiders = [Member(key, THIEF, Role.VALIDATOR) for key in keys if int(key.address, 16) < highest]
    return succeeds(lambda: network.veto(due.what, outsiders[:8]))


def veto_by_nobody(world: World) -> bool:
    """A veto without a signature."""
    network = world.network()
    due = payout(0, {VICTIM: 1_000 * TOKEN})
    network.publish_at_end(due.what)
    record = Veto(due.what.round, due.what.bundle_hash, due.what.root)
    return succeeds(lambda: network.distributor.send(THIEF.address, "veto", *fields(record), b""))


def guardian_pauses_for_ever(world: World) -> bool:
    """A new pause just before each old one ends, for twelve weeks."""
    network = world.network()
    due = payout(0, {VICTIM: 1_000 * TOKEN})
    network.publish_at_end(due.what)
    network.activate(0)
    for _ in range(12):
        succeeds(lambda: network.distributor.send(network.guardian.address, "pause", WEEK_S))
        network.evm.move_to(network.evm.now_s + WEEK_S - 1)
        if can_claim(network, due, VICTIM):
            return False
    return True


def guardian_pauses_for_years(world: World) -> bool:
    """One pause that never ends."""
    network = world.network()
    due = payout(0, {VICTIM: 1_000 * TOKEN})
    network.publish_at_end(due.what)
    network.activate(0)
    succeeds(lambda: network.distributor.send(network.guardian.address, "pause", 5_000 * WEEK_S))
    network.evm.move_to(network.evm.now_s + 1_000 * WEEK_S)
    return not can_claim(network, due, VICTIM)


def guardian_holds_exits(world: World) -> bool:
    """A pause when a stake comes free."""
    network = world.network()
    who = network.join("staker", Role.COMPUTE, COMPUTE_MIN)
    network.staking.send(who.wallet.address, "requestExit", who.node.address)
    network.to_round(UNBONDING_ROUNDS)
    network.distributor.send(network.guardian.address, "pause", WEEK_S)
    return not succeeds(lambda: network.staking.send(who.wallet.address, "withdraw", who.node.address))


def guardian_shields_a_fraud(world: World) -> bool:
    """The guardian pauses right after a lying quorum published, until the root can't be vetoed any more."""
    network = world.network(lock_days=0, rules=NO_LOCKS)
    loot = payout(0, {THIEF: 4_000 * TOKEN})
    network.publish_at_end(loot.what)
    network.distributor.send(network.guardian.address, "pause", WEEK_S)
    succeeds(lambda: network.veto(loot.what, network.validators[:2]))
    network.evm.move_to(network.evm.now_s + WEEK_S)
    return can_claim(network, loot, THIEF)
