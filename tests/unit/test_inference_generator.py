"""Calls that write together: places, queue, cancellation, ends. The batch's steps wait where a test says."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import numpy as np
import pytest
import trio
import trio.testing

from emcd.errors import RecoverableError
from emcd.inference.decoder_session import Cache, DecoderSession, Ids, Logits
from emcd.inference.generator import (
    GenerateRefusal,
    Generation,
    GenerationRequest,
    Generator,
    GeneratorSettings,
    Piece,
)
from emcd.inference.text_tokenizer import TextTokenizer
from emcd.inference.token_choice import Sampling
from tests.support.decoder_model import ToyDecoder, toy_decoder

__all__ = ["toy_decoder"]


class HeldSession(DecoderSession):
    """A session whose runs wait in their thread until `gate` is set."""

    def __init__(self, toy: ToyDecoder) -> None:
        super().__init__(toy.onnx)
        self.gate = threading.Event()
        self.error: RecoverableError | None = None
        self.rows: list[int] = []

    def run(self, ids: Ids, mask: Ids, positions: Ids, cache: Cache) -> tuple[Logits, Cache]:
        assert self.gate.wait(10)
        self.rows.append(len(ids))
        if self.error is not None:
            raise self.error
        return super().run(ids, mask, positions, cache)


@pytest.fixture(scope="module")
def opened(toy_decoder: ToyDecoder) -> HeldSession:
    return HeldSession(toy_decoder)


@pytest.fixture
def session(opened: HeldSession) -> HeldSession:
    opened.gate.set()
    opened.error = None
    opened.rows.clear()
    return opened


@pytest.fixture(scope="module")
def tokenizer(toy_decoder: ToyDecoder) -> TextTokenizer:
    return TextTokenizer(toy_decoder.tokenizer)


@asynccontextmanager
async def running(
    session: HeldSession, tokenizer: TextTokenizer, *, stop_tokens: tuple[int, ...] = (), **settings: object
) -> AsyncIterator[Generator]:
    generator = Generator(
        session,
        tokenizer,
        context_tokens=128,
        stop_tokens=stop_tokens,
        settings=GeneratorSettings(**settings),  # type: ignore[arg-type]
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(generator.run)
        yield generator
        session.gate.set()
        nursery.cancel_scope.cancel()


def order(number: int = 0, tokens: int = 12, **more: object) -> GenerationRequest:
    prompt = [(number * 37 + n * 11) % 300 for n in range(4 + number * 3)]
    return GenerationRequest(prompt, tokens, Sampling(seed=number), **more)  # type: ignore[arg-type]


async def collect(generator: Generator, request: GenerationRequest) -> list[Piece]:
    async with generator.generate(request) as generation:
        assert isinstance(generation, Generation)
        return [piece async for pieces in generation for piece in pieces]


def tokens_of(pieces: list[Piece]) -> list[int]:
    return [choice.token for piece in pieces for choice in piece.choices]


def text_of(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


async def test_generate_when_not_open_is_told(session: HeldSession, tokenizer: TextTokenizer) -> None:
    generator = Generator(session, tokenizer, context_tokens=128, stop_tokens=())
    with pytest.raises(RecoverableError, match="EMC-1655"):
        async with generator.generate(order()):
            pass


async def test_generate_alone_and_among_eight_gives_the_same_tokens(
    session: HeldSession, tokenizer: TextTokenizer
) -> None:
    together: dict[int, list[Piece]] = {}
    async with running(session, tokenizer) as generator:
        alone = [await collect(generator, order(number, 40)) for number in range(8)]

        async def call(number: int) -> None:
            together[number] = await collect(generator, order(number, 40))

        async with trio.open_nursery() as callers:
            for number in range(8):
                callers.start_soon(call, number)
    assert [tokens_of(together[number]) for number in range(8)] == [tokens_of(pieces) for pieces in alone]
    assert len({tuple(tokens_of(pieces)) for pieces in alone}) == 8


async def test_generate_to_its_length_says_so(session: HeldSession, tokenizer: TextTokenizer) -> None:
    async with running(session, tokenizer) as generator:
        pieces = await collect(generator, order(tokens=9))
    assert len(tokens_of(pieces)) == 9
    assert [piece.finish_reason for piece in pieces[:-1]] == [None] * (len(pieces) - 1)
    assert pieces[-1].finish_reason == "length"
    assert text_of(pieces) == tokenizer.decode(tokens_of(pieces))


async def test_generate_whole_is_one_piece_that_says_the_same(
    session: HeldSession, tokenizer: TextTokenizer
) -> None:
    async with running(session, tokenizer) as generator:
        pieces = await collect(generator, order(tokens=9))
        (whole,) = await collect(generator, order(tokens=9, in_pieces=False))
    assert len(pieces) > 1
    assert whole.text == text_of(pieces)
    assert whole.choices == tuple(choice for piece in pieces for choice in piece.choices)
    assert whole.finish_reason == pieces[-1].finish_reason


async def test_generate_ends_with_a_stop_token_that_is_no_text(
    session: HeldSession, tokenizer: TextTokenizer
) -> None:
    async with running(session, tokenizer) as generator:
        free = tokens_of(await collect(generator, order(tokens=20)))
    stop = free[7]
    async with running(session, tokenizer, stop_tokens=(stop,)) as generator:
        pieces = await collect(generator, order(tokens=20))
    first = free.index(stop)
    assert tokens_of(pieces) == free[: first + 1]
    assert text_of(pieces) == tokenizer.decode(free[:first])
    assert pieces[-1].finish_reason == "stop"


async def test_generate_ends_before_a_stop_text(session: HeldSession, tokenizer: TextTokenizer) -> None:
    async with running(session, tokenizer) as generator:
        text = text_of(await collect(generator, order(tokens=30)))
        stop = text[6:9]
        pieces = await collect(generator, order(tokens=30, stop_texts=("never there", stop)))
    assert text_of(pieces) == text[: text.index(stop)]
    assert pieces[-1].finish_reason == "stop"
    assert len(tokens_of(pieces)) < 30


async def test_generate_to_its_end_lets_out_what_was_kept_back(
    session: HeldSession, tokenizer: TextTokenizer
) -> None:
    async with running(session, tokenizer) as generator:
        free = await collect(generator, order(tokens=30))
        text = text_of(free)
        held = await collect(generator, order(tokens=30, stop_texts=(text[-2:] + "never there",)))
    assert text_of(held) == text
    end = tokens_of(free)[29]
    before = tokenizer.decode(tokens_of(free)[: tokens_of(free).index(end)])
    async with running(session, tokenizer, stop_tokens=(end,)) as generator:
        ended = await collect(generator, order(tokens=30, stop_texts=(before[-2:] + "never there",)))
    assert before
    assert text_of(ended) == before


async def test_generate_beyond_the_queue_is_overload(session: HeldSession, tokenizer: TextTokenizer) -> None:
    session.gate.clear()
    async with running(session, tokenizer, max_running=1, waiting_calls=2) as generator:
        async with trio.open_nursery() as callers:
            for number in range(3):
                callers.start_soon(collect, generator, order(number))
            await trio.testing.wait_all_tasks_blocked()
            assert (generator.running, generator.waiting) == (1, 2)
            async with generator.generate(order(4)) as refused:
                assert refused is GenerateRefusal.OVERLOADED
            assert generator.waiting == 2
            session.gate.set()
        assert (generator.running, generator.waiting) == (0, 0)


async def test_generate_without_a_place_in_time_is_told_and_forgotten(
    session: HeldSession, tokenizer: TextTokenizer
) -> None:
    session.gate.clear()
    async with running(session, tokenizer, max_running=1, wait_s=0.01) as generator:
        async with trio.open_nursery() as callers:
            callers.start_soon(collect, generator, order(1))
            await trio.testing.wait_all_tasks_blocked()
            async with generator.generate(order(2)) as refused:
                assert refused is GenerateRefusal.WAITED_TOO_LONG
            assert generator.waiting == 0
            session.gate.set()


async def test_generate_more_than_the_cache_holds_is_too_large(
    session: HeldSession, tokenizer: TextTokenizer
) -> None:
    async with running(session, tokenizer, cache_mb=0) as generator:
        async with generator.generate(GenerationRequest([1] * 100, 29, Sampling())) as refused:
            assert refused is GenerateRefusal.TOO_LARGE
        assert len(tokens_of(await collect(generator, GenerationRequest([1] * 100, 28, Sampling())))) == 28


async def test_generate_waits_while_the_cache_is_full_and_keeps_the_order(
    session: HeldSession, tokenizer: TextTokenizer
) -> None:
    session.gate.clear()
    ends: list[int] = []
    async with running(session, tokenizer, cache_mb=0) as generator:

        async def call(number: int, prompt: int) -> None:
            await collect(generator, GenerationRequest([1] * prompt, 2, Sampling()))
            ends.append(number)

        async with trio.open_nursery() as callers:
            for number, prompt in enumerate((60, 100, 5)):  # the third would fit beside the first
                callers.start_soon(call, number, prompt)
                await trio.testing.wait_all_tasks_blocked()
            assert (generator.running, generator.waiting) == (1, 2)
            session.gate.set()
    assert ends[0] == 0
    assert sorted(ends) == [0, 1, 2]


async def test_caller_that_is_cancelled_takes_only_its_own_text_away(
    session: HeldSession, tokenizer: TextTokenizer
) -> None:
    results: dict[int, list[Piece]] = {}
    async with running(session, tokenizer) as generator:
        alone = await collect(generator, order(2, 30))
    session.gate.clear()
    session.rows.clear()
    scopes = [trio.CancelScope() for _ in range(4)]
    async with running(session, tokenizer, max_running=3) as generator:

        async def call(number: int) -> None:
            with scopes[number]:
                results[number] = await collect(generator, order(number, 30))

        async with trio.open_nursery() as callers:
            for number in range(4):
                callers.start_soon(call, number)
                await trio.testing.wait_all_tasks_blocked()
            scopes[0].cancel()  # it is being written
            await trio.testing.wait_all_tasks_blocked()
            assert (generator.running, generator.waiting) == (3, 0)  # the fourth has its place
            scopes[3].cancel()
            await trio.testing.wait_all_tasks_blocked()
            assert (generator.running, generator.waiting) == (2, 0)
            session.gate.set()
    assert sorted(results) == [1, 2]
    assert max(session.rows[1:]) == 2  # nobody writes for those who left
    assert tokens_of(results[2]) == tokens_of(alone)


async def test_caller_that_is_cancelled_while_it_waits_is_forgotten(
    session: HeldSession, tokenizer: TextTokenizer
) -> None:
    session.gate.clear()
    scope = trio.CancelScope()
    async with running(session, tokenizer, max_running=1) as generator:

        async def call() -> None:
            with scope:
                await collect(generator, order(1))

        async with trio.open_nursery() as callers:
            callers.start_soon(collect, generator, order(0))
            await trio.testing.wait_all_tasks_blocked()
            callers.start_soon(call)
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
            await trio.testing.wait_all_tasks_blocked()
            assert (generator.running, generator.waiting) == (1, 0)
            session.gate.set()


async def test_run_that_fails_is_told_and_the_next_call_is_written(
    session: HeldSession, tokenizer: TextTokenizer
) -> None:
    async with running(session, tokenizer) as generator:
        session.error = RecoverableError("EMC-1651", "no memory")
        with pytest.raises(RecoverableError, match="no memory"):
            await collect(generator, order())
        session.error = None
        assert len(tokens_of(await collect(generator, order()))) == 12
        assert generator.running == 0


async def test_text_whose_logits_are_no_numbers_fails_alone(
    session: HeldSession, tokenizer: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, ends = DecoderSession.run, dict[int, object]()

    def break_one(self: DecoderSession, ids: Ids, *args: object) -> tuple[Logits, Cache]:
        logits, cache = run(self, ids, *args)  # type: ignore[arg-type]
        if len(ids) == 3 and ids.shape[1] == 1:
            logits[1] = np.nan
        return logits, cache

    async def call(generator: Generator, number: int) -> None:
        try:
            ends[number] = tokens_of(await collect(generator, order(number)))
        except RecoverableError as exc:
            ends[number] = exc.code

    async with running(session, tokenizer) as generator:
        alone = [tokens_of(await collect(generator, order(number))) for number in range(3)]
        session.gate.clear()
        monkeypatch.setattr(DecoderSession, "run", break_one)
        async with trio.open_nursery() as callers:
            callers.start_soon(call, generator, 0)
            callers.start_soon(call, generator, 1)
            callers.start_soon(call, generator, 2)
            await trio.testing.wait_all_tasks_blocked()
            session.gate.set()
        assert generator.running == 0
    broken = [number for number, end in ends.items() if end == "EMC-1651"]
    assert len(broken) == 1
    assert [ends[number] for number in range(3) if number not in broken] == [
        tokens for number, tokens in enumerate(alone) if number not in broken
    ]


async def test_generator_that_is_closed_tells_its_callers(
    session: HeldSession, tokenizer: TextTokenizer
) -> None:
    session.gate.clear()
    generator = Generator(
        session,
        tokenizer,
        context_tokens=128,
        stop_tokens=(),
        settings=GeneratorSettings(max_running=1),
    )
    told: list[str] = []

    async def call() -> None:
        try:
            await collect(generator, order())
        except RecoverableError as exc:
            told.append(exc.code)

    async with trio.open_nursery() as callers:
        async with trio.open_nursery() as nursery:
            await nursery.start(generator.run)
            callers.start_soon(call)
            callers.start_soon(call)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
            session.gate.set()
    assert told == ["EMC-1655", "EMC-1655"]
    assert not generator.is_open
