"""Attesting: the seal, the base, the audit, the second bundle, and what is served of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from emcd.accounting.round_close import Evidence
from emcd.chain import Deposit, PublicationState
from emcd.errors import RecoverableError
from emcd.ledger import Ledger
from emcd.money import encode_wei
from emcd.proto.bundle import DepositEntry
from emcd.proto.messages import BundleSeal
from emcd.testing import make_key, temporary_ledger
from emcd.types import Micro, Wei
from emcd_validator.attester import Decision, Signed
from emcd_validator.base import Waiting
from emcd_validator.bundle_check import Refusal
from emcd_validator.events import ATTESTATION
from emcd_validator.hub_client import SealedBundle
from emcd_validator.queries.bundles import find_last_settled, list_bundles
from emcd_validator.queries.items import file_omission
from emcd_validator.revealer import reveal_round
from emcd_validator.role import SPEC
from tests.support.round_world import SealedBundle as ClosedBundle
from tests.support.round_world import close_to_bytes
from tests.support.validator_world import (
    HUB,
    FakeHub,
    Parts,
    make_call,
    make_parts,
    make_world,
    set_clock,
    take_statements,
)

NAME = "validator-1"


@pytest.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[Ledger]:
    async with temporary_ledger(tmp_path, {"validator": SPEC.migrations}) as opened:
        yield opened


@pytest.fixture
def hub() -> FakeHub:
    return make_world(round_s=4)


@pytest.fixture
def parts(ledger: Ledger, hub: FakeHub, tmp_path: Path) -> Parts:
    return make_parts(NAME, ledger, hub, tmp_path)


def close(hub: FakeHub, index: int) -> ClosedBundle:
    set_clock(hub, hub.deployment.params.grace_end_ms(index) + 1)
    return hub.close(index)


def code_of(decision: Decision) -> str:
    assert not isinstance(decision, Signed)
    return decision.code


async def test_attest_honest_rounds_in_a_row_signs_each(parts: Parts, hub: FakeHub) -> None:
    with parts.validator.bus.subscribe(ATTESTATION) as events:
        for index in range(3):
            closed = close(hub, index)
            decision = await parts.attester.decide(index)
            assert isinstance(decision, Signed)
            assert decision.root == closed.round_root
        assert [event.code for event in events.drain_nowait()] == ["", "", ""]


async def test_attest_without_a_bundle_waits(parts: Parts) -> None:
    decision = await parts.attester.decide(0)
    assert isinstance(decision, Waiting)
    assert decision.code == "EMC-1801"


@pytest.mark.parametrize(
    ("key", "changes"),
    [
        (make_key("another hub"), {}),
        (make_key(NAME), {}),
        (HUB, {"round": 1}),
        (HUB, {"hub": make_key("another hub").address}),
    ],
)
async def test_attest_seal_of_another_signer_or_round_waits(
    parts: Parts, hub: FakeHub, monkeypatch: pytest.MonkeyPatch, key: Any, changes: dict[str, Any]
) -> None:
    closed = close(hub, 0)
    fields = {"hub": HUB.address, "round": 0, "bundle_hash": closed.bundle_hash, **changes}
    seal = key.sign(hub.deployment.staking_domain, BundleSeal(**fields))
    serve(parts, monkeypatch, closed, seal)
    assert code_of(await parts.attester.decide(0)) == "EMC-1807"


@pytest.mark.parametrize("seal", [b"", bytes(65)])
async def test_attest_empty_or_other_chains_seal_waits(
    parts: Parts, hub: FakeHub, monkeypatch: pytest.MonkeyPatch, seal: bytes
) -> None:
    closed = close(hub, 0)
    serve(parts, monkeypatch, closed, seal)
    assert code_of(await parts.attester.decide(0)) == "EMC-1807"
    serve(parts, monkeypatch, closed, HUB.sign(hub.deployment.distributor_domain, closed.seal))
    assert code_of(await parts.attester.decide(0)) == "EMC-1807"


async def test_attest_bytes_of_another_hash_wait(
    parts: Parts, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = close(hub, 0)
    seal = HUB.sign(hub.deployment.staking_domain, closed.seal)
    serve(parts, monkeypatch, replace(closed, data=closed.data[:-1]), seal)
    assert isinstance(await parts.attester.decide(0), Waiting)


def serve(parts: Parts, monkeypatch: pytest.MonkeyPatch, closed: ClosedBundle, seal: bytes) -> None:
    async def find_bundle(round_index: int, path: Path, timeout_s: float) -> SealedBundle:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(closed.data)
        return SealedBundle(path, closed.bundle_hash, seal)

    monkeypatch.setattr(parts.attester._hub, "find_bundle", find_bundle)


async def test_attest_second_bundle_of_a_round_is_evidence_and_never_signed(
    parts: Parts, hub: FakeHub, ledger: Ledger, tmp_path: Path
) -> None:
    first = close(hub, 0)
    assert isinstance(await parts.attester.decide(0), Signed)
    hub._note_status(hub.nodes[0], hub.deployment.params.round_start_ms(0))
    second = close(hub, 0)
    assert first.bundle_hash != second.bundle_hash
    restarted = make_parts(NAME, ledger, hub, tmp_path)
    decision = await restarted.attester.decide(0)
    assert isinstance(decision, Signed)
    assert decision.root.bundle_hash == first.bundle_hash


async def test_attest_other_bundle_after_a_refused_one_is_refused_too(
    parts: Parts, hub: FakeHub, ledger: Ledger
) -> None:
    honest = hub.facts(0)
    hub.closed[0] = close_to_bytes(replace(honest, totals={make_key("thief").address: 1}), Evidence())
    set_clock(hub, hub.deployment.params.grace_end_ms(0) + 1)
    assert code_of(await parts.attester.decide(0)) == "EMC-1926"
    close(hub, 0)
    parts.attester.decisions.clear()
    assert code_of(await parts.attester.decide(0)) == "EMC-1926"
    rows = await ledger.read(lambda con: list_bundles(con, parts.validator.address, 0))
    assert [row.code for row in rows] == ["EMC-1926"]


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"beacon_block_hash": bytes(32)}, "EMC-1906"),
        ({"snapshot_block": 7}, "EMC-1906"),
        ({"distributor": make_key("elsewhere").address}, "EMC-1906"),
        ({"chain_id": 1}, "EMC-1906"),
        ({"validators": ()}, "EMC-1906"),
        ({"participants": ()}, "EMC-1906"),
    ],
)
async def test_attest_another_view_of_the_chain_is_refused(
    parts: Parts, hub: FakeHub, changes: dict[str, Any], code: str
) -> None:
    set_clock(hub, hub.deployment.params.grace_end_ms(0) + 1)
    hub.closed[0] = close_to_bytes(replace(hub.facts(0), **changes), Evidence())
    decision = await parts.attester.decide(0)
    assert isinstance(decision, Refusal)
    assert decision.code == code


async def test_attest_bundle_without_own_reveal_is_refused_and_stays_so(
    parts: Parts, hub: FakeHub, ledger: Ledger, tmp_path: Path
) -> None:
    params = hub.deployment.params
    set_clock(hub, params.round_start_ms(3) - 500)
    await parts.committer.commit(3)
    await take_statements(hub, parts.validator, 3)
    hub.edit_evidence = lambda index, evidence: replace(evidence, commitments=())
    for index in range(3):
        close(hub, index)
        assert isinstance(await parts.attester.decide(index), Signed)
    close(hub, 3)
    assert code_of(await parts.attester.decide(3)) == "EMC-1822"
    again = await make_parts(NAME, ledger, hub, tmp_path).attester.decide(3)
    assert isinstance(again, Refusal)
    assert again.code == "EMC-1822"


async def test_attest_bundle_that_leaves_out_a_signed_round_is_refused(parts: Parts, hub: FakeHub) -> None:
    close(hub, 0)
    await parts.attester.decide(0)
    del hub.closed[0]
    close(hub, 1)
    assert code_of(await parts.attester.decide(1)) == "EMC-1831"


async def test_attest_after_a_void_round_builds_on_the_one_before(
    parts: Parts, hub: FakeHub, ledger: Ledger
) -> None:
    closed = close(hub, 0)
    await parts.attester.decide(0)
    hub.chain.publish(0, closed.bundle_hash, PublicationState.VOID)
    del hub.closed[0]
    close(hub, 1)
    assert isinstance(await parts.attester.decide(1), Signed)
    last = await ledger.read(lambda con: find_last_settled(con, parts.validator.address, 9))
    assert last is not None
    assert (last.round, last.previous_round) == (1, -1)


async def test_attest_latecomer_builds_on_published_rounds_alone(parts: Parts, hub: FakeHub) -> None:
    for index in range(4):
        close(hub, index)
    waiting = await parts.attester.decide(3)
    assert isinstance(waiting, Waiting)
    assert waiting.code == "EMC-1827"
    hub.chain.publish(2, hub.closed[2].bundle_hash)
    decision = await parts.attester.decide(3)
    assert isinstance(decision, Signed)
    assert decision.root == hub.closed[3].round_root


async def test_attest_latecomer_does_not_build_on_another_bundle_than_the_published(
    parts: Parts, hub: FakeHub
) -> None:
    for index in range(2):
        close(hub, index)
    hub.chain.publish(0, bytes(32))
    assert code_of(await parts.attester.decide(1)) == "EMC-1827"


async def test_attest_bundle_from_nothing_after_a_published_round_is_refused(
    parts: Parts, hub: FakeHub
) -> None:
    hub.chain.publish(0, bytes(32))
    close(hub, 1)
    assert code_of(await parts.attester.decide(1)) == "EMC-1831"


async def test_attest_outside_the_set_audits_and_does_not_sign(
    ledger: Ledger, hub: FakeHub, tmp_path: Path
) -> None:
    stranger = make_parts("stranger", ledger, hub, tmp_path)
    close(hub, 0)
    assert code_of(await stranger.attester.decide(0)) == "EMC-1828"


async def test_attest_call_of_an_earlier_bundle_is_refused(parts: Parts, hub: FakeHub) -> None:
    node = hub.nodes[0].key
    call = make_call(hub.deployment, node, b"{}", b"{}", hub.deployment.params.round_start_ms(0) + 5)
    hub.calls[call.records.forward.call_id] = call
    close(hub, 0)
    assert isinstance(await parts.attester.decide(0), Signed)
    hub.edit_evidence = lambda index, evidence: replace(evidence, calls=[call.records], batches=call.batches)
    close(hub, 1)
    assert code_of(await parts.attester.decide(1)) == "EMC-1915"


async def test_attest_bundle_without_a_filed_call_is_refused(
    parts: Parts, hub: FakeHub, ledger: Ledger
) -> None:
    me, node = parts.validator.address, hub.nodes[0].key.address
    at_ms = hub.deployment.params.round_start_ms(1) - 1
    await ledger.write(lambda con: file_omission(con, me, bytes(16), 0, node, b"{}", at_ms))
    close(hub, 0)
    assert isinstance(await parts.attester.decide(0), Signed)
    close(hub, 1)
    assert code_of(await parts.attester.decide(1)) == "EMC-1825"


async def test_attest_call_filed_too_late_for_the_hub_to_fetch_is_not_missed(
    parts: Parts, hub: FakeHub, ledger: Ledger
) -> None:
    """A node that shows its receipt to the validators alone, just before the grace ends, stops no round."""
    me, node = parts.validator.address, hub.nodes[0].key.address
    params = hub.deployment.params
    for index, at_ms in ((0, params.grace_end_ms(0) - 1), (1, params.round_start_ms(1))):
        call_id = bytes([index]) * 16
        await ledger.write(partial(file_omission, instance=me, call_id=call_id, round_index=index, node=node,
                                   receipt=b"{}", now_ms=at_ms))  # fmt: skip
        close(hub, index)
        assert isinstance(await parts.attester.decide(index), Signed)


async def test_attest_deposit_not_seen_waits_and_a_wrong_one_is_refused(parts: Parts, hub: FakeHub) -> None:
    entry = DepositEntry(0, bytes(32), encode_wei(10**18), 1_000_000, 12, bytes(32))
    hub.edit_evidence = lambda index, evidence: replace(evidence, deposits=[entry])
    close(hub, 0)
    waiting = await parts.attester.decide(0)
    assert isinstance(waiting, Waiting)
    assert waiting.code == "EMC-1826"
    payer = make_key("payer").address
    hub.chain.deposits = [Deposit(0, bytes(32), payer, Wei(10**18), Micro(999_999), 0, 12)]
    assert code_of(await parts.attester.decide(0)) == "EMC-1832"


async def test_attest_same_deposit_twice_is_refused(parts: Parts, hub: FakeHub) -> None:
    entry = DepositEntry(0, bytes(32), encode_wei(10**18), 1_000_000, 12, bytes(32))
    payer = make_key("payer").address
    hub.chain.deposits = [Deposit(0, bytes(32), payer, Wei(10**18), Micro(1_000_000), 0, 12)]
    hub.edit_evidence = lambda index, evidence: replace(evidence, deposits=[entry])
    close(hub, 0)
    assert isinstance(await parts.attester.decide(0), Signed)
    close(hub, 1)
    assert code_of(await parts.attester.decide(1)) == "EMC-1832"


async def live_through(parts: Parts, hub: FakeHub, index: int) -> None:
    """Commit, probe, reveal; the hub has fetched it all."""
    params = hub.deployment.params
    set_clock(hub, params.round_start_ms(index) - 500)
    await parts.committer.commit(index)
    set_clock(hub, params.round_start_ms(index) + params.round_s * 850)
    await parts.committer.plan(await parts.views.fetch_view(index))
    await parts.prober.run_round(index)
    set_clock(hub, parts.validator.reveal_at_ms(index))
    await reveal_round(parts.validator, index)
    await take_statements(hub, parts.validator, index)


async def test_attest_round_that_cannot_be_read_hides_no_newer_one(
    parts: Parts, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[int] = set()
    newest = trio.Event()

    async def decide(index: int) -> None:
        await trio.lowlevel.checkpoint()
        seen.add(index)
        if index == last:
            newest.set()
        if index == last - 3:
            raise RecoverableError("EMC-1503", "missing trie node")

    set_clock(hub, parts.validator.params.round_start_ms(20))
    last = parts.validator.current_round() - 2
    monkeypatch.setattr(parts.attester, "decide", decide)
    with trio.fail_after(2):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(parts.attester.run)
            await newest.wait()
            nursery.cancel_scope.cancel()
    assert {last - 3, last - 2, last - 1, last} <= seen


def drop_probes(index: int, evidence: Evidence) -> Evidence:
    return replace(evidence, calls=())


def drop_reveals(index: int, evidence: Evidence) -> Evidence:
    return replace(evidence, reveals=())


def drop_node_batches(index: int, evidence: Evidence) -> Evidence:
    return replace(evidence, batches=[b for b in evidence.batches if b.batch.signer == HUB.address])


@pytest.mark.parametrize(
    ("lie", "code"),
    [
        ({}, ""),
        ({"edit_request": lambda upstream: upstream.replace(b'"input":', b'"input": ')}, "EMC-1823"),
        ({"edit_answer": lambda body: body.replace(b'"index":0', b'"index": 0')}, "EMC-1823"),
        ({"edit_evidence": drop_probes}, "EMC-1823"),
        ({"edit_evidence": drop_node_batches}, "EMC-1823"),
        ({"edit_evidence": drop_reveals}, "EMC-1822"),
    ],
)
async def test_attest_hub_that_lies_about_own_probes_is_refused(
    ledger: Ledger, tmp_path: Path, lie: dict[str, Any], code: str
) -> None:
    hub = make_world((NAME, "validator-2"), round_s=20)
    for name, change in lie.items():
        setattr(hub, name, change)
    parts = make_parts(NAME, ledger, hub, tmp_path)
    await live_through(parts, hub, 3)
    assert len(hub.requests) == len(hub.nodes)
    close(hub, 3)
    decision = await parts.attester.decide(3)
    assert code == "" if isinstance(decision, Signed) else decision.code == code


async def test_attest_bundle_served_under_anothers_hash_and_seal_waits(
    parts: Parts, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = close(hub, 0)
    hub._note_status(hub.nodes[0], hub.deployment.params.round_start_ms(0))
    closed = close(hub, 0)
    seal = HUB.sign(hub.deployment.staking_domain, other.seal)
    serve(parts, monkeypatch, replace(other, data=closed.data), seal)
    decision = await parts.attester.decide(0)
    assert isinstance(decision, Waiting)
    assert "not the one in the header" in decision.reason


async def test_attest_bundle_swapped_while_undecided_is_refused(parts: Parts, hub: FakeHub) -> None:
    entry = DepositEntry(0, bytes(32), encode_wei(10**18), 1_000_000, 12, bytes(32))
    hub.edit_evidence = lambda index, evidence: replace(evidence, deposits=[entry])
    close(hub, 0)
    assert code_of(await parts.attester.decide(0)) == "EMC-1826"
    hub.edit_evidence = lambda index, evidence: evidence
    close(hub, 0)
    assert code_of(await parts.attester.decide(0)) == "EMC-1808"


async def test_attest_published_base_that_the_hub_hides_waits(parts: Parts, hub: FakeHub) -> None:
    for index in range(2):
        close(hub, index)
    hub.chain.publish(0, hub.closed.pop(0).bundle_hash)
    decision = await parts.attester.decide(1)
    assert isinstance(decision, Waiting)
    assert "does not serve" in decision.reason


async def test_attest_published_base_served_with_other_bytes_is_refused(parts: Parts, hub: FakeHub) -> None:
    for index in range(2):
        close(hub, index)
    hub.chain.publish(0, hub.closed[0].bundle_hash)
    hub._note_status(hub.nodes[0], hub.deployment.params.round_start_ms(0))
    close(hub, 0)
    assert code_of(await parts.attester.decide(1)) == "EMC-1831"
