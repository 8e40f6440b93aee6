"""The five contracts on an in-process EVM, with actors that sign: what the contract tests start from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from eth_abi.abi import encode

from emcd.chain.contracts import Artifact, load_artifact
from emcd.proto.address import address_bytes, address_from_bytes, address_of_key
from emcd.proto.eip712 import Domain, TypedStruct
from emcd.proto.hashing import keccak
from emcd.proto.messages import Binding, Extraction, RoundRoot, Slash, Veto
from emcd.proto.parameters import ParametersChange
from emcd.proto.signing import sign
from emcd.types import Address, ParticipantRole
from tests.support.evm import CHAIN_ID, Contract, Evm, Outcome

TOKEN = 10**18
GENESIS_S = 1_800_000_000
ROUND_S = 7_200
EPOCH_ROUNDS = 12
DELAY_ROUNDS = 6
UNBONDING_ROUNDS = 24
WINDOW_ROUNDS = 12
DAY_S = 86_400
COMPUTE_MIN, ROUTER_MIN, VALIDATOR_MIN = 3_000 * TOKEN, 100_000 * TOKEN, 1_000_000 * TOKEN
VALIDATOR_LOCK_DAYS, ROUTER_LOCK_DAYS = 360, 180
FEE_WEI = 5 * TOKEN
NEVER_S = 2**63
NO_HASH = bytes(32)


@dataclass(frozen=True)
class Actor:
    """A key."""

    key: bytes
    address: Address


def actor(name: str) -> Actor:
    """The same key for the same name, always."""
    key = keccak(name.encode())
    return Actor(key, address_of_key(key))


@dataclass(frozen=True)
class Member:
    """A participant: the node key signs, the wallet owns."""

    node: Actor
    wallet: Actor
    role: ParticipantRole


def member(name: str, role: ParticipantRole) -> Member:
    return Member(actor(f"{name} node"), actor(f"{name} wallet"), role)


@dataclass(frozen=True)
class Root:
    """What validators attest for a round."""

    round: int
    cumulative_wei: int
    root: bytes
    bundle_hash: bytes

    def struct(self) -> RoundRoot:
        return RoundRoot(self.round, self.bundle_hash, self.root, self.cumulative_wei)


def round_root(index: int, cumulative_wei: int, root: bytes = b"\x11" * 32) -> Root:
    return Root(index, cumulative_wei, root, keccak(f"bundle {index} {cumulative_wei}".encode()))


@dataclass
class Network:
    """The contracts, and the founders that tests act through."""

    evm: Evm
    token: Contract
    parameters: Contract
    staking: Contract
    distributor: Contract
    vault: Contract
    validators: tuple[Member, ...]
    holder: Actor
    guardian: Actor
    publisher: Actor

    def fork(self) -> Network:
        evm = self.evm.fork()
        return replace(
            self,
            evm=evm,
            token=self.token.on(evm),
            parameters=self.parameters.on(evm),
            staking=self.staking.on(evm),
            distributor=self.distributor.on(evm),
            vault=self.vault.on(evm),
        )

    @property
    def staking_domain(self) -> Domain:
        return Domain(CHAIN_ID, self.staking.address)

    @property
    def distributor_domain(self) -> Domain:
        return Domain(CHAIN_ID, self.distributor.address)

    @property
    def parameters_domain(self) -> Domain:
        return Domain(CHAIN_ID, self.parameters.address)

    def to_round(self, index: int, offset_s: int = 0) -> None:
        """Move the clock to `offset_s` after the start of a round."""
        self.evm.move_to(GENESIS_S + index * ROUND_S + offset_s)

    def to_epoch(self, epoch: int) -> None:
        self.to_round(epoch * EPOCH_ROUNDS)

    def bind(self, who: Member, nonce: int = 1, **changes: Any) -> Outcome:
        """Bind `who`; `changes` replace fields of the binding before it is signed."""
        record = Binding(who.node.address, who.wallet.address, int(who.role), nonce, self.evm.now_s + 60)
        record = Binding(
            **{name: changes.get(name, getattr(record, name)) for name in record.__struct_fields__}
        )
        signature = sign(self.staking_domain, record, who.node.key)
        return self.staking.send(who.wallet.address, "bind", fields(record), signature)

    def fund(self, wallet: Address, amount_wei: int, spender: Contract | None = None) -> None:
        """Give a wallet token and let it spend them in a contract (staking, unless named)."""
        self.token.send(self.holder.address, "transfer", wallet, amount_wei)
        self.token.send(wallet, "approve", (spender or self.staking).address, amount_wei)

    def stake(self, who: Member, amount_wei: int, lock_days: int | None = None) -> Outcome:
        """Fund, and stake for a bound member."""
        self.fund(who.wallet.address, amount_wei)
        days = lock_days_of(who.role) if lock_days is None else lock_days
        return self.staking.send(who.wallet.address, "stake", who.node.address, amount_wei, days)

    def join(self, name: str, role: ParticipantRole, amount_wei: int, lock_days: int | None = None) -> Member:
        """Bind and stake a new member."""
        who = member(name, role)
        self.bind(who)
        self.stake(who, amount_wei, lock_days)
        return who

    def top_up(self, who: Member, amount_wei: int) -> Outcome:
        self.fund(who.wallet.address, amount_wei)
        return self.staking.send(who.wallet.address, "topUp", who.node.address, amount_wei)

    def validator_set(self, epoch: int) -> dict[Address, int]:
        """Power by node."""
        found = self.staking.view("validatorSet", epoch)
        assert sum(found.powers) == found.totalPower
        return dict(zip(found.nodes, found.powers, strict=True))

    def participant(self, who: Member) -> Any:
        return self.staking.view("participant", who.node.address)

    def publish(self, what: Root, signers: Iterable[Member] | None = None) -> Outcome:
        """Publish with the signatures of `signers` (all founders)."""
        return self.publish_signed(what, self.attest(what, self.validators if signers is None else signers))

    def attest(self, what: Root, signers: Iterable[Member]) -> list[bytes]:
        return signatures(self.distributor_domain, what.struct(), signers)

    def publish_signed(self, what: Root, signed: Sequence[bytes]) -> Outcome:
        return self.distributor.send(
            self.publisher.address,
            "publish",
            what.round,
            what.bundle_hash,
            what.root,
            what.cumulative_wei,
            b"".join(signed),
        )

    def publish_at_end(self, what: Root) -> Outcome:
        """Publish as soon as the round is over."""
        self.to_round(what.round + 1)
        return self.publish(what)

    def activate(self, index: int) -> None:
        """Move to where the publication of round `index` becomes active."""
        self.evm.move_to(self.distributor.view("published", index).activeAt)

    def veto(self, what: Root, signers: Iterable[Member]) -> Outcome:
        record = Veto(what.round, what.bundle_hash, what.root)
        signed = signatures(self.distributor_domain, record, signers)
        return self.distributor.send(
            self.publisher.address, "veto", what.round, what.bundle_hash, what.root, b"".join(signed)
        )

    def slash(self, order: Slash, signers: Iterable[Member]) -> Outcome:
        signed = signatures(self.staking_domain, order, signers)
        return self.staking.send(self.publisher.address, "slash", fields(order), b"".join(signed))

    def rotate(self, who: Member, key: Actor, nonce: int = 2, **changes: Any) -> Outcome:
        """Let `key` replace the member's node key; `changes` replace fields of its binding."""
        record = Binding(key.address, who.wallet.address, int(who.role), nonce, self.evm.now_s + 60)
        record = Binding(
            **{name: changes.get(name, getattr(record, name)) for name in record.__struct_fields__}
        )
        signature = sign(self.staking_domain, record, key.key)
        return self.staking.send(who.wallet.address, "rotateKey", who.node.address, fields(record), signature)

    def change(
        self,
        from_epoch: int,
        signers: Iterable[Member] | None = None,
        document: str = "{}",
        version: int | None = None,
        **rules: Any,
    ) -> Outcome:
        """Decide the next version of the parameters: `rules` replace parts of DESIGN's."""
        number = self.parameters.view("versionCount") + 1 if version is None else version
        table = rule_table(**rules)
        record = ParametersChange(number, from_epoch, hash_rules(table), keccak(document.encode()))
        signed = signatures(self.parameters_domain, record, self.validators if signers is None else signers)
        return self.parameters.send(
            self.publisher.address, "change", fields(record), table, document, b"".join(signed)
        )

    def claim_for(
        self, request: Extraction, key: bytes, cumulative_wei: int, proof: Sequence[bytes] = ()
    ) -> Outcome:
        signature = sign(self.distributor_domain, request, key)
        return self.distributor.send(
            self.publisher.address, "claimFor", fields(request), signature, cumulative_wei, list(proof)
        )


def fields(record: TypedStruct) -> tuple[Any, ...]:
    return tuple(getattr(record, name) for name in record.__struct_fields__)


def by_address(signers: Iterable[Member]) -> list[Member]:
    return sorted(signers, key=lambda who: address_bytes(who.node.address))


def signatures(domain: Domain, record: TypedStruct, signers: Iterable[Member]) -> list[bytes]:
    """The members' node signatures, by ascending signer."""
    return [sign(domain, record, who.node.key) for who in by_address(signers)]


def lock_days_of(role: ParticipantRole) -> int:
    return {ParticipantRole.VALIDATOR: VALIDATOR_LOCK_DAYS, ParticipantRole.ROUTER: ROUTER_LOCK_DAYS}.get(
        role, 0
    )


def leaf_hash(wallet: Address, cumulative_wei: int) -> bytes:
    """OpenZeppelin standard-v1 of (address, uint256)."""
    return keccak(keccak(bytes(12) + address_bytes(wallet) + cumulative_wei.to_bytes(32, "big")))


def merkle_tree(leaves: Sequence[bytes]) -> tuple[bytes, list[list[bytes]]]:
    """Root and the proof of each leaf, pairs hashed in order, an odd one carried up."""
    proofs: list[list[bytes]] = [[] for _ in leaves]
    level = [(leaf, [index]) for index, leaf in enumerate(leaves)]
    while len(level) > 1:
        above = []
        for left, right in zip(level[::2], level[1::2], strict=False):
            for index in left[1]:
                proofs[index].append(right[0])
            for index in right[1]:
                proofs[index].append(left[0])
            above.append((keccak(b"".join(sorted((left[0], right[0])))), left[1] + right[1]))
        level = above + (level[-1:] if len(level) % 2 else [])
    return level[0][0], proofs


def emission_table(epoch_rounds: int = EPOCH_ROUNDS) -> tuple[list[int], list[int]]:
    """The published schedule: start rounds, and wei a round rounded up; the last row ends it."""
    starts, rates = [], []
    rate, start, issued, n = Fraction(50_000 * TOKEN), 0, Fraction(0), 1
    while issued < 100_000_000 * TOKEN:
        starts.append(start)
        rates.append(-int(-rate // epoch_rounds))
        epochs = 90 * 2 ** ((n - 1) // 4)
        issued += rate * epochs
        start += epochs * epoch_rounds
        n += 1
        rate = rate * Fraction(n + 1, n) ** n * Fraction(10_000, 31_416)
    return [*starts, start], [*rates, 0]


def staking_config(token: Address, parameters: Address, **changes: Any) -> tuple[Any, ...]:
    """The constructor's argument, with DESIGN's numbers."""
    config = {
        "token": token,
        "parameters": parameters,
        "genesis_time": GENESIS_S,
        "round_seconds": ROUND_S,
        "epoch_rounds": EPOCH_ROUNDS,
        "unbonding_rounds": UNBONDING_ROUNDS,
        "challenge_delay_rounds": DELAY_ROUNDS,
        "day_seconds": DAY_S,
    }
    assert changes.keys() <= config.keys()
    return tuple((config | changes).values())


def rule_table(**changes: Any) -> tuple[Any, ...]:
    """The rules that the parameters contract holds: DESIGN's numbers, and a set of four."""
    rules = {
        "set_size": 4,
        "roles": [
            (COMPUTE_MIN, 0),
            (ROUTER_MIN, ROUTER_LOCK_DAYS),
            (VALIDATOR_MIN, VALIDATOR_LOCK_DAYS),
            (0, 0),
        ],
        "compute_lock_days": [0, 7, 30, 90, 180],
        "compute_multiplier_bps": [10_000, 14_000, 27_000, 62_000, 100_000],
    }
    assert changes.keys() <= rules.keys()
    return tuple((rules | changes).values())


def hash_rules(table: tuple[Any, ...]) -> bytes:
    """keccak256(abi.encode(rules))."""
    return keccak(encode(["(uint32,(uint96,uint32)[4],uint32[],uint32[])"], [table]))


def deploy(
    evm: Evm, rules: dict[str, Any] | None = None, token_name: str = "EMCToken", **config: Any
) -> Network:
    """Deploy all five; nobody has joined."""
    deployer, holder, guardian = actor("deployer"), actor("holder"), actor("guardian")
    sender = deployer.address
    expected = [evm.next_address(sender, ahead) for ahead in range(4)]
    token = evm.deploy(sender, token_name, expected[3], [holder.address], [900_000_000 * TOKEN])
    parameters = evm.deploy(sender, "Parameters", expected[2], rule_table(**rules or {}), "{}")
    terms = staking_config(token.address, parameters.address, **config)
    staking = evm.deploy(sender, "Staking", terms)
    starts, rates = emission_table()
    distributor = evm.deploy(
        sender,
        "Distributor",
        token.address,
        staking.address,
        starts,
        rates,
        FEE_WEI,
        WINDOW_ROUNDS,
        guardian.address,
    )
    vault = evm.deploy(sender, "CreditVault", token.address, 1_000_000, "0x" + "0" * 40, 0)
    return Network(
        evm, token, parameters, staking, distributor, vault, (), holder, guardian, actor("publisher")
    )


def build_network(
    validators: int = 4,
    lock_days: int = VALIDATOR_LOCK_DAYS,
    rules: dict[str, Any] | None = None,
    load: Callable[[str], Artifact] = load_artifact,
    **config: Any,
) -> Network:
    """Deploy an hour before genesis, with founding validators of 1 million each."""
    evm = Evm(GENESIS_S - 3_600)
    evm.load = load
    network = deploy(evm, rules, **config)
    founders = tuple(
        network.join(f"validator {index}", ParticipantRole.VALIDATOR, VALIDATOR_MIN, lock_days)
        for index in range(validators)
    )
    return replace(network, validators=founders)


def stranger(name: str = "stranger") -> Address:
    return address_from_bytes(keccak(name.encode())[12:])
