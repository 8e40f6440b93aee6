"""Answers of a text model written without a loop or a server, and judged as a validator judges them.

Owns the way from prompts in token ids to tokens with their log-probabilities (the production batch, stepped
here), and from those to the statistics of one reference prefill. Golden vectors and calibration are made
with it. Everything here blocks: call it in a thread.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from emcd.accounting import token_check
from emcd.accounting.token_check import Position, ProbeKind, TextJudgement, Thresholds
from emcd.accounting.verdict import NumericClass
from emcd.errors import RecoverableError
from emcd.inference.decoder_session import DecoderSession, Logits
from emcd.inference.generation_batch import GenerationBatch, WritingText
from emcd.inference.golden_file import TokenRun
from emcd.inference.manifest import TextManifest, TextThresholds
from emcd.inference.prefill_facts import Drawing, list_facts
from emcd.inference.token_choice import Choice, Sampling


class _Taker:
    """Keeps what a batch gives, until an end token or enough of them."""

    def __init__(self, tokens: int, stop_tokens: Collection[int]) -> None:
        self._tokens = tokens
        self._stop_tokens = frozenset(stop_tokens)
        self.choices: dict[int, list[Choice]] = {}

    def take(self, text: WritingText, choice: Choice) -> bool:
        kept = self.choices.setdefault(id(text), [])
        kept.append(choice)
        return len(kept) < self._tokens and choice.token not in self._stop_tokens

    def fail(self, text: WritingText, error: RecoverableError) -> None:
        raise error


def write_answers(
    session: DecoderSession,
    asked: Sequence[tuple[Sequence[int], Sampling]],
    *,
    tokens: int,
    stop_tokens: Collection[int] = (),
    together: int = 1,
) -> list[TokenRun]:
    """What follows each prompt, end tokens included.

    Args: `together`: how many are written in one batch, joining and leaving as in a node.
    Raises: RecoverableError EMC-1651.
    """
    batch, taker = GenerationBatch(session), _Taker(tokens, stop_tokens)
    texts = [WritingText(list(prompt), sampling) for prompt, sampling in asked]
    waiting = iter(texts)
    for text in waiting:
        batch.join(text)
        while len(batch) >= together:
            batch.step(taker)
    while len(batch):
        batch.step(taker)
    return [_as_run(text, taker.choices[id(text)]) for text in texts]


def judge_run(manifest: TextManifest, prompt: Sequence[int], run: TokenRun, rows: Logits) -> TextJudgement:
    """What a validator would say of an answer by its own logits.

    Args: `rows`: as `read_rows` gives them.
    """
    wanted = [[token for token, _ in row] for row in run.logprobs]
    facts = list_facts((rows,), wanted, run.tokens, Drawing(run.temperature))
    positions = [
        Position(dict(reported), fact.own, token, fact.chosen_logit, fact.candidates, fact.log_total)
        for reported, token, fact in zip(run.logprobs, run.tokens, facts, strict=True)
    ]
    return token_check.judge_text(
        ProbeKind.SEEDED if run.temperature > 0 else ProbeKind.GREEDY,
        positions,
        token_check.Sampling(run.temperature, seed=run.seed),
        numeric_class=NumericClass(manifest.numeric_class),
        thresholds=as_thresholds(manifest.thresholds),
    )


def read_rows(session: DecoderSession, prompt: Sequence[int], tokens: Sequence[int]) -> Logits:
    """The logits that each of the tokens was chosen by: float32 [len(tokens), vocab]."""
    return session.prefill((*prompt, *tokens[:-1]), first=len(prompt) - 1)


def as_thresholds(row: TextThresholds) -> Thresholds:
    """A manifest's thresholds as the statistics take them."""
    return Thresholds(row.d_e12, row.m_e12, row.w_e12, row.first_e12)


def _as_run(text: WritingText, choices: Sequence[Choice]) -> TokenRun:
    sampling = text.sampling
    return TokenRun(
        sampling.temperature,
        sampling.seed,
        tuple(choice.token for choice in choices),
        tuple(tuple({**dict(choice.top), choice.token: choice.logprob}.items()) for choice in choices),
    )
