"""From a lie to a smaller stake, over a real EVM and real sockets: validators, settler and contract.

The hub and one validator lie with their real keys; everybody else is the real thing. Nobody who did
not lie ever loses anything, whatever is posted.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
import trio

from emcd.accounting.offence import (
    DoubleAttestation,
    DoubleSeal,
    OffenceKind,
    Proof,
    SignedRoot,
    SignedSeal,
    StandingStrike,
    evidence_hash,
    offence_of,
    write_proof,
)
from emcd.bus import Bus
from emcd.chain import CallReverted, Failed
from emcd.errors import ConfigError
from emcd.keys import SigningKey
from emcd.ledger import Ledger, open_ledger
from emcd.log import get_logger
from emcd.net.http_client import request
from emcd.net.http_server import serve_http
from emcd.proto.eip712 import Domain
from emcd.proto.hashing import keccak
from emcd.proto.messages import Binding, BundleSeal, RoundRoot, Slash
from emcd.proto.params import devnet_params
from emcd.services import FixedParameters, Health, HealthState
from emcd.testing import make_key
from emcd.types import Address, ParticipantRole
from emcd_settler.slash_view import fetch_board, find_quorum
from emcd_validator.base import GENESIS
from emcd_validator.false_verdict import FalseVerdictJudge
from emcd_validator.offence_chain import OffenceChain
from emcd_validator.offence_desk import OffenceDesk
from emcd_validator.offence_exchange import OffenceExchange
from emcd_validator.offence_page import OffencePages
from emcd_validator.offence_run import OffenceRunner
from emcd_validator.peer_client import PeerClient
from emcd_validator.queries.bundles import insert_settled
from emcd_validator.role import SPEC
from emcd_validator.seal import keep_seal
from emcd_validator.server import Pages
from emcd_validator.slash_desk import SlashDesk
from emcd_validator.validator import Validator
from tests.support.devchain import ETHER
from tests.support.network import GENESIS_S, HOLDER
from tests.support.settler_world import (
    VALIDATORS,
    LyingOutbox,
    Prepared,
    SettlerWorld,
    prepare,
    settler_world,
)
from tests.support.validator_world import make_fake_judge

HUB, NODE = make_key("hub"), make_key("node")
HUB_WEI, NODE_WEI = 10_000 * ETHER, 3_000 * ETHER
VALIDATOR_WEI = 1_000_000 * ETHER
A, B = keccak(b"a"), keccak(b"b")
READY = Health(HealthState.READY)


@dataclass
class Court:
    """Four validators at a real chain, as far as offences go, and what is staked there."""

    world: SettlerWorld
    ledger: Ledger
    nursery: trio.Nursery
    validators: dict[str, Validator] = field(default_factory=dict)
    urls: dict[str, str] = field(default_factory=dict)

    async def add(self, name: str) -> None:
        """A validator that works, at an endpoint that the chain names."""
        world = self.world
        chain = OffenceChain(world.chain)
        validator = Validator(
            signer=make_key(name),
            parameters=FixedParameters(world.params, world.deployment.prices),
            fetch_members=chain.fetch_members,
            hub=HUB.address,
            deployment=world.deployment,
            models={},
            ledger=self.ledger,
            clock=world.clock,
            bus=Bus(),
            started_at_ms=0,
            log=get_logger(name=name),
        )
        desk = OffenceDesk(validator, chain, FalseVerdictJudge(make_fake_judge(world.deployment)))
        exchange = OffenceExchange(validator, PeerClient(allow_loopback=True, timeout_s=1), chain, desk)
        runner = OffenceRunner(validator, desk, exchange, SlashDesk(validator, chain))
        attester = cast("Any", SimpleNamespace(decisions={}))
        pages = Pages(validator, attester, OffencePages(validator, desk), lambda: READY)
        port = await self.nursery.start(partial(serve_http, pages.build_app(), host="127.0.0.1", port=0))
        self.urls[name] = f"http://127.0.0.1:{port}"
        call = world.chain.staking.submit_set_endpoint(make_key(name).address, self.urls[name])
        await world.network.send(HOLDER, call)
        self.validators[name] = validator
        self.nursery.start_soon(runner.run)

    async def stake(self, node: SigningKey, role: ParticipantRole, wei: int) -> None:
        world, staking = self.world, self.world.chain.staking
        binding = Binding(node.address, HOLDER.address, int(role), 1, 2**40)
        signature = node.sign(world.deployment.staking_domain, binding)
        for call in (
            staking.submit_bind(binding, signature),
            world.chain.token.submit_approve(staking.address, wei),
            staking.submit_stake(node.address, wei, 0),
        ):
            await world.network.send(HOLDER, call)

    async def staked(self, node: Address) -> int:
        found = await self.world.chain.staking.find_participant(node)
        assert found is not None
        return found.stake_wei + found.pending_wei + found.unbonding_wei

    async def all_staked(self) -> dict[str, int]:
        keys = {"hub": HUB, "node": NODE, **{name: make_key(name) for name in VALIDATORS}}
        return {name: await self.staked(key.address) for name, key in keys.items()}

    async def wait_staked(self, node: Address, wei: int) -> None:
        async def reached() -> bool:
            return await self.staked(node) == wei

        await self.world.wait_for(reached)

    def seal(self, bundle: bytes, index: int = 1, domain: Domain | None = None) -> SignedSeal:
        content = BundleSeal(HUB.address, index, bundle)
        return SignedSeal(content, HUB.sign(domain or self.world.deployment.staking_domain, content))

    def double_seal(self, key: SigningKey, index: int) -> DoubleSeal:
        domain = self.world.deployment.staking_domain
        seals = [BundleSeal(key.address, index, bundle) for bundle in (A, B)]
        return DoubleSeal(*(SignedSeal(item, key.sign(domain, item)) for item in seals))

    async def rotate(self, following: SigningKey, nonce: int) -> None:
        """The hub's wallet names the hub's next key."""
        binding = Binding(following.address, HOLDER.address, int(ParticipantRole.HUB), nonce, 2**40)
        signature = following.sign(self.world.deployment.staking_domain, binding)
        call = self.world.chain.staking.submit_rotate_key(HUB.address, binding, signature)
        await self.world.network.send(HOLDER, call)

    def root(self, bundle: bytes, name: str = "v4", index: int = 0) -> SignedRoot:
        content = RoundRoot(index, bundle, A, 1)
        return SignedRoot(content, make_key(name).sign(self.world.deployment.distributor_domain, content))

    async def post(self, proof: Proof | bytes, names: Sequence[str] = ()) -> list[int]:
        body = proof if isinstance(proof, bytes) else msgspec.json.encode(write_proof(proof))
        return [
            (await request("POST", f"{self.urls[name]}/offences", body=body)).status
            for name in names or self.urls
        ]

    async def has_attestation(self) -> bool:
        """Whether the settler keeps one of anybody."""
        sql = "SELECT count(*) FROM settler_attestations"
        return bool((await self.world.ledger.read(lambda con: con.execute(sql).fetchone()))[0])

    async def wait_signed(self, identity: bytes) -> None:
        """Until an order for an offence has its quorum."""

        async def reached() -> bool:
            board = await fetch_board(self.world.chain, allow_loopback=True)
            return any(item.order.evidence_hash == identity for item in board.quorums)

        await self.world.wait_for(reached)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return trio.run(prepare, tmp_path_factory.mktemp("slashing"), devnet_params(GENESIS_S, 3))


@asynccontextmanager
async def sitting(
    prepared: Prepared, folder: Path, names: Sequence[str] = VALIDATORS
) -> AsyncIterator[Court]:
    """A court in round 3."""
    (folder / "court").mkdir()
    async with (
        settler_world(prepared, folder) as world,
        open_ledger(folder / "court" / "ledger.db", {"validator": SPEC.migrations}) as ledger,
        trio.open_nursery() as nursery,
    ):
        court = Court(world, ledger, nursery)
        await court.stake(HUB, ParticipantRole.HUB, HUB_WEI)
        await court.stake(NODE, ParticipantRole.COMPUTE, NODE_WEI)
        await world.move_to_round(3)
        for name in names:
            await court.add(name)
        yield court
        nursery.cancel_scope.cancel()


@pytest.fixture
async def court(prepared: Prepared, tmp_path: Path) -> AsyncIterator[Court]:
    async with sitting(prepared, tmp_path) as opened:
        yield opened


async def test_hub_that_seals_two_bundles_loses_half_its_stake_exactly_once(court: Court) -> None:
    before = await court.all_staked()
    for bundle in (A, B):
        seal = court.seal(bundle)
        await keep_seal(court.validators["v1"], 1, bundle, seal.signature)
    async with court.world.running():
        await court.wait_staked(HUB.address, HUB_WEI // 2)
        await court.post(DoubleSeal(court.seal(keccak(b"c")), court.seal(B)))  # another proof of the deed
        await court.world.wait_polls(10)
    async with court.world.running():  # and through a restart
        await court.world.wait_polls(10)
    assert await court.all_staked() == {**before, "hub": HUB_WEI // 2}
    rows = await court.world.ledger.read(
        lambda con: [tuple(row) for row in con.execute("SELECT state, bps, attempt FROM settler_slashes")]
    )
    assert rows == [("confirmed", 5_000, 0)]
    board = await fetch_board(court.world.chain, allow_loopback=True)
    assert [(item.name, item.offender, item.is_used) for item in board.offences] == [
        ("double_seal", HUB.address, True)
    ]


async def test_validator_that_attests_twice_is_reported_by_the_settler_and_loses_half(
    prepared: Prepared, tmp_path: Path
) -> None:
    async with sitting(prepared, tmp_path, VALIDATORS[:3]) as court:
        world, before = court.world, await court.all_staked()
        world.attest(court.root(A, index=1).round_root, "v4")
        async with world.running():
            await world.wait_for(court.has_attestation)
            world.attest(court.root(B, index=1).round_root, "v4")
            await court.wait_staked(make_key("v4").address, VALIDATOR_WEI // 2)
            await world.wait_polls(10)
        assert await court.all_staked() == {**before, "v4": VALIDATOR_WEI // 2}


async def test_node_of_a_gross_verdict_is_slashed_when_the_root_is_active_and_not_before(
    court: Court,
) -> None:
    world, domain = court.world, court.world.deployment.distributor_domain
    root = RoundRoot(1, A, B, 5)
    strike = StandingStrike(OffenceKind.GROSS, NODE.address, 1, A)
    row = replace(GENESIS, round=1, bundle_hash=A, is_signed=True, convictions=(strike,))
    for validator in court.validators.values():
        keep = partial(insert_settled, instance=validator.address, settled=row, call_ids=b"", deposits=())
        await court.ledger.write(keep)
    async with world.running():
        signatures = {make_key(name).address: make_key(name).sign(domain, root) for name in VALIDATORS[:3]}
        await world.network.send(HOLDER, world.chain.distributor.submit_publish(root, signatures))
        await world.wait_polls(20)
        assert await court.staked(NODE.address) == NODE_WEI, "the root may be vetoed still"
        publication = await world.chain.distributor.fetch_publication(1)
        await world.move_to_round(world.params.round_at(publication.active_at_s * 1000) + 1)
        await court.wait_staked(NODE.address, NODE_WEI * 9 // 10)


async def test_nobody_loses_anything_by_what_a_liar_posts(court: Court) -> None:
    before = await court.all_staked()
    other_chain = Domain(1, court.world.deployment.staking)
    stranger = make_key("stranger")
    forged = BundleSeal(HUB.address, 1, B)
    honest = court.seal(A)
    by_stranger = RoundRoot(0, A, A, 1)
    signed = stranger.sign(court.world.deployment.distributor_domain, by_stranger)
    garbage: list[Proof | bytes] = [
        b"", b"{", b"[" * 5_000, b'{"kind": 1}', bytes(20_000),
        DoubleSeal(honest, honest),
        DoubleSeal(honest, court.seal(B, 2)),
        DoubleSeal(honest, court.seal(B, domain=other_chain)),
        DoubleSeal(honest, SignedSeal(forged, stranger.sign(court.world.deployment.staking_domain, forged))),
        DoubleSeal(honest, SignedSeal(forged, honest.signature)),
        DoubleSeal(court.seal(A, 1_000), court.seal(B, 1_000)),
        DoubleAttestation(make_key("v1").address, court.root(A, "v1"), court.root(A, "v1")),
        DoubleAttestation(make_key("v1").address, court.root(A, "v1"), court.root(B, "v2")),
        DoubleAttestation(make_key("v1").address, court.root(A, "v1"), court.root(B, "v1", 1)),
        DoubleAttestation(stranger.address, SignedRoot(by_stranger, signed), SignedRoot(by_stranger, signed)),
        StandingStrike(OffenceKind.GROSS, NODE.address, 1, A),
        StandingStrike(OffenceKind.CONVICTION, make_key("v1").address, 1, A),
    ]  # fmt: skip
    for validator in court.validators.values():  # everybody has the one honest seal, again and again
        for _ in range(3):
            await keep_seal(validator, 1, A, honest.signature)
    async with court.world.running():
        for proof in garbage:
            assert all(status in (400, 413) for status in await court.post(proof)), proof
        await court.world.wait_polls(20)
        assert await court.world.count_sent() == 0
    assert await court.all_staked() == before
    board = await fetch_board(court.world.chain, allow_loopback=True)
    assert (board.offences, board.quorums) == ([], [])


async def test_hub_is_slashed_only_for_seals_by_its_key_in_force_in_their_round(court: Court) -> None:
    """A key that leaked while it waited was cancelled; the next one came into force."""
    world, staking, params = court.world, court.world.chain.staking, court.world.params
    leaked, following = make_key("leaked next key"), make_key("the hub's second key")
    await court.rotate(leaked, 2)
    for index in (1, 3):
        assert set(await court.post(court.double_seal(leaked, index))) == {400}, "it waits"
    await world.network.send(HOLDER, staking.submit_cancel_rotation(HUB.address))
    for index in (1, 2, 3):
        assert set(await court.post(court.double_seal(leaked, index))) == {400}
    assert (await fetch_board(world.chain, allow_loopback=True)).offences == []
    await court.rotate(following, 3)
    found = await staking.find_participant(HUB.address)
    assert found is not None
    first = found.next_from_epoch * params.epoch_rounds
    await world.move_to_round(first + 1)
    wrong = [(following, first - 1), (HUB, first), (leaked, first), (leaked, first - 1)]
    for key, index in wrong:
        assert set(await court.post(court.double_seal(key, index))) == {400}, index
    for key, index in ((HUB, first - 1), (following, first)):
        assert set(await court.post(court.double_seal(key, index))) == {202}, index


async def test_order_of_validators_is_brought_by_anybody_and_counts_once(court: Court) -> None:
    proof = DoubleSeal(court.seal(A), court.seal(B))
    identity = bytes(evidence_hash(offence_of(proof)))
    with pytest.raises(ConfigError) as caught:
        find_quorum(await fetch_board(court.world.chain, allow_loopback=True), identity)
    assert caught.value.code == "EMC-1976"
    await court.post(proof, ["v2"])
    await court.wait_signed(identity)
    quorum = find_quorum(await fetch_board(court.world.chain, allow_loopback=True), identity)
    call = court.world.chain.staking.submit_slash(quorum.order, quorum.signatures)
    await court.world.network.send(HOLDER, call)
    assert await court.staked(HUB.address) == HUB_WEI // 2
    with pytest.raises(CallReverted) as again:
        await court.world.chain.require_can(call, HOLDER.address)
    assert again.value.reason.name == "EvidenceUsed"
    two = {who: quorum.signatures[who] for who in list(quorum.signatures)[:2]}
    other = Slash(HUB.address, 5_000, keccak(b"another deed"), quorum.order.epoch)
    with pytest.raises(CallReverted):
        await court.world.chain.require_can(
            court.world.chain.staking.submit_slash(other, two), HOLDER.address
        )


async def test_settler_that_comes_second_takes_it_as_done(court: Court) -> None:
    """Somebody brings the order between the settler's look at the chain and its transaction."""
    proof = DoubleSeal(court.seal(A), court.seal(B))
    identity = bytes(evidence_hash(offence_of(proof)))
    await court.post(proof)
    await court.wait_signed(identity)
    quorum = find_quorum(await fetch_board(court.world.chain, allow_loopback=True), identity)
    await court.world.network.send(
        HOLDER, court.world.chain.staking.submit_slash(quorum.order, quorum.signatures)
    )
    staking = court.world.chain.staking

    looks = 0

    async def not_yet(identity: bytes, **at: Any) -> bool:
        nonlocal looks
        looks += 1
        return looks > 1 and await staking.fetch_evidence_used(identity, **at)

    role = court.world.make_role()
    await court.world.set_up(role, "settler")
    role._slasher._chain = cast(
        "Any",
        SimpleNamespace(staking=_Blind(staking, not_yet), confirmed_head=court.world.chain.confirmed_head),
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(role.run)

        async def ended() -> bool:
            sql = "SELECT state, reason FROM settler_slashes"
            row = await court.world.ledger.read(lambda con: con.execute(sql).fetchone())
            return row is not None and tuple(row) == ("ended", "somebody else brought it")

        await court.world.wait_for(ended)
        nursery.cancel_scope.cancel()
    assert await court.staked(HUB.address) == HUB_WEI // 2


async def test_estimate_that_lies_about_an_order_ends_nothing(court: Court) -> None:
    """Each name is one endpoint's false word before anything was sent."""
    proof = DoubleSeal(court.seal(A), court.seal(B))
    key = f"slash:{bytes(evidence_hash(offence_of(proof))).hex()}"
    lies = {
        key: Failed("EvidenceUsed", "a lie"),
        f"{key}:1": Failed("NotStaked", "a lie"),
        f"{key}:2": Failed("Panic", "a lie"),
    }
    role = court.world.make_role()
    await court.world.set_up(role, "settler")
    role._slasher._outbox = cast("Any", LyingOutbox(role._outbox, lies))
    await court.post(proof)
    async with trio.open_nursery() as nursery:
        await nursery.start(role.run)

        async def is_punished() -> bool:
            sql = "SELECT state FROM settler_slashes"
            row = await court.world.ledger.read(lambda con: con.execute(sql).fetchone())
            if row is not None and row[0] == "again":
                court.world.clock.at_ms += 500
            return await court.staked(HUB.address) == HUB_WEI // 2

        await court.world.wait_for(is_punished)
        nursery.cancel_scope.cancel()


class _Blind:
    """The staking contract, but for one question."""

    def __init__(self, staking: Any, fetch_evidence_used: Any) -> None:
        self._staking = staking
        self.fetch_evidence_used = fetch_evidence_used

    def __getattr__(self, name: str) -> Any:
        return getattr(self._staking, name)
