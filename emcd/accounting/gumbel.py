"""The sampler `emcd-gumbel-v1`: the choice of a token is a function of logits and a seed.

Candidates are the 64 largest logits, then the `top_k` best of them, then the smallest prefix whose
probability (softmax of logits / T over the whole vocabulary) reaches `top_p`; each gets the Gumbel
noise of (seed, t, token) and the largest logit / T + noise wins, on a tie the lower id. So whoever has
the model can check every choice with one prefill, and drawing stays exact sampling: the largest of
logits with Gumbel noise is a draw from their softmax. Source: VERIFICATION 3 and 5.2.

Invariants: fp64 throughout, sums from left to right; no state.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from hashlib import blake2b

CANDIDATES = 64
_WORD = 1 << 64
_SEED_MASK = _WORD - 1
LAST_UNIT = 1 - 2**-53
"""The largest double below 1: 64 bits may round up to 1, whose noise would be infinite."""


def gumbel_noise(seed: int, t: int, token: int) -> float:
    """The noise of one token as output number `t` (from 0): standard Gumbel, fixed by the seed.

    Args: `seed` any integer of 64 bits, signed or not; `t` and `token` below 2**32.
    """
    return gumbel_noises(seed, t, (token,))[0]


def gumbel_noises(seed: int, t: int, tokens: Iterable[int]) -> list[float]:
    """The noise of each token as output number `t`."""
    noises = []
    for word in hash_tokens(seed, t, tokens):
        unit = min((int.from_bytes(word, "little") + 0.5) / _WORD, LAST_UNIT)
        noises.append(-math.log(-math.log(unit)))
    return noises


def hash_tokens(seed: int, t: int, tokens: Iterable[int]) -> list[bytes]:
    """What each token's noise is made of: 64 bits, little-endian."""
    keyed = blake2b(t.to_bytes(4, "little"), digest_size=8, key=(seed & _SEED_MASK).to_bytes(8, "little"))
    copy, words = keyed.copy, []
    for token in tokens:
        hasher = copy()
        hasher.update(token.to_bytes(4, "little"))
        words.append(hasher.digest())
    return words


def allowed_count(
    candidates: Sequence[tuple[int, float]],
    *,
    log_total: float,
    temperature: float,
    top_p: float = 1.0,
    top_k: int = 0,
) -> int:
    """How many of the sorted candidates may be drawn, at least one; arguments as for `choose`."""
    count = min(len(candidates), CANDIDATES)
    if top_k > 0:
        count = min(count, top_k)
    if not 0 < top_p < 1 or temperature <= 0:
        return count
    reached = 0.0
    for index in range(count):
        reached += math.exp(candidates[index][1] / temperature - log_total)
        if reached >= top_p:
            return index + 1
    return count


def choose(
    candidates: Sequence[tuple[int, float]],
    *,
    log_total: float,
    temperature: float,
    top_p: float = 1.0,
    top_k: int = 0,
    seed: int = 0,
    t: int = 0,
) -> int:
    """The id of output token number `t`.

    Args:
        candidates: the best (id, logit) of the vocabulary, by logit descending, then id ascending;
            at least one, and what is after the 64th does not count.
        log_total: logsumexp(logits / temperature) over the vocabulary; not read where `top_p` is off.
        temperature: 0 takes the best candidate and draws nothing.
        top_p: off outside of (0, 1). top_k: off below 1.
    """
    if temperature <= 0:
        return candidates[0][0]
    count = allowed_count(candidates, log_total=log_total, temperature=temperature, top_p=top_p, top_k=top_k)
    allowed = candidates[:count]
    noises = gumbel_noises(seed, t, [token for token, _ in allowed])
    best_score, best_token = -math.inf, allowed[0][0]
    for (token, logit), noise in zip(allowed, noises, strict=True):
        score = logit / temperature + noise
        if score > best_score or (score == best_score and token < best_token):
            best_score, best_token = score, token
    return best_token
