"""Where attacks are tried: our contracts, or the same with one defence taken out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from eth_abi.abi import encode

from emcd.chain.contracts import Artifact
from emcd.proto.eip712 import Domain, TypedStruct, digest
from emcd.proto.hashing import keccak
from emcd.proto.signing import sign_digest
from emcd.types import Address
from tests.chain.attack.naive import SLOT
from tests.support.contract_network import (
    COMPUTE_MIN,
    TOKEN,
    VALIDATOR_MIN,
    Actor,
    Member,
    Network,
    Root,
    actor,
    build_network,
    by_address,
    leaf_hash,
    merkle_tree,
    round_root,
)
from tests.support.evm import Contract, Outcome, Reverted

NO_LOCKS = {"roles": [(COMPUTE_MIN, 0), (0, 0), (VALIDATOR_MIN, 0), (0, 0)]}
VICTIM, THIEF = actor("victim"), actor("thief")
SHARED_SEPARATOR = keccak(
    encode(
        ["bytes32"] * 3,
        [keccak(b"EIP712Domain(string name,string version)"), keccak(b"emcd"), keccak(b"1")],
    )
)
"""What a domain is that names neither chain nor contract."""


@dataclass
class World:
    """Makes networks; `lacking` is the number of the defence that they lack, 0 for none.

    `shares_domain`: signatures are made as that naive version wants them.
    """

    load: Callable[[str], Artifact]
    lacking: int = 0
    shares_domain: bool = False
    _prepared: dict[str, Network] = field(default_factory=dict)

    def network(self, **plan: Any) -> Network:
        """Four validators at the start of round 0; equal plans are built once."""
        name = repr(plan)
        if name not in self._prepared:
            self._prepared[name] = build_network(load=self.load, **plan)
        network = self._prepared[name].fork()
        for contract in (network.token, network.parameters, network.staking, network.distributor):
            network.evm.write_slot(contract.address, SLOT, self.lacking)
        network.to_round(0)
        return network

    def free_to_leave(self) -> Network:
        """The same, and validators are not locked."""
        return self.network(lock_days=0, rules=NO_LOCKS)

    def sign(self, domain: Domain, record: TypedStruct, signers: Iterable[Member]) -> bytes:
        """As honest validators of the network of that domain sign."""
        hashed = digest(domain, record)
        if self.shares_domain:
            hashed = keccak(b"\x19\x01" + SHARED_SEPARATOR + record.struct_hash())
        return b"".join(sign_digest(hashed, who.node.key) for who in by_address(signers))


@dataclass(frozen=True)
class Payout:
    """A root and the way to claim from it."""

    what: Root
    shares: dict[Address, int]
    proofs: dict[Address, list[bytes]]


def payout(index: int, shares: dict[Actor, int], cumulative_wei: int | None = None) -> Payout:
    """What gives each of some wallets a total."""
    root, proofs = merkle_tree([leaf_hash(who.address, wei) for who, wei in shares.items()])
    total = sum(shares.values()) if cumulative_wei is None else cumulative_wei
    amounts = {who.address: wei for who, wei in shares.items()}
    return Payout(round_root(index, total, root), amounts, dict(zip(amounts, proofs, strict=True)))


def succeeds(act: Callable[[], Outcome]) -> bool:
    """Whether the contract takes it."""
    try:
        act()
    except Reverted as refusal:
        assert refusal.name not in ("Panic", "OutOfGas", "StackUnderflow"), refusal
        return False
    return True


def can_claim(network: Network, due: Payout, who: Actor, recipient: Address | None = None) -> bool:
    wallet = who.address
    return succeeds(
        lambda: network.distributor.send(
            wallet, "claim", wallet, due.shares[wallet], due.proofs[wallet], recipient or wallet
        )
    )


def balance(network: Network, address: Address) -> int:
    found: int = network.token.view("balanceOf", address)
    return found


def steals_by(network: Network, publish: Callable[[Payout], Outcome], index: int = 0) -> bool:
    """Whether the thief gets a round's issue by publishing it to himself."""
    loot = payout(index, {THIEF: 4_000 * TOKEN, actor("nobody"): 1})
    network.to_round(index + 1)
    if not succeeds(lambda: publish(loot)):
        return False
    network.activate(index)
    return can_claim(network, loot, THIEF) and balance(network, THIEF.address) == 4_000 * TOKEN


def publish_with(network: Network, what: Root, signatures: Sequence[bytes] | bytes) -> Outcome:
    return network.publish_signed(what, [signatures] if isinstance(signatures, bytes) else signatures)


def thief_contract(network: Network) -> Contract:
    """A wallet that is a contract and does as it is told; it comes back when token arrive."""
    return network.evm.deploy(actor("deployer of the thief").address, "Thief")


def order(thief: Contract, target: Contract, name: str, *arguments: Any, repeats: int = 0) -> Outcome:
    return thief.send(THIEF.address, "run", target.address, target.encode(name, *arguments), repeats)
