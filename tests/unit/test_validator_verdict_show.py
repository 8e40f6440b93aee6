"""Evidence that a stranger recomputes: `emcd verdict show` and `list`, on a round of a toy text model."""

from __future__ import annotations

import json
import random
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import msgspec
import pytest
import trio
import trio.testing

from emcd.cli import main as main_module
from emcd.cli.main import main
from emcd.errors import RecoverableError, RemoteProtocolError
from emcd.inference.minilm import MINILM_NAME
from emcd.ledger import Ledger
from emcd.net.http_client import Response
from emcd.proto.json_form import to_json
from emcd.proto.messages import Verdict
from emcd.proto.network import encode_deployment
from emcd.proto.params import ModelStanding
from emcd.proto.records import format_call_id
from emcd.testing import make_key, temporary_ledger
from emcd_validator import verdict_cli
from emcd_validator.evidence_file import read_whole
from emcd_validator.evidence_page import fetch_evidence_page
from emcd_validator.judge_desk import Judge, make_judge
from emcd_validator.model import JudgedModel, list_judged
from emcd_validator.queries.rounds import find_probe_of_call
from emcd_validator.queries.verdicts import list_verdicts
from emcd_validator.reference import ReferenceSettings
from emcd_validator.revealer import reveal_round
from emcd_validator.schema import MIGRATIONS
from emcd_validator.verdict_examine import Result, examine
from emcd_validator.verdict_text import Surroundings, show
from emcd_validator.verdict_text import tell as tell_text
from tests.support.json_junk import list_places, spoil
from tests.support.text_writer import (
    CHAT,
    HONEST,
    NAME,
    Cheat,
    Writer,
    honest_but,
    make_request,
    make_text_model,
    with_noise,
)
from tests.support.validator_world import (
    HUB,
    MODEL_HASH,
    FakeHub,
    FakeReference,
    Parts,
    make_parts,
    make_world,
    set_clock,
)

INDEX = 3
GROSS = honest_but(distort=with_noise(0.5))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> JudgedModel:
    return make_text_model(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def writer(model: JudgedModel) -> Writer:
    return Writer(model)


@pytest.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[Ledger]:
    async with temporary_ledger(tmp_path, {"validator": MIGRATIONS}) as opened:
        yield opened


@dataclass
class Told:
    """One probe of a round, as evidence."""

    page: dict[str, Any]
    call_id: bytes
    hub: FakeHub
    parts: Parts

    @property
    def data(self) -> bytes:
        return msgspec.json.encode(self.page)


Tell = Callable[..., Any]


@pytest.fixture
def tell(ledger: Ledger, tmp_path: Path, model: JudgedModel, writer: Writer) -> Tell:
    """Live through a round with one validator and one node, which answers as it is told."""

    async def live(cheat: Cheat = HONEST, **hub_settings: Any) -> Told:
        hub = make_world(("validator-1",), embeds=[None], round_s=20, probes_per_node=1)  # type: ignore[list-item]
        hub.nodes[0].models = (NAME,)
        hub.model_hash = model.model_hash
        hub.write = lambda path, body: writer.answer(path, body, cheat)
        for name, value in hub_settings.items():
            setattr(hub, name, value)
        judge = make_judge(hub.deployment.staking_domain, HUB.address, {NAME: model}, ReferenceSettings())
        parts = make_parts("validator-1", ledger, hub, tmp_path, judge=judge)
        start_ms = hub.deployment.params.round_start_ms(INDEX)
        set_clock(hub, start_ms - 500)
        await parts.committer.commit(INDEX)
        set_clock(hub, start_ms + 17_000)
        await parts.committer.plan(await parts.views.fetch_view(INDEX))
        await parts.prober.run_round(INDEX)
        set_clock(hub, parts.validator.reveal_at_ms(INDEX))
        await reveal_round(parts.validator, INDEX)
        (call_id,) = hub.calls
        probe = await ledger.read(lambda con: find_probe_of_call(con, parts.validator.address, call_id))
        assert probe is not None
        page = await fetch_evidence_page(parts.validator, probe)
        assert page is not None
        return Told(json.loads(json.dumps(page)), call_id, hub, parts)

    return live


async def test_evidence_of_an_honest_answer_is_confirmed(tell: Tell, model: JudgedModel) -> None:
    told = await tell()
    examination = examine(read_whole(told.data), model.models_dir)
    assert {item.name: item.holds for item in examination.links.items} == dict.fromkeys(
        ("commitment", "beacon", "leaf", "request", "records", "round"), True
    )
    assert examination.own is not None
    assert examination.own.verdict is Verdict.PASS
    assert examination.result is Result.CONFIRMED


async def test_evidence_of_a_cheat_is_confirmed_and_blames_the_node(tell: Tell, model: JudgedModel) -> None:
    told = await tell(GROSS)
    examination = examine(read_whole(told.data), model.models_dir)
    assert examination.result is Result.CONFIRMED
    assert examination.blame == "node"
    (row,) = await told.parts.validator.read(
        lambda con: list_verdicts(con, told.parts.validator.address, INDEX)
    )
    assert (row.verdict, row.blame, row.part) == (Verdict.GROSS, "node", "probe")
    assert told.page["own"]["numbers"] == json.loads(row.numbers)


async def test_evidence_of_an_altered_answer_blames_the_hub(tell: Tell, model: JudgedModel) -> None:
    told = await tell(edit_answer=lambda body: body.replace(b'"index"', b'"indeX"'))
    examination = examine(read_whole(told.data), model.models_dir)
    assert examination.blame == "hub"
    assert examination.own is not None
    assert examination.own.verdict is Verdict.ERROR
    assert examination.result is Result.CONFIRMED
    assert examination.links.fault is not None
    assert examination.links.fault.is_proven


async def test_evidence_of_an_altered_request_blames_the_hub(tell: Tell, model: JudgedModel) -> None:
    told = await tell(edit_request=lambda body: body.replace(b'"seed":', b'"seed":1'))
    examination = examine(read_whole(told.data), model.models_dir)
    assert examination.blame == "hub"
    assert "another request" in examination.links.items[-2].text
    assert "on the validator's word" in tell_text(examination, Surroundings())


def change_leaf(page: dict[str, Any]) -> None:
    page["leaf"]["index"] += 1


def change_slots(page: dict[str, Any]) -> None:
    page["plan"]["slots"] = []


def change_seed(page: dict[str, Any]) -> None:
    page["plan"]["reveal"]["seed"] = "0x" + "11" * 32


def change_beacon(page: dict[str, Any]) -> None:
    page["plan"]["beacon_hash"] = "0x" + "22" * 32


def change_author(page: dict[str, Any]) -> None:
    page["validator"] = HUB.address


def change_round(page: dict[str, Any]) -> None:
    page["round"] += 1


def swap_request(page: dict[str, Any]) -> None:
    """As a validator would that chose its question after the beacon."""
    page["request_body"] = page["request_body"][:-8] + "AAAAfQ=="


@pytest.mark.parametrize(
    "change",
    [change_leaf, change_slots, change_seed, change_beacon, change_author, change_round, swap_request],
)
async def test_evidence_that_was_changed_does_not_hold(
    tell: Tell, model: JudgedModel, change: Callable[[dict[str, Any]], None]
) -> None:
    told = await tell(GROSS)
    change(told.page)
    examination = examine(read_whole(told.data), model.models_dir)
    assert examination.result is Result.BROKEN


async def test_evidence_of_a_plan_that_was_not_committed_to_does_not_hold(
    tell: Tell, model: JudgedModel
) -> None:
    """Signed by the validator itself, which would have liked another seed."""
    told = await tell(GROSS)
    whole = read_whole(told.data)
    assert whole.reveal is not None
    liked = msgspec.structs.replace(whole.reveal, seed=bytes(32))
    told.page["plan"]["reveal"] = to_json(liked)
    signature = make_key("validator-1").sign(whole.domain, liked)
    told.page["plan"]["reveal_signature"] = "0x" + signature.hex()
    examination = examine(read_whole(told.data), model.models_dir)
    assert examination.result is Result.BROKEN
    assert "do not open the commitment" in examination.links.items[0].text


async def test_evidence_is_not_run_with_another_model_of_that_name(tell: Tell, tmp_path: Path) -> None:
    told = await tell()
    other = make_text_model(tmp_path / "other", seed=2)
    examination = examine(read_whole(told.data), other.models_dir)
    assert examination.result is Result.NOT_RUN
    assert "another model" in examination.why_not


async def test_evidence_of_a_false_accusation_comes_to_another_verdict(
    tell: Tell, model: JudgedModel
) -> None:
    told = await tell()
    told.page["own"]["verdict"] = "GROSS"
    assert examine(read_whole(told.data), model.models_dir).result is Result.DIFFERENT


async def test_evidence_without_the_model_is_followed_but_not_run(tell: Tell, tmp_path: Path) -> None:
    told = await tell(GROSS)
    examination = examine(read_whole(told.data), tmp_path / "nothing")
    assert examination.result is Result.NOT_RUN
    assert "EMC-1631" in examination.why_not
    assert [item.name for item in examination.links.items if item.holds is None] == ["request"]


async def test_evidence_with_junk_in_it_comes_to_an_end(tell: Tell, model: JudgedModel) -> None:
    told = await tell(GROSS)
    draw = random.Random(5)
    junk = [None, True, -1, 300, 2**63, 10**30, 1.5, "", "0x", "0x" + "ff" * 32, "é", [], [[]], {}, "A" * 10]
    places = list_places(told.page)
    results = set()
    for place in draw.sample(places, min(250, len(places))):
        data = msgspec.json.encode(spoil(told.page, place, draw.choice(junk)))
        try:
            whole = read_whole(data)
        except RemoteProtocolError as exc:
            assert exc.code == "EMC-1851"
            continue
        examination = examine(whole, model.models_dir)
        assert tell_text(examination, Surroundings())
        assert show(examination, Surroundings())
        results.add(examination.result)
    assert Result.BROKEN in results


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"round": 1e400}', b'{"a":' * 100_000, bytes(100)])
def test_evidence_that_is_none_is_refused(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match="EMC-1851"):
        read_whole(data)


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str]]:
    """The command line, whatever commands the installed package names."""
    monkeypatch.setattr(main_module._Commands, "get_command", _get_command)
    monkeypatch.setattr(main_module._Commands, "list_commands", lambda self, ctx: ["verdict"])

    def call(*arguments: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        shown = capsys.readouterr()
        return int(ended.value.code or 0), shown.out + shown.err

    return call


def _get_command(self: object, ctx: click.Context, name: str) -> click.Command:
    return verdict_cli.verdict


async def test_show_explains_a_gross_verdict_with_its_numbers(
    tell: Tell, tmp_path: Path, model: JudgedModel, run: Any
) -> None:
    told = await tell(GROSS)
    file = tmp_path / "evidence.json"
    file.write_bytes(told.data)
    deployment = tmp_path / "deployment.json"
    params = msgspec.structs.replace(
        told.hub.deployment.params,
        models=((f"0x{model.model_hash.hex()}", int(ModelStanding.ENFORCED)),),
    )
    enforced = msgspec.structs.replace(told.hub.deployment, params=params)
    deployment.write_text(encode_deployment(enforced))
    command = ("verdict", "show", format_call_id(told.call_id), "--file", str(file))
    code, text = await to_thread(
        run, *command, "--models-dir", str(model.models_dir), "--deployment", str(deployment)
    )
    assert code == 0, text
    assert "GROSS, says validator" in text
    assert "above the threshold" in text
    assert "blame      the node is to blame" in text
    assert "one is enough" in text
    assert "CONFIRMED" in text
    code, text = await to_thread(run, *command, "--models-dir", str(tmp_path), "--json")
    assert code == int(Result.NOT_RUN)
    assert json.loads(text)["result"] == "not_run"
    code, text = await to_thread(run, "verdict", "show", "call_" + "0" * 32, "--file", str(file))
    assert (code, text[:8]) == (1, "EMC-1851")


async def test_show_fetches_from_a_validator_with_votes_and_challenge(
    tell: Tell, model: JudgedModel, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = await tell(GROSS)
    asked: list[str] = []

    async def answer(method: str, url: str, **_: Any) -> Response:
        asked.append(url.removeprefix("http://v"))
        pages = {"evidence": told.page, "challenges": {"state": "unanswered"}, "rounds": {"votes": []}}
        name = url.split("/")[3]
        return Response(200, {}, json.dumps(pages[name]).encode(), url)

    monkeypatch.setattr(verdict_cli, "request", answer)
    name = format_call_id(told.call_id)
    code, text = await to_thread(
        run, "verdict", "show", name, "--url", "http://v/", "--models-dir", str(model.models_dir)
    )
    assert code == 0, text
    node = told.page["node"]
    assert asked == [f"/evidence/{name}", f"/rounds/{INDEX}", f"/challenges/{node}/{name}"]
    assert "unanswered" in text
    assert "votes      none yet" in text


async def test_show_without_a_validator_says_what_to_give(tell: Tell, run: Any, tmp_path: Path) -> None:
    code, text = await to_thread(run, "verdict", "show", "call_" + "0" * 32)
    assert code == 1
    assert "EMC-1852" in text
    assert "--url" in text


async def test_list_shows_verdicts_and_drifts(tell: Tell, run: Any, tmp_path: Path, ledger: Ledger) -> None:
    told = await tell(GROSS)
    code, text = await to_thread(run, "verdict", "list", "--ledger", str(ledger.path))
    assert code == 0, text
    assert f"{INDEX}  probe   GROSS" in text
    assert format_call_id(told.call_id) in text
    assert "drift" in text
    code, text = await to_thread(
        run, "verdict", "list", "--round", "9", "--ledger", str(ledger.path), "--json"
    )
    assert (code, json.loads(text)["verdicts"]) == (0, [])
    code, text = await to_thread(run, "verdict", "list", "--ledger", str(tmp_path / "none.db"))
    assert (code, text[:8]) == (1, "EMC-1854")


async def to_thread(function: Any, *arguments: Any) -> Any:
    """The command runs a loop of its own."""
    return await trio.to_thread.run_sync(lambda: function(*arguments))


async def test_model_that_fails_its_golden_vectors_is_not_judged(tmp_path: Path, nursery: Any) -> None:
    model = make_text_model(tmp_path)
    (model.folder / "model.onnx").write_bytes(b"another graph")
    hub = make_world(("validator-1",), round_s=20)
    judge = make_judge(hub.deployment.staking_domain, HUB.address, {NAME: model}, ReferenceSettings())
    await nursery.start(judge.run)
    with pytest.raises(RecoverableError, match="EMC-1850"):
        await judge.judge_transcript(model.model_hash, "/v1/completions", b"{}", b"{}")
    assert judge.models == {}
    assert judge.complaint.startswith("EMC-1850: toy: EMC-1602")
    with pytest.raises(RecoverableError, match="EMC-1811"):
        await judge.judge_transcript(model.model_hash, "/v1/completions", b"{}", b"{}")


async def test_golden_vectors_are_run_once_and_hold_up_nothing_else(nursery: Any) -> None:
    checked: list[str] = []
    gate = trio.Event()

    async def golden_of(found: JudgedModel, threads: int) -> str:
        checked.append(found.name)
        await gate.wait()
        return ""

    models = list_judged([MINILM_NAME])
    domain = make_world(("validator-1",)).deployment.staking_domain
    judge = Judge(domain, HUB.address, models, {MINILM_NAME: FakeReference()}, golden_of=golden_of)
    await nursery.start(judge.run)
    nursery.start_soon(judge.judge_transcript, MODEL_HASH, "/v1/embeddings", b"{}", b"{}")
    await trio.testing.wait_all_tasks_blocked()
    gate.set()
    judged = await judge.judge_transcript(MODEL_HASH, "/v1/embeddings", b"{}", b"{}")
    assert judged.verdict is Verdict.ERROR
    assert checked == [MINILM_NAME]


async def test_model_that_passes_its_golden_vectors_is_judged(
    model: JudgedModel, writer: Writer, nursery: Any
) -> None:
    judge: Judge = make_judge(
        make_world(("validator-1",)).deployment.staking_domain,
        HUB.address,
        {NAME: model},
        ReferenceSettings(),
    )
    await nursery.start(judge.run)
    body = make_request(CHAT)
    judged = await judge.judge_transcript(model.model_hash, CHAT, body, writer.answer(CHAT, body))
    assert judged.verdict is Verdict.PASS
    assert (judge.complaint, list(judge.models)) == ("", [NAME])


@pytest.mark.parametrize("error", [ValueError("odd"), OverflowError("large")])
async def test_judge_that_can_not_reckon_gives_no_verdict(error: Exception) -> None:
    class Odd:
        async def run(self, work: Callable[[Any], Any]) -> Any:
            raise error

        async def close_idle(self, idle_s: float) -> None:
            pass

    domain = make_world(("validator-1",)).deployment.staking_domain
    judge = Judge(domain, HUB.address, list_judged([MINILM_NAME]), {MINILM_NAME: Odd()})
    with pytest.raises(RecoverableError, match="EMC-1855"):
        await judge.judge_transcript(MODEL_HASH, "/v1/embeddings", b"{}", b"{}")
