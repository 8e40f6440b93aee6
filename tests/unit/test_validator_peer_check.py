"""What a peer says: every statement by the wrong key, chain, round or role; every link of evidence."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import Any

import pytest

from emcd.accounting.plan import compute_commitment, compute_probes_hash
from emcd.accounting.terms import RoundTerms
from emcd.errors import RemoteProtocolError
from emcd.inference.minilm import MINILM_MANIFEST
from emcd.keys import SigningKey
from emcd.proto.bundle import CommitmentEntry, ProbeResult, RevealEntry, VoteEntry
from emcd.proto.eip712 import Domain
from emcd.proto.hashing import keccak
from emcd.proto.messages import BundleSeal, PlanCommitment, Reveal, Verdict, Vote
from emcd.proto.openai import Endpoint, read_request
from emcd.testing import make_key
from emcd.types import Address
from emcd_validator.corpus import Corpus, decode_leaf, encode_leaf
from emcd_validator.corpus_text import generate_leaves
from emcd_validator.model import list_judged
from emcd_validator.peer_check import (
    check_commitment,
    check_evidence,
    check_reveal,
    check_seal,
    check_votes,
)
from emcd_validator.plan import Draws, draw_plan, own_slots
from emcd_validator.probe_request import build_probe
from emcd_validator.statement import Evidence, read_evidence, write_evidence
from emcd_validator.view import RoundView
from tests.support.round_world import edited
from tests.support.validator_world import (
    HUB,
    FakeChain,
    answer_body,
    count_tokens,
    fake_vector,
    make_call,
    make_deployment,
)

ROUND = 7
DEPLOYMENT = make_deployment(1_800_000_000)
PARAMS, DOMAIN = DEPLOYMENT.params, DEPLOYMENT.staking_domain
PEER, OTHER, NODE = make_key("validator-1"), make_key("validator-2"), make_key("node-1")
NODES = [NODE.address, make_key("node-2").address, make_key("node-3").address]
CHAIN = FakeChain(DEPLOYMENT, {PEER.address: "", OTHER.address: ""}, NODES)
VIEW = RoundView(
    round=ROUND,
    snapshot_block=1,
    snapshot_hash=keccak(b"snapshot"),
    beacon_block=2,
    beacon_hash=keccak(b"beacon"),
    participants=CHAIN.snapshot(),
    validators=CHAIN.powers(),
    endpoints={},
)
TERMS = VIEW.terms(PARAMS, DOMAIN, HUB.address)
SEED, SALT = keccak(b"seed"), keccak(b"salt")
TREE = Corpus(tuple(encode_leaf(leaf) for leaf in generate_leaves(60, Random(3)))).of_round(
    ROUND, frozenset()
)
assert TREE is not None
MODELS = list_judged(["all-MiniLM-L6-v2"])
SLOTS = own_slots(TERMS.assignments.values(), PEER.address)
PLAN = draw_plan(Draws(SEED, VIEW.beacon_hash), SLOTS, TREE.count, PARAMS, ROUND)


def commitment(signer: SigningKey = PEER, domain: Domain = DOMAIN, **changes: Any) -> CommitmentEntry:
    value = compute_commitment(SEED, TREE.root, SALT)  # type: ignore[union-attr]
    plan = PlanCommitment(PEER.address, ROUND, value, PARAMS.round_start_ms(ROUND) - 1)
    plan = edited(plan, **changes)
    return CommitmentEntry(plan, signer.sign(domain, plan))


def evidence_of(index: int = 0, noise: float = 0.5) -> tuple[Evidence, ProbeResult]:
    planned = PLAN[index]
    assert TREE is not None
    assert planned.leaf_index is not None
    leaf = decode_leaf(TREE.leaves[planned.leaf_index])
    node = planned.slot.node
    key = next(key for key in (NODE, make_key("node-2"), make_key("node-3")) if key.address == node)
    asked = build_probe(Draws(SEED, VIEW.beacon_hash), planned.slot, leaf, MINILM_MANIFEST, len)
    body = asked.body
    texts = leaf.texts if leaf.call is None else leaf.texts[: leaf.call.inputs]
    response = answer_body(tuple(fake_vector(t, noise) for t in texts), count_tokens(texts))
    upstream = read_request(Endpoint.EMBEDDINGS, body, evidence=True).body
    call = make_call(DEPLOYMENT, key, upstream, response, planned.due_at_ms)
    records = call.records
    assert records.receipt is not None
    evidence = Evidence(
        request_path=asked.path,
        request_body=body,
        response_status=200,
        response_content_type="application/json",
        response_body=response,
        receipt=call.receipt,
        model="all-MiniLM-L6-v2",
        leaf_index=planned.leaf_index,
        leaf_count=TREE.count,
        leaf=TREE.leaves[planned.leaf_index],
        leaf_path=TREE.path(planned.leaf_index),
    )
    probe = ProbeResult(
        node, planned.slot.slot, planned.leaf_index, records.forward.call_id, records.forward.request_hash,
        records.receipt.response_hash, int(Verdict.GROSS), 5 * 10**11,
    )  # fmt: skip
    return evidence, probe


EVIDENCE, PROBE = evidence_of()
STRUCK = {PROBE.call_id: EVIDENCE.receipt.delivery.receipt_hash}


def reveal(
    signer: SigningKey = PEER,
    domain: Domain = DOMAIN,
    probes: tuple[ProbeResult, ...] = (PROBE,),
    **changes: Any,
) -> RevealEntry:
    assert TREE is not None
    struct = edited(
        Reveal(PEER.address, ROUND, SEED, TREE.root, SALT, compute_probes_hash(probes)), **changes
    )
    return RevealEntry(struct, signer.sign(domain, struct), probes)


def vote(signer: SigningKey = PEER, domain: Domain = DOMAIN, **changes: Any) -> VoteEntry:
    struct = edited(
        Vote(
            PEER.address, ROUND, PROBE.call_id, EVIDENCE.receipt.delivery.receipt_hash, int(Verdict.FAIL), 9
        ),
        **changes,
    )
    return VoteEntry(struct, signer.sign(domain, struct))


ELSEWHERE = Domain(1, DEPLOYMENT.staking)
WRONG_CONTRACT = DEPLOYMENT.distributor_domain


def refused(code: str) -> Any:
    return pytest.raises(RemoteProtocolError, match=code)


def test_commitment_of_the_peer_is_taken() -> None:
    assert check_commitment(TERMS, PEER.address, commitment()) == commitment()


@pytest.mark.parametrize(
    "entry",
    [
        commitment(OTHER),
        commitment(HUB),
        commitment(domain=ELSEWHERE),
        commitment(domain=WRONG_CONTRACT),
        commitment(round=ROUND - 1),
        commitment(signed_at_ms=PARAMS.round_start_ms(ROUND)),
        commitment(validator=NODE.address),
        edited(commitment(), signature=b""),
        edited(commitment(), commitment=edited(commitment().commitment, commitment=keccak(b"x"))),
    ],
)
def test_commitment_wrong_signer_chain_round_time_or_role_is_refused(entry: CommitmentEntry) -> None:
    with refused("EMC-1921"):
        check_commitment(TERMS, entry.commitment.validator, entry)


def test_commitment_of_somebody_else_is_refused() -> None:
    with refused("EMC-1921"):
        check_commitment(TERMS, OTHER.address, commitment())


def test_reveal_that_opens_its_commitment_is_taken() -> None:
    assert check_reveal(TERMS, PEER.address, reveal(), commitment()) == reveal()


@pytest.mark.parametrize(
    "entry",
    [
        reveal(OTHER),
        reveal(HUB),
        reveal(domain=ELSEWHERE),
        reveal(domain=WRONG_CONTRACT),
        reveal(round=ROUND + 1),
        reveal(seed=keccak(b"another seed")),
        reveal(salt=keccak(b"another salt")),
        reveal(corpus_root=keccak(b"another corpus")),
        reveal(probes_hash=keccak(b"other probes")),
        edited(reveal(), signature=b""),
        edited(reveal(), probes=()),
        reveal(probes=(PROBE, PROBE)),
        reveal(probes=(edited(PROBE, verdict=99),)),
    ],
)
def test_reveal_wrong_signer_chain_round_or_opening_is_refused(entry: RevealEntry) -> None:
    with refused("EMC-1922"):
        check_reveal(TERMS, PEER.address, entry, commitment())


def test_reveal_without_a_commitment_is_refused() -> None:
    with refused("EMC-1922"):
        check_reveal(TERMS, PEER.address, reveal(), None)
    with refused("EMC-1922"):
        check_reveal(TERMS, OTHER.address, reveal(), commitment())


def test_reveal_of_a_probe_that_is_anothers_is_refused() -> None:
    foreign = next(a for a in TERMS.assignments.values() if a.validator == OTHER.address)
    probe = edited(PROBE, node=foreign.node, slot=foreign.slot)
    with refused("EMC-1924"):
        check_reveal(TERMS, PEER.address, reveal(probes=(probe,)), commitment())


def test_votes_on_struck_calls_are_taken_and_others_passed_over() -> None:
    other = vote(call_id=bytes(16))
    assert check_votes(TERMS, PEER.address, (other, vote(), vote()), set(STRUCK), STRUCK) == (vote(),)


@pytest.mark.parametrize(
    "entry",
    [
        vote(OTHER),
        vote(HUB),
        vote(domain=ELSEWHERE),
        vote(domain=WRONG_CONTRACT),
        vote(round=ROUND - 1),
        vote(receipt_hash=keccak(b"another receipt")),
        vote(verdict=0),
        vote(validator=OTHER.address),
        vote(OTHER, validator=OTHER.address),
        edited(vote(), signature=b""),
    ],
)
def test_votes_wrong_signer_chain_round_or_receipt_are_refused(entry: VoteEntry) -> None:
    with refused("EMC-1923"):
        check_votes(TERMS, PEER.address, (entry,), set(STRUCK), STRUCK)


@pytest.mark.parametrize(
    ("signer", "domain", "changes"),
    [
        (PEER, DOMAIN, {}),
        (HUB, ELSEWHERE, {}),
        (HUB, WRONG_CONTRACT, {}),
        (HUB, DOMAIN, {"round": ROUND + 1}),
        (HUB, DOMAIN, {"hub": PEER.address}),
    ],
)
def test_seal_wrong_signer_chain_or_round_is_refused(
    signer: SigningKey, domain: Domain, changes: dict[str, Any]
) -> None:
    seal = edited(BundleSeal(HUB.address, ROUND, keccak(b"bundle")), **changes)
    with refused("EMC-1807"):
        check_seal(TERMS, seal, signer.sign(domain, seal))
    with refused("EMC-1807"):
        check_seal(TERMS, BundleSeal(HUB.address, ROUND, keccak(b"bundle")), b"")


def check(evidence: Evidence = EVIDENCE, probe: ProbeResult = PROBE, terms: RoundTerms = TERMS) -> Any:
    return check_evidence(terms, VIEW.beacon_hash, reveal(probes=(probe,)), probe, evidence, MODELS)


def test_evidence_that_holds_together_is_taken_and_round_trips() -> None:
    strike = check(read_evidence(write_evidence(EVIDENCE)))
    assert strike.exchange.node == PROBE.node
    assert strike.leaf == decode_leaf(EVIDENCE.leaf)


def _other_leaf() -> dict[str, Any]:
    assert TREE is not None
    index = (EVIDENCE.leaf_index + 1) % TREE.count
    return {"leaf_index": index, "leaf": TREE.leaves[index], "leaf_path": TREE.path(index)}


@pytest.mark.parametrize(
    "changes",
    [
        {"leaf_count": EVIDENCE.leaf_count + 1},
        {"leaf_index": EVIDENCE.leaf_index + 1},
        {"leaf": encode_leaf(next(generate_leaves(1, Random(9))))},
        {"leaf_path": EVIDENCE.leaf_path[:-1]},
        _other_leaf(),
        {"request_path": "/v1/completions"},
        {"request_body": EVIDENCE.request_body + b" "},
        {"response_body": EVIDENCE.response_body + b" "},
        {"response_status": 500},
        {"receipt": evidence_of(1)[0].receipt},
    ],
)
def test_evidence_with_a_broken_link_is_refused(changes: dict[str, Any]) -> None:
    with refused("EMC-1814"):
        check(replace(EVIDENCE, **changes))


def test_evidence_of_a_model_not_judged_is_refused() -> None:
    with refused("EMC-1815"):
        check(replace(EVIDENCE, model="another"))


def test_evidence_of_a_draw_the_seed_does_not_give_is_refused() -> None:
    with refused("EMC-1814"):
        check_evidence(TERMS, keccak(b"another beacon"), reveal(), PROBE, EVIDENCE, MODELS)


def test_evidence_of_another_round_is_refused() -> None:
    with refused("EMC-1814"):
        check(terms=replace(TERMS, round=ROUND + 1))


def test_evidence_for_another_probe_result_is_refused() -> None:
    for changes in ({"call_id": bytes(16)}, {"request_hash": keccak(b"x")}, {"response_hash": keccak(b"x")}):
        with refused("EMC-1814"):
            check(probe=edited(PROBE, **changes))


def test_evidence_against_another_node_is_refused() -> None:
    others = [item for item in PLAN if item.slot.node != PROBE.node]
    framed: Address = others[0].slot.node
    with refused("EMC-1814"):
        check(probe=edited(PROBE, node=framed, slot=others[0].slot.slot))
