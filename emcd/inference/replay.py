"""A known text run as nodes run it, token by token, to see how far its logits lie from those of one prefill.

Threads, optimisation levels and parts of a prefill often give the same bits; a single token at a time
takes other kernels (measured: 1e-5 of a logit apart where all else was identical). Blocks: call it in a
thread.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np

from emcd.inference.decoder_session import DecoderSession, Logits

PART_TOKENS: Final = 48
"""Of what is not run singly; any number but the prefill's own."""
LEAD_TOKENS: Final = 16
"""So many tokens before the first one asked for are run singly, too: their keys are looked at."""
MOST_SINGLE: Final = 256
"""Steps that cost as much as writing; what is after them comes in parts."""


def replay_parts(session: DecoderSession, token_ids: Sequence[int], first: int = 0) -> Iterator[Logits]:
    """Logits after each token from number `first` on, as `DecoderSession.prefill_parts` gives them.

    Raises: RecoverableError EMC-1651.
    """
    ids = np.asarray(token_ids, np.int64).reshape(1, -1)
    cache = session.make_cache()
    for start, end in _list_steps(ids.shape[1], first):
        positions = np.arange(start, end, dtype=np.int64)[None]
        logits, cache = session.run(ids[:, start:end], np.ones((1, end), np.int64), positions, cache)
        if end > first:
            yield logits[0, max(0, first - start) :]


def _list_steps(count: int, first: int) -> Iterator[tuple[int, int]]:
    """From and to which token each run goes."""
    single = max(0, first - LEAD_TOKENS)
    many = min(count, single + MOST_SINGLE)
    yield from _list_parts(0, single)
    yield from ((start, start + 1) for start in range(single, many))
    yield from _list_parts(many, count)


def _list_parts(start: int, end: int) -> Iterator[tuple[int, int]]:
    for place in range(start, end, PART_TOKENS):
        yield place, min(end, place + PART_TOKENS)
