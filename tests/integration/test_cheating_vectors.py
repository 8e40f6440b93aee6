"""Every known way to cheat with an embedder is caught by the validator's own judgement, or known not to be."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from emcd.inference.calibration_run import draw_texts
from emcd.inference.minilm import MINILM_NAME, ModelFiles
from emcd.proto.messages import Verdict
from emcd_validator.judge import Judgement
from emcd_validator.model import JudgedModel, find_judged
from emcd_validator.reference_embedding import EmbeddingReference
from emcd_validator.verdict_run import judge_vectors
from tests.support.cheap_graphs import VectorGraphs
from tests.support.cheating_vectors import (
    PATH,
    RELAY,
    VECTOR_CHEATS,
    VectorCheat,
    VectorNode,
    make_body,
)
from tests.support.inference_model import fp32_files, shared_models_dir

__all__ = ["fp32_files"]

TEXTS = 3
QUICK = {
    "int8 weights in one layer",
    "dynamic int8, per channel, signed",
    "5 of 6 layers",
    "CLS pooling",
    "random vector",
    "input cut to 32 tokens",
    "input cut to 128 tokens",
    "last word dropped",
    "cached answer of another text",
    "nearest of 300 cached answers",
    "fp16 weights, sold as fp32",
}
"""Rows of `make test`; the others build a graph of 90 MB each, and wait for `make test-deep`."""
ROWS = [
    pytest.param(cheat, id=cheat.name, marks=() if cheat.name in QUICK else pytest.mark.deep)
    for cheat in VECTOR_CHEATS
]


@pytest.fixture(scope="module")
def node(fp32_files: ModelFiles, tmp_path_factory: pytest.TempPathFactory) -> VectorNode:
    remembered = list(draw_texts(random.Random(1), 40))
    return VectorNode(
        fp32_files, VectorGraphs(fp32_files.onnx, tmp_path_factory.mktemp("graphs")), remembered
    )


@pytest.fixture(scope="module")
def model() -> JudgedModel:
    return find_judged(MINILM_NAME, shared_models_dir())


@pytest.fixture(scope="module")
def reference(model: JudgedModel) -> EmbeddingReference:
    return EmbeddingReference(model, 1)


def fitting(node: VectorNode, cheat: VectorCheat) -> Iterator[str]:
    """Texts that the row changes, none of them longer than what the model reads."""
    for text in draw_texts(random.Random(2), 400):
        tokens = len(node.tokenizer.encode([text])[0])
        if max(8, cheat.least_tokens) <= tokens < node.most_tokens:
            yield text


def judge_texts(
    node: VectorNode,
    model: JudgedModel,
    reference: EmbeddingReference,
    cheat: VectorCheat | None,
    texts: list[str],
) -> Judgement:
    body = make_body(texts, as_base64=True)
    return judge_vectors(reference, model, PATH, body, node.answer(body, cheat))


@pytest.mark.parametrize("cheat", ROWS)
def test_cheat_is_caught(
    node: VectorNode, model: JudgedModel, reference: EmbeddingReference, cheat: VectorCheat
) -> None:
    texts = fitting(node, cheat)
    for _ in range(TEXTS):
        found = judge_texts(node, model, reference, cheat, [next(texts)])
        assert found.verdict.is_strike, found
        assert found.numbers is not None
        assert found.numbers.values["l2"] > found.numbers.taus["l2"]
    node.graphs.forget(cheat.graph)


def test_one_cheated_vector_among_honest_ones_is_caught(
    node: VectorNode, model: JudgedModel, reference: EmbeddingReference
) -> None:
    short, long = "one two three four", "word " * 100
    cut = next(cheat for cheat in VECTOR_CHEATS if cheat.name == "input cut to 32 tokens")

    assert judge_texts(node, model, reference, cut, [short, short]).verdict is Verdict.PASS
    assert judge_texts(node, model, reference, cut, [short, long]).verdict is Verdict.GROSS


@pytest.mark.parametrize("cheat", [None, RELAY])
def test_answer_of_the_model_passes_whoever_computed_it(
    node: VectorNode, model: JudgedModel, reference: EmbeddingReference, cheat: VectorCheat | None
) -> None:
    texts = list(draw_texts(random.Random(3), 16))
    found = judge_texts(node, model, reference, cheat, texts)
    assert found.verdict is Verdict.PASS
    assert found.statistic_e12 < 10**7  # a tenth of what is allowed
