"""The sampler and the token statistics a second time, from their description alone, with numpy.

Nothing of the product is imported. Whole vocabularies are ranked and summed here, where the product
sees 64 candidates and a logarithm of the sum.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
TAUS = {"fp32": (2e-4, 1e-4, 4e-4, 2e-4), "fp16": (3e-3, 5e-4, 2e-3, 6e-3), "bf16": (2e-2, 5e-3, 2e-2, 4e-2)}
NAMES = ("d", "m", "w", "first")


@dataclass
class Asked:
    """What a request asks of the sampler."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0


@dataclass
class Answer:
    """Tokens with what was reported for each: logprobs by id."""

    tokens: list[int] = field(default_factory=list)
    reported: list[dict[int, float]] = field(default_factory=list)


def noise(seed: int, t: int, token: int) -> float:
    key = struct.pack("<q" if seed < 2**63 else "<Q", seed)
    digest = hashlib.blake2b(struct.pack("<II", t, token), digest_size=8, key=key).digest()
    (word,) = struct.unpack("<Q", digest)
    unit = np.float64(word) + 0.5
    unit = min(unit / np.float64(2.0) ** 64, np.nextafter(1.0, 0.0))
    return float(-np.log(-np.log(unit)))


def log_softmax(logits: Floats) -> Floats:
    shifted = logits - logits.max()
    return np.asarray(shifted - np.log(np.exp(shifted).sum()))


def ranked(logits: Floats) -> list[int]:
    return [int(i) for i in np.lexsort((np.arange(len(logits)), -logits))]


def allowed(logits: Floats, asked: Asked) -> list[int]:
    order = ranked(logits)[:64]
    if asked.top_k > 0:
        order = order[: asked.top_k]
    if not 0 < asked.top_p < 1:
        return order
    probabilities = np.exp(log_softmax(logits / asked.temperature))
    total, kept = 0.0, []
    for token in order:
        kept.append(token)
        total += float(probabilities[token])
        if total >= asked.top_p:
            break
    return kept


def choose(logits: Floats, asked: Asked, t: int) -> int:
    if asked.temperature == 0:
        return ranked(logits)[0]
    scores = {
        v: float(logits[v]) / asked.temperature + noise(asked.seed, t, v) for v in allowed(logits, asked)
    }
    return min(scores, key=lambda v: (-scores[v], v))


def answer(rows: Floats, asked: Asked, top: int = 5) -> Answer:
    """What an honest node answers whose model has these logits, [tokens, vocabulary]."""
    out = Answer()
    for t, logits in enumerate(rows):
        token = choose(logits, asked, t)
        logprobs = log_softmax(logits)
        out.tokens.append(token)
        out.reported.append({v: float(logprobs[v]) for v in [token, *ranked(logits)[:top]]})
    return out


def launder(rows: Floats, given: Answer, top: int = 5) -> Answer:
    """The same tokens with logprobs bought from the true model."""
    out = Answer(list(given.tokens))
    for token, logits in zip(given.tokens, rows, strict=True):
        logprobs = log_softmax(logits)
        out.reported.append({v: float(logprobs[v]) for v in [token, *ranked(logits)[:top]]})
    return out


def margin(logits: Floats, token: int, asked: Asked, t: int, slack: float, tolerance: float) -> float:
    """How far the token is behind the best one that every honest run lets in; 5 when none lets it in."""
    if asked.temperature == 0:
        return float(min(5.0, max(0.0, logits.max() - logits[token])))
    shares = np.exp(log_softmax(logits / asked.temperature))
    order = ranked(logits)[:64]
    limit = min(64, asked.top_k) if asked.top_k > 0 else 64
    ahead = [v for v in order if logits[v] > logits[token] + slack]
    is_cut = 0 < asked.top_p < 1
    if len(ahead) >= limit or (is_cut and sum(float(shares[v]) for v in ahead) > asked.top_p + tolerance):
        return 5.0
    sure = []
    is_full = len(order) == 64 or limit < len(order)
    edge = logits[order[min(limit, len(order) - 1)]] + slack if is_full else -np.inf
    for v in order:
        if logits[v] <= edge:
            break
        rivals = [u for u in order if u != v and logits[u] > logits[v] - slack]
        if is_cut and rivals and sum(float(shares[u]) for u in rivals) + tolerance >= asked.top_p:
            break
        sure.append(v)
    scores = [float(logits[v]) + asked.temperature * noise(asked.seed, t, v) for v in sure]
    own = float(logits[token]) + asked.temperature * noise(asked.seed, t, token)
    return min(5.0, max([0.0, *(score - own for score in scores)]))


def statistics(rows: Floats, given: Answer, asked: Asked, tau_d: float, *, tokens: bool) -> dict[str, float]:
    """d, m, w and first against the true model's logits."""
    differences = []
    for logits, reported in zip(rows, given.reported, strict=True):
        logprobs = log_softmax(logits)
        differences.append(np.mean([abs(value - logprobs[v]) for v, value in reported.items()]))
    tolerance = max(1e-3, tau_d)
    margins = [
        margin(logits, token, asked, t, 5 * tolerance, tolerance) if tokens else 0.0
        for t, (logits, token) in enumerate(zip(rows, given.tokens, strict=True))
    ]
    size = min(16, len(margins))
    windows = [np.mean(margins[start : start + size]) for start in range(len(margins) - size + 1)]
    return {
        "d": float(np.mean(differences)),
        "m": float(np.mean(margins)),
        "w": float(max(windows)),
        "first": float(differences[0]),
    }


def verdict(values: dict[str, float], judged: tuple[str, ...], declared: str) -> str:
    """PASS, CLASS, FAIL or GROSS by the table of taus."""
    classes = list(TAUS)
    own = dict(zip(NAMES, TAUS[declared], strict=True))
    if all(values[name] <= own[name] for name in judged):
        return "PASS"
    distance = judged[0]
    for lower in classes[classes.index(declared) + 1 :]:
        row: dict[str, Any] = dict(zip(NAMES, TAUS[lower], strict=True))
        if values[distance] > own[distance] and all(values[name] <= row[name] for name in judged):
            return "CLASS"
    return "GROSS" if any(values[name] >= 10 * own[name] for name in judged) else "FAIL"


def model_rows(seed: int, tokens: int = 24, vocabulary: int = 200, scale: float = 2.0) -> Floats:
    """Logits that look like a small model's."""
    return np.random.default_rng(seed).normal(0.0, scale, (tokens, vocabulary))
