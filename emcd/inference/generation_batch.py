"""The texts that are being written together: their caches, their prompts' progress, one step at a time.

Owns the key/value caches. Used by one thread at a time, and blocks; it knows no tasks. Texts join and
leave between steps. Those that are being written stand in groups: rows of one cache, the shorter padded
on the left, so that every row's next token goes to the same place. A prompt is read before its text
joins a group, in portions, so that the others wait for a portion at most; short prompts that come
together are read together.

Invariants: a row sees nothing of another, only padding with mask 0; padding of a group costs less than
running its rows in two groups would (it does not change while the group grows, so that groups are looked
at only when rows come and go); a run that fails ends the texts that were in it, and no other.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from emcd.errors import RecoverableError
from emcd.inference.decoder_session import Cache, DecoderSession, Ids, Logits
from emcd.inference.token_choice import Choice, Sampling, choose_tokens, find_broken_rows

MAX_SHARED_PROMPT = 128
"""Tokens of a prompt up to which it is read with others: from there on a run alone fills the cores."""


@dataclass(eq=False)
class WritingText:
    """One text: its prompt, and what was chosen so far.

    Args:
        tokens: the prompt, then every chosen token; all but the last of those stand in the cache.
    """

    tokens: list[int]
    sampling: Sampling
    prompt_tokens: int = 0
    cached: int = 0
    cache: Cache = field(default_factory=list)

    def __post_init__(self) -> None:
        self.prompt_tokens = len(self.tokens)

    @property
    def made(self) -> int:
        """How many tokens were chosen."""
        return len(self.tokens) - self.prompt_tokens


class StepResult(Protocol):
    """Who takes what a step gave. Returns: whether the text goes on."""

    def take(self, text: WritingText, choice: Choice) -> bool: ...
    def fail(self, text: WritingText, error: RecoverableError) -> None: ...


@dataclass(eq=False)
class _Group:
    """Rows of one cache, `width` tokens wide; row i has its own `cached` tokens at the right of it."""

    rows: list[WritingText]
    cache: Cache

    @property
    def width(self) -> int:
        return int(self.cache[0].shape[2])

    def count_padding(self) -> int:
        return sum(self.width - text.cached for text in self.rows)


class GenerationBatch:
    """Texts of one model.

    Args:
        portion_tokens: of a prompt, while other texts wait for their next token; a prompt that nobody
            waits beside is read in the session's own parts.
    """

    def __init__(self, session: DecoderSession, portion_tokens: int = 128) -> None:
        self._session = session
        self._portion = min(portion_tokens, session.part_tokens)
        self._reading: deque[WritingText] = deque()
        self._groups: list[_Group] = []

    def __len__(self) -> int:
        return len(self._reading) + sum(len(group.rows) for group in self._groups)

    def join(self, text: WritingText) -> None:
        """Take in a text whose prompt is not read yet."""
        self._reading.append(text)

    def leave(self, texts: Sequence[WritingText]) -> None:
        """Forget texts; such that are not there are passed over."""
        gone = frozenset(map(id, texts))
        if not gone:
            return
        self._reading = deque(text for text in self._reading if id(text) not in gone)
        for group in self._groups:
            kept = [index for index, text in enumerate(group.rows) if id(text) not in gone]
            if len(kept) < len(group.rows):
                _keep_rows(group, kept)
        self._groups = [group for group in self._groups if group.rows]

    def step(self, result: StepResult) -> None:
        """Give every text that is being written a token, and read a portion of the prompts that wait."""
        done: list[WritingText] = []
        for group in self._groups:
            done += self._write(group, result)
        done += self._read_portion(result)
        self.leave(done)
        self._merge_groups()

    def _write(self, group: _Group, result: StepResult) -> list[WritingText]:
        """The next token of a group's rows. Returns: those that are done, as all of these do."""
        width, rows = group.width, group.rows
        cached = np.array([text.cached for text in rows], np.int64)[:, None]
        mask = (np.arange(width + 1, dtype=np.int64) >= width - cached).astype(np.int64)
        ids = np.array([[text.tokens[-1]] for text in rows], np.int64)
        try:
            logits, group.cache = self._session.run(ids, mask, cached, group.cache)
        except RecoverableError as exc:
            return _fail(rows, result, exc)
        for text in rows:
            text.cached += 1
        return _choose(rows, logits[:, -1], result)

    def _read_portion(self, result: StepResult) -> list[WritingText]:
        """The next portion of the prompt whose turn it is, or several prompts whole."""
        if not self._reading:
            return []
        shared = self._take_short_prompts()
        if shared:
            return self._read_together(shared, result)
        return self._read_part(self._reading.popleft(), result)

    def _take_short_prompts(self) -> list[WritingText]:
        """The prompt whose turn it is, and those that are best read with it; none if it is long."""
        leader = self._reading[0]
        if leader.cached or len(leader.tokens) > min(MAX_SHARED_PROMPT, self._portion):
            return []
        if not self._session.has_positions:
            return [self._reading.popleft()]
        chosen = [leader]
        longest, total = len(leader.tokens), len(leader.tokens)
        for text in list(self._reading)[1:]:
            length = len(text.tokens)
            widest, filled = max(longest, length), total + length
            area = widest * (len(chosen) + 1)
            if text.cached or area > self._budget or area - filled > self._session.run_cost_tokens:
                continue
            chosen.append(text)
            longest, total = widest, filled
        taken = frozenset(map(id, chosen))
        self._reading = deque(text for text in self._reading if id(text) not in taken)
        return chosen

    @property
    def _budget(self) -> int:
        return self._portion if self._groups else self._session.part_tokens

    def _read_together(self, texts: list[WritingText], result: StepResult) -> list[WritingText]:
        longest = max(len(text.tokens) for text in texts)
        ids = np.zeros((len(texts), longest), np.int64)
        mask = np.zeros_like(ids)
        positions = np.zeros_like(ids)
        for row, text in enumerate(texts):
            start = longest - len(text.tokens)
            ids[row, start:] = text.tokens
            mask[row, start:] = 1
            positions[row, start:] = np.arange(len(text.tokens))
        try:
            logits, cache = self._session.run(ids, mask, positions, self._session.make_cache(len(texts)))
        except RecoverableError as exc:
            return _fail(texts, result, exc)
        return self._begin_writing(texts, cache, logits, result)

    def _read_part(self, text: WritingText, result: StepResult) -> list[WritingText]:
        start = text.cached
        end = min(start + self._budget, len(text.tokens))
        ids = np.array([text.tokens[start:end]], np.int64)
        positions = np.arange(start, end, dtype=np.int64)[None]
        cache = text.cache or self._session.make_cache()
        mask: Ids = np.ones((1, end), np.int64)
        try:
            logits, cache = self._session.run(ids, mask, positions, cache)
        except RecoverableError as exc:
            return _fail([text], result, exc)
        text.cached = end
        if end < len(text.tokens):
            text.cache = cache
            self._reading.append(text)
            return []
        text.cache = []
        return self._begin_writing([text], cache, logits, result)

    def _begin_writing(
        self, texts: list[WritingText], cache: Cache, logits: Logits, result: StepResult
    ) -> list[WritingText]:
        for text in texts:
            text.cached = len(text.tokens)
        self._groups.append(_Group(texts, cache))
        return _choose(texts, logits[:, -1], result)

    def _merge_groups(self) -> None:
        """Put groups together whose rows are of such lengths that it is the quicker way."""
        if len(self._groups) < 2 or not self._session.has_positions:
            return
        ordered = sorted(self._groups, key=lambda group: group.width)
        merged = [[ordered[0]]]
        for group in ordered[1:]:
            last = merged[-1]
            rows = sum(len(part.rows) for part in last)
            added = sum((group.width - part.width) * len(part.rows) for part in last)
            padding = sum(part.count_padding() for part in (*last, group))
            if rows and added + padding <= self._session.run_cost_tokens:
                last.append(group)
            else:
                merged.append([group])
        self._groups = [_join_groups(parts) for parts in merged]


def _choose(texts: Sequence[WritingText], logits: Logits, result: StepResult) -> list[WritingText]:
    """Choose the next tokens of texts; one whose logits are no numbers fails by itself."""
    try:
        choices = choose_tokens(logits, [(text.sampling, text.made) for text in texts])
    except RecoverableError as exc:
        broken = find_broken_rows(logits)
        sound = [row for row in range(len(texts)) if row not in broken]
        if not (broken and sound):
            return _fail(texts, result, exc)
        failed = _fail([texts[row] for row in broken], result, exc)
        return failed + _choose([texts[row] for row in sound], logits[sound], result)
    done = []
    for text, choice in zip(texts, choices, strict=True):
        text.tokens.append(choice.token)
        if not result.take(text, choice):
            done.append(text)
    return done


def _fail(texts: Sequence[WritingText], result: StepResult, error: RecoverableError) -> list[WritingText]:
    for text in texts:
        result.fail(text, error)
    return list(texts)


def _join_groups(parts: list[_Group]) -> _Group:
    if len(parts) == 1:
        return parts[0]
    width = max(part.width for part in parts)
    rows = [text for part in parts for text in part.rows]
    cache = []
    for arrays in zip(*(part.cache for part in parts), strict=True):
        _, heads, _, size = arrays[0].shape
        joined = np.zeros((len(rows), heads, width, size), arrays[0].dtype)
        at = 0
        for array in arrays:
            joined[at : at + len(array), :, width - array.shape[2] :] = array
            at += len(array)
        cache.append(joined)
    return _Group(rows, cache)


def _keep_rows(group: _Group, kept: list[int]) -> None:
    """Let the other rows go, and with them padding that nobody needs any more."""
    group.rows = [group.rows[index] for index in kept]
    if group.rows:
        surplus = group.width - max(text.cached for text in group.rows)
        group.cache = [np.ascontiguousarray(array[kept, :, surplus:]) for array in group.cache]
