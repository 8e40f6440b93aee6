"""Offences in a validator: collected, compared, judged, ordered once; nobody is accused for nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

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
from emcd.chain import ActiveRoot, BlockRef, RpcRefused
from emcd.errors import LocalProtocolError, RecoverableError, RemoteProtocolError
from emcd.keys import SigningKey
from emcd.ledger import Ledger, sign_once
from emcd.proto.eip712 import digest
from emcd.proto.hashing import keccak
from emcd.proto.json_form import from_json
from emcd.proto.messages import BundleSeal, RoundRoot, Slash
from emcd.proto.signing import recover
from emcd.services import Health, HealthState
from emcd.testing import make_key, temporary_ledger
from emcd.types import Address, Hash, Round, Wei
from emcd_validator.base import GENESIS
from emcd_validator.offence_exchange import FETCHERS, MAX_FETCHED, UNPROVEN
from emcd_validator.offence_page import MAX_PROOF_BYTES, OffencePages
from emcd_validator.page import FAILURES
from emcd_validator.queries.bundles import insert_settled
from emcd_validator.queries.offences import Kept, OffenceState, list_offences, list_slashes
from emcd_validator.role import SPEC
from emcd_validator.round_run import prune
from emcd_validator.seal import keep_seal
from emcd_validator.server import Pages
from emcd_validator.slash_desk import PURPOSE
from emcd_validator.statement import write_roots
from tests.support.validator_world import HUB, FakeHub, Parts, make_parts, make_world, set_clock

NAMES = ("validator-1", "validator-2", "validator-3")
INDEX = 5
A, B, C = keccak(b"a"), keccak(b"b"), keccak(b"c")
LIAR = make_key("validator-3")
READY = Health(HealthState.READY)
EMPTY: dict[str, Any] = {"offences": []}


class Peers:
    """The pages of the others, read in place; what is in `edit` is shown instead."""

    def __init__(self) -> None:
        self.apps: dict[str, Any] = {}
        self.edit: dict[tuple[str, str], Callable[[Any], Any]] = {}
        self.asked: list[str] = []
        self.stalled = ""
        """Pages whose path begins so take a minute and are not there."""
        self.at_once = self.most_at_once = 0

    async def find_page(self, endpoint: str, what: str, key: int | bytes | None) -> Any:
        name = endpoint.rsplit("/", 1)[1]
        tail = "" if key is None else f"/{'0x' + key.hex() if isinstance(key, bytes) else key}"
        self.asked.append(f"{name}/{what}{tail}")
        if self.stalled and self.asked[-1].startswith(self.stalled):
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
            await trio.sleep(60)
            self.at_once -= 1
            return None
        if name not in self.apps:
            raise RecoverableError("EMC-1301", name)
        status, page = await ask_app(self.apps[name], f"/{what}{tail}")
        shown = page if status == 200 else None
        is_edited = (name, what) in self.edit and (what != "roots" or key == INDEX)
        return self.edit[name, what](shown) if is_edited else shown


async def ask_app(app: Any, path: str, body: bytes | None = None, source: str = "") -> tuple[int, Any]:
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body or b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    scope: dict[str, Any] = {
        "type": "http", "method": "GET" if body is None else "POST", "path": path, "headers": [],
        "query_string": b"", "root_path": "", "client": (source, 1) if source else None,
    }  # fmt: skip
    await app(scope, receive, send)
    return sent[0]["status"], msgspec.json.decode(b"".join(m.get("body", b"") for m in sent[1:]) or b"null")


class Net:
    """Three validators on one ledger, between which pages go by hand; the third may lie."""

    def __init__(self, ledger: Ledger, folder: Path) -> None:
        self.hub: FakeHub = make_world(NAMES, round_s=20)
        self.peers = Peers()
        self.ledger = ledger
        self.parts: dict[str, Parts] = {}
        for name in NAMES:
            parts = self.parts[name] = make_parts(name, ledger, self.hub, folder, peers=self.peers)
            pages = OffencePages(parts.validator, parts.offences.desk)
            self.peers.apps[name] = Pages(parts.validator, parts.attester, pages, lambda: READY).build_app()
        set_clock(self.hub, self.hub.deployment.params.round_start_ms(INDEX + 2) + 100)

    @property
    def first(self) -> Parts:
        return self.parts[NAMES[0]]

    async def seen(self, name: str, *bundles: bytes, index: int = INDEX) -> None:
        """The hub's seals on these bundles came to a validator."""
        for item in bundles:
            await keep_seal(self.parts[name].validator, index, item, self.seal(item, index).signature)

    def seal(self, bundle: bytes, index: int = INDEX) -> SignedSeal:
        content = BundleSeal(HUB.address, index, bundle)
        return SignedSeal(content, HUB.sign(self.hub.deployment.staking_domain, content))

    def double_seal(self, key: SigningKey, index: int) -> DoubleSeal:
        domain = self.hub.deployment.staking_domain
        seals = [BundleSeal(key.address, index, bundle) for bundle in (A, B)]
        return DoubleSeal(*(SignedSeal(item, key.sign(domain, item)) for item in seals))

    def root(self, bundle: bytes, key: SigningKey = LIAR, index: int = INDEX) -> SignedRoot:
        content = RoundRoot(index, bundle, A, 1)
        return SignedRoot(content, key.sign(self.hub.deployment.distributor_domain, content))

    def roots_page(self, *roots: SignedRoot, who: str = LIAR.address) -> Any:
        return write_roots((who, item.round_root, item.signature) for item in roots)  # type: ignore[misc]

    async def kinds(self, name: str = NAMES[0]) -> list[tuple[str, str, str]]:
        address = make_key(name).address
        rows = await self.ledger.read(lambda con: list_offences(con, address, 0))
        return [(OffenceKind(r.offence.kind).name, r.offence.offender, r.state.value) for r in rows]

    async def orders(self, name: str = NAMES[0], epoch: int = 0) -> list[Slash]:
        status, page = await ask_app(self.peers.apps[name], f"/slashes/{epoch}")
        assert status == 200
        found = []
        for item in page["slashes"]:
            order = from_json(Slash, item["slash"])
            signature = bytes.fromhex(item["signature"][2:])
            assert recover(self.hub.deployment.staking_domain, order, signature) == make_key(name).address
            found.append(order)
        return found

    async def settle(self, *kinds: OffenceKind, name: str = NAMES[0], index: int = INDEX) -> StandingStrike:
        """The validator signed bundle A of a round, which convicts a node."""
        node = make_key("node-0").address
        strikes = tuple(StandingStrike(kind, node, index, A) for kind in kinds)
        row = replace(
            GENESIS, round=index, bundle_hash=A, previous_round=-1, is_signed=True, convictions=strikes
        )
        address = make_key(name).address
        await self.ledger.write(lambda con: insert_settled(con, address, row, b"", ()))
        return strikes[0]

    def activate(self, index: int = INDEX, bundle: bytes = A) -> None:
        self.hub.chain.active = ActiveRoot(Round(index), Hash(B), Hash(bundle), Wei(1))


@pytest.fixture
async def net(tmp_path: Path) -> AsyncIterator[Net]:
    async with temporary_ledger(tmp_path, {"validator": SPEC.migrations}) as ledger:
        yield Net(ledger, tmp_path)


# ------------------------------------------------------------------ what is none


async def test_collect_one_seal_seen_again_and_again_accuses_nobody(net: Net) -> None:
    for _ in range(3):
        await net.seen(NAMES[0], A)
    await net.seen(NAMES[0], B, index=INDEX + 1)
    assert await net.first.offences.desk.collect() == 0
    assert await net.first.offences.slashes.step() == 0
    assert await net.orders() == []


async def test_take_of_anything_but_a_proof_keeps_nothing(net: Net) -> None:
    forged = SignedSeal(
        net.seal(B).seal, make_key("stranger").sign(net.hub.deployment.staking_domain, net.seal(B).seal)
    )
    stranger = make_key("stranger")
    domain = net.hub.deployment.staking_domain
    seals = [BundleSeal(stranger.address, INDEX, bundle) for bundle in (A, B)]
    other_hub = [SignedSeal(item, stranger.sign(domain, item)) for item in seals]
    proofs: dict[str, Proof] = {
        "EMC-1981": DoubleSeal(net.seal(A), net.seal(A)),
        "EMC-1982": DoubleSeal(net.seal(A), forged),
        "EMC-1983": DoubleSeal(*other_hub),
        "EMC-1984": DoubleSeal(net.seal(A, 10**6), net.seal(B, 10**6)),
        "EMC-1985": StandingStrike(OffenceKind.GROSS, make_key("node-0").address, INDEX, A),
    }
    for code, proof in proofs.items():
        status, page = await ask_app(
            net.peers.apps[NAMES[0]], "/offences", msgspec.json.encode(write_proof(proof))
        )
        assert (status, page["code"]) == (400, code)
    no_member = DoubleAttestation(stranger.address, net.root(A, stranger), net.root(B, stranger))
    with pytest.raises(RemoteProtocolError) as caught:
        await net.first.offences.desk.take(no_member)
    assert caught.value.code == "EMC-1983"
    assert await net.kinds() == []


@pytest.mark.parametrize("body", [b"", b"{", b"[" * 9000, b"null", b"{}", b'{"kind": 1}', b"\xff" * 40])
async def test_page_that_gets_garbage_refuses_it(net: Net, body: bytes) -> None:
    status, page = await ask_app(net.peers.apps[NAMES[0]], "/offences", body)
    assert (status, page["code"]) == (400, "EMC-1980")
    assert await net.kinds() == []


async def test_page_does_not_listen_to_who_brings_garbage_and_listens_to_others(net: Net) -> None:
    app = net.peers.apps[NAMES[0]]
    proof = msgspec.json.encode(write_proof(DoubleSeal(net.seal(A), net.seal(B))))
    for _ in range(FAILURES):
        assert (await ask_app(app, "/offences", b"{}", source="192.0.2.1"))[0] == 400
    assert (await ask_app(app, "/offences", proof, source="192.0.2.1"))[0] == 429
    assert (await ask_app(app, "/offences", bytes(MAX_PROOF_BYTES + 1), source="192.0.2.2"))[0] == 413
    assert (await ask_app(app, "/offences", proof, source="192.0.2.2"))[0] == 202


async def test_strike_convicts_only_once_its_root_is_active_and_the_bundle_was_signed_here(net: Net) -> None:
    await net.settle(OffenceKind.GROSS)
    desk = net.first.offences.desk
    assert await desk.collect() == 0  # nothing is active: it may be vetoed still
    net.activate(bundle=B)
    assert await desk.collect() == 0  # another bundle of the round was published: this one is void
    net.activate(index=INDEX - 1)
    assert await desk.collect() == 0
    assert await net.parts[NAMES[1]].offences.desk.collect() == 0  # who signed no bundle convicts nobody
    net.activate()
    assert await desk.collect() == 1
    assert await net.kinds() == [("GROSS", make_key("node-0").address, "open")]
    assert await net.kinds(NAMES[1]) == []


async def test_strike_of_a_round_that_a_later_active_root_covers_convicts(net: Net) -> None:
    await net.settle(OffenceKind.CONVICTION)
    later = replace(GENESIS, round=INDEX + 3, bundle_hash=C, previous_round=INDEX, is_signed=True)
    await net.ledger.write(lambda con: insert_settled(con, make_key(NAMES[0]).address, later, b"", ()))
    net.activate(index=INDEX + 3, bundle=C)
    set_clock(net.hub, net.hub.deployment.params.round_start_ms(INDEX + 6))
    assert await net.first.offences.desk.collect() == 1
    await net.first.offences.slashes.step()
    assert [order.bps for order in await net.orders()] == [100]


async def test_peer_cannot_convict_a_node_here(net: Net) -> None:
    strike = StandingStrike(OffenceKind.GROSS, make_key("node-0").address, INDEX, A)
    listed = {"hash": "0x" + evidence_hash(offence_of(strike)).hex(), "kind": 4, "round": INDEX}
    net.peers.edit[NAMES[2], "offences"] = lambda page: {"offences": [listed]}
    await net.first.offences.exchange.step()
    assert await net.kinds() == []
    assert not [path for path in net.peers.asked if "/offences/0x" in path]


async def test_key_that_the_hub_named_and_cancelled_proves_nothing_against_it(net: Net) -> None:
    leaked = make_key("leaked next key")
    net.hub.chain.accounts[leaked.address] = HUB.address
    for index in (0, INDEX - 1, INDEX):
        body = msgspec.json.encode(write_proof(net.double_seal(leaked, index)))
        status, page = await ask_app(net.peers.apps[NAMES[0]], "/offences", body)
        assert (status, page["code"]) == (400, "EMC-1983")
    assert await net.kinds() == []


async def test_attestations_are_not_judged_before_the_chain_is_in_their_epoch(
    net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    params, chain, desk = net.hub.deployment.params, net.hub.chain, net.first.offences.desk
    index = params.epoch_rounds
    set_clock(net.hub, params.round_start_ms(index))
    head = await chain.head()
    proof = DoubleAttestation(LIAR.address, net.root(A, index=index), net.root(B, index=index))

    async def before() -> BlockRef:
        return replace(head, timestamp_s=params.round_start_ms(index) // 1000 - 1)

    monkeypatch.setattr(chain, "confirmed_head", before)
    with pytest.raises(RecoverableError) as caught:
        await desk.take(proof)
    assert caught.value.code == "EMC-1806"
    assert await net.kinds() == []
    monkeypatch.undo()
    assert await desk.take(proof) is Kept.NEW


@pytest.mark.parametrize("case", ["not served", "another deed", "proves nothing"])
async def test_peer_that_lists_invented_hashes_is_not_heard_for_a_while(net: Net, case: str) -> None:
    invented = ["0x" + keccak(b"%d" % n).hex() for n in range(MAX_FETCHED)]
    proofs = {
        "not served": None,
        "another deed": write_proof(net.double_seal(HUB, INDEX)),
        "proves nothing": write_proof(DoubleSeal(net.seal(A), net.seal(A))),
    }
    listed = [{"hash": item, "kind": 1, "round": INDEX} for item in invented]
    net.peers.edit[NAMES[2], "offences"] = lambda page: proofs[case] if page is None else {"offences": listed}
    exchange = net.first.offences.exchange
    await exchange.step()
    asked = [path for path in net.peers.asked if path.startswith(f"{NAMES[2]}/offences/")]
    assert UNPROVEN <= len(asked) < UNPROVEN + FETCHERS
    net.peers.asked.clear()
    await net.seen(NAMES[1], A, B)
    await net.parts[NAMES[1]].offences.desk.collect()
    await exchange.step()
    assert not [path for path in net.peers.asked if path.startswith(f"{NAMES[2]}/offences")]
    assert await net.kinds() == [("DOUBLE_SEAL", HUB.address, "open")]  # who is honest is heard


async def test_peer_that_stalls_each_proof_holds_a_look_no_longer_than_its_deadline(
    net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = [{"hash": "0x" + keccak(b"%d" % n).hex(), "kind": 1, "round": INDEX} for n in range(MAX_FETCHED)]
    net.peers.edit[NAMES[2], "offences"] = lambda page: {"offences": listed} if page == EMPTY else page
    net.peers.stalled = f"{NAMES[2]}/offences/"
    exchange = net.first.offences.exchange
    assert exchange._patience_s <= net.hub.deployment.params.round_s / 4
    monkeypatch.setattr(exchange, "_patience_s", 0.5)
    with trio.fail_after(5):
        await exchange.step()
    assert net.peers.most_at_once == FETCHERS


# ------------------------------------------------------------------ what is one


async def test_second_seal_is_found_proven_and_ordered_once(net: Net) -> None:
    await net.seen(NAMES[0], A, B, C)
    desk, slashes = net.first.offences.desk, net.first.offences.slashes
    assert await desk.collect() == 1
    assert await desk.collect() == 0
    assert await slashes.step() == 1
    assert await slashes.step() == 0
    (order,) = await net.orders()
    assert (order.node, order.bps, order.epoch) == (HUB.address, 5_000, 0)
    status, page = await ask_app(net.peers.apps[NAMES[0]], "/offences")
    assert [(item["name"], item["offender"]) for item in page["offences"]] == [("double_seal", HUB.address)]
    status, proof = await ask_app(net.peers.apps[NAMES[0]], "/offences/" + page["offences"][0]["hash"])
    assert status == 200
    body = msgspec.json.encode(proof)
    status, answer = await ask_app(net.peers.apps[NAMES[1]], "/offences", body)
    assert (status, answer["state"], answer["hash"]) == (202, "new", "0x" + order.evidence_hash.hex())
    assert (await ask_app(net.peers.apps[NAMES[1]], "/offences", body))[1]["state"] == "known"


async def test_second_seal_convicts_only_the_hubs_key_in_force_in_its_round(net: Net) -> None:
    old, chain, desk = make_key("the hub's first key"), net.hub.chain, net.first.offences.desk
    start_s = net.hub.deployment.params.round_start_ms(INDEX + 1) // 1000
    chain.accounts[HUB.address] = old.address
    block = (await chain.block_at(start_s)).number
    chain.in_force[old.address] = [(0, old.address), (block, HUB.address)]
    for key, index in ((old, INDEX + 1), (HUB, INDEX)):
        with pytest.raises(RemoteProtocolError) as caught:
            await desk.take(net.double_seal(key, index))
        assert caught.value.code == "EMC-1983"
    assert await net.kinds() == []
    assert await desk.take(net.double_seal(old, INDEX)) is Kept.NEW
    assert await desk.take(net.double_seal(HUB, INDEX + 1)) is Kept.NEW


async def test_second_seal_of_a_round_that_cannot_be_read_waits_and_holds_up_no_other(
    net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    await net.seen(NAMES[0], A, B)
    await net.seen(NAMES[0], A, B, index=INDEX - 1)
    chain, desk = net.hub.chain, net.first.offences.desk
    lost = await chain.block_at(net.hub.deployment.params.round_start_ms(INDEX - 1) // 1000)
    find_participant = chain.find_participant

    async def find(node: Address, *, at: BlockRef | None = None) -> Any:
        if at == lost:
            raise RpcRefused("eth_call", -32000, "missing trie node")
        return await find_participant(node, at=at)

    monkeypatch.setattr(chain, "find_participant", find)
    assert await desk.collect() == 1
    body = msgspec.json.encode(write_proof(net.double_seal(HUB, INDEX - 1)))
    status, page = await ask_app(net.peers.apps[NAMES[0]], "/offences", body)
    assert (status, page["code"]) == (503, "EMC-1842")
    monkeypatch.undo()
    assert await desk.collect() == 1


async def test_offence_reaches_every_validator_by_exchange(net: Net) -> None:
    await net.seen(NAMES[0], A)
    await net.seen(NAMES[0], B)
    await net.first.offences.desk.collect()
    for name in NAMES[1:]:
        await net.parts[name].offences.exchange.step()
        await net.parts[name].offences.slashes.step()
    await net.first.offences.slashes.step()
    orders = [await net.orders(name) for name in NAMES]
    assert orders[0] == orders[1] == orders[2]
    assert len(orders[0]) == 1


async def test_validator_that_shows_each_another_attestation_is_found(net: Net) -> None:
    net.peers.edit[NAMES[2], "roots"] = lambda page: net.roots_page(net.root(A))
    await net.first.offences.exchange.step()
    net.peers.edit[NAMES[2], "roots"] = lambda page: net.roots_page(net.root(B))
    second = net.parts[NAMES[1]].offences
    await second.exchange.step()
    assert await net.kinds(NAMES[1]) == []
    await second.exchange.step()  # sees by the first's page what the liar showed there
    await second.desk.collect()
    assert await net.kinds(NAMES[1]) == [("DOUBLE_ATTESTATION", LIAR.address, "open")]
    del net.peers.edit[NAMES[2], "roots"]
    await net.first.offences.exchange.step()
    await net.first.offences.slashes.step()
    assert [(order.node, order.bps) for order in await net.orders()] == [(LIAR.address, 5_000)]


@pytest.mark.parametrize("case", ["stranger", "other round", "unsigned", "not a page"])
async def test_peer_that_shows_attestations_that_are_none_is_not_believed(net: Net, case: str) -> None:
    stranger = make_key("stranger")
    pages = {
        "stranger": net.roots_page(net.root(A, stranger), net.root(B, stranger), who=stranger.address),
        "other round": net.roots_page(net.root(A, index=INDEX + 7), net.root(B, index=INDEX + 7)),
        "unsigned": net.roots_page(
            SignedRoot(net.root(A).round_root, b""), SignedRoot(net.root(B).round_root, b"")
        ),
        "not a page": [1],
    }
    net.peers.edit[NAMES[1], "roots"] = lambda page: pages[case]
    await net.first.offences.exchange.step()
    await net.first.offences.desk.collect()
    assert await net.kinds() == []


async def test_attestation_in_own_name_from_a_peer_is_not_taken_for_ones_own(net: Net) -> None:
    me = make_key(NAMES[0])
    net.peers.edit[NAMES[1], "roots"] = lambda page: net.roots_page(net.root(A, me), who=me.address)
    await net.first.offences.exchange.step()
    status, _ = await ask_app(net.peers.apps[NAMES[0]], f"/attestations/{INDEX}")
    assert status == 404


# ------------------------------------------------------------------ orders


async def test_order_is_not_signed_for_used_evidence_or_an_empty_stake(net: Net) -> None:
    await net.seen(NAMES[0], A, B)
    await net.first.offences.desk.collect()
    net.hub.chain.stakes[HUB.address] = 0
    assert await net.first.offences.slashes.step() == 0
    assert await net.kinds() == [("DOUBLE_SEAL", HUB.address, OffenceState.NO_STAKE.value)]
    del net.hub.chain.stakes[HUB.address]
    net.hub.chain.used_evidence.add(bytes(evidence_hash(offence_of(DoubleSeal(net.seal(A), net.seal(B))))))
    set_clock(net.hub, net.hub.deployment.params.round_start_ms(INDEX + 3))
    assert await net.first.offences.slashes.step() == 0
    assert await net.kinds() == [("DOUBLE_SEAL", HUB.address, OffenceState.SLASHED.value)]
    assert await net.orders() == []


async def test_order_is_signed_anew_in_the_next_epoch_while_nothing_came_of_it(net: Net) -> None:
    await net.seen(NAMES[0], A, B)
    await net.first.offences.desk.collect()
    assert await net.first.offences.slashes.step() == 1
    params = net.hub.deployment.params
    set_clock(net.hub, params.round_start_ms(params.epoch_rounds))
    assert await net.first.offences.slashes.step() == 1
    assert [order.epoch for order in await net.orders(epoch=0) + await net.orders(epoch=1)] == [0, 1]


async def test_order_recorded_before_a_crash_is_signed_after_it(
    net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    await net.seen(NAMES[0], A, B)
    await net.first.offences.desk.collect()
    slashes = net.first.offences.slashes

    async def crash(order: Slash, me: str) -> None:
        raise trio.TooSlowError

    monkeypatch.setattr(slashes, "_sign", crash)
    with pytest.raises(trio.TooSlowError):
        await slashes.step()
    rows = await net.ledger.read(lambda con: list_slashes(con, make_key(NAMES[0]).address, 0))
    assert [row.signature for row in rows] == [None]
    assert await net.orders() == []
    monkeypatch.undo()
    await slashes.step()
    assert len(await net.orders()) == 1


async def test_order_other_than_the_recorded_one_is_never_signed(net: Net) -> None:
    await net.seen(NAMES[0], A, B)
    await net.first.offences.desk.collect()
    identity = evidence_hash(offence_of(DoubleSeal(net.seal(A), net.seal(B))))
    other = digest(net.hub.deployment.staking_domain, Slash(HUB.address, 1, identity, 0))
    me = make_key(NAMES[0]).address
    await net.ledger.write(lambda con: sign_once(con, me, PURPOSE, f"0:{identity.hex()}", other))
    with pytest.raises(LocalProtocolError) as caught:
        await net.first.offences.slashes.step()
    assert caught.value.code == "EMC-1802"
    assert await net.orders() == []


async def test_order_of_who_is_not_in_the_set_is_not_signed(net: Net) -> None:
    await net.seen(NAMES[0], A, B)
    await net.first.offences.desk.collect()
    del net.hub.chain.endpoints[make_key(NAMES[0]).address]
    assert await net.first.offences.slashes.step() == 0


async def test_old_offences_are_no_longer_shown_nor_judged_and_then_forgotten(net: Net) -> None:
    await net.seen(NAMES[0], A, B)
    await net.first.offences.desk.collect()
    params = net.hub.deployment.params
    set_clock(net.hub, params.round_start_ms(INDEX + params.unbonding_rounds + 1))
    assert (await ask_app(net.peers.apps[NAMES[0]], "/offences"))[1] == {"offences": []}
    assert await net.first.offences.slashes.step() == 0
    with pytest.raises(RemoteProtocolError):
        await net.first.offences.desk.take(DoubleSeal(net.seal(A), net.seal(B)))
    assert len(await net.kinds()) == 1
    await prune(net.first.validator)
    assert await net.kinds() == []


async def test_store_of_offences_is_bounded(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("emcd_validator.queries.offences.MAX_OFFENCES", 1)
    desk = net.first.offences.desk
    assert await desk.take(DoubleSeal(net.seal(A), net.seal(B))) is Kept.NEW
    other = DoubleSeal(net.seal(A, INDEX - 1), net.seal(B, INDEX - 1))
    assert await desk.take(other) is Kept.FULL
    status, page = await ask_app(
        net.peers.apps[NAMES[0]], "/offences", msgspec.json.encode(write_proof(other))
    )
    assert (status, page["code"]) == (409, "EMC-1842")


@pytest.mark.parametrize(
    "path", ["/offences/0x12", "/offences/x", "/slashes/x", "/slashes/-1", "/roots/99999999999999"]
)
async def test_pages_of_nothing_are_refused(net: Net, path: str) -> None:
    status, _ = await ask_app(net.peers.apps[NAMES[0]], path)
    assert status in (400, 404)
