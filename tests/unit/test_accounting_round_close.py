"""Closing a round: what goes in, what is left out and named, who gets what and why."""

from __future__ import annotations

from dataclasses import replace
from io import BytesIO
from typing import Any

import pytest

from emcd.accounting.audit import audit_bundle
from emcd.accounting.emission import issue_wei
from emcd.accounting.evidence_rule import NO_CALL
from emcd.accounting.round_close import CallRecords, SignedBatch, close_round
from emcd.errors import LocalProtocolError, RemoteProtocolError
from emcd.money import encode_wei
from emcd.proto.bundle import ProbeResult, ResultEntry, SnapshotEntry
from emcd.proto.bundle_codec import Section
from emcd.proto.hashing import keccak
from emcd.proto.messages import Verdict
from emcd.proto.records import CallStatus, RecordKind, format_call_id
from emcd.types import ZERO_HASH, ParticipantRole
from tests.support import second_implementation as second
from tests.support.round_world import (
    STAKE_WEI,
    SealedBundle,
    World,
    address_of,
    close_to_bytes,
    edited,
)


def result_of(closed: SealedBundle, name: str) -> ResultEntry:
    found: ResultEntry = next(entry for entry in closed.result.results if entry.node == address_of(name))
    return found


def reward_of(closed: SealedBundle, name: str) -> int:
    return int.from_bytes(result_of(closed, name).reward_wei, "big")


def checked(closed: SealedBundle) -> SealedBundle:
    """What was closed passes its audit, and the second implementation finds the same root."""
    outcome = audit_bundle(closed.data)
    assert outcome.difference is None
    assert outcome.result == closed.result
    again = second.recompute_root(closed.data)
    assert again["root"] == closed.result.root
    assert again["issue_wei"] == closed.result.issue_wei
    assert again["cumulative_wei"] == closed.result.cumulative_wei
    return closed


# --------------------------------------------------------------------------- who gets what


def test_close_honest_round_pays_everybody_and_issues_the_emission() -> None:
    world = World()
    closed = checked(world.close())

    assert closed.left_out == ()
    assert closed.result.issue_wei == issue_wei(world.round)
    assert sum(int.from_bytes(r.reward_wei, "big") for r in closed.result.results) == issue_wei(world.round)
    assert {r.reason for r in closed.result.results} == {""}
    assert result_of(closed, "node-1").credits_micro == 4 * 1_500_000 + 200_000_000


def test_close_adds_rewards_to_the_totals_before() -> None:
    closed = checked(World().close())
    before = {total.wallet: int.from_bytes(total.cumulative_wei, "big") for total in closed.bundle.totals}
    after = {
        total.wallet: int.from_bytes(total.cumulative_wei, "big") for total in closed.result.totals_after
    }

    assert after[address_of("an old wallet")] == 10**18
    assert after[address_of("wallet of node-1")] == 5 + reward_of(closed, "node-1")
    assert (
        sum(after.values()) == sum(before.values()) + closed.result.issue_wei == closed.result.cumulative_wei
    )


def test_close_wallet_of_several_participants_gets_all_their_rewards() -> None:
    world = World()
    rows = [edited(p, wallet=address_of("one wallet")) for p in world.participants()]
    closed = checked(world.close({"participants": rows, "totals": {}}))

    assert len(closed.result.totals_after) == 1
    assert closed.result.cumulative_wei == issue_wei(world.round)


def test_close_empty_round_issues_nothing_and_keeps_the_root() -> None:
    world = World(node_names=(), validator_names=())
    closed = checked(world.close())

    assert closed.result.issue_wei == 0
    assert closed.result.totals_after == closed.bundle.totals
    assert checked(world.close({"totals": {}})).result.root == ZERO_HASH


def test_close_publish_fee_is_kept_out_of_the_issue() -> None:
    world = World()
    params = edited(world.params, publish_fee_wei=encode_wei(7))
    assert checked(world.close({"params": params})).result.issue_wei == issue_wei(world.round) - 7
    params = edited(world.params, publish_fee_wei=encode_wei(10**30))
    assert checked(world.close({"params": params})).result.issue_wei == 0


def with_participant(world: World, name: str, **changes: Any) -> list[SnapshotEntry]:
    return [edited(p, **changes) if p.node == address_of(name) else p for p in world.participants()]


@pytest.mark.parametrize(
    ("reason", "facts", "evidence"),
    [
        (
            "unbound",
            lambda w: {"participants": [p for p in w.participants() if p.node != address_of("node-1")]},
            None,
        ),
        (
            "understaked",
            lambda w: {"participants": with_participant(w, "node-1", stake_wei=encode_wei(STAKE_WEI // 2))},
            None,
        ),
        (
            "suspended",
            lambda w: {"participants": with_participant(w, "node-1", suspended_until_round=w.round + 1)},
            None,
        ),
        (
            "offline",
            None,
            lambda w: {"statuses": [s for s in w.statuses() if s.status.node != address_of("node-1")]},
        ),
        (
            "no-success",
            None,
            lambda w: {"calls": [c for c in w.calls if c.forward.node != address_of("node-1")]},
        ),
    ],
)
def test_close_ineligible_node_gets_nothing_and_the_reason(reason: str, facts: Any, evidence: Any) -> None:
    world = World()

    closed = checked(world.close(facts and facts(world), **(evidence(world) if evidence else {})))

    row = result_of(closed, "node-1")
    assert row.reason == reason
    assert (row.weight, row.reward_wei) == (bytes(64), bytes(32))
    assert closed.result.issue_wei == issue_wei(world.round)


def test_close_suspension_ends_with_its_round() -> None:
    world = World()
    rows = with_participant(world, "node-1", suspended_until_round=world.round)
    assert result_of(checked(world.close({"participants": rows})), "node-1").reason == ""


def test_close_first_of_several_reasons_is_given() -> None:
    world = World(verdicts={"node-1": Verdict.GROSS})
    rows = with_participant(world, "node-1", stake_wei=bytes(32), suspended_until_round=99)
    assert (
        result_of(checked(world.close({"participants": rows}, statuses=[])), "node-1").reason == "understaked"
    )


def test_close_hub_is_bound_but_takes_no_part() -> None:
    world = World()
    hub = SnapshotEntry(world.hub, address_of("hub wallet"), ParticipantRole.HUB, encode_wei(STAKE_WEI), 0, 0)

    closed = checked(world.close({"participants": [*world.participants(), hub]}))

    assert world.hub not in {row.node for row in closed.result.results}


def test_close_validator_without_reveal_has_no_plan() -> None:
    world = World()
    reveals = [entry for entry in world.reveals() if entry.reveal.validator != address_of("validator-2")]

    row = result_of(checked(world.close(reveals=reveals)), "validator-2")

    assert (row.reason, row.credits_micro) == ("no-plan", 0)


# --------------------------------------------------------------------------- routers


ROUTER_ROUND_MICRO = 20_000_000
BOTH = {("node-1", 0): "router", ("node-1", 1): "router", ("node-2", 0): "router", ("node-2", 1): "router"}


def close_routed(world: World, **evidence: Any) -> SealedBundle:
    """Close a round in which a router takes part."""
    wallet = address_of("router wallet")
    row = SnapshotEntry(address_of("router"), wallet, ParticipantRole.ROUTER, encode_wei(10**23), 180, 0)
    return checked(world.close({"participants": [*world.participants(), row]}, **evidence))


def test_close_router_with_all_probes_of_its_nodes_earns_its_round() -> None:
    row = result_of(close_routed(World(routes=BOTH)), "router")

    assert (row.credits_micro, row.reason) == (ROUTER_ROUND_MICRO, "")
    assert int.from_bytes(row.reward_wei, "big") > 0


@pytest.mark.parametrize(("gone", "share"), [(1, (3, 4)), (2, (2, 2)), (3, (1, 2))])
def test_close_router_whose_nodes_were_elsewhere_earns_its_share(gone: int, share: tuple[int, int]) -> None:
    kept = dict(list(BOTH.items())[: len(BOTH) - gone])

    row = result_of(close_routed(World(routes=kept)), "router")

    assert row.credits_micro == ROUTER_ROUND_MICRO * share[0] // share[1]


def test_close_router_that_calls_of_users_name_earns_nothing() -> None:
    world = World()
    start = world.params.round_start_ms(world.round)
    for at in range(0, 14_000, 1_000):
        world.calls.append(
            world.make_call(
                "node-1",
                start + at,
                edit=lambda kind, r: edited(r, router=address_of("router")) if kind == "forward" else r,
            )
        )

    row = result_of(close_routed(world), "router")

    assert (row.reason, row.credits_micro) == ("no-success", 0)


def lose(world: World, probe: ProbeResult, router: str) -> ProbeResult:
    """Put a call without an answer, through a router, in the place of a probe's own."""
    own = next(call for call in world.calls if call.forward.call_id == probe.call_id)
    lost = world.make_call(
        world.by_address[probe.node],
        own.forward.started_at_ms,
        status=CallStatus.NODE_ERROR,
        router=address_of(router),
        edit=drop_receipt,
    )
    world.calls = [lost if call is own else call for call in world.calls]
    changed: ProbeResult = edited(
        probe,
        call_id=lost.forward.call_id,
        request_hash=lost.forward.request_hash,
        response_hash=ZERO_HASH,
        verdict=int(Verdict.ERROR),
        statistic_e12=0,
    )
    return changed


def test_close_router_whose_probe_had_no_answer_earns_its_share() -> None:
    world = World(routes=BOTH)
    for prober, probes in world.probes.items():
        for index, probe in enumerate(probes):
            if (world.by_address[probe.node], probe.slot) == ("node-1", 0):
                world.probes[prober][index] = lose(world, probe, "router")

    row = result_of(close_routed(world), "router")

    assert row.credits_micro == ROUTER_ROUND_MICRO * 3 // 4


def test_close_probe_without_a_call_does_not_count_against_a_router() -> None:
    world = World(routes=BOTH)
    for prober, probes in world.probes.items():
        world.probes[prober] = [
            edited(
                probe,
                call_id=NO_CALL,
                request_hash=ZERO_HASH,
                response_hash=ZERO_HASH,
                verdict=int(Verdict.ERROR),
                statistic_e12=0,
            )
            if (world.by_address[probe.node], probe.slot) == ("node-2", 1)
            else probe
            for probe in probes
        ]

    row = result_of(close_routed(world), "router")

    assert row.credits_micro == ROUTER_ROUND_MICRO


def test_close_unanswered_call_makes_no_node_the_routers() -> None:
    world = World(routes=BOTH)
    for prober, probes in world.probes.items():
        for index, probe in enumerate(probes):
            if world.by_address[probe.node] == "node-3":
                world.probes[prober][index] = lose(world, probe, "router")

    row = result_of(close_routed(world), "router")

    assert row.credits_micro == ROUTER_ROUND_MICRO


def test_close_address_that_is_no_router_earns_nothing_for_probes_that_name_it() -> None:
    closed = close_routed(World(routes=dict.fromkeys(BOTH, "node-3")))
    plain = close_routed(World())

    assert result_of(closed, "node-3").credits_micro == result_of(plain, "node-3").credits_micro
    assert result_of(closed, "router").reason == "no-success"


# --------------------------------------------------------------------------- which calls count


def drop_receipt(kind: str, record: Any) -> Any:
    return None if kind == "receipt" else record


def shift_times(kind: str, record: Any, by_ms: int = 30_100) -> Any:
    if kind != "receipt":
        return record
    return edited(
        record, started_at_ms=record.started_at_ms + by_ms, finished_at_ms=record.finished_at_ms + by_ms
    )


def set_http_status(kind: str, record: Any) -> Any:
    return edited(record, http_status=404) if kind == "receipt" else record


@pytest.mark.parametrize(
    ("kind", "options", "counts"),
    [
        ("paid", {}, True),
        ("granted", {"from_vault": False}, True),
        ("cancelled", {"status": CallStatus.CANCELLED}, True),
        ("capped", {"status": CallStatus.CAPPED}, True),
        ("client error", {"status": CallStatus.CLIENT_ERROR}, False),
        ("node error", {"status": CallStatus.NODE_ERROR}, False),
        ("no receipt", {"edit": drop_receipt}, False),
        ("clock ahead", {"edit": shift_times}, False),
        ("clock behind", {"edit": lambda k, r: shift_times(k, r, -30_100)}, False),
        ("clock slightly off", {"edit": lambda k, r: shift_times(k, r, 29_000)}, True),
        ("node said 404", {"edit": set_http_status}, False),
    ],
)
def test_close_call_counts_or_not(kind: str, options: dict[str, Any], counts: bool) -> None:
    world = World(calls_per_node=0)
    before = result_of(world.close(), "node-1").credits_micro
    call = world.make_call("node-1", world.params.round_start_ms(world.round), **options)
    world.calls.append(call)

    closed = checked(world.close())

    assert closed.left_out == ()
    earned = result_of(closed, "node-1").credits_micro - before
    assert earned == (call.delivery.vault_micro if counts else 0)
    assert (audit_bundle(closed.data).counted_calls == len(world.calls)) is counts


@pytest.mark.parametrize("kind", list(RecordKind))
def test_close_call_without_a_signed_batch_stands_there_and_does_not_count(kind: RecordKind) -> None:
    world = World(calls_per_node=1, node_names=("node-1",))
    batches = [item for item in world.batches() if item.batch.kind != kind]

    closed = checked(world.close(batches=batches))

    assert len(closed.bundle.calls) == len(world.calls)
    assert result_of(closed, "node-1").reason == "no-success"
    assert result_of(closed, "node-1").credits_micro == 0


def test_close_late_receipts_of_earlier_rounds_are_carried() -> None:
    world = World(round=15)
    call = world.make_call("node-1", world.params.round_start_ms(3))
    world.calls.append(call)

    closed = checked(world.close())

    assert closed.left_out == ()
    assert result_of(closed, "node-1").credits_micro == 5 * 1_500_000 + 200_000_000


# --------------------------------------------------------------------------- what is left out


def test_close_bad_calls_are_left_out_and_named() -> None:
    world = World(round=20)
    start = world.params.round_start_ms(20)
    bad = {
        "EMC-1911": world.make_call(
            "node-1", start, edit=lambda k, r: edited(r, hub=address_of("x")) if k == "forward" else r
        ),
        "EMC-1913": world.make_call(
            "node-1", start, edit=lambda k, r: edited(r, credits_micro=1) if k == "delivery" else r
        ),
        "EMC-1914": world.make_call("node-1", world.params.round_start_ms(7)),
        "EMC-1902": world.make_call(
            "node-1", start, edit=lambda k, r: edited(r, body_hash=b"") if k == "delivery" else r
        ),
    }

    closed = checked(world.close(calls=[*bad.values(), *world.calls], batches=world.batches()))

    assert {row.code for row in closed.left_out} == set(bad)
    assert {row.section for row in closed.left_out} == {Section.CALLS}
    assert len(closed.bundle.calls) == len(world.calls)


def test_close_same_call_twice_stands_once() -> None:
    world = World()
    first = world.calls[0]
    twin = CallRecords(first.forward, first.receipt, edited(first.delivery, body_hash=bytes(32)))

    closed = checked(world.close(calls=[*world.calls, twin]))

    assert len(closed.bundle.calls) == len(world.calls)
    assert closed.bundle.calls[0].delivery.body_hash != bytes(32)


def test_close_bad_batches_are_left_out_and_named() -> None:
    world = World()
    good = world.batches()
    item = good[0]
    assert isinstance(item.record_hashes, tuple)
    bad = [
        SignedBatch(item.batch, world.sign("node-1", item.batch), item.record_hashes),
        SignedBatch(item.batch, item.signature, item.record_hashes[:-1]),
        SignedBatch(item.batch, item.signature, (*item.record_hashes[:-1], bytes(32))),
        SignedBatch(item.batch, b"", item.record_hashes),
        world.sign_batch("node-1", RecordKind.FORWARD, item.record_hashes),
    ]

    closed = checked(world.close(batches=[*bad, *good, *good]))

    assert [row.code for row in closed.left_out] == [
        "EMC-1910",
        "EMC-1910",
        "EMC-1910",
        "EMC-1902",
        "EMC-1910",
    ]
    assert len(closed.bundle.batches) == len(good)


def test_close_batches_without_a_call_of_the_round_are_not_carried_along() -> None:
    world = World()
    closed = checked(
        world.close(batches=[*world.batches(), world.sign_batch("node-1", RecordKind.RECEIPT, [bytes(32)])])
    )
    assert len(closed.bundle.batches) == len(world.batches())


def test_close_bad_status_commitment_reveal_and_vote_are_left_out_and_named() -> None:
    world = World(verdicts={"node-1": Verdict.GROSS})
    status, plan, vote = world.statuses()[0], world.commitments()[0], world.votes()[0]
    reveal = next(entry for entry in world.reveals() if entry.probes)
    unsigned = bytes(64) + b"\x1b"

    closed = checked(
        world.close(
            statuses=[edited(status, signature=unsigned), *world.statuses()],
            commitments=[edited(plan, signature=unsigned), *world.commitments()],
            reveals=[edited(reveal, probes=()), *world.reveals()],
            votes=[edited(vote, signature=unsigned), *world.votes()],
        )
    )

    assert [row.code for row in closed.left_out] == ["EMC-1920", "EMC-1921", "EMC-1922", "EMC-1923"]
    assert closed.result == world.close().result


def test_close_signatures_checked_on_arrival_are_not_checked_again() -> None:
    world = World()
    batches = world.batches()
    forged = [SignedBatch(b.batch, bytes([n, *bytes(64)]), b.record_hashes) for n, b in enumerate(batches)]
    evidence = replace(world.evidence(), batches=forged)

    assert close_to_bytes(world.facts, evidence, signatures_checked=True).left_out == ()
    assert len(close_to_bytes(world.facts, evidence).left_out) == len(forged)
    assert close_to_bytes(world.facts, world.evidence(), signatures_checked=True).data == world.close().data


@pytest.mark.parametrize(
    ("facts", "code"),
    [
        ({"previous_round": 7}, "EMC-1905"),
        ({"previous_bundle_hash": ZERO_HASH}, "EMC-1905"),
        ({"prices": ()}, "EMC-1905"),
        ({"participants": [edited(World().participants()[0], lock_days=8)]}, "EMC-1926"),
    ],
)
def test_close_with_impossible_facts_is_refused(facts: dict[str, Any], code: str) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        World().close(facts)
    assert caught.value.code == code


# --------------------------------------------------------------------------- probes and strikes


def test_close_struck_node_gets_nothing_and_the_strike_is_named() -> None:
    world = World(verdicts={"node-2": Verdict.GROSS})
    closed = checked(world.close())

    assert result_of(closed, "node-2").reason == "verdict"
    assert {(s.node, s.verdict) for s in closed.result.strikes} == {(address_of("node-2"), Verdict.GROSS)}


@pytest.mark.parametrize(
    ("others", "stands"),
    [
        ((), None),
        ((Verdict.GROSS,), None),
        ((Verdict.GROSS, Verdict.GROSS), Verdict.GROSS),
        ((Verdict.FAIL, Verdict.GROSS), Verdict.FAIL),
        ((Verdict.PASS, Verdict.TEMPLATE, Verdict.GROSS), None),
        ((Verdict.PASS, Verdict.CLASS, Verdict.GROSS), Verdict.CLASS),
        ((Verdict.CLASS, Verdict.CLASS), Verdict.CLASS),
        ((Verdict.ERROR, Verdict.OFFLINE, Verdict.GROSS), None),
    ],
)
def test_close_strike_stands_with_more_than_two_thirds(
    others: tuple[Verdict, ...], stands: Verdict | None
) -> None:
    world = World(node_names=("node-1",), verdicts={"node-1": Verdict.GROSS})
    prober, probe = next((v, p) for v, probes in world.probes.items() for p in probes if p.slot == 0)
    call = next(c for c in world.calls if c.forward.call_id == probe.call_id)
    voters = [name for name in world.validator_names if address_of(name) != prober]
    votes = [world.make_vote(name, call, verdict) for name, verdict in zip(voters, others, strict=False)]

    closed = checked(world.close(votes=votes))

    assert [s.verdict for s in closed.result.strikes] == ([stands] if stands else [])
    assert result_of(closed, "node-1").reason == ("verdict" if stands else "")


def test_close_probers_own_vote_does_not_undo_its_reveal() -> None:
    world = World(node_names=("node-1",), verdicts={"node-1": Verdict.GROSS})
    prober = next(v for v, probes in world.probes.items() for p in probes if p.slot == 0)
    votes = [
        edited(
            v,
            vote=edited(v.vote, verdict=1),
            signature=world.sign(world.by_address[prober], edited(v.vote, verdict=1)),
        )
        if v.vote.validator == prober
        else v
        for v in world.votes()
    ]

    assert len(checked(world.close(votes=votes)).result.strikes) == 2


def test_close_accusation_without_its_call_strikes_nobody() -> None:
    world = World(verdicts={"node-1": Verdict.GROSS})
    probe = next(p for probes in world.probes.values() for p in probes if p.node == address_of("node-1"))
    calls = [call for call in world.calls if call.forward.call_id != probe.call_id]

    closed = checked(world.close(calls=calls))

    assert probe.call_id not in {strike.call_id for strike in closed.result.strikes}
    assert {row.code for row in closed.left_out} == {"EMC-1923"}


@pytest.mark.parametrize(
    ("verdict", "passed", "done"),
    [
        (Verdict.PASS, True, True),
        (Verdict.CLASS, False, True),
        (Verdict.TEMPLATE, False, True),
        (Verdict.ERROR, False, True),
        (Verdict.OFFLINE, False, False),
    ],
)
def test_close_verdicts_that_pass_and_verdicts_that_are_work_done(
    verdict: Verdict, passed: bool, done: bool
) -> None:
    world = World(verdicts={"node-1": verdict}, node_names=("node-1",))

    closed = checked(world.close())

    paid = 200_000_000 if passed else 0
    assert result_of(closed, "node-1").credits_micro == 4 * 1_500_000 + paid
    validators = [result_of(closed, name).credits_micro for name in world.validator_names]
    assert sorted(validators) == ([0, 0, 200_000_000, 200_000_000] if done else [0, 0, 0, 0])


def replace_probes(world: World, **changes: Any) -> World:
    """Slot 0 of node-1 is revealed otherwise."""
    for probes in world.probes.values():
        for index, probe in enumerate(probes):
            if probe.slot == 0 and probe.node == address_of("node-1"):
                probes[index] = edited(probe, **changes)
    return world


NOTHING = {"call_id": bytes(16), "request_hash": ZERO_HASH, "response_hash": ZERO_HASH}


@pytest.mark.parametrize(
    ("changes", "passed", "done"),
    [
        ({"response_hash": keccak(b"another")}, 1, 1),
        ({"request_hash": keccak(b"another")}, 1, 1),
        ({"call_id": keccak(b"no such call")[:16]}, 1, 1),
        ({**NOTHING, "verdict": int(Verdict.PASS)}, 1, 1),
        ({**NOTHING, "verdict": int(Verdict.ERROR)}, 1, 1),
        ({**NOTHING, "verdict": int(Verdict.OFFLINE)}, 1, 1),
        ({"call_id": keccak(b"no such call")[:16], "verdict": int(Verdict.ERROR)}, 1, 1),
    ],
)
def test_close_verdict_without_its_call_is_no_work(changes: dict[str, Any], passed: int, done: int) -> None:
    world = replace_probes(World(node_names=("node-1",)), **changes)

    closed = checked(world.close())

    assert result_of(closed, "node-1").credits_micro == 4 * 1_500_000 + 100_000_000 * passed
    assert sum(result_of(closed, name).credits_micro for name in world.validator_names) == 200_000_000 * done


def test_close_error_without_a_call_is_work_done_when_the_node_answered_nobody() -> None:
    world = replace_probes(World(node_names=("node-1",)), **NOTHING, verdict=int(Verdict.ERROR))

    closed = checked(world.close(calls=[]))

    assert sum(result_of(closed, name).credits_micro for name in world.validator_names) == 200_000_000


def test_close_offline_node_that_was_not_seen_is_work_done() -> None:
    world = World(node_names=("node-1",), verdicts={"node-1": Verdict.OFFLINE})

    closed = checked(world.close(statuses=[]))

    assert sum(result_of(closed, name).credits_micro for name in world.validator_names) == 400_000_000


def test_close_strike_of_exactly_two_thirds_does_not_stand() -> None:
    names = tuple(f"validator-{n}" for n in range(6))
    world = World(node_names=("node-1",), validator_names=names, verdicts={"node-1": Verdict.GROSS})
    prober, probe = next((v, p) for v, probes in world.probes.items() for p in probes if p.slot == 0)
    call = next(c for c in world.calls if c.forward.call_id == probe.call_id)
    others = [name for name in names if address_of(name) != prober]
    votes = [world.make_vote(name, call, Verdict.GROSS) for name in others]

    assert checked(world.close(votes=votes[:3])).result.strikes == ()
    assert len(checked(world.close(votes=votes[:4])).result.strikes) == 1


def test_close_too_few_judges_convict_nobody() -> None:
    names = ("validator-1", "validator-2", "validator-3")
    world = World(validator_names=names, verdicts={"node-1": Verdict.GROSS})

    closed = checked(world.close())

    assert closed.result.strikes == ()
    assert result_of(closed, "node-1").reason == ""


def test_close_probe_of_a_call_that_does_not_count_is_done_and_not_passed() -> None:
    """A node whose clock is off can't pass, and can't dodge either."""
    world = World(node_names=("node-1",))
    for number, call in enumerate(world.calls):
        if call.forward.call_id in {p.call_id for probes in world.probes.values() for p in probes}:
            receipt = edited(call.receipt, started_at_ms=1, finished_at_ms=2)
            delivery = edited(call.delivery, receipt_hash=receipt.struct_hash())
            world.calls[number] = CallRecords(call.forward, receipt, delivery)

    closed = checked(world.close())

    assert result_of(closed, "node-1").credits_micro == 4 * 1_500_000
    assert sum(result_of(closed, name).credits_micro for name in world.validator_names) == 400_000_000


@pytest.mark.parametrize("honest_slot", [0, 1])
def test_close_copied_probe_gains_nothing(honest_slot: int) -> None:
    world = World(node_names=("node-1",))
    one, two = (p for probes in world.probes.values() for p in probes)
    honest, lazy = (one, two) if one.slot == honest_slot else (two, one)
    for probes in world.probes.values():
        for index, probe in enumerate(probes):
            if probe == lazy:
                probes[index] = edited(honest, slot=lazy.slot)

    closed = checked(world.close())

    by_slot = {a.slot: world.by_address[a.validator] for a in world.assignments()}
    assert result_of(closed, by_slot[honest.slot]).credits_micro == 200_000_000
    assert result_of(closed, by_slot[lazy.slot]).credits_micro == 0
    assert result_of(closed, "node-1").credits_micro == 4 * 1_500_000 + 100_000_000


def test_close_reveal_with_anothers_probe_is_void() -> None:
    world = World()
    holder, other = _two_probers(world)
    world.probes[holder].append(world.probes[other][0])

    closed = checked(world.close())

    assert [row.code for row in closed.left_out] == ["EMC-1924"]
    assert result_of(closed, world.by_address[holder]).reason == "no-plan"


def _two_probers(world: World) -> tuple[Any, Any]:
    first, second_, *_ = [validator for validator, probes in world.probes.items() if probes]
    return first, second_


# --------------------------------------------------------------------------- streaming


def test_close_calls_out_of_order_are_our_fault() -> None:
    world = World()
    calls = sorted(world.calls, key=lambda call: call.forward.call_id)
    evidence = replace(world.evidence(), calls=[*calls[1:], calls[0]])
    with pytest.raises(LocalProtocolError) as caught:
        close_round(world.facts, evidence, BytesIO())
    assert caught.value.code == "EMC-1904"


def test_close_reads_calls_once_then_batches_then_votes() -> None:
    world = World(verdicts={"node-1": Verdict.GROSS})
    evidence = world.evidence()
    order: list[str] = []

    def lazily(name: str, items: Any) -> Any:
        order.append(f"{name} begin")
        yield from items
        order.append(f"{name} end")

    calls = sorted(world.calls, key=lambda call: call.forward.call_id)
    lazy = replace(
        evidence,
        calls=lazily("calls", calls),
        batches=lazily("batches", evidence.batches),
        reveals=lazily("reveals", evidence.reveals),
        votes=lazily("votes", evidence.votes),
    )
    out = BytesIO()
    close_round(world.facts, lazy, out)

    assert out.getvalue() == world.close().data
    assert order == [
        f"{name} {what}" for name in ("reveals", "calls", "batches", "votes") for what in ("begin", "end")
    ]


def test_close_names_no_more_than_a_bound_of_what_it_leaves_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("emcd.accounting.close_pass.MAX_LEFT_OUT", 2)
    world = World()
    bad = [edited(status, signature=bytes(64) + b"\x1b") for status in world.statuses()]
    closed = checked(world.close(statuses=bad))
    assert (len(closed.left_out), closed.left_out_count) == (2, 3)


@pytest.mark.parametrize("group", [1, 4, 5, 1000])
def test_close_bad_calls_leave_no_hole_in_the_groups(group: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups are whole whatever is left out, and the same as if it had never been there."""
    for module in ("emcd.accounting.call_take", "emcd.proto.bundle_write"):
        monkeypatch.setattr(f"{module}.GROUP_CALLS", group)
    world = World(calls_per_node=6)
    truth = world.close().data
    start = world.params.round_start_ms(world.round)
    bad = [
        world.make_call(
            "node-1", start, edit=lambda k, r: edited(r, credits_micro=1) if k == "delivery" else r
        )
        for _ in range(7)
    ] + [
        world.make_call("node-2", start, edit=lambda k, r: edited(r, body_hash=b"") if k == "delivery" else r)
        for _ in range(7)
    ]
    told: list[int] = []
    batches = World(calls_per_node=6).batches()
    closed = world.close(
        calls=[*world.calls, *bad], batches=batches, progress=lambda done, total: told.append(done)
    )

    assert closed.data == truth
    assert (closed.left_out_count, closed.calls) == (14, len(world.calls))
    assert {row.code for row in closed.left_out} == {"EMC-1902", "EMC-1913"}
    assert told == sorted(told)


@pytest.mark.parametrize("part", ["forward", "receipt", "delivery to forward", "delivery to receipt"])
def test_close_damaged_ledger_row_is_left_out_and_not_believed(part: str) -> None:
    """The hashes that records state of each other are not taken for true."""
    world = World()
    forward, receipt, delivery = world.calls[0]
    damaged = {
        "forward": CallRecords(edited(forward, request_hash=keccak(b"bit rot")), receipt, delivery),
        "receipt": CallRecords(forward, edited(receipt, forward_hash=keccak(b"bit rot")), delivery),
        "delivery to forward": CallRecords(forward, receipt, edited(delivery, forward_hash=bytes(32))),
        "delivery to receipt": CallRecords(forward, receipt, edited(delivery, receipt_hash=bytes(32))),
    }[part]

    closed = checked(world.close(calls=[damaged, *world.calls[1:]]))

    assert [(row.code, row.key) for row in closed.left_out] == [("EMC-1911", format_call_id(forward.call_id))]


def test_close_probe_of_a_carried_call_is_no_work() -> None:
    world = World(round=15, node_names=("node-1",))
    carried = world.make_call("node-1", world.params.round_start_ms(14))
    assert carried.receipt is not None
    world.calls.append(carried)
    replace_probes(
        world,
        call_id=carried.forward.call_id,
        request_hash=carried.forward.request_hash,
        response_hash=carried.receipt.response_hash,
    )

    closed = checked(world.close())

    assert result_of(closed, "node-1").credits_micro == 5 * 1_500_000 + 100_000_000
    assert sum(result_of(closed, name).credits_micro for name in world.validator_names) == 200_000_000
