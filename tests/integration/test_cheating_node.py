"""Every known way to cheat with a text model is caught by the validator's own judgement, or known not to be."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from emcd.inference.model_folder import ModelFolder, load_model_folder
from emcd.inference.training.recipe import TINY_NAME, TINY_SHAPE
from emcd.proto.messages import Verdict
from emcd_validator.judge import Judgement
from emcd_validator.judge_text import Claim
from tests.support.cheap_graphs import TextGraphs
from tests.support.cheating_node import (
    HONEST,
    RELAY,
    SPARING,
    TEXT_CHEATS,
    Call,
    CheatingNode,
    TextCheat,
    make_call,
)
from tests.support.decoder_model import tiny_folder
from tests.support.judged_text import TextJudge, draw_calls

__all__ = ["tiny_folder"]

CALLS = 9
"""Three at each temperature: enough for every row to be caught at least once."""


@pytest.fixture(scope="module")
def judge(tiny_folder: Path) -> TextJudge:
    return TextJudge(tiny_folder)


@pytest.fixture(scope="module")
def folder(tiny_folder: Path) -> ModelFolder:
    return load_model_folder(tiny_folder.parent, tiny_folder.name)


@pytest.fixture(scope="module")
def graphs(folder: ModelFolder, tmp_path_factory: pytest.TempPathFactory) -> TextGraphs:
    """One of a single layer stands for the small model."""
    made = TextGraphs(folder.file("model.onnx"), TINY_SHAPE, tmp_path_factory.mktemp("graphs"))
    return TextGraphs(
        folder.file("model.onnx"), TINY_SHAPE, tmp_path_factory.mktemp("more"), made.path("layers-1")
    )


@pytest.fixture(scope="module")
def node(folder: ModelFolder, graphs: TextGraphs) -> CheatingNode:
    return CheatingNode(folder, graphs.path)


@pytest.fixture(scope="module")
def calls() -> list[Call]:
    return list(draw_calls(random.Random(20), CALLS, model=TINY_NAME, max_tokens=48))


def judge_all(
    judge: TextJudge, node: CheatingNode, calls: Sequence[Call], cheat: TextCheat
) -> list[Judgement]:
    return [judge.judge(call, answer) for call, answer in zip(calls, node.answer(calls, cheat), strict=True)]


@pytest.mark.parametrize("cheat", TEXT_CHEATS, ids=lambda cheat: cheat.name)
def test_cheat_is_caught(judge: TextJudge, node: CheatingNode, calls: list[Call], cheat: TextCheat) -> None:
    found = judge_all(judge, node, calls, cheat)

    struck = [judgement for judgement in found if judgement.verdict.is_strike]
    assert struck, [judgement.verdict.name for judgement in found]
    assert {judgement.verdict for judgement in found} <= {
        Verdict.PASS,
        Verdict.CLASS,
        Verdict.FAIL,
        Verdict.GROSS,
    }
    assert max(judgement.statistic_e12 for judgement in struck) > 10**12


@pytest.mark.parametrize("cheat", [HONEST, RELAY], ids=lambda cheat: cheat.name)
def test_answer_of_the_model_passes_whoever_computed_it(
    judge: TextJudge, node: CheatingNode, calls: list[Call], cheat: TextCheat
) -> None:
    found = judge_all(judge, node, calls, cheat)

    assert [judgement.verdict for judgement in found] == [Verdict.PASS] * CALLS
    assert max(judgement.statistic_e12 for judgement in found) < 10**11  # a tenth of what is allowed


@pytest.mark.parametrize(
    ("threads", "optimization", "together"),
    [(2, "all", 1), (1, "off", 8), (2, "basic", 9), (1, "extended", 4)],
)
def test_honest_node_passes_however_it_runs_the_model(
    judge: TextJudge, folder: ModelFolder, graphs: TextGraphs, calls: list[Call], threads: int, optimization: str,
    together: int,
) -> None:  # fmt: skip
    node = CheatingNode(folder, graphs.path, threads=threads, optimization=optimization, together=together)
    assert {judgement.verdict for judgement in judge_all(judge, node, calls, HONEST)} == {Verdict.PASS}


def test_node_that_spares_suspected_probes_is_caught_by_the_others_only(
    judge: TextJudge, node: CheatingNode, calls: list[Call]
) -> None:
    mixed = [call._replace(looks_like_probe=number % 2 == 0) for number, call in enumerate(calls)]
    found = judge_all(judge, node, mixed, SPARING)

    assert [judgement.verdict.is_strike for judgement in found] == [
        not call.looks_like_probe for call in mixed
    ]


def test_tokens_inflated_in_the_receipt_alone_are_caught(judge: TextJudge, node: CheatingNode) -> None:
    call = make_call("How do I read a file?", seed=3, model=TINY_NAME, max_tokens=24)
    (answer,) = node.answer([call])
    usage = msgspec.json.decode(answer)["usage"]
    real, claimed = (Claim(usage["prompt_tokens"], usage["completion_tokens"] * factor) for factor in (1, 12))

    assert judge.judge(call, answer, real).verdict is Verdict.PASS
    found = judge.judge(call, answer, claimed)
    assert found.verdict is Verdict.GROSS
    assert "tokens claimed" in found.reason
