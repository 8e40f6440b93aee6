"""Distributor, claims: by the wallet, or by anyone with its signature; each wei once."""

from __future__ import annotations

from typing import Any

import pytest

from emcd.accounting.reward_tree import build_reward_tree
from emcd.proto.eip712 import Domain
from emcd.proto.messages import Extraction
from emcd.proto.signing import sign
from emcd.types import ZERO_ADDRESS, Address
from tests.support.contract_network import (
    NEVER_S,
    TOKEN,
    Actor,
    Network,
    Root,
    actor,
    fields,
    leaf_hash,
    merkle_tree,
    round_root,
    stranger,
)
from tests.support.evm import CHAIN_ID, Outcome, refused

EARNERS = [actor(f"earner {index}") for index in range(5)]
AMOUNTS_WEI = [(index + 1) * 10 * TOKEN for index in range(5)]
WALLET, AMOUNT_WEI = EARNERS[2], AMOUNTS_WEI[2]


class Paid:
    """A network with an active root that pays the earners."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.proofs: list[list[bytes]] = []
        self.publish(0, AMOUNTS_WEI)
        network.activate(0)

    def publish(self, index: int, amounts_wei: list[int], cumulative_wei: int | None = None) -> Root:
        leaves = [leaf_hash(who.address, wei) for who, wei in zip(EARNERS, amounts_wei, strict=True)]
        root, self.proofs = merkle_tree(leaves)
        what = round_root(index, sum(amounts_wei) if cumulative_wei is None else cumulative_wei, root)
        self.network.publish_at_end(what)
        return what

    def claim(
        self,
        who: Actor = WALLET,
        wei: int = AMOUNT_WEI,
        recipient: Address | None = None,
        sender: Address | None = None,
    ) -> Outcome:
        proof = self.proofs[EARNERS.index(who)]
        return self.network.distributor.send(
            sender or who.address, "claim", who.address, wei, proof, recipient or who.address
        )

    def claim_for(self, request: Extraction, key: bytes = WALLET.key) -> Outcome:
        return self.network.claim_for(request, key, AMOUNT_WEI, self.proofs[2])

    def balance(self, address: str) -> int:
        found: int = self.network.token.view("balanceOf", address)
        return found


@pytest.fixture
def paid(running: Network) -> Paid:
    return Paid(running)


def request_of(**changes: object) -> Extraction:
    values: dict[str, object] = {
        "wallet": WALLET.address, "recipient": stranger("recipient"), "through_round": 0,
        "submit": True, "nonce": 0, "deadline": NEVER_S,
    }  # fmt: skip
    return Extraction(**(values | changes))  # type: ignore[arg-type]


def test_claim_by_every_wallet_mints_what_the_root_gives(paid: Paid) -> None:
    supply_wei = paid.network.token.view("totalSupply")
    for who, wei in zip(EARNERS, AMOUNTS_WEI, strict=True):
        paid.claim(who, wei)
        assert paid.balance(who.address) == wei
        assert paid.network.distributor.view("claimed", who.address) == wei
    assert paid.network.token.view("totalSupply") == supply_wei + sum(AMOUNTS_WEI)
    assert paid.network.distributor.view("totalClaimedWei") == sum(AMOUNTS_WEI)


def test_claim_to_another_recipient_pays_it(paid: Paid) -> None:
    outcome = paid.claim(recipient=stranger("cold"))
    assert paid.balance(stranger("cold")) == AMOUNT_WEI
    assert outcome.event("Claimed") == {
        "wallet": WALLET.address, "recipient": stranger("cold"), "round": 0,
        "amountWei": AMOUNT_WEI, "cumulativeWei": AMOUNT_WEI,
    }  # fmt: skip


def test_claim_by_another_account_is_refused(paid: Paid) -> None:
    for recipient in (stranger("thief"), WALLET.address):
        with refused("NotWallet"):
            paid.claim(sender=stranger("thief"), recipient=recipient)


def test_claim_twice_is_refused(paid: Paid) -> None:
    paid.claim()
    with refused("NothingToClaim"):
        paid.claim()


def test_claim_of_another_amount_or_with_anothers_proof_is_refused(paid: Paid) -> None:
    for wei in (AMOUNT_WEI + 1, AMOUNT_WEI - 1, 0):
        with refused("BadProof"):
            paid.claim(wei=wei)
    with refused("BadProof"):
        paid.network.distributor.send(
            WALLET.address, "claim", WALLET.address, AMOUNT_WEI, paid.proofs[0], WALLET.address
        )
    with refused("BadProof"):
        paid.network.distributor.send(WALLET.address, "claim", WALLET.address, AMOUNT_WEI, [], WALLET.address)


def test_claim_to_nobody_is_refused(paid: Paid) -> None:
    with refused("ZeroRecipient"):
        paid.claim(recipient=ZERO_ADDRESS)


def test_claim_without_an_active_root_is_refused(running: Network) -> None:
    leaf = leaf_hash(WALLET.address, TOKEN)
    arguments: tuple[Any, ...] = (WALLET.address, TOKEN, [], WALLET.address)
    with refused("NoActiveRoot"):
        running.distributor.send(WALLET.address, "claim", *arguments)
    running.publish_at_end(round_root(0, TOKEN, leaf))
    with refused("NoActiveRoot"):
        running.distributor.send(WALLET.address, "claim", *arguments)
    running.activate(0)
    running.distributor.send(WALLET.address, "claim", *arguments)


def test_claim_after_a_later_root_pays_the_difference(paid: Paid) -> None:
    paid.claim()
    paid.publish(7, [2 * wei for wei in AMOUNTS_WEI])
    with refused("BadProof"):  # not active yet
        paid.claim(wei=2 * AMOUNT_WEI)
    paid.network.activate(7)
    assert paid.claim(wei=2 * AMOUNT_WEI).event("Claimed")["amountWei"] == AMOUNT_WEI
    paid.claim(EARNERS[0], 2 * AMOUNTS_WEI[0])
    assert paid.balance(EARNERS[0].address) == 2 * AMOUNTS_WEI[0]


def test_claim_after_the_wallets_total_fell_pays_nothing(paid: Paid) -> None:
    paid.claim()
    lower = list(AMOUNTS_WEI)
    lower[2] -= 1
    paid.publish(7, lower, sum(AMOUNTS_WEI))
    paid.network.activate(7)
    with refused("NothingToClaim"):
        paid.claim(wei=AMOUNT_WEI - 1)


def test_claims_of_a_tree_that_promises_more_than_its_total_stop_there(running: Network) -> None:
    leaves = [leaf_hash(who.address, 10 * TOKEN) for who in EARNERS[:2]]
    root, proofs = merkle_tree(leaves)
    running.publish_at_end(round_root(0, 20 * TOKEN - 1, root))
    running.activate(0)
    for who, proof, fails in ((EARNERS[0], proofs[0], False), (EARNERS[1], proofs[1], True)):
        arguments = (who.address, "claim", who.address, 10 * TOKEN, proof, who.address)
        if fails:
            with refused("BeyondRoot"):
                running.distributor.send(*arguments)
        else:
            running.distributor.send(*arguments)


def test_claim_for_a_signed_extraction_pays_the_recipient(paid: Paid) -> None:
    outcome = paid.claim_for(request_of(nonce=3))
    assert paid.balance(stranger("recipient")) == AMOUNT_WEI
    assert outcome.event("ExtractionUsed") == {"wallet": WALLET.address, "nonce": 3}
    assert paid.network.distributor.view("extractionNonce", WALLET.address) == 4


def test_claim_for_a_replayed_or_older_extraction_is_refused(paid: Paid) -> None:
    paid.claim_for(request_of(nonce=1))
    for nonce in (0, 1):
        with refused("NonceUsed"):
            paid.claim_for(request_of(nonce=nonce))
    with refused("NothingToClaim"):
        paid.claim_for(request_of(nonce=2))


@pytest.mark.parametrize(
    "changes",
    [
        {"recipient": stranger("thief")},
        {"nonce": 1},
        {"deadline": NEVER_S - 1},
        {"wallet": EARNERS[1].address},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_claim_for_an_extraction_changed_after_signing_is_refused(
    paid: Paid, changes: dict[str, object]
) -> None:
    signature = sign(paid.network.distributor_domain, request_of(), WALLET.key)
    changed = fields(request_of(**changes))
    with refused("WrongSigner"):
        paid.network.distributor.send(stranger(), "claimFor", changed, signature, AMOUNT_WEI, paid.proofs[2])


def test_claim_for_an_extraction_not_to_be_submitted_is_refused(paid: Paid) -> None:
    with refused("SubmitNotAllowed"):
        paid.claim_for(request_of(submit=False))
    signature = sign(paid.network.distributor_domain, request_of(submit=False), WALLET.key)
    with refused("WrongSigner"):  # the flag is signed
        paid.network.distributor.send(
            stranger(), "claimFor", fields(request_of()), signature, AMOUNT_WEI, paid.proofs[2]
        )


def test_claim_for_an_expired_extraction_is_refused(paid: Paid) -> None:
    with refused("Expired"):
        paid.claim_for(request_of(deadline=paid.network.evm.now_s - 1))
    paid.claim_for(request_of(deadline=paid.network.evm.now_s))


def test_claim_for_a_round_that_no_active_root_covers_is_refused(paid: Paid) -> None:
    with refused("NotSynchronised"):
        paid.claim_for(request_of(through_round=1))
    paid.publish(7, AMOUNTS_WEI)
    with refused("NotSynchronised"):
        paid.claim_for(request_of(through_round=1))
    paid.network.activate(7)
    paid.claim_for(request_of(through_round=1))


def test_claim_for_with_anothers_key_chain_or_contract_is_refused(paid: Paid) -> None:
    with refused("WrongSigner"):
        paid.claim_for(request_of(), actor("thief").key)
    distributor, staking = paid.network.distributor.address, paid.network.staking.address
    for domain in (Domain(CHAIN_ID + 1, distributor), Domain(CHAIN_ID, staking)):
        signature = sign(domain, request_of(), WALLET.key)
        with refused("WrongSigner"):
            paid.network.distributor.send(
                stranger(), "claimFor", fields(request_of()), signature, AMOUNT_WEI, paid.proofs[2]
            )


@pytest.mark.parametrize(
    ("signature", "error"),
    [
        (b"", "ECDSAInvalidSignatureLength"),
        (bytes(64), "ECDSAInvalidSignatureLength"),
        (bytes(65), "ECDSAInvalidSignature"),
    ],
)
def test_claim_for_the_zero_wallet_or_with_an_empty_signature_is_refused(
    paid: Paid, signature: bytes, error: str
) -> None:
    for wallet in (WALLET.address, ZERO_ADDRESS):
        with refused(error):
            paid.network.distributor.send(
                stranger(),
                "claimFor",
                fields(request_of(wallet=wallet)),
                signature,
                AMOUNT_WEI,
                paid.proofs[2],
            )


def test_claim_for_with_a_bad_proof_does_not_spend_the_nonce(paid: Paid) -> None:
    with refused("BadProof"):
        paid.network.claim_for(request_of(), WALLET.key, AMOUNT_WEI, paid.proofs[0])
    assert paid.network.distributor.view("extractionNonce", WALLET.address) == 0
    paid.claim_for(request_of())


def test_cancel_extractions_makes_signed_requests_useless(paid: Paid) -> None:
    paid.network.distributor.send(WALLET.address, "cancelExtractions", 6)
    with refused("NonceUsed"):
        paid.claim_for(request_of(nonce=5))
    with refused("NonceUsed"):
        paid.network.distributor.send(WALLET.address, "cancelExtractions", 6)
    paid.claim_for(request_of(nonce=6))


def test_claim_with_the_proof_of_the_settlements_reward_tree_is_accepted(running: Network) -> None:
    totals = {who.address: wei for who, wei in zip(EARNERS, AMOUNTS_WEI, strict=True)}
    tree = build_reward_tree(totals)
    running.publish_at_end(round_root(0, sum(AMOUNTS_WEI), tree.root))
    running.activate(0)
    for wallet, wei in totals.items():
        running.distributor.send(wallet, "claim", wallet, wei, tree.proof(wallet), wallet)
        assert running.token.view("balanceOf", wallet) == wei
