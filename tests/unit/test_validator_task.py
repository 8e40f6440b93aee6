"""Tasks between validators: who may give them, what is taken, answered, signed once, and accused."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any, cast

import msgspec
import pytest
import structlog
import trio
from starlette.requests import Request

from emcd.accounting.offence import FalseVerdict, OffenceKind, SignedTask, SignedTaskResult
from emcd.accounting.token_check import ProbeKind
from emcd.errors import RecoverableError, RemoteProtocolError
from emcd.ledger import Ledger
from emcd.proto.messages import Task, TaskResult, Verdict
from emcd.proto.transcript import Transcript, transcript_hash
from emcd.testing import make_key, temporary_ledger
from emcd_validator import task_desk, task_giver
from emcd_validator.decoy import Sample, rewrite
from emcd_validator.entry import TaskEntry
from emcd_validator.judge import Judgement, Numbers
from emcd_validator.queries.offences import Kept, list_offences
from emcd_validator.queries.tasks import TaskRow, list_passed_decoys, list_tasks
from emcd_validator.role import SPEC
from emcd_validator.signatory import finish_drafts
from emcd_validator.statement import write_task_result
from emcd_validator.task_form import (
    HEADER,
    MAX_BODY_BYTES,
    read_header,
    read_transcript,
    write_header,
    write_transcript,
)
from emcd_validator.task_page import TaskPages
from emcd_validator.view import RoundView
from tests.support.round_world import edited
from tests.support.validator_world import (
    MINILM_NAME,
    MODEL_HASH,
    FakeHub,
    Parts,
    answer_body,
    count_tokens,
    fake_vector,
    make_parts,
    make_world,
    set_clock,
)
from tests.unit.test_validator_crash import CrashError, CrashingLedger

NAMES = ("validator-1", "validator-2", "validator-3")
INDEX = 3
RECEIVER, SENDER = make_key(NAMES[0]), make_key(NAMES[1])


def make_transcript(text: str = "some text", *, noise: float = 0.0, nonce: int = 1) -> Transcript:
    request = msgspec.json.encode({"input": [text], "model": MINILM_NAME})
    response = answer_body((fake_vector(text, noise),), count_tokens([text]))
    path, kind = "/v1/embeddings", "application/json"
    return Transcript(MODEL_HASH, path, request, 200, kind, response, bytes([nonce]) * 32)


@dataclass
class TaskPeers:
    """Peers of whom each answers with its own desk, or as a test says."""

    desks: dict[str, TaskPages] = field(default_factory=dict)
    say: Any = None
    stalled: set[str] = field(default_factory=set)
    posts: int = 0

    async def give_task(self, endpoint: str, header: str, transcript: bytes) -> dict[str, Any]:
        name = endpoint.rsplit("/", 1)[1]
        if name in self.stalled:
            await trio.sleep_forever()
        self.posts += 1
        if self.say is not None:
            return dict(self.say(header, transcript))
        return await post(self.desks[name], header, transcript)

    async def find_task(self, endpoint: str, task_hash: bytes) -> dict[str, Any] | None:
        pages = self.desks[endpoint.rsplit("/", 1)[1]]
        scope = {"type": "http", "method": "GET", "path_params": {"key": "0x" + task_hash.hex()}}
        answer = await pages._find(Request(scope))
        return None if answer.status_code == 404 else dict(msgspec.json.decode(bytes(answer.body)))


async def ask(pages: TaskPages, header: str, body: bytes) -> tuple[int, dict[str, Any]]:
    async def receive() -> dict[str, Any]:
        await trio.lowlevel.checkpoint()
        return {"type": "http.request", "body": body, "more_body": False}

    headers = [(HEADER.encode(), header.encode())]
    scope = {"type": "http", "method": "POST", "headers": headers, "client": ("10.0.0.1", 5)}
    answer = await pages._take(Request(scope, receive))
    return answer.status_code, msgspec.json.decode(bytes(answer.body))


async def post(pages: TaskPages, header: str, body: bytes) -> dict[str, Any]:
    status, page = await ask(pages, header, body)
    if status not in (200, 202):
        raise RecoverableError("EMC-1809", f"{status} {page}")
    return page


@dataclass
class World:
    """Validators that probed one round, which is over."""

    hub: FakeHub
    parts: dict[str, Parts]
    pages: dict[str, TaskPages]
    peers: TaskPeers
    view: RoundView

    def header(self, transcript: Transcript, signer: Any = SENDER, **changes: Any) -> str:
        task = Task(SENDER.address, RECEIVER.address, INDEX, transcript_hash(transcript))
        task = edited(task, **changes)
        return write_header(task, signer.sign(self.hub.deployment.staking_domain, task))

    async def bring(self, transcript: Transcript, header: str = "") -> tuple[int, dict[str, Any]]:
        return await ask(
            self.pages[NAMES[0]], header or self.header(transcript), write_transcript(transcript)
        )


@pytest.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[Ledger]:
    async with temporary_ledger(tmp_path, {"validator": SPEC.migrations}) as opened:
        yield opened


@pytest.fixture
async def world(ledger: Ledger, tmp_path: Path) -> World:
    hub, peers = make_world(NAMES, round_s=20), TaskPeers()
    params = hub.deployment.params
    parts, pages = {}, {}
    for name in NAMES:
        one = parts[name] = make_parts(name, ledger, hub, tmp_path, peers=peers)
        pages[name] = peers.desks[name] = TaskPages(one.validator, one.watch.tasks)
        set_clock(hub, params.round_start_ms(INDEX) - 500)
        await one.committer.commit(INDEX)
        set_clock(hub, params.round_start_ms(INDEX) + 17_000)
        view = await one.views.fetch_view(INDEX)
        await one.committer.plan(view)
        await one.prober.run_round(INDEX)
    set_clock(hub, params.round_end_ms(INDEX) + 100)
    return World(hub, parts, pages, peers, view)


async def wait_answer(world: World, transcript: Transcript) -> TaskResult:
    """What the receiver signed, and that it did."""
    with trio.fail_after(5):
        while True:
            status, page = await world.bring(transcript)
            if status == 200:
                break
            await trio.sleep(0.01)
    header, _ = read_header(world.header(transcript))
    entry = await world.parts[NAMES[0]].watch.tasks.find_answer(header.task_hash)
    assert entry is not None
    assert write_task_result(entry) == page
    domain = world.hub.deployment.staking_domain
    assert entry.signature == RECEIVER.sign(domain, entry.result)
    return entry.result


@pytest.mark.parametrize(("noise", "verdict"), [(0.0, Verdict.PASS), (0.3, Verdict.GROSS)])
async def test_task_of_a_member_is_judged_and_answered_with_a_signature(
    world: World, nursery: trio.Nursery, noise: float, verdict: Verdict
) -> None:
    transcript = make_transcript(noise=noise)
    assert await world.bring(transcript) == (202, {"state": "queued"})
    nursery.start_soon(world.parts[NAMES[0]].watch.tasks.run)
    result = await wait_answer(world, transcript)
    assert (result.validator, result.round, result.verdict) == (RECEIVER.address, INDEX, verdict)


async def test_task_brought_again_is_judged_once(world: World, nursery: trio.Nursery) -> None:
    transcript, parts = make_transcript(), world.parts[NAMES[0]]
    runs = parts.reference.runs
    for _ in range(5):
        assert (await world.bring(transcript))[0] == 202
    nursery.start_soon(parts.watch.tasks.run)
    await wait_answer(world, transcript)
    assert (await world.bring(transcript))[0] == 200
    assert parts.reference.runs == runs + 1


async def test_task_of_nobody_who_may_give_one_is_refused_unread(world: World) -> None:
    transcript = make_transcript()
    stranger = make_key("stranger")
    headers = [
        "",
        "zz",
        "00" * 40,
        world.header(transcript, signer=stranger),
        world.header(transcript, signer=stranger, sender=stranger.address),
        world.header(transcript, receiver=SENDER.address),
        world.header(transcript, signer=RECEIVER, sender=RECEIVER.address),
        world.header(transcript, round=INDEX - 1),
        world.header(transcript, round=INDEX + 1),
        world.header(transcript) + "00" * 2000,
    ]

    async def receive() -> dict[str, Any]:
        raise AssertionError("the body was read")

    for header in headers:
        scope = {"type": "http", "method": "POST", "client": ("10.0.0.2", 5)}
        scope["headers"] = [(HEADER.encode(), header.encode())]
        answer = await world.pages[NAMES[0]]._take(Request(scope, receive))
        assert answer.status_code == 400, header[:60]


async def test_task_with_another_transcript_than_its_hash_is_refused(world: World) -> None:
    header = world.header(make_transcript())
    for body in (write_transcript(make_transcript(nonce=2)), b"", b"\xc1", b"\x90"):
        status, page = await ask(world.pages[NAMES[0]], header, body)
        assert (status, page["code"]) == (400, "EMC-1867")
    status, _ = await ask(world.pages[NAMES[0]], header, bytes(MAX_BODY_BYTES + 1))
    assert status == 413


async def test_peer_that_floods_is_given_a_few_places_and_takes_nobody_elses(world: World) -> None:
    found = [(await world.bring(make_transcript(nonce=n)))[0] for n in range(1, 10)]
    assert found == [202] * task_desk.TASKS_PER_PEER + [429] * (9 - task_desk.TASKS_PER_PEER)
    other = make_key(NAMES[2])
    transcript = make_transcript(nonce=50)
    header = world.header(transcript, signer=other, sender=other.address)
    assert (await world.bring(transcript, header))[0] == 202


async def test_source_that_brings_nothing_but_faults_is_not_listened_to(world: World) -> None:
    for _ in range(30):
        assert (await ask(world.pages[NAMES[0]], "", b""))[0] == 400
    assert (await world.bring(make_transcript()))[0] == 429


async def test_task_too_late_is_not_taken(world: World) -> None:
    set_clock(world.hub, world.parts[NAMES[0]].validator.tasks_end_ms(INDEX))
    assert (await world.bring(make_transcript()))[0] == 410


async def test_validator_whose_own_judge_was_wrong_answers_nothing(
    world: World, nursery: trio.Nursery
) -> None:
    parts, transcript = world.parts[NAMES[0]], make_transcript()
    parts.voter.own_judge.note_passed(INDEX, "wrong")
    await world.bring(transcript)
    nursery.start_soon(parts.watch.tasks.run)
    await trio.sleep(0.05)
    assert await parts.watch.tasks.find_answer(transcript_hash(transcript)) is None


async def run_giver(world: World, name: str = NAMES[1]) -> None:
    parts = world.parts[name]
    with trio.move_on_after(1.5):
        await parts.watch.giver.run(world.view)


async def give_until_decoy(world: World, name: str = NAMES[1]) -> None:
    """Tasks are random: the giver's coin falls until a decoy is among them."""
    parts = world.parts[name]
    parts.watch.giver._rng = AlwaysDecoy()
    await run_giver(world, name)


class AlwaysDecoy(Random):
    """A coin that falls on one side."""

    def random(self) -> float:
        return 0.1


async def test_giver_mixes_real_ones_and_decoys_and_honest_peers_know_each(
    world: World, nursery: trio.Nursery
) -> None:
    for name in NAMES:
        nursery.start_soon(world.parts[name].watch.tasks.run)
    await give_until_decoy(world)
    validator = world.parts[NAMES[1]].validator
    rows = await validator.read(lambda con: list_tasks(con, validator.address, INDEX))
    assert {row.receiver for row in rows} == {make_key(name).address for name in (NAMES[0], NAMES[2])}
    assert len({row.task_hash for row in rows}) == 2
    assert all(row.is_decoy and row.verdict == Verdict.GROSS and not row.transcript for row in rows)
    assert await world.parts[NAMES[1]].offences.desk.collect() == 0


async def test_giver_restarted_gives_the_tasks_that_it_wrote_down(world: World) -> None:
    world.peers.stalled = set(NAMES)
    await run_giver(world)
    validator = world.parts[NAMES[1]].validator
    before = await validator.read(lambda con: list_tasks(con, validator.address, INDEX))
    assert before
    await run_giver(world)
    assert await validator.read(lambda con: list_tasks(con, validator.address, INDEX)) == before


async def test_giver_is_stalled_by_nobody(world: World, nursery: trio.Nursery) -> None:
    nursery.start_soon(world.parts[NAMES[2]].watch.tasks.run)
    world.peers.stalled = {NAMES[0]}
    await run_giver(world)
    validator = world.parts[NAMES[1]].validator
    rows = await validator.read(lambda con: list_tasks(con, validator.address, INDEX))
    answered = {row.receiver: row.verdict is not None for row in rows}
    assert answered == {RECEIVER.address: False, make_key(NAMES[2]).address: True}


def sign_answer(world: World, said: Verdict, signer: Any = None, **changes: Any) -> Any:
    """A peer that answers every task with one verdict, whatever it is."""

    def say(header: str, transcript: bytes) -> dict[str, Any]:
        task, _ = read_header(header)
        result = TaskResult(task.receiver, task.round, task.task_hash, int(said), 0)
        result = edited(result, **changes)
        key = signer or next(make_key(n) for n in NAMES if make_key(n).address == task.receiver)
        return write_task_result(TaskEntry(result, key.sign(world.hub.deployment.staking_domain, result)))

    return say


async def test_peer_that_passes_a_decoy_is_accused_and_every_validator_is_convinced(world: World) -> None:
    world.peers.say = sign_answer(world, Verdict.PASS)
    await give_until_decoy(world)
    parts = world.parts[NAMES[1]]
    assert await parts.offences.desk.collect() == 2
    validator = parts.validator
    rows = await validator.read(lambda con: list_offences(con, validator.address, 0))
    assert {(row.offence.kind, row.offence.offender) for row in rows} == {
        (OffenceKind.FALSE_VERDICT, RECEIVER.address),
        (OffenceKind.FALSE_VERDICT, make_key(NAMES[2]).address),
    }
    assert await parts.offences.desk.collect() == 0
    for proof in await parts.offences.desk._list_false_verdicts():
        assert await world.parts[NAMES[0]].offences.desk.take(proof) is Kept.NEW
        assert await world.parts[NAMES[0]].offences.desk.take(proof) is Kept.KNOWN


async def fetch_proof(world: World) -> FalseVerdict:
    world.peers.say = sign_answer(world, Verdict.PASS)
    await give_until_decoy(world)
    proofs = await world.parts[NAMES[1]].offences.desk._list_false_verdicts()
    return cast("FalseVerdict", proofs[0])


async def test_false_verdict_is_computed_only_when_all_else_is_right(world: World) -> None:
    proof = await fetch_proof(world)
    judge_parts = world.parts[NAMES[2]]
    runs, desk = judge_parts.reference.runs, judge_parts.offences.desk
    stranger = make_key("stranger")
    task, result = proof.task, proof.result
    domain = world.hub.deployment.staking_domain
    foreign = edited(task.task, sender=stranger.address)
    failed = edited(result.result, verdict=int(Verdict.FAIL))
    receiver = next(make_key(name) for name in NAMES if make_key(name).address == task.task.receiver)
    for bad in (
        edited(proof, task=edited(task, signature=bytes(65))),
        edited(proof, task=edited(task, task=foreign, signature=stranger.sign(domain, foreign))),
        edited(proof, result=edited(result, signature=bytes(65))),
        edited(proof, result=edited(result, result=failed, signature=receiver.sign(domain, failed))),
        edited(proof, transcript=edited(proof.transcript, nonce=bytes(32))),
    ):
        with pytest.raises(RemoteProtocolError):
            await desk.take(bad)
    assert judge_parts.reference.runs == runs
    assert await desk.take(proof) is Kept.NEW


def accuse(world: World, text: str, nonce: int) -> FalseVerdict:
    """A member accuses another of having passed what was right."""
    transcript = make_transcript(text, nonce=nonce)
    domain = world.hub.deployment.staking_domain
    task = Task(SENDER.address, RECEIVER.address, INDEX, transcript_hash(transcript))
    result = TaskResult(RECEIVER.address, INDEX, task.task_hash, int(Verdict.PASS), 0)

    return FalseVerdict(
        SignedTask(task, SENDER.sign(domain, task)),
        SignedTaskResult(result, RECEIVER.sign(domain, result)),
        transcript,
    )


async def test_wrong_accusations_cost_who_brings_them_its_hearing(world: World) -> None:
    parts = world.parts[NAMES[2]]
    runs = parts.reference.runs
    for nonce in (1, 1, 2, 3):
        with pytest.raises(RemoteProtocolError, match="PASS") as caught:
            await parts.offences.desk.take(accuse(world, "right", nonce), "10.0.0.7")
        assert caught.value.code == "EMC-1991"
    assert parts.reference.runs == runs + 3  # what was found right once is not run again
    with pytest.raises(RecoverableError) as waits:
        await parts.offences.desk.take(accuse(world, "right", 4), "10.0.0.7")
    assert waits.value.code == "EMC-1872"
    assert parts.reference.runs == runs + 3


async def test_wrong_accusations_cost_nothing_to_the_member_whose_tasks_they_show(world: World) -> None:
    parts = world.parts[NAMES[2]]
    for nonce in (1, 2, 3):
        with pytest.raises(RemoteProtocolError, match="PASS"):
            await parts.offences.desk.take(accuse(world, "right", nonce), "10.0.0.7")
    proof = await fetch_proof(world)
    assert proof.task.task.sender == SENDER.address
    assert await parts.offences.desk.take(proof, SENDER.address) is Kept.NEW


async def test_one_accusation_brought_by_many_at_once_is_computed_once(world: World) -> None:
    parts, proof = world.parts[NAMES[2]], accuse(world, "right", 1)
    runs = parts.reference.runs

    async def bring(source: str) -> None:
        with pytest.raises(RemoteProtocolError, match="PASS"):
            await parts.offences.desk.take(proof, source)

    async with trio.open_nursery() as nursery:
        for number in range(5):
            nursery.start_soon(bring, f"10.0.0.{number}")
    assert parts.reference.runs == runs + 1


def gross_numbers(kind: ProbeKind, spread: int = 0, **ratios: int) -> Judgement:
    """A GROSS verdict whose statistics are so many times their thresholds."""
    values = {name: ratio * 10**9 for name, ratio in ratios.items()}
    taus, spreads = dict.fromkeys(ratios, 10**9), dict.fromkeys(ratios, spread)
    return Judgement(Verdict.GROSS, numbers=Numbers(kind, values, taus, spreads))


BY_DISTANCE = [
    gross_numbers(ProbeKind.SEEDED, d=10, m=0, w=0),
    gross_numbers(ProbeKind.FIRST, first=10),
    gross_numbers(ProbeKind.EMBED, l2=10),
]
NOT_BY_DISTANCE = [
    gross_numbers(ProbeKind.SEEDED, d=9, m=50_000, w=50_000),
    gross_numbers(ProbeKind.SEEDED, d=50, m=5000, w=5000, spread=10**10),
    gross_numbers(ProbeKind.GREEDY, count=99),
    Judgement(Verdict.GROSS),
]


def say_always(parts: Parts, judgement: Judgement, monkeypatch: pytest.MonkeyPatch) -> None:
    async def say(*args: object) -> Judgement:
        await trio.lowlevel.checkpoint()
        return judgement

    for judge in (parts.watch.giver._judge, parts.watch.false_verdicts._judge):
        monkeypatch.setattr(judge, "judge_transcript", say)


@pytest.mark.parametrize("judgement", NOT_BY_DISTANCE)
async def test_verdict_that_hangs_on_the_tokens_frames_nobody_and_makes_no_decoy(
    world: World, monkeypatch: pytest.MonkeyPatch, judgement: Judgement
) -> None:
    for parts in (world.parts[NAMES[1]], world.parts[NAMES[2]]):
        say_always(parts, judgement, monkeypatch)
    with pytest.raises(RemoteProtocolError, match="FAIL") as caught:
        await world.parts[NAMES[2]].offences.desk.take(accuse(world, "edge", 1))
    assert caught.value.code == "EMC-1991"
    await run_giver(world)
    assert world.peers.posts == 0
    assert world.parts[NAMES[1]].voter.own_judge.muted == set()


@pytest.mark.parametrize("judgement", BY_DISTANCE)
async def test_verdict_that_is_gross_by_distance_convicts_and_makes_a_decoy(
    world: World, monkeypatch: pytest.MonkeyPatch, judgement: Judgement
) -> None:
    for parts in (world.parts[NAMES[1]], world.parts[NAMES[2]]):
        say_always(parts, judgement, monkeypatch)
    assert await world.parts[NAMES[2]].offences.desk.take(accuse(world, "far", 1)) is Kept.NEW
    await run_giver(world)
    assert world.peers.posts


async def test_fault_in_giving_tasks_is_told_and_ends_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_down(*args: object) -> None:
        raise OverflowError("odd")

    giver = world.parts[NAMES[1]].watch.giver
    monkeypatch.setattr(task_giver, "rewrite", break_down)
    with structlog.testing.capture_logs() as logs:
        await giver.run(world.view)
    assert [(line["code"], line["detail"]) for line in logs if line["log_level"] == "error"] == [
        ("EMC-1875", "OverflowError: odd")
    ]


async def test_fault_with_one_peer_costs_no_other_its_task(
    world: World, monkeypatch: pytest.MonkeyPatch, nursery: trio.Nursery
) -> None:
    nursery.start_soon(world.parts[NAMES[2]].watch.tasks.run)
    giver = world.parts[NAMES[1]].watch.giver
    pursue = giver._pursue

    async def break_down(view: RoundView, row: TaskRow, endpoint: str) -> None:
        if row.receiver == RECEIVER.address:
            raise OverflowError("odd")
        await pursue(view, row, endpoint)

    monkeypatch.setattr(giver, "_pursue", break_down)
    await run_giver(world)
    validator = world.parts[NAMES[1]].validator
    rows = await validator.read(lambda con: list_tasks(con, validator.address, INDEX))
    answered = {row.receiver: row.verdict is not None for row in rows}
    assert answered == {RECEIVER.address: False, make_key(NAMES[2]).address: True}


async def test_samples_are_read_off_the_loop_and_long_ones_not_at_all(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    giver, threads = world.parts[NAMES[1]].watch.giver, set()

    def note(sample: Sample, rng: Random) -> Transcript | None:
        threads.add(threading.get_ident())
        return rewrite(sample, rng)

    monkeypatch.setattr(task_giver, "rewrite", note)
    samples = await giver._list_samples(INDEX)
    assert samples
    assert threading.get_ident() not in threads
    longest = max(len(sample.response) for sample in samples)
    monkeypatch.setattr(task_giver, "MAX_SAMPLE_BYTES", longest)
    threads.clear()
    assert len(await giver._list_samples(INDEX)) < len(samples)
    monkeypatch.setattr(task_giver, "MAX_SAMPLE_BYTES", 0)
    threads.clear()
    assert await giver._list_samples(INDEX) == []
    assert not threads


@pytest.mark.parametrize(
    "change",
    [{"round": INDEX + 1}, {"task_hash": bytes(32)}, {"validator": SENDER.address}, {"verdict": 99}],
)
async def test_answer_that_is_none_is_not_kept(world: World, change: dict[str, Any]) -> None:
    world.peers.say = sign_answer(world, Verdict.PASS, **change)
    await give_until_decoy(world)
    validator = world.parts[NAMES[1]].validator
    rows = await validator.read(lambda con: list_tasks(con, validator.address, INDEX))
    assert rows
    assert all(row.verdict is None for row in rows)
    assert await world.parts[NAMES[1]].offences.desk.collect() == 0


async def test_answer_signed_by_somebody_else_is_not_kept(world: World) -> None:
    world.peers.say = sign_answer(world, Verdict.PASS, signer=make_key("stranger"))
    await give_until_decoy(world)
    assert await world.parts[NAMES[1]].offences.desk.collect() == 0


async def test_own_judge_that_passes_a_decoy_gives_none_and_says_so(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = world.parts[NAMES[1]]

    async def blind(*args: object) -> Judgement:
        await trio.lowlevel.checkpoint()
        return Judgement(Verdict.PASS)

    monkeypatch.setattr(parts.watch.giver._judge, "judge_transcript", blind)
    await run_giver(world)
    assert world.peers.posts == 0
    assert parts.voter.own_judge.muted == {INDEX}
    assert "EMC-1866" in parts.watch.complaint
    parts.voter.own_judge.note_right(INDEX + 1)
    assert parts.watch.complaint == ""


async def test_real_answer_called_a_strike_accuses_nobody(world: World) -> None:
    world.peers.say = sign_answer(world, Verdict.GROSS)
    parts = world.parts[NAMES[1]]
    await run_giver(world)
    assert await parts.offences.desk.collect() == 0
    validator = parts.validator
    passed = await validator.read(lambda con: list_passed_decoys(con, validator.address, 0, Verdict.PASS))
    assert passed == []


async def test_tasks_page_shows_what_were_decoys_only_when_they_are_due(world: World) -> None:
    world.peers.say = sign_answer(world, Verdict.PASS)
    await give_until_decoy(world)
    pages = world.pages[NAMES[1]]
    request = Request({"type": "http", "method": "GET", "path_params": {"key": str(INDEX)}})
    assert (await pages._find(request)).status_code == 404
    set_clock(world.hub, world.parts[NAMES[1]].validator.tasks_end_ms(INDEX))
    page = msgspec.json.decode(bytes((await pages._find(request)).body))
    assert {(row["is_decoy"], row["verdict"]) for row in page["tasks"]} == {(True, "PASS")}


@pytest.mark.parametrize("after", [False, True])
async def test_validator_that_dies_while_it_answers_signs_one_verdict(
    world: World, tmp_path: Path, ledger: Ledger, after: bool
) -> None:
    signed: dict[bytes, set[tuple[int, bytes]]] = {}
    for crash_at in range(4):
        transcript = make_transcript(nonce=crash_at + 1)
        header, _ = read_header(world.header(transcript))
        for attempt, noise in enumerate((0.0, 0.3)):  # after the crash its judge says something else
            crashing = CrashingLedger(ledger, crash_at if not attempt else 99, after=after)
            parts = make_parts(NAMES[0], cast("Ledger", crashing), world.hub, tmp_path)
            parts.watch.tasks._judge = NoisyJudge(noise)
            try:
                await finish_drafts(parts.validator)
                waiting = task_desk._Waiting(header, transcript)
                await parts.watch.tasks._answer(waiting)
            except CrashError:
                continue
            entry = await parts.watch.tasks.find_answer(header.task_hash)
            assert entry is not None
            signed.setdefault(header.task_hash, set()).add((entry.result.verdict, entry.signature))
    assert len(signed) == 4
    assert all(len(found) == 1 for found in signed.values())
    first_words = [next(iter(found))[0] for found in signed.values()]
    # what was written down before the crash stands; where nothing was, the second word is the first
    assert first_words == [Verdict.PASS if after or crash_at else Verdict.GROSS for crash_at in range(4)]


class NoisyJudge:
    """A judge that calls everything gross when it is noisy."""

    def __init__(self, noise: float) -> None:
        self.noise = noise

    async def judge_transcript(self, *args: object) -> Judgement:
        await trio.lowlevel.checkpoint()
        return Judgement(Verdict.GROSS if self.noise else Verdict.PASS)

    async def judge_exchange(self, exchange: object) -> Judgement:
        return await self.judge_transcript()


async def test_giver_that_dies_at_every_write_gives_one_set_of_tasks_and_accuses_in_the_end(
    world: World, tmp_path: Path, ledger: Ledger
) -> None:
    world.peers.say = sign_answer(world, Verdict.PASS)
    validator = world.parts[NAMES[1]].validator
    given = []
    for crash_at in range(8):
        crashing = CrashingLedger(ledger, crash_at, after=bool(crash_at % 2))
        parts = make_parts(NAMES[1], cast("Ledger", crashing), world.hub, tmp_path, peers=world.peers)
        parts.watch.giver._rng = AlwaysDecoy()
        with suppress(BaseExceptionGroup), trio.move_on_after(1.5):
            await parts.watch.giver.run(world.view)
        rows = await validator.read(lambda con: list_tasks(con, validator.address, INDEX))
        given.append({(row.receiver, row.task_hash) for row in rows})
    assert all(earlier <= later for earlier, later in pairwise(given))
    assert len(given[-1]) == 2
    assert await world.parts[NAMES[1]].offences.desk.collect() == 2


def test_transcript_of_a_task_survives_the_wire() -> None:
    transcript = make_transcript()
    assert read_transcript(write_transcript(transcript), transcript_hash(transcript)) == transcript
    with pytest.raises(RemoteProtocolError):
        read_transcript(write_transcript(transcript), bytes(32))
