"""A text model with a reference that judges it, and calls for it: what a validator's probes look like."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from emcd.inference.calibration_run import draw_texts
from emcd_validator.judge import Judgement
from emcd_validator.judge_text import Claim
from emcd_validator.model import find_judged
from emcd_validator.reference_text import TextReference
from emcd_validator.verdict_run import judge_writing
from tests.support.cheating_node import CHAT, COMPLETIONS, Call, make_call

TEMPERATURES: Final = (1.0, 0.7, 0.0)


class TextJudge:
    """Judges answers of one model as a validator does, reruns included."""

    def __init__(self, folder: Path, threads: int = 1) -> None:
        self.model = find_judged(folder.name, folder.parent)
        self._runs = TextReference(self.model, threads)

    def judge(self, call: Call, answer: bytes, claim: Claim | None = None) -> Judgement:
        """The verdict on one answer."""
        return judge_writing(self._runs, self.model, call.path, call.body, answer, claim)


def draw_calls(
    draw: random.Random,
    count: int,
    *,
    model: str,
    texts: Sequence[str] = (),
    temperatures: Sequence[float] = TEMPERATURES,
    max_tokens: int = 64,
) -> Iterator[Call]:
    """Fresh calls of all forms. Args: `texts` to cut prompts from; without any, words in another order."""
    for number in range(count):
        text = draw.choice(texts) if texts else next(draw_texts(draw, 1))
        start = draw.randrange(max(1, len(text) - 40))
        yield make_call(
            text[start : start + draw.choice((40, 120, 400, 800))] or text,
            seed=draw.getrandbits(62),
            model=model,
            path=draw.choice((CHAT, COMPLETIONS)),
            temperature=temperatures[number % len(temperatures)],
            stream=draw.random() < 0.5,
            max_tokens=max_tokens,
        )
