"""Golden vectors of text models: prompts, and the tokens that follow with their log-probabilities.

They are made token by token with the sampler `emcd-gumbel-v1`, and checked as a validator checks an
answer: one prefill of prompt and tokens, then the statistics d, m and w. Everything here blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from emcd.accounting.verdict import STATISTIC_SCALE
from emcd.errors import ConfigError
from emcd.inference.answer_run import judge_run, read_rows, write_answers
from emcd.inference.decoder_session import open_decoder
from emcd.inference.golden_file import GoldenCheck, TextCase, TextGolden, read_golden, write_golden
from emcd.inference.golden_text import GOLDEN_TEXTS
from emcd.inference.manifest import TextManifest
from emcd.inference.text_tokenizer import TextTokenizer
from emcd.inference.token_choice import Sampling
from emcd.proto.messages import Verdict

RUN_TOKENS: Final = 16
PROMPT_TOKENS: Final = 96
TOP_LOGPROBS: Final = 5


def make_text_golden(
    graph: Path, tokenizer: Path, *, context_tokens: int, stop_tokens: Sequence[int] = ()
) -> bytes:
    """The golden vectors of a decoder with its tokenizer.

    Raises: ConfigError EMC-1630 (a context too short for any), EMC-1650, EMC-1652; RecoverableError EMC-1651.
    """
    session, words = open_decoder(graph), TextTokenizer(tokenizer)
    longest = min(PROMPT_TOKENS, context_tokens - RUN_TOKENS)
    prompts = [words.encode(text, specials=True)[: max(0, longest)] for text in GOLDEN_TEXTS]
    if not all(prompts):
        raise ConfigError("EMC-1630", f"{graph}: a prompt has no token in a context of {context_tokens}")
    asked = [
        (prompt, Sampling(temperature, seed=number, top_logprobs=TOP_LOGPROBS))
        for temperature in (0.0, 1.0)
        for number, prompt in enumerate(prompts)
    ]
    runs = write_answers(session, asked, tokens=RUN_TOKENS, stop_tokens=stop_tokens)
    greedy, seeded = runs[: len(prompts)], runs[len(prompts) :]
    cases = zip(map(tuple, prompts), greedy, seeded, strict=True)
    return write_golden(TextGolden(tuple(TextCase(*case) for case in cases)))


def check_text_golden(manifest: TextManifest, graph: Path, data: bytes, *, threads: int = 1) -> GoldenCheck:
    """Run the golden tokens through the model and compare.

    Raises: ConfigError EMC-1630 (no golden vectors of this model), EMC-1650; RecoverableError EMC-1651.
    """
    golden = read_golden(manifest.name, data, TextGolden)
    _require_cases(manifest, golden)
    session = open_decoder(graph, threads=threads)
    found = [
        judge_run(manifest, case.prompt, run, read_rows(session, case.prompt, run.tokens))
        for case in golden.cases
        for run in (case.greedy, case.seeded)
    ]
    worst = max(found, key=lambda judgement: judgement.statistic_e12)
    allowed = getattr(manifest.thresholds, f"{worst.worst}_e12") / STATISTIC_SCALE
    value = worst.statistics.value(worst.worst) / STATISTIC_SCALE
    return GoldenCheck(
        ok=all(judgement.verdict is Verdict.PASS for judgement in found),
        detail=f"{len(golden.cases)} golden prompts, {len(found)} answers: the worst has"
        f" {worst.worst} = {value:.1e}, allowed {allowed:.1e}",
        worst_e12=worst.statistic_e12,
        cases=len(golden.cases),
    )


def _require_cases(manifest: TextManifest, golden: TextGolden) -> None:
    for case in golden.cases:
        for run in (case.greedy, case.seeded):
            tokens = [*case.prompt, *run.tokens, *(token for row in run.logprobs for token, _ in row)]
            if (
                not (case.prompt and run.tokens)
                or len(run.logprobs) != len(run.tokens)
                or not all(run.logprobs)
                or len(case.prompt) + len(run.tokens) > manifest.context_tokens
                or not all(0 <= token < manifest.vocab_tokens for token in tokens)
            ):
                raise ConfigError("EMC-1630", f"{manifest.name}: a golden answer does not fit the model")
    if not golden.cases:
        raise ConfigError("EMC-1630", f"{manifest.name}: it holds no golden answer")
