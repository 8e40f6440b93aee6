"""What each transaction costs, against gas.json: 5 % either way is a change that someone must mean.

`python -m tests.chain.test_contract_gas` writes the snapshot anew.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from emcd.proto.hashing import keccak
from emcd.proto.messages import Extraction, Slash
from emcd.types import ParticipantRole as Role
from tests.support.contract_network import (
    COMPUTE_MIN,
    NEVER_S,
    ROUTER_MIN,
    TOKEN,
    VALIDATOR_MIN,
    Network,
    actor,
    build_network,
    leaf_hash,
    member,
    merkle_tree,
    round_root,
    stranger,
)

SNAPSHOT = Path(__file__).with_name("gas.json")
README = Path(__file__).with_name("README.md")
TOLERANCE_PERCENT = 5
TREE_DEPTH = 17
"""That of 100,000 leaves."""


def measure_deployment(network: Network) -> dict[str, int]:
    return {
        "deploy EMCToken": network.token.gas_used,
        "deploy Parameters": network.parameters.gas_used,
        "deploy Staking": network.staking.gas_used,
        "deploy Distributor": network.distributor.gas_used,
        "deploy CreditVault": network.vault.gas_used,
    }


def measure_staking(network: Network) -> dict[str, int]:
    gas: dict[str, int] = {}
    who = member("compute", Role.COMPUTE)
    router = network.join("router", Role.ROUTER, ROUTER_MIN)
    gas["bind"] = network.bind(who).gas_used
    endpoint = "https://node.example:8421"
    gas["setEndpoint, 25 bytes"] = network.staking.send(
        who.wallet.address, "setEndpoint", who.node.address, endpoint
    ).gas_used
    gas["stake, compute"] = network.stake(who, COMPUTE_MIN).gas_used
    gas["topUp, compute"] = network.top_up(who, TOKEN).gas_used
    order = Slash(who.node.address, 100, b"\x01" * 32, 0)
    gas["slash, 13 signatures, first change of the epoch"] = network.slash(order, network.validators).gas_used
    order = Slash(who.node.address, 100, b"\x02" * 32, 0)
    gas["slash, 9 signatures"] = network.slash(order, network.validators[:9]).gas_used
    gas["requestExit, compute"] = network.staking.send(
        who.wallet.address, "requestExit", who.node.address
    ).gas_used
    gas["rotateKey, router"] = network.rotate(router, actor("next")).gas_used
    gas["rotateKey, validator"] = network.rotate(network.validators[0], actor("next validator")).gas_used
    late = member("late", Role.VALIDATOR)
    network.bind(late)
    gas["stake, validator"] = network.stake(late, VALIDATOR_MIN).gas_used
    network.to_round(24)
    gas["withdraw"] = network.staking.send(who.wallet.address, "withdraw", who.node.address).gas_used
    gas["freezeSet, 14 candidates for 13 seats, two changes"] = network.staking.send(
        stranger(), "freezeSet", 2
    ).gas_used
    return gas


def measure_rounds(network: Network) -> dict[str, int]:
    gas: dict[str, int] = {}
    earners = [actor(f"earner {index}") for index in range(4)]
    root, proofs = merkle_tree([leaf_hash(who.address, TOKEN // 2) for who in earners])
    for level in range(TREE_DEPTH - 2):
        sibling = keccak(bytes([level]))
        root, _ = merkle_tree([root, sibling])
        for proof in proofs:
            proof.append(sibling)
    gas["publish, 13 signatures, the epoch's first"] = network.publish_at_end(
        round_root(0, 2 * TOKEN, root)
    ).gas_used
    gas["publish, 13 signatures"] = network.publish_at_end(round_root(1, 3 * TOKEN, root)).gas_used
    network.to_round(3)
    gas["publish, 9 signatures"] = network.publish(
        round_root(2, 4 * TOKEN, root), network.validators[:9]
    ).gas_used
    gas["veto, 5 signatures"] = network.veto(round_root(2, 4 * TOKEN, root), network.validators[:5]).gas_used
    for index in range(3, 8):
        network.publish_at_end(round_root(index, (index + 5) * TOKEN, root))
    claims = [
        network.distributor.send(who.address, "claim", who.address, TOKEN // 2, proof, who.address).gas_used
        for who, proof in zip(earners[:2], proofs[:2], strict=True)
    ]
    gas["claim among 100,000, 5 roots pending, the network's first"], _ = claims
    _, gas["claim among 100,000, 5 roots pending"] = claims
    request = Extraction(earners[2].address, earners[2].address, 0, True, 0, NEVER_S)
    gas["claimFor among 100,000, 5 roots pending"] = network.claim_for(
        request, earners[2].key, TOKEN // 2, proofs[2]
    ).gas_used
    for index in range(8, 14):
        network.publish_at_end(round_root(index, (index + 5) * TOKEN, root))
    network.activate(13)
    fourth = earners[3].address
    gas["claim among 100,000, 6 roots that became active since"] = network.distributor.send(
        fourth, "claim", fourth, TOKEN // 2, proofs[3], fourth
    ).gas_used
    gas["payFee"] = network.distributor.send(stranger(), "payFee", 0).gas_used
    gas["change parameters, 13 signatures, 2,000 bytes"] = network.change(9, document="x" * 2_000).gas_used
    buyer = stranger("buyer")
    network.fund(buyer, 2 * TOKEN, network.vault)
    network.vault.send(buyer, "buy", b"\x01" * 32, TOKEN)
    gas["buy credits"] = network.vault.send(buyer, "buy", b"\x01" * 32, TOKEN // 2).gas_used
    return gas


def measure() -> dict[str, int]:
    prepared = build_network(validators=13, rules={"set_size": 13})
    prepared.to_round(0)
    staking, rounds = prepared.fork(), prepared.fork()
    return measure_deployment(prepared) | measure_staking(staking) | measure_rounds(rounds)


def test_gas_of_every_transaction_is_within_5_percent_of_the_snapshot() -> None:
    known, found = json.loads(SNAPSHOT.read_text()), measure()
    assert found.keys() == known.keys()
    apart = {
        name: f"{known[name]} -> {gas}"
        for name, gas in found.items()
        if abs(gas - known[name]) * 100 > TOLERANCE_PERCENT * known[name]
    }
    assert not apart


def test_figures_of_the_readme_are_those_of_the_snapshot() -> None:
    known = json.loads(SNAPSHOT.read_text())
    rows = [line.split(" | ") for line in README.read_text().splitlines() if " | " in line]
    figures = {row[0].removeprefix("| "): row[1] for row in rows if row[0].removeprefix("| ") in known}
    assert len(figures) >= 5
    for name, figure in figures.items():
        assert abs(int(figure.replace(",", "")) - known[name]) * 100 <= known[name], name


@pytest.mark.parametrize(
    ("name", "prototype"),
    [
        ("publish, 13 signatures", 183_000),
        ("claim among 100,000, 5 roots pending", 109_000),
        ("stake, compute", 92_000),
    ],
)
def test_gas_is_within_30_percent_of_the_plain_prototype(name: str, prototype: int) -> None:
    assert json.loads(SNAPSHOT.read_text())[name] <= prototype * 1.3


if __name__ == "__main__":
    SNAPSHOT.write_text(json.dumps(measure(), indent=1) + "\n")
