"""Proofs of offences: what is none is refused, with its code; what is one has one identity."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emcd.accounting.offence import (
    SLASH_BPS,
    DoubleAttestation,
    DoubleSeal,
    OffenceKind,
    OffenceTerms,
    Proof,
    SignedRoot,
    SignedSeal,
    StandingStrike,
    check_offence,
    evidence_hash,
    judged_rounds,
    list_convictions,
    offence_of,
    read_proof,
    slash_order,
    write_proof,
)
from emcd.accounting.suspension import Conduct, Strike, advance_conduct
from emcd.errors import RemoteProtocolError
from emcd.keys import SigningKey
from emcd.proto.eip712 import Domain
from emcd.proto.hashing import keccak
from emcd.proto.messages import BundleSeal, Offence, RoundRoot, Verdict
from emcd.proto.params import devnet_params
from emcd.testing import make_key
from emcd.types import Address
from tests.support import second_implementation as second

STAKING = Domain(31337, make_key("staking").address)
DISTRIBUTOR = Domain(31337, make_key("distributor").address)
HUB, OTHER_HUB = make_key("hub"), make_key("other hub")
VALIDATOR, STRANGER = make_key("validator"), make_key("stranger")
NODE = make_key("node").address
A, B = keccak(b"a"), keccak(b"b")
STRIKE = StandingStrike(OffenceKind.GROSS, NODE, 7, A)
TERMS = OffenceTerms(
    staking=STAKING,
    distributor=DISTRIBUTOR,
    hubs=(HUB.address,),
    members=(VALIDATOR.address,),
    first_round=3,
    last_round=9,
    strikes=(STRIKE,),
)


def seal(bundle: bytes, index: int = 7, key: SigningKey = HUB, domain: Domain = STAKING) -> SignedSeal:
    content = BundleSeal(HUB.address, index, bundle)
    return SignedSeal(content, key.sign(domain, content))


def root(
    bundle: bytes, index: int = 7, key: SigningKey = VALIDATOR, domain: Domain = DISTRIBUTOR, wei: int = 5
) -> SignedRoot:
    content = RoundRoot(index, bundle, A, wei)
    return SignedRoot(content, key.sign(domain, content))


def attested(first: SignedRoot, other: SignedRoot, who: SigningKey = VALIDATOR) -> DoubleAttestation:
    return DoubleAttestation(who.address, first, other)


SEALED = DoubleSeal(seal(A), seal(B))
ATTESTED = attested(root(A), root(B))

FOREIGN_CHAIN = Domain(1, STAKING.verifying_contract)
OTHER_SEAL = BundleSeal(OTHER_HUB.address, 7, A)
REFUSED: dict[str, tuple[str, Proof]] = {
    "one seal twice": ("EMC-1981", DoubleSeal(seal(A), seal(A))),
    "seals of two rounds": ("EMC-1981", DoubleSeal(seal(A), seal(B, 8))),
    "a seal forged by a stranger": ("EMC-1982", DoubleSeal(seal(A), seal(B, key=STRANGER))),
    "a seal with another's signature": (
        "EMC-1982",
        DoubleSeal(seal(A), SignedSeal(seal(B).seal, seal(A).signature)),
    ),
    "a seal without signature": ("EMC-1982", DoubleSeal(SignedSeal(seal(A).seal, b""), seal(B))),
    "a seal for another chain": ("EMC-1982", DoubleSeal(seal(A), seal(B, domain=FOREIGN_CHAIN))),
    "a seal for another contract": ("EMC-1982", DoubleSeal(seal(A), seal(B, domain=DISTRIBUTOR))),
    "seals of two hubs": (
        "EMC-1981",
        DoubleSeal(seal(B), SignedSeal(OTHER_SEAL, OTHER_HUB.sign(STAKING, OTHER_SEAL))),
    ),
    "seals of somebody who is no hub": (
        "EMC-1983",
        DoubleSeal(
            SignedSeal(OTHER_SEAL, OTHER_HUB.sign(STAKING, OTHER_SEAL)),
            SignedSeal(msgspec.structs.replace(OTHER_SEAL, bundle_hash=B), b""),
        ),
    ),
    "seals of an old round": ("EMC-1984", DoubleSeal(seal(A, 2), seal(B, 2))),
    "seals of a round to come": ("EMC-1984", DoubleSeal(seal(A, 10), seal(B, 10))),
    "one attestation twice": ("EMC-1981", attested(root(A), root(A))),
    "attestations of two rounds": ("EMC-1981", attested(root(A), root(B, 8))),
    "an attestation by another key": ("EMC-1982", attested(root(A), root(B, key=STRANGER))),
    "an attestation of another": (
        "EMC-1982",
        attested(root(A, key=STRANGER), root(B, key=STRANGER)),
    ),
    "an attestation for another chain": (
        "EMC-1982",
        attested(root(A), root(B, domain=Domain(1, DISTRIBUTOR.verifying_contract))),
    ),
    "an attestation for another contract": ("EMC-1982", attested(root(A), root(B, domain=STAKING))),
    "attestations of no member": (
        "EMC-1983",
        attested(root(A, key=STRANGER), root(B, key=STRANGER), STRANGER),
    ),
    "attestations by the hub": ("EMC-1983", attested(root(A, key=HUB), root(B, key=HUB), HUB)),
    "attestations of an old round": ("EMC-1984", attested(root(A, 2), root(B, 2))),
    "a strike of another bundle": ("EMC-1985", StandingStrike(4, NODE, 7, B)),
    "a strike of another round": ("EMC-1985", StandingStrike(4, NODE, 8, A)),
    "a strike of another node": ("EMC-1985", StandingStrike(4, STRANGER.address, 7, A)),
    "a conviction that is a strike": ("EMC-1985", StandingStrike(5, NODE, 7, A)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_offence_that_is_none_is_refused_with_its_code(name: str) -> None:
    code, proof = REFUSED[name]
    with pytest.raises(RemoteProtocolError) as caught:
        check_offence(TERMS, read_proof(write_proof(proof)))
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("proof", "kind", "offender"),
    [
        (SEALED, OffenceKind.DOUBLE_SEAL, HUB.address),
        (ATTESTED, OffenceKind.DOUBLE_ATTESTATION, VALIDATOR.address),
        (attested(root(A), root(A, wei=6)), OffenceKind.DOUBLE_ATTESTATION, VALIDATOR.address),
        (STRIKE, OffenceKind.GROSS, NODE),
    ],
)
def test_offence_that_is_one_is_found(proof: Proof, kind: OffenceKind, offender: Address) -> None:
    assert check_offence(TERMS, read_proof(write_proof(proof))) == Offence(kind, offender, 7)


def test_offence_has_one_identity_whatever_its_proof() -> None:
    other = DoubleSeal(seal(keccak(b"c")), seal(A))
    hashes = {evidence_hash(offence_of(proof)) for proof in (SEALED, other, DoubleSeal(seal(B), seal(A)))}
    assert len(hashes) == 1
    orders = {slash_order(offence_of(proof), 3) for proof in (SEALED, other)}
    assert [(order.bps, order.node, order.epoch) for order in orders] == [(5_000, HUB.address, 3)]
    assert len({evidence_hash(Offence(kind, HUB.address, r)) for kind in (1, 2) for r in (1, 2)}) == 4


def test_offence_identity_is_the_struct_hash_of_a_second_implementation() -> None:
    table = {
        "types": {
            "EIP712Domain": [{"name": "name", "type": "string"}],
            "Offence": [
                {"name": "kind", "type": "uint8"},
                {"name": "offender", "type": "address"},
                {"name": "round", "type": "uint64"},
            ],
        },
        "primaryType": "Offence",
        "domain": {"name": "emcd"},
        "message": {"kind": 1, "offender": HUB.address, "round": 7},
    }
    assert evidence_hash(offence_of(SEALED)) == second.struct_hash(table)


def test_offence_shares_are_those_of_the_design() -> None:
    assert {kind.name: bps for kind, bps in SLASH_BPS.items()} == {
        "DOUBLE_SEAL": 5_000,
        "DOUBLE_ATTESTATION": 5_000,
        "FALSE_VERDICT": 500,
        "GROSS": 1_000,
        "CONVICTION": 100,
        "DOUBLE_RESULTS": 500,
    }


PAGES: dict[str, Any] = {
    "no object": [],
    "nothing": {},
    "a kind with another's proof": {"kind": 3, "strike": {}},
    "a kind that is true": {**write_proof(SEALED), "kind": True},
    "a kind that is text": {**write_proof(SEALED), "kind": "1"},
    "the form of another kind": {**write_proof(SEALED), "kind": 2},
    "one field too many": {**write_proof(SEALED), "more": 1},
    "a strike of another kind": {"kind": 4, "strike": {**write_proof(STRIKE)["strike"], "kind": 5}},
    "a short bundle hash": {"kind": 4, "strike": {**write_proof(STRIKE)["strike"], "bundle_hash": "0x00"}},
    "a negative round": {"kind": 4, "strike": {**write_proof(STRIKE)["strike"], "round": -1}},
    "an endless round": {"kind": 4, "strike": {**write_proof(STRIKE)["strike"], "round": 10**30}},
    "half a proof": {"kind": 1, "double_seal": {"first": write_proof(SEALED)["double_seal"]["first"]}},
}


@pytest.mark.parametrize("name", PAGES)
def test_proof_that_is_malformed_is_refused(name: str) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        read_proof(PAGES[name])
    assert caught.value.code == "EMC-1980"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(JSON, st.sampled_from([SEALED, ATTESTED, STRIKE]), st.data())
def test_proof_with_anything_in_it_is_read_as_it_is_or_refused(
    value: Any, proof: Proof, data: st.DataObject
) -> None:
    page: Any = write_proof(proof)
    at = page
    while isinstance(at, dict):
        name = data.draw(st.sampled_from(sorted(at)))
        if isinstance(at[name], dict) and data.draw(st.booleans()):
            at = at[name]
            continue
        at[name] = value
        break
    try:
        found = read_proof(page)
        offence = check_offence(TERMS, found)
    except RemoteProtocolError as exc:
        assert exc.code.startswith("EMC-198")
        return
    assert write_proof(found) == page
    assert offence == offence_of(proof)


def test_convictions_are_gross_at_once_and_the_second_fail() -> None:
    params = devnet_params(1_800_000_000)
    gross, fails, once, classes = (make_key(name).address for name in ("gross", "fails", "once", "class"))
    before = {fails: Conduct((4,)), classes: Conduct((4,))}
    strikes = [
        Strike(gross, b"1" * 16, Verdict.GROSS),
        Strike(gross, b"2" * 16, Verdict.FAIL),
        Strike(fails, b"3" * 16, Verdict.FAIL),
        Strike(once, b"4" * 16, Verdict.FAIL),
        Strike(classes, b"5" * 16, Verdict.CLASS),
    ]
    after = advance_conduct(before, 7, strikes, params)
    found = list_convictions(before, 7, A, strikes, params)
    expected = {StandingStrike(4, gross, 7, A), StandingStrike(5, fails, 7, A)}
    assert set(found) == expected
    assert after[classes].suspended_until_round > 8
    assert list_convictions(after, 8, A, [], params) == ()


def test_judged_rounds_are_those_in_which_a_stake_unbonds() -> None:
    params = devnet_params(1_800_000_000)
    assert judged_rounds(params, 100) == (100 - params.unbonding_rounds, 100)
    assert judged_rounds(params, 1) == (0, 1)
