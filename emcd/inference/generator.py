"""Continuous batching: calls join and leave a running batch of texts between two of its steps.

Owns the queue of calls and the thread that steps the batch while there is something to write. The thread
goes from step to step by itself; the loop only takes in what it made, so a busy loop delays an answer,
not the batch. Invariants: nothing that blocks runs in the loop; calls come to their turn in the order in
which they came; what waits is bounded in calls and in time, what runs in calls and in cache; a caller
that is cancelled takes only its own text away, after at most one step; a text depends on its prompt and
its sampling, not on who is written beside it (but for the last bits of fp32).
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import Enum
from typing import Literal, NamedTuple

import trio

from emcd.errors import RecoverableError
from emcd.inference.answer_text import AnswerText
from emcd.inference.decoder_session import DecoderSession
from emcd.inference.generation_batch import GenerationBatch, WritingText
from emcd.inference.text_tokenizer import TextTokenizer
from emcd.inference.token_choice import Choice, Sampling

FinishReason = Literal["stop", "length"]


class GenerateRefusal(Enum):
    """Why a text was not written."""

    TOO_LARGE = "prompt and answer together need more memory than the cache has"
    OVERLOADED = "too many calls wait already"
    WAITED_TOO_LONG = "no place in the batch got free in time"


@dataclass(frozen=True)
class GeneratorSettings:
    """How a model is run.

    Args:
        max_running: texts written together.
        portion_tokens: how much of a newcomer's prompt is read between two steps of the others.
        cache_mb: memory for keys and values, while a step runs twice that; one full context always fits.
        waiting_calls, wait_s: how many calls wait for a place, and for how long.
    """

    max_running: int = 32
    portion_tokens: int = 128
    cache_mb: int = 512
    waiting_calls: int = 64
    wait_s: float = 30.0


@dataclass(frozen=True)
class GenerationRequest:
    """What to write.

    Args:
        prompt: at least one token; with `max_tokens` within the model's context.
        stop_texts: the answer ends before the first of them.
        in_pieces: False: one piece at the end, and the loop is not woken up for every token.
    """

    prompt: list[int]
    max_tokens: int
    sampling: Sampling
    stop_texts: tuple[str, ...] = ()
    in_pieces: bool = True


class Piece(NamedTuple):
    """The next of an answer: text, and the tokens chosen since the last piece; the last has a reason."""

    text: str
    choices: tuple[Choice, ...]
    finish_reason: FinishReason | None


@dataclass(eq=False, kw_only=True)
class Generation(WritingText):
    """One call's text, from the queue to its end. Iterating gives pieces as they come, those together
    that are there together.

    Raises (iterating): RecoverableError EMC-1651 when the run failed, EMC-1655 when the model was closed.
    """

    max_tokens: int
    answer: AnswerText
    in_pieces: bool
    said: str = ""
    choices: list[Choice] = field(default_factory=list)
    pieces: deque[Piece] = field(default_factory=deque)
    error: RecoverableError | None = None
    is_placed: bool = False
    is_over: bool = False
    news: trio.Event = field(default_factory=trio.Event)

    @property
    def reserved(self) -> int:
        return self.prompt_tokens + self.max_tokens

    def __aiter__(self) -> Generation:
        return self

    async def __anext__(self) -> list[Piece]:
        while not self.pieces:
            if self.error is not None:
                raise RecoverableError(self.error.code, self.error.detail)
            if self.is_over:
                raise StopAsyncIteration
            self.news = trio.Event()
            await self.news.wait()
        found = list(self.pieces)
        self.pieces.clear()
        return found


class Generator:
    """One text model; `run` must be running in a nursery."""

    def __init__(
        self,
        session: DecoderSession,
        tokenizer: TextTokenizer,
        *,
        context_tokens: int,
        stop_tokens: tuple[int, ...],
        settings: GeneratorSettings | None = None,
    ) -> None:
        self._session = session
        self._tokenizer = tokenizer
        self._stop_tokens = frozenset(stop_tokens)
        self._settings = settings or GeneratorSettings()
        self._cache_tokens = max(
            context_tokens, (self._settings.cache_mb << 20) // session.cached_token_bytes
        )
        self._limiter = trio.CapacityLimiter(1)
        self._idle = trio.lowlevel.ParkingLot()
        self._queue: deque[Generation] = deque()
        self._placed: set[Generation] = set()
        self._orders: deque[tuple[bool, Generation]] = deque()  # whether it joins, or leaves
        self._made: deque[tuple[Generation, Piece | RecoverableError]] = deque()
        self._is_told = False  # the loop knows that there is something in it
        self._loop: trio.lowlevel.TrioToken | None = None

    @property
    def is_open(self) -> bool:
        """Whether `generate` works now."""
        return self._loop is not None

    @property
    def waiting(self) -> int:
        """Calls that wait for a place."""
        return len(self._queue)

    @property
    def running(self) -> int:
        """Texts that are being written, or read."""
        return len(self._placed)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Write until cancelled; a step that is running is waited for."""
        self._loop = trio.lowlevel.current_trio_token()
        batch = GenerationBatch(self._session, self._settings.portion_tokens)
        try:
            task_status.started()
            while True:
                if self._orders:
                    await trio.to_thread.run_sync(self._work, batch, limiter=self._limiter)
                else:
                    await self._idle.park()
        finally:
            self._loop = None
            closed = RecoverableError("EMC-1655", "the model was closed")
            left = (*self._placed, *self._queue)
            self._queue.clear()
            self._orders.clear()
            for generation in left:
                self._end(generation, closed)

    @asynccontextmanager
    async def generate(self, request: GenerationRequest) -> AsyncIterator[Generation | GenerateRefusal]:
        """Write a text; entered when it has its place in the batch. Leaving takes it out of there.

        Raises: RecoverableError EMC-1655 when the model is not open.
        Cancellation: its place is free after at most one step; nobody else's text is touched.
        """
        if self._loop is None:
            raise RecoverableError("EMC-1655", "the model is not open")
        generation = Generation(
            request.prompt[:],
            request.sampling,
            max_tokens=request.max_tokens,
            answer=AnswerText(self._tokenizer, request.stop_texts),
            in_pieces=request.in_pieces,
        )
        if generation.reserved > self._cache_tokens:
            yield GenerateRefusal.TOO_LARGE
            return
        self._queue.append(generation)
        self._place_waiting()
        if len(self._queue) > self._settings.waiting_calls:
            self._queue.remove(generation)
            yield GenerateRefusal.OVERLOADED
            return
        try:
            with trio.move_on_after(self._settings.wait_s):
                while not generation.is_placed and not generation.is_over:
                    generation.news = trio.Event()
                    await generation.news.wait()
            is_placed = generation.is_placed or generation.is_over
            yield generation if is_placed else GenerateRefusal.WAITED_TOO_LONG
        finally:
            self._take_away(generation)

    def _place_waiting(self) -> None:
        """Give places to those who wait, in their order; the first who does not fit is waited for."""
        reserved = sum(generation.reserved for generation in self._placed)
        while self._queue and len(self._placed) < self._settings.max_running:
            first = self._queue[0]
            reserved += first.reserved
            if reserved > self._cache_tokens:
                break
            self._queue.popleft()
            self._placed.add(first)
            first.is_placed = True
            first.news.set()
            self._orders.append((True, first))
        self._idle.unpark_all()

    def _take_away(self, generation: Generation) -> None:
        if generation in self._placed:
            self._placed.discard(generation)
            self._orders.append((False, generation))
        elif not generation.is_placed and generation in self._queue:
            self._queue.remove(generation)
        self._place_waiting()

    def _end(self, generation: Generation, error: RecoverableError | None = None) -> None:
        generation.error = error
        generation.is_over = True
        generation.news.set()
        self._placed.discard(generation)

    def _deliver(self) -> None:
        """In the loop: hand on what was made, and give the places of those that ended to others."""
        self._is_told = False  # first: what comes after the last look is told anew
        has_room = False
        while self._made:
            generation, found = self._made.popleft()
            if isinstance(found, RecoverableError):
                self._end(generation, found)
                has_room = True
                continue
            generation.pieces.append(found)
            generation.news.set()
            if found.finish_reason is not None:
                self._end(generation)
                has_room = True
        if has_room:
            self._place_waiting()

    def _work(self, batch: GenerationBatch) -> None:
        """In a thread: step after step, until nothing is left to write."""
        loop = self._loop
        assert loop is not None
        while True:
            trio.from_thread.check_cancelled()
            while self._orders:
                joins, generation = self._orders.popleft()
                if joins:
                    batch.join(generation)
                else:
                    batch.leave([generation])
            if not len(batch):
                return
            batch.step(self)
            if self._made and not self._is_told:
                self._is_told = True
                loop.run_sync_soon(self._deliver)

    def take(self, text: WritingText, choice: Choice) -> bool:
        """In the thread: a text has its next token (`StepResult`)."""
        assert isinstance(text, Generation)
        text.choices.append(choice)
        answer, reason, out = text.answer, None, ""
        if choice.token in self._stop_tokens:
            reason, out = _STOP, answer.finish()
        else:
            out = answer.add(choice.token)
            if answer.stopped:
                reason = _STOP
            elif text.made >= text.max_tokens:
                out += answer.finish()
                reason = _STOP if answer.stopped else _LENGTH
        text.said += out
        if reason is not None or (text.said and text.in_pieces):
            self._made.append((text, Piece(text.said, tuple(text.choices), reason)))
            text.said = ""
            text.choices.clear()
        return reason is None

    def fail(self, text: WritingText, error: RecoverableError) -> None:
        """In the thread: a text can't go on (`StepResult`)."""
        assert isinstance(text, Generation)
        self._made.append((text, error))


_STOP: FinishReason = "stop"
_LENGTH: FinishReason = "length"
