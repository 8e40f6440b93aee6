"""Attacks on stakes, bindings and rules. Each says whether the attacker won."""

from __future__ import annotations

from dataclasses import replace

from emcd.proto.hashing import keccak
from emcd.proto.messages import Binding, Slash
from emcd.proto.parameters import ParametersChange
from emcd.proto.signing import sign
from emcd.types import ParticipantRole as Role
from tests.chain.attack.world import (
    THIEF,
    World,
    balance,
    order,
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
    Member,
    Network,
    actor,
    fields,
    hash_rules,
    member,
    rule_table,
    signatures,
)

EVIDENCE = keccak(b"two outcomes of a round")


def withdraw(network: Network, who: Member) -> bool:
    return succeeds(lambda: network.staking.send(who.wallet.address, "withdraw", who.node.address))


def binds(network: Network, record: Binding, signature: bytes) -> bool:
    """Whether the binding's wallet now owns the node."""
    succeeds(lambda: network.staking.send(record.wallet, "bind", fields(record), signature))
    return bool(network.staking.view("participant", record.node).wallet == record.wallet)


def sign_and_leave(world: World) -> bool:
    """Sign two outcomes, ask to leave at once, and have the whole stake back before or after the proof."""
    network = world.free_to_leave()
    liar, *others = network.validators
    network.to_round(3)
    network.staking.send(liar.wallet.address, "requestExit", liar.node.address)
    withdraw(network, liar)
    network.to_round(9)
    succeeds(lambda: network.slash(Slash(liar.node.address, 5_000, EVIDENCE, 0), others))
    network.to_round(EPOCH_ROUNDS + UNBONDING_ROUNDS)
    withdraw(network, liar)
    return balance(network, liar.wallet.address) == VALIDATOR_MIN


def slash_dodged_by_rotation(world: World) -> bool:
    """Sign two outcomes, and be another key when the proof comes, which names the key that signed."""
    network = world.network()
    liar, *others = network.validators
    second = replace(liar, node=actor("second key"))
    network.rotate(liar, second.node)
    network.to_epoch(2)
    network.rotate(second, actor("third key"), nonce=3)
    network.to_epoch(4)
    succeeds(lambda: network.slash(Slash(second.node.address, 5_000, EVIDENCE, 4), others))
    return bool(network.participant(liar).stakeWei == VALIDATOR_MIN)


def slash_replayed(world: World) -> bool:
    """An order that the quorum gave once is sent again and again."""
    network = world.network()
    accused = network.join("accused", Role.COMPUTE, COMPUTE_MIN)
    for _ in range(3):
        succeeds(lambda: network.slash(Slash(accused.node.address, 5_000, EVIDENCE, 0), network.validators))
    return bool(network.participant(accused).stakeWei < COMPUTE_MIN // 2)


def lock_not_kept(world: World) -> bool:
    """Ten times the weight for a lock of 180 days, and the stake back after two."""
    network = world.network()
    who = network.join("locked", Role.COMPUTE, COMPUTE_MIN, 180)
    succeeds(lambda: network.staking.send(who.wallet.address, "requestExit", who.node.address))
    network.to_round(UNBONDING_ROUNDS)
    return withdraw(network, who)


def ten_times_for_one_wei(world: World) -> bool:
    """The highest multiplier for the least stake."""
    network = world.network()
    who = member("poor", Role.COMPUTE)
    network.bind(who)
    succeeds(lambda: network.stake(who, 1, 180))
    found = network.participant(who)
    return (found.stakeWei, found.multiplierBps) == (1, 100_000)


def binding_replayed(world: World) -> bool:
    """The wallet of before sends its old binding again, after the node went to another."""
    network = world.network()
    node = actor("node that moved")
    old = Binding(node.address, THIEF.address, int(Role.HUB), 1, NEVER_S)
    signature = sign(network.staking_domain, old, node.key)
    binds(network, old, signature)
    network.bind(Member(node, actor("new wallet"), Role.HUB), nonce=2)
    return binds(network, old, signature)


def role_not_covered(world: World) -> bool:
    """A node that agreed to compute is bound as a hub."""
    network = world.network()
    node = actor("node that computes")
    record = Binding(node.address, THIEF.address, int(Role.COMPUTE), 1, NEVER_S)
    signature = sign(network.staking_domain, record, node.key)
    as_hub = Binding(node.address, THIEF.address, int(Role.HUB), 1, NEVER_S)
    return binds(network, as_hub, signature)


def somebody_elses_node(world: World) -> bool:
    """Bind a node that is not the thief's, by the thief's signature."""
    network = world.network()
    record = Binding(actor("victim's node").address, THIEF.address, int(Role.COMPUTE), 1, NEVER_S)
    return binds(network, record, sign(network.staking_domain, record, THIEF.key))


def stake_taken_by_the_hot_key(world: World) -> bool:
    """Who stole a node's key binds it, and the stake with it, to his wallet."""
    network = world.network()
    victim = network.join("victim", Role.COMPUTE, COMPUTE_MIN)
    stolen = Member(victim.node, THIEF, Role.COMPUTE)
    succeeds(lambda: network.bind(stolen, nonce=2))
    succeeds(lambda: network.staking.send(THIEF.address, "requestExit", victim.node.address))
    network.to_round(UNBONDING_ROUNDS)
    return withdraw(network, stolen) and balance(network, THIEF.address) == COMPUTE_MIN


def reentrant_withdraw(world: World) -> bool:
    """A token that calls its recipient, and a recipient that withdraws again before it is booked."""
    network = world.network(token_name="HostileToken")
    thief, node, staking = thief_contract(network), actor("thief's node"), network.staking
    record = Binding(node.address, thief.address, int(Role.COMPUTE), 1, NEVER_S)
    order(thief, staking, "bind", fields(record), sign(network.staking_domain, record, node.key))
    network.token.send(network.holder.address, "transfer", thief.address, COMPUTE_MIN)
    order(thief, network.token, "approve", staking.address, COMPUTE_MIN)
    order(thief, staking, "stake", node.address, COMPUTE_MIN, 0)
    order(thief, staking, "requestExit", node.address)
    network.to_round(UNBONDING_ROUNDS)
    order(thief, staking, "withdraw", node.address, repeats=3)
    return balance(network, thief.address) > COMPUTE_MIN


def rules_changed_at_once(world: World) -> bool:
    """A quorum takes the multiplier from who is locked, in the running epoch."""
    network = world.network()
    who = network.join("locked", Role.COMPUTE, COMPUTE_MIN, 180)
    poorer = [10_000, 10_000, 10_000, 10_000, 10_000]
    succeeds(lambda: network.change(0, compute_multiplier_bps=poorer))
    return bool(network.participant(who).multiplierBps == 10_000)


def rules_changed_by_a_minority(world: World) -> bool:
    """Half of the power decides for all."""
    network = world.network()
    return succeeds(lambda: network.change(2, network.validators[:2], set_size=1))


def rules_changed_by_instant_power(world: World) -> bool:
    """Buy more than everybody's stake, and write the rules in the same epoch."""
    network = world.network()
    rich = network.join("rich", Role.VALIDATOR, 500 * VALIDATOR_MIN)
    return succeeds(lambda: network.change(2, [rich], set_size=1))


def other_rules_than_were_signed(world: World) -> bool:
    """The quorum's signatures under one table are sent with another."""
    network = world.network()
    agreed, own = rule_table(set_size=7), rule_table(roles=[(TOKEN, 0)] * 4)
    record = ParametersChange(2, 2, hash_rules(agreed), keccak(b"{}"))
    signed = b"".join(signatures(network.parameters_domain, record, network.validators))
    return succeeds(
        lambda: network.parameters.send(THIEF.address, "change", fields(record), own, "{}", signed)
    )


def rules_told_by_anybody(world: World) -> bool:
    """Fill the staking contract's list of changes to come, so that every freeze costs more."""
    network = world.network()
    return succeeds(lambda: network.staking.send(THIEF.address, "rulesChangeFrom", 5))
