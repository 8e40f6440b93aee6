"""Texts that are written together, step by step: nobody's tokens depend on the others."""

from __future__ import annotations

import random

import numpy as np
import pytest

from emcd.errors import RecoverableError
from emcd.inference.decoder_session import Cache, DecoderSession, Ids, Logits
from emcd.inference.generation_batch import GenerationBatch, WritingText
from emcd.inference.token_choice import Choice, Sampling
from tests.support.decoder_model import ToyDecoder, toy_decoder

__all__ = ["toy_decoder"]


class WatchedSession(DecoderSession):
    """A session that notes the shapes of its runs [rows, tokens, cached], and fails where it is told to."""

    def __init__(self, toy: ToyDecoder) -> None:
        super().__init__(toy.onnx)
        self.runs: list[tuple[int, int, int]] = []
        self.poison = -1

    def run(self, ids: Ids, mask: Ids, positions: Ids, cache: Cache) -> tuple[Logits, Cache]:
        self.runs.append((*ids.shape, cache[0].shape[2]))
        if self.poison in ids:
            raise RecoverableError("EMC-1651", "no memory")
        says_positions, self.has_positions = self.has_positions, True
        assert says_positions or mask.all()  # a graph that counts for itself must see no padding
        try:
            return super().run(ids, mask, positions, cache)
        finally:
            self.has_positions = says_positions


class Notes:
    """Takes every token until a text has enough."""

    def __init__(self, enough: int = 6) -> None:
        self.enough = enough
        self.errors: dict[int, str] = {}
        self.taken: dict[int, int] = {}

    def take(self, text: WritingText, choice: Choice) -> bool:
        self.taken[id(text)] = text.made
        return text.made < self.enough

    def fail(self, text: WritingText, error: RecoverableError) -> None:
        self.errors[id(text)] = error.code


@pytest.fixture(scope="module")
def opened(toy_decoder: ToyDecoder) -> WatchedSession:
    return WatchedSession(toy_decoder)


@pytest.fixture
def session(opened: WatchedSession) -> WatchedSession:
    opened.runs.clear()
    opened.poison = -1
    opened.has_positions = True
    opened.run_cost_tokens = 64
    return opened


def make_text(number: int, length: int, temperature: float = 1.0) -> WritingText:
    draw = random.Random(number)
    return WritingText([draw.randrange(300) for _ in range(length)], Sampling(temperature, seed=number))


def finish(batch: GenerationBatch, notes: Notes, most: int = 100) -> None:
    for _ in range(most):
        if not len(batch):
            return
        batch.step(notes)
    raise AssertionError("it does not end")


def write_alone(session: DecoderSession, text: WritingText, enough: int = 6) -> list[int]:
    batch = GenerationBatch(session)
    batch.join(text)
    finish(batch, Notes(enough))
    return text.tokens


LENGTHS = (3, 40, 11, 90, 7, 7, 64, 25)


@pytest.mark.parametrize("has_positions", [True, False])
@pytest.mark.parametrize("cost", [0, 64, 10_000])
def test_texts_written_together_are_as_if_alone(
    session: WatchedSession, has_positions: bool, cost: int
) -> None:
    alone = [write_alone(session, make_text(n, length)) for n, length in enumerate(LENGTHS)]
    session.has_positions, session.run_cost_tokens = has_positions, cost
    texts = [make_text(n, length) for n, length in enumerate(LENGTHS)]
    batch, notes = GenerationBatch(session, portion_tokens=16), Notes()
    for number, text in enumerate(texts):  # they come at different times
        batch.join(text)
        if number % 3 == 0:
            batch.step(notes)
    finish(batch, notes)
    assert [text.tokens for text in texts] == alone
    assert not notes.errors


def test_prompt_is_read_in_portions_beside_the_others(session: WatchedSession) -> None:
    batch, notes = GenerationBatch(session, portion_tokens=16), Notes(50)
    early, late = make_text(1, 4), make_text(2, 70)
    batch.join(early)
    batch.step(notes)
    batch.join(late)
    session.runs.clear()
    for number in range(5):
        assert late.made == 0
        batch.step(notes)
        assert early.made == number + 2  # it never waits for more than a portion
    assert late.made == 1
    assert [tokens for rows, tokens, _ in session.runs if tokens > 1] == [16, 16, 16, 16, 6]


def test_prompt_beside_nobody_is_read_at_once(session: WatchedSession) -> None:
    batch = GenerationBatch(session, portion_tokens=16)
    batch.join(make_text(2, 70))
    batch.step(Notes())
    assert session.runs == [(1, 70, 0)]


def test_prompts_take_turns(session: WatchedSession) -> None:
    batch, notes = GenerationBatch(session, portion_tokens=10), Notes(100)
    batch.join(make_text(0, 2))
    batch.step(notes)
    long, short = make_text(1, 90), make_text(2, 30)
    batch.join(long)
    batch.join(short)
    for _ in range(6):
        batch.step(notes)
    assert (short.made, long.made) == (1, 0)
    finish_reading = 0
    while not long.made:
        batch.step(notes)
        finish_reading += 1
    assert finish_reading <= 6


def test_short_prompts_that_come_together_are_read_together(session: WatchedSession) -> None:
    batch = GenerationBatch(session)
    for number, length in enumerate((5, 9, 7, 120, 6)):
        batch.join(make_text(number, length))
    batch.step(Notes())
    assert session.runs == [(4, 9, 0)]


def test_texts_of_different_lengths_stand_apart(session: WatchedSession) -> None:
    batch, notes = GenerationBatch(session), Notes(100)
    for number, length in enumerate((5, 9, 110)):
        batch.join(make_text(number, length))
    batch.step(notes)
    batch.step(notes)
    session.runs.clear()
    batch.step(notes)
    assert sorted(session.runs) == [(1, 1, 110), (2, 1, 10)]


def test_group_is_as_narrow_as_its_longest_row(session: WatchedSession) -> None:
    batch, notes = GenerationBatch(session), Notes(100)
    long, short = make_text(1, 40), make_text(2, 8)
    batch.join(long)
    batch.join(short)
    batch.step(notes)
    batch.step(notes)
    assert session.runs[-1] == (2, 1, 40)
    batch.leave([long])
    batch.step(notes)
    assert session.runs[-1] == (1, 1, 9)


def test_text_that_leaves_does_not_disturb_the_others(session: WatchedSession) -> None:
    alone = write_alone(session, make_text(2, 30), 20)
    batch, notes = GenerationBatch(session), Notes(20)
    texts = [make_text(n, length) for n, length in ((1, 50), (2, 30), (3, 2), (4, 90))]
    for text in texts:
        batch.join(text)
    for number in range(4):
        batch.step(notes)
        batch.step(notes)
        batch.leave([text for text in texts[number : number + 1] if number != 1])
    finish(batch, notes)
    assert texts[1].tokens == alone
    batch.leave(texts)  # nobody is there any more


@pytest.mark.parametrize("at_prompt", [True, False])
def test_run_that_fails_ends_its_texts_and_no_others(session: WatchedSession, at_prompt: bool) -> None:
    session.run_cost_tokens = 0
    batch, notes = GenerationBatch(session), Notes(12)
    good, bad = make_text(1, 10), make_text(2, 30)
    batch.join(good)
    batch.step(notes)
    if at_prompt:
        session.poison = bad.tokens[3]
        while session.poison in good.tokens:
            good.tokens[-1] += 1
    batch.join(bad)
    batch.step(notes)
    if not at_prompt:
        session.poison = bad.tokens[-1]
        assert session.poison != good.tokens[-1]
        batch.step(notes)
    session.poison = -1
    finish(batch, notes)
    assert notes.errors == {id(bad): "EMC-1651"}
    assert good.made == 12


def test_logits_that_are_no_numbers_end_the_texts(
    session: WatchedSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(ids: Ids, mask: Ids, positions: Ids, cache: Cache) -> tuple[Logits, Cache]:
        return np.full((*ids.shape, 320), np.nan, np.float32), session.make_cache(len(ids), mask.shape[1])

    monkeypatch.setattr(session, "run", run)
    batch, notes = GenerationBatch(session), Notes()
    batch.join(make_text(1, 3))
    batch.step(notes)
    assert list(notes.errors.values()) == ["EMC-1651"]
    assert len(batch) == 0
