"""Pure parts of rounds: base, states, stages, estimates, statements."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from emcd.accounting.plan import compute_commitment, compute_probes_hash
from emcd.accounting.terms import RoundTerms
from emcd.errors import RemoteProtocolError
from emcd.money import encode_wei
from emcd.proto.address import address_bytes
from emcd.proto.bundle import CommitmentEntry, ProbeResult, SnapshotEntry, ValidatorPower, VoteEntry
from emcd.proto.eip712 import Domain
from emcd.proto.hashing import keccak
from emcd.proto.json_form import to_json
from emcd.proto.messages import PlanCommitment, Reveal, RoundRoot, Verdict, Vote
from emcd.proto.params import NetworkParams
from emcd.testing import make_key
from emcd.types import ZERO_HASH, ParticipantRole
from emcd_hub.rounds.accrual import NodeSoFar, estimate_rewards
from emcd_hub.rounds.base import Choice, choose_base, is_quorum
from emcd_hub.rounds.bundle_row import BundleFacts
from emcd_hub.rounds.chain_row import PublicationRow
from emcd_hub.rounds.evidence_row import (
    insert_statements,
    list_commitments,
    list_known,
    list_reveals,
    list_votes,
)
from emcd_hub.rounds.state import cover_rounds, find_tips, round_state, split_stages
from emcd_hub.rounds.statement import (
    Statements,
    read_attestation_page,
    read_commitment_page,
    read_reveal_page,
    read_round_page,
)
from emcd_hub.rounds.view import RoundView
from emcd_hub.schema import MIGRATIONS

DOMAIN = Domain(31337, make_key("staking").address)


def facts(index: int) -> BundleFacts:
    return BundleFacts(index, keccak(b"%d" % index), index - 1, ZERO_HASH, 0, 0, 0, 0, b"s" * 65)


def publication(index: int, *, void: bool = False, active_at_s: int = 100) -> PublicationRow:
    return PublicationRow(index, ZERO_HASH, ZERO_HASH, 0, active_at_s, ZERO_HASH, void)


def base(
    index: int,
    closed: list[int],
    published: dict[int, PublicationRow],
    refused: tuple[int, ...] = (),
    attested: tuple[int, ...] = (),
) -> Choice:
    newest_first = [facts(i) for i in sorted(closed, reverse=True)]
    return choose_base(index, newest_first, published, refused.__contains__, attested.__contains__, 12)


def test_round_builds_on_the_newest_that_stands() -> None:
    assert base(5, [], {}) == Choice(-1, ())
    assert base(5, [1, 2, 4], {}) == Choice(4, ())
    assert base(5, [1, 2, 4], {4: publication(4, void=True)}) == Choice(2, (4,))
    assert base(5, [1, 2, 4], {1: publication(1)}, refused=(4, 2)) == Choice(1, (4, 2))


def test_round_nobody_published_in_time_is_left_behind() -> None:
    assert base(20, [7], {}) == Choice(-1, (7,))
    assert base(19, [7], {}) == Choice(7, ())
    assert base(20, [7], {7: publication(7)}) == Choice(7, ())


def test_round_that_builds_on_a_fallen_one_has_fallen_with_it() -> None:
    chain = list(range(20, 30))
    assert base(30, chain, {20: publication(20)}) == Choice(29, ())
    assert base(30, chain, {20: publication(20)}, refused=(21,)).round == 20
    assert base(30, [*range(10), *chain], {}, refused=(20,)).round == -1
    assert base(30, chain, {20: publication(20)}, refused=(21,), attested=(25,)).round == 29


def test_rounds_signed_long_ago_stand_by_the_newer_ones_that_are_signed() -> None:
    chain = list(range(30))
    assert base(30, chain, {}, attested=tuple(range(29))) == Choice(29, ())


def test_round_is_paid_by_the_first_later_publication_that_builds_on_it() -> None:
    closed = {i: facts(i) for i in range(6)}
    rows = {2: publication(2), 3: publication(3, void=True), 4: publication(4)}
    covered = cover_rounds(closed, rows)
    assert {index: row.round for index, row in covered.items()} == {0: 2, 1: 2, 2: 2, 3: 4, 4: 4}


def test_quorum_is_more_than_two_thirds() -> None:
    nodes = [make_key(name).address for name in "abc"]
    powers = tuple(ValidatorPower(node, encode_wei(10**24)) for node in nodes)
    seen = view(validators=powers)
    assert not is_quorum({address_bytes(node) for node in nodes[:2]}, seen)
    assert is_quorum({address_bytes(node) for node in nodes}, seen)
    assert not is_quorum(set(), view(validators=()))


@pytest.mark.parametrize(
    ("index", "closed", "published", "attested", "state"),
    [
        (9, None, None, False, "open"),
        (8, None, None, False, "grace"),
        (7, None, None, False, "grace"),
        (6, None, None, False, ""),
        (6, facts(6), None, False, "closed"),
        (6, facts(6), None, True, "attested"),
        (6, facts(6), publication(6, active_at_s=51), True, "published"),
        (6, facts(6), publication(6, active_at_s=50), True, "active"),
        (6, facts(6), publication(6, void=True), True, "void"),
    ],
)
def test_round_has_one_state(index: int, closed: Any, published: Any, attested: bool, state: str) -> None:
    found = round_state(index, 9, closed, published, is_attested=attested, now_s=50, void_after_rounds=12)
    assert found == state


def test_unpublished_round_becomes_void() -> None:
    found = round_state(6, 21, facts(6), None, is_attested=True, now_s=0, void_after_rounds=12)
    assert found == "void"


def test_tips_pass_over_void_rounds() -> None:
    rows = [publication(1, active_at_s=5), publication(2, active_at_s=9), publication(3, void=True)]
    assert find_tips(rows, 7) == (2, 1)
    assert find_tips([], 7) == (-1, -1)


def test_every_wei_stands_in_one_stage() -> None:
    wallet = make_key("w").address
    stages = split_stages(wallet, {wallet: 100}, {wallet: 70}, {wallet: 40}, 25)
    assert (stages.settled_wei, stages.published_wei, stages.claimable_wei, stages.claimed_wei) == (
        30,
        30,
        15,
        25,
    )
    assert stages.total_wei == 100
    assert split_stages(wallet, {}, {}, {}, 0).total_wei == 0
    assert split_stages(wallet, {}, {}, {}, 7).total_wei == 7


def view(**changes: Any) -> RoundView:
    node, judge = make_key("node").address, make_key("judge").address
    seats = (
        SnapshotEntry(
            node, make_key("wn").address, int(ParticipantRole.COMPUTE), encode_wei(5000 * 10**18), 0, 0
        ),
        SnapshotEntry(
            judge, make_key("wj").address, int(ParticipantRole.VALIDATOR), encode_wei(10**24), 360, 0
        ),
    )
    values: dict[str, Any] = {
        "round": 3,
        "snapshot_block": 1,
        "snapshot_hash": ZERO_HASH,
        "beacon_block": 2,
        "beacon_hash": ZERO_HASH,
        "participants": seats,
        "validators": (ValidatorPower(judge, encode_wei(10**24)),),
        "endpoints": {},
        **changes,
    }
    return RoundView(**values)


def test_estimate_grows_with_the_round_and_needs_a_success() -> None:
    params = NetworkParams(genesis_time_s=0)
    node, wallet = make_key("node").address, make_key("wn").address
    done = {node: NodeSoFar(2, 10**8)}
    half = estimate_rewards(view(), params, done, frozenset({node}), 5_000)
    full = estimate_rewards(view(), params, done, frozenset({node}), 10_000)
    assert 0 < half[wallet] < full[wallet]
    assert estimate_rewards(view(), params, {}, frozenset({node}), 10_000)[wallet] == 0
    assert estimate_rewards(view(), params, done, frozenset(), 10_000)[wallet] == 0


def terms() -> RoundTerms:
    return RoundTerms(
        3,
        make_key("hub").address,
        DOMAIN,
        ZERO_HASH,
        NetworkParams(0),
        {},
        {make_key("judge").address: 5},
        {},
    )


def commitment_page(name: str, index: int = 3, signer: str = "") -> dict[str, Any]:
    plan = PlanCommitment(make_key(name).address, index, keccak(b"c"), 1)
    signature = make_key(signer or name).sign(DOMAIN, plan)
    return {"commitment": to_json(plan), "signature": "0x" + signature.hex()}


def test_statement_of_a_member_is_taken() -> None:
    found = read_commitment_page(commitment_page("judge"), terms())
    assert [entry.commitment.validator for entry in found.commitments] == [make_key("judge").address]


@pytest.mark.parametrize(
    "page",
    [
        commitment_page("stranger"),
        commitment_page("judge", index=4),
        commitment_page("judge", signer="stranger"),
        {**commitment_page("judge"), "signature": "0x"},
        {**commitment_page("judge"), "signature": 5},
        {**commitment_page("judge"), "signature": "0x" + "00" * 65},
        {},
        [],
        None,
        "x",
    ],
)
def test_any_other_statement_is_counted_and_dropped(page: Any) -> None:
    found = read_commitment_page(page, terms())
    assert (found.commitments, found.refused) == ((), 1)


def test_page_of_many_keeps_the_good_ones() -> None:
    page = {
        "commitments": [commitment_page("stranger"), commitment_page("judge"), 7],
        "reveals": [{}],
        "votes": [{}],
    }
    found = read_round_page(page, terms())
    assert (len(found.commitments), found.reveals, found.votes, found.refused) == (1, (), (), 4)
    nonsense: list[Any] = [[], {"votes": {}}, {"reveals": [{}] * 65}]
    for wrong in nonsense:
        with pytest.raises(RemoteProtocolError):
            read_round_page(wrong, terms())


def vote_of(name: str, call: int) -> dict[str, Any]:
    vote = Vote(make_key(name).address, 3, call.to_bytes(16, "big"), bytes(32), int(Verdict.FAIL), 0)
    return {"vote": to_json(vote), "signature": "0x" + make_key(name).sign(DOMAIN, vote).hex()}


def test_votes_are_bounded_by_author_and_not_by_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("emcd_hub.rounds.statement.MAX_VOTES", 2)
    two = replace(terms(), powers={make_key(name).address: 5 for name in ("judge", "peer")})
    page = {"votes": [vote_of("judge", n) for n in range(3)] + [vote_of("peer", 0)]}
    found = read_round_page(page, two)
    assert [entry.vote.validator for entry in found.votes].count(make_key("judge").address) == 2
    assert (len(found.votes), found.refused) == (3, 1)
    with pytest.raises(RemoteProtocolError):
        read_round_page({"votes": [{}] * 5}, two)


def reveal_page(name: str, seed: bytes = b"s", **changes: Any) -> dict[str, Any]:
    probes = changes.pop("probes", ())
    secrets = (keccak(seed), keccak(b"corpus"), keccak(b"salt"))
    reveal = Reveal(make_key(name).address, 3, *secrets, compute_probes_hash(()))
    signature = "0x" + make_key(name).sign(DOMAIN, reveal).hex()
    return {"reveal": to_json(reveal), "signature": signature, "probes": [to_json(p) for p in probes]}


def test_reveal_with_other_probes_than_it_hashes_is_refused() -> None:
    node = make_key("node").address
    forged = ProbeResult(node, 0, 1, bytes(16), ZERO_HASH, ZERO_HASH, int(Verdict.PASS), 0)
    assert read_reveal_page(reveal_page("judge"), terms()).refused == 0
    found = read_reveal_page(reveal_page("judge", probes=[forged]), terms())
    assert (found.reveals, found.refused) == ((), 1)


def test_plan_made_after_the_round_began_is_refused() -> None:
    params = terms().params
    plan = PlanCommitment(make_key("judge").address, 3, keccak(b"c"), params.round_start_ms(3))
    page = {"commitment": to_json(plan), "signature": "0x" + make_key("judge").sign(DOMAIN, plan).hex()}
    assert read_commitment_page(page, terms()).refused == 1


def hub_tables() -> sqlite3.Connection:
    con = sqlite3.connect(":memory:")
    for step in MIGRATIONS:
        con.executescript(step.sql)
    return con


def plan_of(name: str, seed: bytes, at_ms: int = 1) -> CommitmentEntry:
    opening = compute_commitment(keccak(seed), keccak(b"corpus"), keccak(b"salt"))
    return CommitmentEntry(PlanCommitment(make_key(name).address, 3, opening, at_ms), b"s" * 65)


def test_author_may_have_a_few_different_statements_on_record() -> None:
    con = hub_tables()
    plans = tuple(plan_of("judge", b"%d" % n) for n in range(6))
    reveals = tuple(
        entry for n in range(6)
        for entry in read_reveal_page(reveal_page("judge", b"%d" % n), terms()).reveals
    )  # fmt: skip
    assert insert_statements(con, 3, Statements(reveals=reveals)) == 0
    assert insert_statements(con, 3, Statements(commitments=plans[:2])) == 2
    assert insert_statements(con, 3, Statements(commitments=plans, reveals=reveals)) == 2 + 4
    assert insert_statements(con, 3, Statements(commitments=plans, reveals=reveals)) == 0
    assert {e.commitment.commitment for e in list_commitments(con, 3)} == {
        e.commitment.commitment for e in plans[:4]
    }
    assert len(list_reveals(con, 3)) == 4
    assert insert_statements(con, 3, Statements(commitments=(plan_of("friend", b"x"),))) == 1
    authors = {address_bytes(make_key(name).address) for name in ("judge", "friend")}
    assert list_known(con, 3, "commitment") == authors


def test_votes_about_another_receipt_leave_room_for_the_right_one(monkeypatch: pytest.MonkeyPatch) -> None:
    con = hub_tables()
    call = SimpleNamespace(delivery=SimpleNamespace(receipt_hash=keccak(b"receipt")))
    monkeypatch.setattr("emcd_hub.rounds.evidence_row.find_call", lambda con, call_id: call)
    judge = make_key("judge").address

    def vote(receipt: bytes, verdict: Verdict) -> VoteEntry:
        return VoteEntry(Vote(judge, 3, bytes(16), keccak(receipt), int(verdict), 0), b"s" * 65)

    wrong = tuple(vote(b"%d" % n, Verdict.PASS) for n in range(6))
    right = (vote(b"receipt", Verdict.PASS), vote(b"receipt", Verdict.FAIL))
    assert insert_statements(con, 3, Statements(votes=wrong + right)) == 2
    assert len(list_votes(con, 3)) == 2


def test_vote_that_saw_no_evidence_needs_no_receipt_and_no_other_may_lack_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    con = hub_tables()
    call = SimpleNamespace(delivery=SimpleNamespace(receipt_hash=keccak(b"receipt")))
    monkeypatch.setattr("emcd_hub.rounds.evidence_row.find_call", lambda con, call_id: call)
    votes = {
        verdict: VoteEntry(
            Vote(make_key("judge").address, 3, bytes(16), bytes(32), int(verdict), 0), b"s" * 65
        )
        for verdict in Verdict
    }
    assert insert_statements(con, 3, Statements(votes=tuple(votes.values()))) == 1
    assert list_votes(con, 3) == [votes[Verdict.ERROR]]


def test_attestation_counts_only_with_its_validators_signature() -> None:
    root = RoundRoot(3, keccak(b"b"), keccak(b"r"), 5)
    key = make_key("judge")
    page = {"round_root": to_json(root), "signature": "0x" + key.sign(DOMAIN, root).hex()}
    assert read_attestation_page(page, DOMAIN, key.address).root == root
    other_chain = Domain(1, DOMAIN.verifying_contract)
    with pytest.raises(RemoteProtocolError):
        read_attestation_page(page, other_chain, key.address)
    with pytest.raises(RemoteProtocolError):
        read_attestation_page(page, DOMAIN, make_key("stranger").address)
