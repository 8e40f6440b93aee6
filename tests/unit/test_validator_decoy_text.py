"""Decoys of written answers before a real judge: the honest answer rewritten passes, what is spoilt is gross."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from emcd.proto.messages import Verdict
from emcd_validator.decoy import Sample, make_decoys, rewrite
from emcd_validator.model import JudgedModel
from emcd_validator.reference_text import TextReference
from emcd_validator.verdict_run import judge_writing
from tests.support.text_writer import CHAT, COMPLETIONS, Writer, make_request, make_text_model


class Bench:
    """One model with honest answers of it, and who judges them."""

    def __init__(self, models_dir: Path) -> None:
        self.model: JudgedModel = make_text_model(models_dir)
        self.reference = TextReference(self.model, 1)
        self.writer = Writer(self.model)

    def sample(self, path: str, seed: int, temperature: float) -> Sample:
        words = (
            {"messages": [{"role": "user", "content": f"story {seed}"}]}
            if path == CHAT
            else {"prompt": f"story {seed}"}
        )
        body = make_request(path, seed=seed, temperature=temperature, **words)
        return Sample(self.model.model_hash, path, body, self.writer.answer(path, body))

    def judge(self, sample: Sample, response: bytes) -> Verdict:
        return judge_writing(self.reference, self.model, sample.path, sample.request, response).verdict


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("models"))


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_decoy_of_a_written_answer_is_gross_and_the_answer_rewritten_passes(
    bench: Bench, path: str, temperature: float
) -> None:
    samples = [bench.sample(path, seed, temperature) for seed in (1, 2, 3)]
    for seed, sample in enumerate(samples):
        rng = Random(seed)
        real = rewrite(sample, rng)
        assert real is not None
        assert bench.judge(sample, real.response_body) is Verdict.PASS
        decoys = make_decoys(sample, samples, rng)
        found = [bench.judge(sample, decoy.response) for decoy in decoys]
        assert found.count(Verdict.GROSS) >= 2, found
        assert Verdict.PASS not in found
        for decoy, verdict in zip(decoys, found, strict=True):
            again = rewrite(decoy, rng)
            assert again is not None
            assert bench.judge(sample, again.response_body) is verdict
