"""What a node, a caller and a validator are told of verdicts, in words."""

from __future__ import annotations

from typing import Any

import pytest

from emcd.accounting.audit import audit_bundle
from emcd.accounting.payment_path import ChainFacts, trace_call, trace_node
from emcd.accounting.recheck import is_recheck
from emcd.accounting.round_close import CallRecords
from emcd.accounting.verdict_words import tell_mistakes, tell_probe, tell_strikes, tell_work
from emcd.proto.bundle import Bundle, CallEntry, VoteEntry
from emcd.proto.bundle_codec import encode_bundle
from emcd.proto.hashing import keccak
from emcd.proto.messages import Verdict
from emcd.proto.params import ModelStanding
from emcd.proto.records import format_call_id
from emcd.types import ZERO_HASH, Address
from tests.support.round_world import VALIDATOR_STAKE_WEI, World, address_of, edited, enforcing_params

NODE = address_of("node-1")
CLAIMED = ChainFacts(published_round=7, active_round=7, claimed_wei=10**30)


def world_of(verdict: Verdict, standing: ModelStanding = ModelStanding.ENFORCED, **params: int) -> World:
    return World(
        node_names=("node-1",),
        verdicts={"node-1": verdict},
        params=edited(enforcing_params(standing), **params),
    )


def first_probe(world: World) -> tuple[Address, CallRecords]:
    """Prober and call of slot 0."""
    prober, probe = next((v, p) for v, rows in world.probes.items() for p in rows if p.slot == 0)
    return prober, next(c for c in world.calls if c.forward.call_id == probe.call_id)


def votes_of(world: World, verdict: Verdict, statistic: int = 10**15) -> list[VoteEntry]:
    """Everybody but the prober votes on slot 0."""
    prober, call = first_probe(world)
    entries = []
    for name in world.validator_names:
        if address_of(name) != prober:
            entry = world.make_vote(name, call, verdict)
            vote = edited(entry.vote, statistic_e12=statistic)
            if verdict is Verdict.ERROR:
                vote = edited(vote, receipt_hash=ZERO_HASH)
            entries.append(VoteEntry(vote, world.sign(name, vote)))
    return entries


def told(world: World, **evidence: Any) -> tuple[bool, str]:
    bundle = world.close(**evidence).bundle
    words = tell_probe(bundle, entry_of(bundle, first_probe(world)[1].forward.call_id))
    assert words is not None
    return words


def entry_of(bundle: Bundle, call_id: bytes) -> CallEntry:
    return next(call for call in bundle.calls if call.forward.call_id == call_id)


@pytest.mark.parametrize(
    ("verdict", "standing", "passed", "words"),
    [
        (Verdict.PASS, ModelStanding.ENFORCED, True, "the answer is the model's"),
        (Verdict.FAIL, ModelStanding.ENFORCED, False, "more than 2/3 of the power agree"),
        (Verdict.FAIL, ModelStanding.SHADOW, True, "the model is in shadow"),
        (Verdict.CLASS, ModelStanding.SHADOW, True, "lower precision than the model's manifest declares"),
        (Verdict.CLASS, ModelStanding.ENFORCED, False, "lower precision"),
        (Verdict.GROSS, ModelStanding.SHADOW, False, "far from the model's"),
        (Verdict.TEMPLATE, ModelStanding.ENFORCED, False, "do not fit each other, which strikes nobody"),
        (Verdict.ERROR, ModelStanding.ENFORCED, False, "no usable answer"),
        (Verdict.PASS, ModelStanding.DELISTED, False, "the model is delisted"),
    ],
)
def test_probe_is_told_with_its_reason(
    verdict: Verdict, standing: ModelStanding, passed: bool, words: str
) -> None:
    assert told(world_of(verdict, standing)) == (passed, told(world_of(verdict, standing))[1])
    assert words in told(world_of(verdict, standing))[1]


def test_probe_that_the_others_see_otherwise_is_told_so() -> None:
    world = world_of(Verdict.GROSS)
    assert "more than 2/3 of the power say PASS" in told(world, votes=votes_of(world, Verdict.PASS, 1))[1]
    assert told(world, votes=votes_of(world, Verdict.PASS, 1))[0]
    assert "less than 2/3 of the power agree: nobody is struck" in told(world, votes=[])[1]

    lazy = world_of(Verdict.PASS)
    passed, words = told(lazy, votes=votes_of(lazy, Verdict.GROSS))
    assert not passed
    assert "more than 2/3 of the power say GROSS" in words


def test_probe_without_evidence_is_told_so() -> None:
    names = tuple(f"validator-{n}" for n in range(1, 6))
    world = edited_world(world_of(Verdict.PASS), names)
    assert "showed its evidence to nobody" in told(world, votes=votes_of(world, Verdict.ERROR))[1]


def edited_world(world: World, names: tuple[str, ...]) -> World:
    return World(
        node_names=world.node_names, verdicts=world.verdicts, params=world.params, validator_names=names
    )


def test_users_call_is_no_probe() -> None:
    bundle = world_of(Verdict.PASS).close().bundle
    call = next(call for call in bundle.calls if call.delivery.vault_micro)
    assert tell_probe(bundle, call) is None


def test_shadowed_node_is_paid_and_its_call_is_done() -> None:
    world = world_of(Verdict.FAIL, ModelStanding.SHADOW)
    bundle = world.close().bundle
    steps = trace_call(bundle, first_probe(world)[1].forward.call_id, CLAIMED)

    assert all(step.is_done for step in steps)
    assert world.close().result.shadowed
    assert tell_strikes(bundle, NODE)


def test_validator_that_was_wrong_is_told_where() -> None:
    world = world_of(Verdict.PASS)
    prober, call = first_probe(world)
    bundle = world.close(votes=votes_of(world, Verdict.GROSS)).bundle

    (result,) = (r for r in bundle.results if r.node == prober)
    assert (result.reason, result.credits_micro, any(result.reward_wei)) == ("mistake", 0, False)
    step = trace_node(bundle, prober, CLAIMED)[-1]
    assert (step.name, step.is_done) == ("metered", False)
    assert "its word was proven wrong: PASS (statistic 1.2e-09) on " in step.evidence
    assert format_call_id(call.forward.call_id) in step.evidence
    assert tell_mistakes(bundle, address_of("stranger")) == ""


def test_hub_that_hides_a_mistake_is_named_with_what_it_gives_away() -> None:
    world = world_of(Verdict.PASS)
    prober, _ = first_probe(world)
    bundle = world.close(votes=votes_of(world, Verdict.GROSS)).bundle
    results = tuple(edited(r, reason="", credits_micro=1) if r.node == prober else r for r in bundle.results)

    difference = audit_bundle(encode_bundle(edited(bundle, results=results))).difference

    assert difference is not None
    assert difference.code == "EMC-1930"
    assert f"{prober} (wallet " in difference.effect


def test_round_is_the_same_in_whatever_order_its_evidence_comes() -> None:
    world = world_of(Verdict.PASS, recheck_bps=10_000)
    votes = votes_of(world, Verdict.GROSS)
    first = world.close(votes=votes)

    other = world.close(
        votes=votes[::-1],
        reveals=world.reveals()[::-1],
        commitments=world.commitments()[::-1],
        statuses=world.statuses()[::-1],
    )

    assert other.data == first.data


def test_validator_is_told_which_rechecks_it_missed() -> None:
    world = world_of(Verdict.PASS, recheck_bps=10_000)
    bundle = world.close(votes=[]).bundle
    powers = {address_of(name): VALIDATOR_STAKE_WEI for name in world.validator_names}
    drawn = {
        (address_of(name), probe.call_id)
        for name in world.validator_names
        for prober, probes in world.probes.items()
        for probe in probes
        if is_recheck(
            keccak(b"seed " + name.encode()), probe.call_id, address_of(name), prober, powers, world.params
        )
    }
    assert drawn
    for name in world.validator_names:
        mine = [call_id for validator, call_id in drawn if validator == address_of(name)]
        words = tell_work(bundle, address_of(name))
        assert words.startswith(f"0 of {len(mine)} re-checks done")
        assert all(format_call_id(call_id) in words for call_id in mine)

    validator, call_id = min(drawn)
    call = next(c for c in world.calls if c.forward.call_id == call_id)
    vote = world.make_vote(world.by_address[validator], call, Verdict.PASS)
    done = world.close(votes=[vote])
    assert tell_work(done.bundle, validator).startswith("1 of ")
    before, after = (
        next(r.credits_micro for r in b.results if r.node == validator) for b in (bundle, done.bundle)
    )
    assert before < after <= 200_000_000
