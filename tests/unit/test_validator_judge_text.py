"""Written answers: every verdict from real answers of a toy model, each step of VERIFICATION 5.3."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from emcd.accounting.token_check import Position
from emcd.accounting.verdict import NumericClass
from emcd.inference.decoder_session import DecoderSession
from emcd.inference.manifest import CLASS_THRESHOLDS
from emcd.inference.rounded_graph import rounded_graph
from emcd.proto.messages import Verdict
from emcd_validator.judge import Judgement
from emcd_validator.judge_request import TextAsk
from emcd_validator.judge_text import Claim, TextCase
from emcd_validator.model import JudgedModel
from emcd_validator.reference_text import TextReference
from emcd_validator.verdict_run import judge_writing
from tests.support.text_writer import (
    CHAT,
    COMPLETIONS,
    END,
    END_OF_TURN,
    HONEST,
    Cheat,
    Writer,
    honest_but,
    make_request,
    make_text_model,
    with_noise,
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> JudgedModel:
    return make_text_model(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def reference(model: JudgedModel) -> TextReference:
    return TextReference(model, 1)


@pytest.fixture(scope="module")
def writer(model: JudgedModel) -> Writer:
    return Writer(model)


class Bench:
    """One model's node and judge."""

    def __init__(self, model: JudgedModel, writer: Writer, reference: TextReference) -> None:
        self.model, self.writer, self.reference = model, writer, reference

    def judge(
        self, path: str = CHAT, cheat: Cheat = HONEST, receipt: Claim | None = None, **request: Any
    ) -> Judgement:
        body = make_request(path, **request)
        return self.judge_bytes(path, body, self.writer.answer(path, body, cheat), receipt)

    def judge_bytes(self, path: str, body: bytes, answer: bytes, receipt: Claim | None = None) -> Judgement:
        return judge_writing(self.reference, self.model, path, body, answer, receipt)


@pytest.fixture(scope="module")
def bench(model: JudgedModel, writer: Writer, reference: TextReference) -> Bench:
    return Bench(model, writer, reference)


REQUESTS: list[dict[str, Any]] = [
    {},
    {"temperature": 0},
    {"temperature": 0.6, "top_p": 0.8},
    {"top_k": 5},
    {"stop": ["e", "zz"]},
    {"max_tokens": 1},
    {"stream": True, "stream_options": {"include_usage": True}},
]


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
@pytest.mark.parametrize("asked", REQUESTS, ids=str)
def test_judge_honest_answer_passes(bench: Bench, path: str, asked: dict[str, Any]) -> None:
    for seed in range(3):
        judged = bench.judge(path, seed=seed, **asked)
        assert judged.verdict is Verdict.PASS, judged
        assert judged.numbers is not None and judged.numbers.spreads == {}


@pytest.mark.parametrize("setting", [("off", 1, 7), ("basic", 2, None), ("extended", 1, 64)], ids=str)
def test_judge_other_threads_levels_and_batches_pass(
    bench: Bench, setting: tuple[str, int, int | None]
) -> None:
    level, threads, chunk = setting
    other = Writer(bench.model, optimization=level, threads=threads, chunk_tokens=chunk)
    for seed in range(3):
        body = make_request(seed=seed)
        judged = bench.judge_bytes(CHAT, body, other.answer(CHAT, body))
        assert judged.verdict is Verdict.PASS, judged


@pytest.mark.parametrize(
    ("cheat", "asked", "verdict", "worst"),
    [
        (honest_but(distort=with_noise(2e-3)), {}, Verdict.CLASS, "d"),
        (honest_but(distort=with_noise(0.5)), {}, Verdict.GROSS, "d"),
        (honest_but(distort=with_noise(0.5)), {"temperature": 0}, Verdict.GROSS, "d"),
        (honest_but(distort=with_noise(1.0), launders=True), {}, Verdict.GROSS, "m"),
        (honest_but(distort=with_noise(1.0), launders=True), {"temperature": 0}, Verdict.GROSS, "m"),
        (honest_but(sampling={"temperature": 0.5}), {}, Verdict.GROSS, "m"),
        (honest_but(sampling={"temperature": 0}), {}, Verdict.GROSS, "m"),
        (honest_but(sampling={"top_k": 2}), {}, Verdict.GROSS, "m"),
        (honest_but(sampling={"seed": 5}), {}, Verdict.GROSS, "m"),
        (honest_but(prompt=lambda ids: ids[len(ids) // 2 :]), {}, Verdict.GROSS, "d"),
        (honest_but(prompt=lambda ids: ids[len(ids) // 2 :]), {"max_tokens": 1}, Verdict.GROSS, "first"),
    ],
    ids=str,
)
def test_judge_cheat_is_caught(
    bench: Bench, cheat: Cheat, asked: dict[str, Any], verdict: Verdict, worst: str
) -> None:
    judged = bench.judge(cheat=cheat, **asked)
    assert judged.verdict is verdict, judged
    assert judged.numbers is not None
    assert " is " in judged.reason
    assert judged.numbers.values[worst] > judged.numbers.taus[worst]
    assert judged.numbers.spreads[worst] < judged.numbers.taus[worst] / 5
    assert judged.statistic_e12 > 10**12


def test_judge_laundered_choice_leaves_logprobs_exact(bench: Bench) -> None:
    judged = bench.judge(cheat=honest_but(distort=with_noise(1.0), launders=True))
    assert judged.numbers is not None
    assert judged.numbers.values["d"] < judged.numbers.taus["d"] / 100


def test_judge_without_a_known_sampler_judges_logprobs_alone(tmp_path: Path) -> None:
    model = make_text_model(tmp_path, sampler="engine")
    bench = Bench(model, Writer(model), TextReference(model, 1))
    odd = bench.judge(cheat=honest_but(sampling={"seed": 99}))
    assert odd.verdict is Verdict.PASS
    assert odd.numbers is not None
    assert odd.numbers.kind.value == "gen.free"
    assert odd.numbers.z_variance > 0
    assert bench.judge(cheat=honest_but(distort=with_noise(0.5))).verdict is Verdict.GROSS
    assert bench.judge(cheat=honest_but(sampling={"seed": 9}), temperature=0).verdict is Verdict.PASS


def drop_last_token(answer: dict[str, Any]) -> None:
    choice = answer["choices"][0]
    choice["token_ids"].pop()
    choice["logprobs"]["content"].pop()


def set_prompt(answer: dict[str, Any]) -> None:
    answer["prompt_token_ids"] = [*answer["prompt_token_ids"][:-1], 5]


def set_text(answer: dict[str, Any]) -> None:
    answer["choices"][0]["message"]["content"] += " and buy this"


def set_bytes(answer: dict[str, Any]) -> None:
    answer["choices"][0]["logprobs"]["content"][3]["bytes"] = list(b"else")


def set_end_within(answer: dict[str, Any]) -> None:
    answer["choices"][0]["token_ids"][2] = 0


def set_beyond(answer: dict[str, Any]) -> None:
    answer["choices"][0]["token_ids"][2] = 100_000


@pytest.mark.parametrize("edit", [set_prompt, set_text, set_bytes, set_end_within, set_beyond])
def test_judge_template_mismatch_is_never_a_strike(bench: Bench, edit: Any) -> None:
    judged = bench.judge(cheat=honest_but(edit=edit, distort=with_noise(0.5)))
    assert judged.verdict is Verdict.TEMPLATE, judged


def test_judge_token_that_is_not_delivered_is_a_template_mismatch(bench: Bench) -> None:
    judged = bench.judge(cheat=honest_but(edit=drop_last_token))
    assert judged.verdict is Verdict.TEMPLATE
    assert judged.reason.startswith("the text is not that of the tokens")


def test_judge_answer_that_goes_on_after_its_end_is_a_template_mismatch(bench: Bench) -> None:
    def edit(answer: dict[str, Any]) -> None:
        set_end_within(answer)
        choice = answer["choices"][0]
        choice["message"]["content"] = bench.writer.tokenizer.decode(choice["token_ids"])

    judged = bench.judge(cheat=honest_but(edit=edit))
    assert judged.verdict is Verdict.TEMPLATE
    assert judged.reason == "token 2 of 24 ends an answer, and it goes on"


def test_judge_answer_that_goes_on_after_a_stop_text_is_a_template_mismatch(bench: Bench) -> None:
    body = make_request(stop=["e"])
    answer = bench.writer.answer(CHAT, make_request())
    judged = bench.judge_bytes(CHAT, body, answer)
    assert judged.verdict is Verdict.TEMPLATE
    assert judged.reason == "the answer goes on after a stop text"


def extra_id(answer: dict[str, Any]) -> None:
    answer["choices"][0]["token_ids"].append(70)


def no_logprobs(answer: dict[str, Any]) -> None:
    answer["choices"][0]["logprobs"] = None


def few_logprobs(answer: dict[str, Any]) -> None:
    del answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"][1:]


def no_usage(answer: dict[str, Any]) -> None:
    del answer["usage"]


def two_choices(answer: dict[str, Any]) -> None:
    answer["choices"].append({**answer["choices"][0], "index": 1})


def cut_short(answer: dict[str, Any]) -> None:
    choice = answer["choices"][0]
    del choice["token_ids"][5:], choice["logprobs"]["content"][5:]
    answer["usage"]["completion_tokens"] = 5


def no_reason(answer: dict[str, Any]) -> None:
    answer["choices"][0]["finish_reason"] = None


@pytest.mark.parametrize("edit", [no_logprobs, few_logprobs, no_usage, two_choices, no_reason, extra_id])
def test_judge_what_cannot_be_checked_is_an_error(bench: Bench, edit: Any) -> None:
    assert bench.judge(cheat=honest_but(edit=edit)).verdict is Verdict.ERROR


def second_of_the_same_number(choice: dict[str, Any]) -> list[dict[str, Any]]:
    return [choice, dict(choice)]


def second_of_the_next_number(choice: dict[str, Any]) -> list[dict[str, Any]]:
    return [choice, {**choice, "index": 1}]


def only_of_the_next_number(choice: dict[str, Any]) -> list[dict[str, Any]]:
    return [{**choice, "index": 1}]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "more", [second_of_the_same_number, second_of_the_next_number, only_of_the_next_number]
)
def test_judge_second_choice_is_an_error(bench: Bench, more: Any, stream: bool) -> None:
    asked: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
    body = make_request(**asked)
    events = bench.writer.answer(CHAT, body).removesuffix(b"data: [DONE]\n\n").split(b"\n\n")
    table = json.loads(events[0].removeprefix(b"data: "))
    table["choices"] = more(table["choices"][0])
    head = json.dumps(table).encode()
    answer = b"\n\n".join([b"data: " + head, *events[1:-1], b"data: [DONE]", b""]) if stream else head
    judged = bench.judge_bytes(CHAT, body, answer)
    assert judged.verdict is Verdict.ERROR
    assert judged.reason == "the answer holds more than the one choice that was asked for"


def test_judge_choice_after_the_end_of_a_stream_is_an_error(bench: Bench) -> None:
    body = make_request(stream=True, stream_options={"include_usage": True})
    events = bench.writer.answer(CHAT, body).split(b"\n\n")
    *parts, usage, done, rest = events
    again = b"\n\n".join([*parts, parts[0], usage, done, rest])
    judged = bench.judge_bytes(CHAT, body, again)
    assert judged.reason == "the answer holds more than the one choice that was asked for"
    bare = b'data: {"choices": [{"index": 0, "delta": {}}]}'
    closed = b"\n\n".join([*parts, bare, usage, done, rest])
    assert bench.judge_bytes(CHAT, body, closed).verdict is Verdict.PASS


def repeat_the_first(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return entries[:1] * 5


def rename_to_none(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    junk = [{"token": f"no token {n}", "bytes": None, "logprob": -9.0} for n in range(4)]
    return [entries[0], *junk]


def rename_beyond(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**item, "token": f"token_id:{10**6 + n}"} for n, item in enumerate(entries)]


@pytest.mark.parametrize("spoil", [repeat_the_first, rename_to_none, rename_beyond])
def test_judge_alternatives_that_are_not_so_many_tokens_are_an_error(bench: Bench, spoil: Any) -> None:
    def edit(answer: dict[str, Any]) -> None:
        entry = answer["choices"][0]["logprobs"]["content"][7]
        entry["top_logprobs"] = spoil(entry["top_logprobs"])

    judged = bench.judge(cheat=honest_but(edit=edit))
    assert judged.verdict is Verdict.ERROR
    assert judged.reason.startswith("can't be checked: token 7 comes with ")


def test_judge_completions_alternatives_are_counted_alike(bench: Bench) -> None:
    def edit(answer: dict[str, Any]) -> None:
        tops = answer["choices"][0]["logprobs"]["top_logprobs"]
        tops[3] = dict(list(tops[3].items())[:1])

    judged = bench.judge(COMPLETIONS, honest_but(edit=edit))
    assert judged.verdict is Verdict.ERROR
    assert judged.reason == "can't be checked: token 3 comes with 1 logprobs, not with 5"


class OtherEnd(TextReference):
    """Its other runs like the second end token best, whatever the first one liked."""

    def compute_again(self, case: TextCase) -> list[list[Position]]:
        assert case.end_token is not None
        session: Any = self._session
        tilted: Any = Tilted(session, END, END_OF_TURN)
        self._session = tilted
        try:
            return [self.compute(case)]
        finally:
            self._session = session


class Tilted:
    """A session whose logits of two tokens are exchanged."""

    def __init__(self, session: DecoderSession, one: int, other: int) -> None:
        self._session, self._pair = session, (one, other)

    def prefill_parts(self, ids: list[int], start: int) -> Any:
        for part in self._session.prefill_parts(ids, start):
            turned = part.copy()
            turned[:, list(self._pair)] = part[:, list(reversed(self._pair))]
            yield turned


def test_judge_end_token_is_that_of_the_first_run_in_every_run(bench: Bench, model: JudgedModel) -> None:
    tilted = OtherEnd(model, 1)
    body = make_request(temperature=0)
    answer = bench.writer.answer(CHAT, body, honest_but(stop_after=5))
    assert judge_writing(tilted, model, CHAT, body, answer).numbers is not None


def test_judge_answer_cut_before_its_limit_is_an_error(bench: Bench) -> None:
    def edit(answer: dict[str, Any]) -> None:
        cut_short(answer)
        ids = answer["choices"][0]["token_ids"]
        answer["choices"][0]["message"]["content"] = bench.writer.tokenizer.decode(ids)

    judged = bench.judge(cheat=honest_but(edit=edit))
    assert judged.verdict is Verdict.ERROR
    assert judged.reason == "cut at 5 of 24 tokens"


@pytest.mark.parametrize("asked", [{}, {"temperature": 0}])
def test_judge_answer_that_stops_where_it_should_go_on_is_a_strike(
    bench: Bench, asked: dict[str, Any]
) -> None:
    judged = bench.judge(cheat=honest_but(stop_after=5), **asked)
    assert judged.verdict is Verdict.GROSS, judged


def test_judge_ids_follow_from_bytes_where_they_are_not_given(bench: Bench) -> None:
    assert bench.judge(cheat=honest_but(hides_ids=True)).verdict is Verdict.PASS
    assert bench.judge(COMPLETIONS, honest_but(hides_ids=True), seed=9).verdict is Verdict.PASS


def test_judge_ids_that_do_not_follow_are_an_error(bench: Bench) -> None:
    def edit(answer: dict[str, Any]) -> None:
        answer["choices"][0]["logprobs"]["content"][1] |= {"token": "\ufffd", "bytes": None}

    judged = bench.judge(cheat=honest_but(hides_ids=True, edit=edit))
    assert judged.verdict is Verdict.ERROR
    assert "can't be checked" in judged.reason


@pytest.mark.parametrize("own_limit", [16, 40])
def test_judge_limit_that_nobody_asked_for_is_the_engines_own(bench: Bench, own_limit: int) -> None:
    judged = bench.judge(COMPLETIONS, honest_but(own_limit=own_limit), max_tokens=None, seed=9)
    assert judged.verdict is Verdict.PASS, judged
    assert judged.numbers is not None
    assert judged.numbers.facts["tokens"] == own_limit
    assert bench.judge(COMPLETIONS, honest_but(own_limit=5), max_tokens=None, seed=9).verdict is Verdict.ERROR


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_judge_more_tokens_than_were_asked_for_are_a_strike(bench: Bench, path: str) -> None:
    answer = bench.writer.answer(path, make_request(path, max_tokens=24, seed=9))
    judged = bench.judge_bytes(path, make_request(path, max_tokens=8, seed=9), answer)
    assert (judged.verdict, judged.statistic_e12) == (Verdict.FAIL, 3 * 10**12)


@pytest.mark.parametrize(
    ("claim", "verdict", "share"),
    [(1, Verdict.PASS, 0), (2, Verdict.FAIL, 26 / 24), (24, Verdict.FAIL, 2), (216, Verdict.GROSS, 10)],
)
def test_judge_inflated_tokens_are_a_strike(bench: Bench, claim: int, verdict: Verdict, share: float) -> None:
    judged = bench.judge(cheat=honest_but(claim=claim))
    assert judged.verdict is verdict, judged
    if share:
        assert judged.statistic_e12 == int(share * 10**12)


def test_judge_receipt_that_claims_more_than_the_answer_is_a_strike(bench: Bench) -> None:
    body = make_request()
    answer = bench.writer.answer(CHAT, body)
    prompt = len(bench.writer.find_prompt(CHAT, body))
    assert bench.judge_bytes(CHAT, body, answer, Claim(prompt, 24)).verdict is Verdict.PASS
    assert bench.judge_bytes(CHAT, body, answer, Claim(prompt, 48)).verdict is Verdict.FAIL
    assert bench.judge_bytes(CHAT, body, answer, Claim(2 * prompt, 24)).verdict is Verdict.FAIL


def state_reasoning(answer: dict[str, Any]) -> None:
    answer["usage"]["completion_tokens_details"] = {"reasoning_tokens": 30}


def test_judge_hidden_reasoning_of_an_engine_is_said_to_be_uncounted(tmp_path: Path) -> None:
    model = make_text_model(tmp_path, engine="vllm", sampler="engine")
    bench = Bench(model, Writer(model), TextReference(model, 1))
    judged = bench.judge(cheat=honest_but(claim=30, edit=state_reasoning))
    assert judged.verdict is Verdict.TEMPLATE
    assert "can't be counted" in judged.reason


def test_judge_hidden_reasoning_of_the_embedded_engine_is_inflation(bench: Bench) -> None:
    judged = bench.judge(cheat=honest_but(claim=30, edit=state_reasoning))
    assert (judged.verdict, judged.statistic_e12) == (Verdict.FAIL, 54 * 10**12 // 24)


@pytest.mark.parametrize("shows_ids", [True, False])
@pytest.mark.parametrize(
    ("more", "with_ids", "without"),
    [
        (-1, Verdict.PASS, Verdict.TEMPLATE),
        (2, Verdict.PASS, Verdict.TEMPLATE),
        (3, Verdict.FAIL, Verdict.FAIL),
        (300, Verdict.GROSS, Verdict.GROSS),
    ],
)
def test_judge_inflated_prompt_is_a_strike_with_or_without_ids(
    bench: Bench, shows_ids: bool, more: int, with_ids: Verdict, without: Verdict
) -> None:
    def edit(answer: dict[str, Any]) -> None:
        answer["usage"]["prompt_tokens"] += more

    judged = bench.judge(cheat=honest_but(hides_ids=not shows_ids, edit=edit))
    assert judged.verdict is (with_ids if shows_ids else without), judged


def test_judge_prompt_beyond_the_slack_is_a_strike_whatever_its_ids(bench: Bench) -> None:
    def edit(answer: dict[str, Any], more: int) -> None:
        answer["prompt_token_ids"] += [5] * more
        answer["usage"]["prompt_tokens"] += more

    assert bench.judge(cheat=honest_but(edit=lambda it: edit(it, 1))).verdict is Verdict.TEMPLATE
    assert bench.judge(cheat=honest_but(edit=lambda it: edit(it, 23))).verdict is Verdict.FAIL


def test_judge_slack_of_a_long_prompt_is_a_share_of_it(bench: Bench) -> None:
    asked: dict[str, Any] = {"prompt": [70] * 150, "max_tokens": 4}
    verdicts = []
    for more in (3, 4):
        claim = Claim(150 + more, 4)
        verdicts.append(bench.judge(COMPLETIONS, receipt=claim, **asked).verdict)
    assert verdicts == [Verdict.PASS, Verdict.FAIL]


@pytest.mark.parametrize("numeric_class", ["fp16", "bf16"])
def test_judge_lower_class_lets_its_own_arithmetic_pass(tmp_path: Path, numeric_class: Any) -> None:
    model = make_text_model(tmp_path, numeric_class=numeric_class, thresholds=CLASS_THRESHOLDS[numeric_class])
    bench = Bench(model, Writer(model), TextReference(model, 1))
    with rounded_graph(model.folder / "model.onnx", NumericClass(numeric_class)) as rounded:
        assert rounded is not None
        other = Writer(model, session=DecoderSession(rounded))
    body = make_request()
    judged = bench.judge_bytes(CHAT, body, other.answer(CHAT, body))
    assert judged.verdict is Verdict.PASS, judged
    assert judged.numbers is not None
    assert judged.numbers.values["d"] > 10**6
    strict = bench.judge(cheat=honest_but(distort=with_noise(0.5)))
    assert strict.verdict is Verdict.GROSS
    assert strict.numbers is not None
    assert strict.numbers.spreads["d"] > 10**6


class Fragile:
    """A reference whose own runs lie far apart."""

    def __init__(self, reference: TextReference) -> None:
        self._inner = reference
        self.vocabulary = reference.vocabulary
        self.reruns = 0

    def find_prompt(self, ask: TextAsk) -> Any:
        return self._inner.find_prompt(ask)

    def compute(self, case: TextCase) -> list[Position]:
        return self._inner.compute(case)

    def compute_again(self, case: TextCase) -> list[list[Position]]:
        self.reruns += 1
        moved = [
            position._replace(own={token: value + 0.2 for token, value in position.own.items()})
            for position in self._inner.compute(case)
        ]
        return [moved]


def test_judge_fragile_prompt_convicts_nobody(bench: Bench) -> None:
    fragile = Fragile(bench.reference)
    body = make_request(max_tokens=1)
    answer = bench.writer.answer(CHAT, body, honest_but(distort=with_noise(0.3)))
    assert bench.judge_bytes(CHAT, body, answer).verdict.is_strike
    assert judge_writing(fragile, bench.model, CHAT, body, answer).verdict is Verdict.PASS
    assert fragile.reruns == 1
    honest = bench.writer.answer(CHAT, body)
    assert judge_writing(fragile, bench.model, CHAT, body, honest).verdict is Verdict.PASS
    assert fragile.reruns == 1


@pytest.mark.parametrize(
    "odd",
    [
        {"tools": [{"type": "function"}]},
        {"frequency_penalty": 0.5},
        {"n": 2},
        {"logprobs": None, "top_logprobs": None},
        {"messages": []},
        {"messages": [{"role": "user"}, {"content": [{"type": "image_url"}]}]},
        {"messages": [{"role": "user", "content": "the quick brown fox " * 200}]},
        {"temperature": 1e9},
        {"temperature": 1e-300},
    ],
    ids=str,
)
def test_judge_request_that_nobody_probes_with_is_an_error(bench: Bench, odd: dict[str, Any]) -> None:
    answer = bench.writer.answer(CHAT, make_request())
    assert bench.judge_bytes(CHAT, make_request(**odd), answer).verdict is Verdict.ERROR
