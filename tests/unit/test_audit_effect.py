"""A difference says what it does and to whom, where the bundle tells."""

from __future__ import annotations

from typing import Any

import pytest

from emcd.accounting.audit import Difference
from emcd.money import encode_wei
from emcd.proto.bundle import Total
from emcd.proto.bundle_codec import Section
from tests.support.round_world import address_of, edited
from tests.unit.test_audit_lie import (
    BUNDLE,
    CLOSED,
    EXPECTED,
    WORLD,
    audit,
    batch,
    by_hand,
    call,
    commitment,
    foreign_probe,
    header,
    others,
    replace_item,
    result,
    status,
    unused_batch,
    vote,
)

CALL = BUNDLE.calls[0]
NODE = CALL.forward.node
RESULT = next(entry for entry in BUNDLE.results if any(entry.reward_wei))
WALLET = next(entry.wallet for entry in BUNDLE.participants if entry.node == RESULT.node)
REWARD = int.from_bytes(RESULT.reward_wei, "big")
AT = BUNDLE.results.index(RESULT)


def effect_of(bundle: Any, **expected: Any) -> str:
    difference = audit(bundle, **expected).difference
    assert difference is not None
    return difference.effect


@pytest.mark.parametrize(
    ("lie", "effect"),
    [
        (
            lambda: result(AT, reward_wei=encode_wei(REWARD + 3 * 10**18)),
            f"{RESULT.node} (wallet {WALLET}) would get 3.000000000000000000 EMC more than it is due",
        ),
        (
            lambda: result(AT, reward_wei=encode_wei(REWARD - 1)),
            f"{RESULT.node} (wallet {WALLET}) would get 0.000000000000000001 EMC less than it is due",
        ),
        (
            lambda: result(AT, credits_micro=RESULT.credits_micro + 3_000_000),
            f"{RESULT.node} (wallet {WALLET}) would be shown 3.000000 credits more than it has",
        ),
        (
            lambda: header(issue_wei=encode_wei(CLOSED.result.issue_wei + 10**18)),
            "the round would issue 1.000000000000000000 EMC more than the schedule gives it",
        ),
        (
            lambda: header(cumulative_wei=encode_wei(CLOSED.result.cumulative_wei - 10**18)),
            "the wallets together would be owed 1.000000000000000000 EMC less than they have earned",
        ),
        (
            lambda: header(root=bytes(32)),
            "wallets could claim what the results do not give them, or not claim what they do",
        ),
        (
            lambda: call(delivery={"credits_micro": 4_500_000, "vault_micro": 4_500_000}),
            f"the caller pays 3.000000 credits more than the price, node {NODE} would earn 3.000000 credits more",
        ),
        (
            lambda: call(delivery={"credits_micro": 4_500_000, "vault_micro": 0}),
            "the caller pays 3.000000 credits more than the price",
        ),
        (
            lambda: call(delivery={"credits_micro": 500_000, "vault_micro": 500_000}),
            f"the caller pays 1.000000 credits less than the price, node {NODE} would earn that much less",
        ),
        (lambda: call(delivery={"status": 2}), "the caller pays 1.500000 credits more than the price"),
        (
            lambda: call(delivery={"vault_micro": 2_500_000}),
            f"node {NODE} would earn 1.000000 credits more",
        ),
        (
            lambda: call(delivery={"round": WORLD.round - 1}),
            f"node {NODE} would earn 1.500000 credits in a round or at a price that is not the call's",
        ),
        (
            lambda: by_hand(0, forward=[999, 0]),
            f"node {NODE} would earn 1.500000 credits for a call that is not proven",
        ),
        (
            lambda: batch(signer="validator-1"),
            f"node {address_of('node-1')} would earn 3.000000 credits for 4 calls that {address_of('node-1')} did not sign for",
        ),
        (lambda: unused_batch(), ""),
        (lambda: status(signer="hub"), f"node {BUNDLE.statuses[0].status.node} would count as online"),
        (
            lambda: commitment(signer="hub"),
            f"validator {BUNDLE.commitments[0].commitment.validator} would be credited for probes of a plan that is not its own",
        ),
        (
            foreign_probe,
            f"validator {BUNDLE.reveals[0].reveal.validator} would be credited for probes of a plan that is not its own",
        ),
        (
            lambda: vote(signer="hub"),
            f"the vote of {BUNDLE.votes[0].vote.validator} would count in the verdict on node {address_of('node-2')}",
        ),
    ],
)
def test_effect_is_told(lie: Any, effect: str) -> None:
    assert effect_of(lie()) == effect


def test_effect_of_a_hub_batch_is_told_over_all_its_nodes() -> None:
    entry = next(item for item in BUNDLE.batches if item.others and item.kind == 3)
    index = BUNDLE.batches.index(entry)
    own = [c for c in BUNDLE.calls if c.delivery_ref is not None and c.delivery_ref.batch == index]
    nodes = {c.forward.node for c in own}
    credits = sum(c.delivery.vault_micro for c in own) / 1e6

    effect = effect_of(others(lambda leaf, size: [(leaf, bytes(32))]))

    who = f"{len(nodes)} nodes" if len(nodes) > 1 else f"node {nodes.pop()}"
    earned = f"earn {credits:.6f} credits for" if credits else "count"
    assert effect == f"{who} would {earned} {len(own)} calls that {WORLD.hub} did not sign for"


@pytest.mark.parametrize(
    ("name", "value", "effect"),
    [
        (
            "participants",
            [
                edited(p, stake_wei=encode_wei(6_000 * 10**18)) if p.role == 1 else p
                for p in WORLD.participants()
            ],
            "would weigh with 1,000.000000000000000000 EMC less than it has staked",
        ),
        (
            "participants",
            [edited(p, wallet=address_of("thief")) if p.role == 1 else p for p in WORLD.participants()],
            f"instead of {address_of('thief')}",
        ),
        ("participants", WORLD.participants()[1:], "would share in the round's reward unbound"),
        (
            "participants",
            [*WORLD.participants(), edited(WORLD.participants()[0], node=address_of("left out"))],
            f"{address_of('left out')} would take no part in the round's reward",
        ),
        (
            "participants",
            [edited(p, suspended_until_round=30) for p in WORLD.participants()],
            "would be kept from rewards until round 0 instead of 30",
        ),
        ("totals", {}, "than it has earned"),
        (
            "totals",
            {**WORLD.facts.totals, address_of("poor"): 10**18},
            f"wallet {address_of('poor')} could claim 1.000000000000000000 EMC less than it has earned",
        ),
        ("validators", WORLD.validators()[1:], "would weigh otherwise in the verdicts of the round"),
        ("round", 21, ""),
    ],
)
def test_effect_of_what_the_chain_says_otherwise_is_told(name: str, value: Any, effect: str) -> None:
    assert effect_of(BUNDLE, **{**EXPECTED, name: value}).endswith(effect)
    assert bool(effect) is bool(effect_of(BUNDLE, **{**EXPECTED, name: value}))


def test_effect_stands_behind_the_difference() -> None:
    total = Total(BUNDLE.totals[0].wallet, encode_wei(7))
    difference = audit(replace_item(Section.TOTALS, 0, total), **EXPECTED).difference
    assert str(difference).startswith("EMC-1906: totals[0] (0x")
    assert str(difference).endswith("than it has earned")
    assert str(Difference("EMC-1901", "calls", 3, "", "cut")) == "EMC-1901: calls[3]: cut"
