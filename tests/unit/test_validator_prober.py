"""Probes: each once, at its time, whatever node and hub do."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from emcd.accounting.evidence_rule import NO_CALL
from emcd.errors import RecoverableError
from emcd.ledger import Ledger
from emcd.proto.messages import Verdict
from emcd.testing import temporary_ledger
from emcd.types import ZERO_HASH, Address
from emcd_validator import prober as prober_module
from emcd_validator.api_keys import ApiKeys, load_api_keys
from emcd_validator.events import PROBE, VERDICT
from emcd_validator.evidence_page import make_evidence
from emcd_validator.hub_client import HubAnswer, NodeOffer
from emcd_validator.judge import Judgement
from emcd_validator.liveness import name_failure
from emcd_validator.plan import Draws
from emcd_validator.probe_request import ProbeRequest, build_probe
from emcd_validator.prober import _Target
from emcd_validator.queries.key_uses import count_key_uses
from emcd_validator.queries.rounds import ProbeRow, ProbeState, list_probes, mark_lost, mark_sent
from emcd_validator.revealer import reveal_round
from emcd_validator.role import SPEC
from tests.support.validator_world import (
    API_KEY,
    FakeHub,
    Parts,
    fake_embed,
    make_parts,
    make_world,
    set_clock,
)

NAMES = ("validator-1", "validator-2")
INDEX = 3


@pytest.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[Ledger]:
    async with temporary_ledger(tmp_path, {"validator": SPEC.migrations}) as opened:
        yield opened


@pytest.fixture
def hub() -> FakeHub:
    return make_world(NAMES, embeds=[fake_embed()], round_s=20)


@pytest.fixture
async def parts(ledger: Ledger, hub: FakeHub, tmp_path: Path) -> Parts:
    """Committed, planned, and every probe is due."""
    made = make_parts(NAMES[0], ledger, hub, tmp_path)
    set_clock(hub, hub.deployment.params.round_start_ms(INDEX) - 500)
    await made.committer.commit(INDEX)
    set_clock(hub, hub.deployment.params.round_start_ms(INDEX) + 17_000)
    assert await made.committer.plan(await made.views.fetch_view(INDEX))
    return made


async def probe_of(parts: Parts) -> ProbeRow:
    validator = parts.validator
    rows = await validator.read(lambda con: list_probes(con, validator.address, INDEX))
    assert len(rows) == 1
    return rows[0]


async def run(parts: Parts) -> tuple[Verdict | None, ProbeRow]:
    await parts.prober.run_round(INDEX)
    row = await probe_of(parts)
    return (Verdict(row.result.verdict) if row.result else None), row


async def test_probe_honest_node_passes_with_its_call_named(parts: Parts, hub: FakeHub) -> None:
    with parts.validator.bus.subscribe(PROBE) as moved, parts.validator.bus.subscribe(VERDICT) as given:
        verdict, row = await run(parts)
        assert verdict is Verdict.PASS
        assert [event.state for event in moved.drain_nowait()] == ["sent", "judged"]
        assert [event.verdict for event in given.drain_nowait()] == ["PASS"]
    assert row.result is not None
    call = hub.calls[row.result.call_id]
    assert row.result.request_hash == call.records.forward.request_hash


async def test_probe_looks_like_a_users_request(parts: Parts, hub: FakeHub) -> None:
    await run(parts)
    ((headers, body),) = hub.requests
    assert headers["authorization"].startswith("emc_sk_")
    assert b'"provider":{"only":' in body
    assert b"validator" not in body
    assert b"probe" not in body


async def test_probe_cheating_node_is_gross(parts: Parts, hub: FakeHub) -> None:
    hub.nodes[0].embed = fake_embed(0.2)
    verdict, row = await run(parts)
    assert verdict is Verdict.GROSS
    assert row.result is not None
    assert row.result.statistic_e12 > 10**11


async def test_probe_offline_node_is_offline(parts: Parts, hub: FakeHub) -> None:
    hub.nodes[0].online = False
    verdict, row = await run(parts)
    assert verdict is Verdict.OFFLINE
    assert row.result is not None
    assert row.result.call_id == NO_CALL
    assert not hub.requests


def test_failures_have_names_that_accuse_of_nothing() -> None:
    names = [name_failure(status) for status in (0, 429, 503, 500, 504, 400)]
    assert names == ["silent", "busy", "loading", "failed", "silent", "refused"]


async def test_probe_is_known_by_its_key_afterwards_and_the_key_stays_the_same(
    parts: Parts, hub: FakeHub
) -> None:
    """The receipt is asked for with the key that asked, whatever keys came meanwhile."""
    await run(parts)
    validator, row = parts.validator, await probe_of(parts)
    uses = await validator.read(lambda con: count_key_uses(con, validator.address))
    assert [use.probes for use in uses.values()] == [1]
    draws = Draws(bytes(32), bytes(32))
    parts.prober._keys.replace(ApiKeys((API_KEY, *(f"emc_sk_{n}" for n in range(20)))))
    assert await parts.prober._find_key(draws, row) == API_KEY


async def test_probe_of_a_suspect_is_greedy(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    made = build_probe

    def build(*args: Any, greedy: bool) -> ProbeRequest:
        asked.append(greedy)
        return made(*args, greedy=greedy)

    monkeypatch.setattr(prober_module, "build_probe", build)
    model = parts.validator.models["all-MiniLM-L6-v2"]
    row = await probe_of(parts)
    monkeypatch.setattr(prober_module, "list_suspects", lambda *args: {(row.node, model.model_hash)})
    await run(parts)
    assert asked == [True]


@pytest.mark.parametrize("status", [400, 429, 500, 503])
async def test_probe_failing_node_is_an_error_that_names_no_call(
    parts: Parts, hub: FakeHub, status: int
) -> None:
    hub.nodes[0].status = status
    verdict, row = await run(parts)
    assert verdict is Verdict.ERROR
    assert row.reason.startswith(name_failure(status))
    assert row.result is not None
    assert row.result.call_id == NO_CALL


async def test_probe_failing_with_a_call_is_an_error_that_names_it(
    parts: Parts, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that it counts where the node answers others, and whoever is drawn sees what came."""
    send = parts.prober._hub.send_probe

    async def fail(*args: Any) -> HubAnswer:
        return replace(await send(*args), status=500)

    monkeypatch.setattr(parts.prober._hub, "send_probe", fail)
    verdict, row = await run(parts)
    assert verdict is Verdict.ERROR
    assert row.reason.startswith("failed")
    assert row.result is not None
    (call,) = hub.calls.values()
    records = call.records
    assert row.result.call_id == records.forward.call_id
    assert row.result.request_hash == records.forward.request_hash
    assert records.receipt is not None
    assert row.result.response_hash == records.receipt.response_hash
    assert make_evidence(row) is not None


async def test_probe_that_the_own_judge_can_not_judge_says_nothing_of_its_call(
    parts: Parts, hub: FakeHub, ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await stop_before_judging(parts, monkeypatch)
    set_clock(hub, parts.validator.judging_end_ms(INDEX) - 500)
    again = make_parts(NAMES[0], ledger, hub, tmp_path)

    async def refuse(exchange: object) -> Judgement:
        raise RecoverableError("EMC-1811", "no memory")

    monkeypatch.setattr(again.prober._judge_desk, "judge_exchange", refuse)
    verdict, row = await run(again)
    assert verdict is Verdict.ERROR
    assert row.result is not None
    assert row.result.call_id == NO_CALL


async def test_probe_of_a_model_nobody_judges_is_an_error(parts: Parts, hub: FakeHub) -> None:
    hub.nodes[0].models = ("another",)
    assert (await run(parts))[0] is Verdict.ERROR


async def test_probe_altered_answer_is_an_error_not_a_strike(parts: Parts, hub: FakeHub) -> None:
    hub.edit_answer = lambda body: body.replace(b'"index":0', b'"index": 0')
    verdict, row = await run(parts)
    assert verdict is Verdict.ERROR
    assert "another answer" in row.reason
    assert row.result is not None
    assert row.result.call_id in hub.calls


async def test_probe_altered_request_is_an_error_not_a_strike(parts: Parts, hub: FakeHub) -> None:
    hub.edit_request = lambda upstream: upstream.replace(b'"input":', b'"input": ')
    verdict, row = await run(parts)
    assert verdict is Verdict.ERROR
    assert "another request" in row.reason


async def test_probe_without_a_receipt_is_an_error_at_the_end_of_the_round(
    parts: Parts, hub: FakeHub, ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await stop_before_judging(parts, monkeypatch)
    hub.receipts_missing = True
    set_clock(hub, parts.validator.judging_end_ms(INDEX) - 500)
    verdict, row = await run(make_parts(NAMES[0], ledger, hub, tmp_path))
    assert verdict is Verdict.ERROR
    assert row.reason == "no receipt came"
    assert row.result is not None
    call = hub.calls[row.result.call_id]
    assert (row.result.request_hash, row.result.response_hash) == (
        call.records.forward.request_hash,
        ZERO_HASH,
    )


async def stop_before_judging(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the round until the answer is there, then crash."""

    async def die(*args: object) -> None:
        raise RuntimeError("power")

    monkeypatch.setattr(parts.prober, "_judge", die)
    with pytest.RaisesGroup(RuntimeError):
        await run(parts)
    assert (await probe_of(parts)).state is ProbeState.ANSWERED


async def test_probe_too_late_for_its_round_is_not_sent(parts: Parts, hub: FakeHub) -> None:
    set_clock(hub, hub.deployment.params.round_end_ms(INDEX) - 500)
    verdict, row = await run(parts)
    assert verdict is None
    assert row.state is ProbeState.PLANNED
    assert not hub.requests


async def test_probe_under_way_at_a_crash_is_lost_and_left_out_of_the_reveal(
    parts: Parts, hub: FakeHub
) -> None:
    validator, row = parts.validator, await probe_of(parts)
    assert await validator.write(lambda con: mark_sent(con, validator.address, row, "m", b"body"))
    await validator.write(lambda con: mark_lost(con, validator.address, "crash"))
    verdict, row = await run(parts)
    assert verdict is None
    assert row.state is ProbeState.LOST
    assert not hub.requests
    set_clock(hub, validator.reveal_at_ms(INDEX))
    reveal = await reveal_round(validator, INDEX)
    assert reveal is not None
    assert reveal.probes == ()


async def test_probe_twice_run_is_sent_once(parts: Parts, hub: FakeHub) -> None:
    await run(parts)
    await run(parts)
    assert len(hub.requests) == 1


async def test_probe_answered_before_a_crash_is_judged_after_it(
    parts: Parts, hub: FakeHub, ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await stop_before_judging(parts, monkeypatch)
    verdict, _ = await run(make_parts(NAMES[0], ledger, hub, tmp_path))
    assert verdict is Verdict.PASS
    assert len(hub.requests) == 1


async def test_probe_unreachable_hub_is_an_error(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    async def send_probe(*args: object) -> HubAnswer:
        return HubAnswer(0, reason="EMC-1302: late")

    monkeypatch.setattr(parts.prober._hub, "send_probe", send_probe)
    verdict, row = await run(parts)
    assert verdict is Verdict.ERROR
    assert "EMC-1302" in row.reason


async def test_reveal_before_the_end_of_the_round_is_none(parts: Parts, hub: FakeHub) -> None:
    await run(parts)
    assert await reveal_round(parts.validator, INDEX) is None
    set_clock(hub, parts.validator.reveal_at_ms(INDEX))
    reveal = await reveal_round(parts.validator, INDEX)
    assert reveal is not None
    assert len(reveal.probes) == 1


async def test_reveal_after_the_grace_is_none(parts: Parts, hub: FakeHub) -> None:
    set_clock(hub, hub.deployment.params.grace_end_ms(INDEX))
    assert await reveal_round(parts.validator, INDEX) is None


async def test_reveal_first_one_stands_whatever_is_judged_later(parts: Parts, hub: FakeHub) -> None:
    set_clock(hub, parts.validator.reveal_at_ms(INDEX))
    first = await reveal_round(parts.validator, INDEX)
    set_clock(hub, hub.deployment.params.round_start_ms(INDEX) + 17_000)
    await run(parts)
    set_clock(hub, parts.validator.reveal_at_ms(INDEX) + 5)
    assert await reveal_round(parts.validator, INDEX) == first


def test_api_keys_are_read_rotated_and_never_shown(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# mine\nemc_sk_one\n\nemc_sk_two\n", "utf-8")
    file.chmod(0o600)
    keys = load_api_keys(file, "")
    assert {keys.pick(number, {}, 0) for number in range(4)} == {"emc_sk_one", "emc_sk_two"}
    assert "emc_sk" not in repr(keys)


def test_api_keys_missing_open_or_empty_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "keys"
    with pytest.raises(Exception, match="EMC-1805"):
        load_api_keys(file, "")
    file.write_text("emc_sk_one", "utf-8")
    file.chmod(0o604)
    with pytest.raises(Exception, match="EMC-1106"):
        load_api_keys(file, "")
    monkeypatch.setenv("EMPTY_KEYS", " , ")
    with pytest.raises(Exception, match="EMC-1805"):
        load_api_keys(None, "EMPTY_KEYS")


async def test_probe_when_the_hub_shows_no_nodes_is_an_error(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fetch_nodes() -> None:
        raise RecoverableError("EMC-1301", "hub")

    monkeypatch.setattr(parts.prober._hub, "fetch_nodes", fetch_nodes)
    verdict, row = await run(parts)
    assert verdict is Verdict.ERROR
    assert "EMC-1301" in row.reason


async def test_probe_of_a_node_that_went_away_in_the_round_is_an_error(
    parts: Parts, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fetch_nodes() -> dict[Address, NodeOffer]:
        return {hub.nodes[0].key.address: NodeOffer(False, frozenset(), hub.now_ms())}

    monkeypatch.setattr(parts.prober._hub, "fetch_nodes", fetch_nodes)
    verdict, row = await run(parts)
    assert verdict is Verdict.ERROR
    assert "went away" in row.reason


async def test_probe_taken_by_another_task_is_not_sent(parts: Parts, hub: FakeHub) -> None:
    validator, row = parts.validator, await probe_of(parts)
    target = _Target(validator.models["all-MiniLM-L6-v2"], ProbeRequest("/v1/embeddings", b"{}"))
    draws = Draws(bytes(32), bytes(32))
    assert await validator.write(lambda con: mark_sent(con, validator.address, row, "m", b"body"))
    assert (await parts.prober._send(draws, row, target)).state is ProbeState.LOST
    assert not hub.requests
