"""Writes the conformance vectors of the sampler and of the token statistics beside this file.

The numbers come from `tests/support/second_text_check.py`, which shares no code with the product, so
that they do not only say what the product says. Run from the root of the tree:
`python tests/vectors/make_verdict_vectors.py`; with `--check` it writes nothing and fails when a file
would change.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from tests.support.second_text_check import (
    Answer,
    Asked,
    Floats,
    answer,
    choose,
    launder,
    log_softmax,
    model_rows,
    noise,
    ranked,
    statistics,
    verdict,
)

FOLDER = Path(__file__).parent
TAU_D = {"fp32": 2e-4, "fp16": 3e-3, "bf16": 2e-2}
JUDGED = {
    "gen.seeded": ("d", "m", "w"),
    "gen.greedy": ("d", "m", "w"),
    "gen.free": ("d",),
    "first": ("first",),
}
ASKED = (
    Asked(seed=7),
    Asked(0.4, seed=-(2**63)),
    Asked(1.3, 0.9, seed=2**64 - 1),
    Asked(1.0, 1.0, 20, 11),
    Asked(0.8, 0.95, 12, 2**63),
    Asked(0.0),
)


def sampler() -> dict[str, Any]:
    noises = [
        {"seed": str(seed), "t": t, "token": token, "noise": f"{noise(seed, t, token):.12f}"}
        for seed in (0, 1, -1, 2**63 - 1, -(2**63), 2**64 - 1)
        for t, token in ((0, 0), (1, 0), (0, 1), (511, 2047), (2**32 - 1, 2**32 - 1))
    ]
    choices = []
    for number, asked in enumerate(ASKED * 3):
        logits = np.round(model_rows(100 + number, 1, (30, 64, 150)[number // len(ASKED)])[0], 3)
        choices.append({
            **_shown(logits, asked),
            "sampling": _sampling(asked),
            "t": number,
            "token": choose(logits, asked, number),
        })  # fmt: skip
    return {
        "rule": "emcd-gumbel-v1: candidates are the 64 largest logits (ties: lower id), of them the top_k first, of them "
        "the smallest prefix whose softmax(logits / T) over the vocabulary reaches top_p; u = (BLAKE2b-64(key = seed as 8 "
        "bytes little-endian, u32 t || u32 id) + 0.5) / 2^64, at most 1 - 2^-53; noise = -ln(-ln u); the largest "
        "logit / T + noise wins; T = 0 takes the largest logit; noise to 12 decimals",
        "noises": noises,
        "choices": choices,
    }


def answers() -> dict[str, Any]:
    rows = [
        _case(1, "gen.seeded", "fp32", 1e-6, Asked(seed=3)),
        _case(2, "gen.seeded", "fp32", 1e-6, Asked(0.7, 0.9, 8, seed=4)),
        _case(3, "gen.seeded", "fp32", 1e-3, Asked(seed=5)),
        _case(4, "gen.seeded", "fp16", 1e-3, Asked(0.9, 0.8, seed=6)),
        _case(5, "gen.seeded", "bf16", 5e-3, Asked(1.0, 1.0, 5, seed=7)),
        _case(6, "gen.seeded", "fp32", 0.5, Asked(seed=8)),
        _case(7, "gen.seeded", "fp32", 0.5, Asked(seed=9), is_laundered=True),
        _case(8, "gen.seeded", "fp32", 1e-6, Asked(seed=10), served=Asked(0.7, seed=10)),
        _case(9, "gen.seeded", "fp32", 1e-6, Asked(seed=11, top_k=3), served=Asked(seed=11)),
        _case(10, "gen.seeded", "fp32", 1e-6, Asked(seed=12), served=Asked(seed=13)),
        _case(11, "gen.greedy", "fp32", 1e-6, Asked(0.0)),
        _case(12, "gen.greedy", "fp32", 0.3, Asked(0.0), is_laundered=True),
        _case(13, "gen.free", "bf16", 5e-3, Asked(1.0, seed=1), served=Asked(1.0, seed=2)),
        _case(14, "gen.free", "bf16", 0.2, Asked(1.0)),
        _case(15, "first", "fp16", 1e-3, Asked(0.0), tokens=1),
        _case(16, "first", "fp16", 0.3, Asked(0.0), tokens=1),
        _case(17, "gen.seeded", "fp32", 1e-6, Asked(seed=14), tokens=20, vocabulary=90),
    ]
    return {
        "rule": "d = mean over positions of the mean |reported - own logprob|; m = mean of the margin of the chosen token's "
        "score (logit + T x noise) behind the best that every run of the class lets in, at most 5, which a token outside of "
        "the cut costs too; at T = 0 the margin of its logit; w = worst mean of 16 positions in a row; first = d of the first "
        "position; the cut is taken with a tolerance of max(0.001, tau of d) of probability and 5 times that of logit; "
        "statistics to 9 decimals",
        "answers": rows,
    }


def _case(
    number: int,
    kind: str,
    declared: str,
    stray: float,
    asked: Asked,
    *,
    served: Asked | None = None,
    is_laundered: bool = False,
    tokens: int = 6,
    vocabulary: int = 24,
) -> dict[str, Any]:
    """An answer of a model that strays by so much per logit, judged by the true one."""
    own = np.round(model_rows(number, tokens, vocabulary), 3)
    node = np.round(own + np.random.default_rng(1000 + number).normal(0, stray, own.shape), 9)
    given = answer(node, served or asked)
    if is_laundered:
        given = launder(own, given)
    judges = kind in ("gen.seeded", "gen.greedy")
    values = statistics(own, given, asked, TAU_D[declared], tokens=judges)
    return {
        "kind": kind,
        "numeric_class": declared,
        "sampling": _sampling(asked),
        "positions": [_position(own[t], given, asked, t) for t in range(tokens)],
        **{name: f"{value:.9f}" for name, value in values.items()},
        "verdict": verdict(values, JUDGED[kind], declared),
    }


def _position(logits: Floats, given: Answer, asked: Asked, t: int) -> dict[str, Any]:
    token, reported = given.tokens[t], given.reported[t]
    logprobs = log_softmax(logits)
    return {
        "reported": [[v, value] for v, value in reported.items()],
        "own": [[v, float(logprobs[v])] for v in reported],
        "chosen": token,
        "chosen_logit": float(logits[token]),
        **_shown(logits, asked),
    }


def _shown(logits: Floats, asked: Asked) -> dict[str, Any]:
    scaled = logits / asked.temperature if asked.temperature else logits
    top = float(scaled.max())
    return {
        "candidates": [[v, float(logits[v])] for v in ranked(logits)[:64]],
        "log_total": top + float(np.log(np.exp(scaled - top).sum())),
    }


def _sampling(asked: Asked) -> dict[str, Any]:
    return {
        "temperature": asked.temperature,
        "top_p": asked.top_p,
        "top_k": asked.top_k,
        "seed": str(asked.seed),
    }


FILES = {"sampler.json": sampler, "text_check.json": answers}


def render(name: str) -> str:
    """One row a line."""
    table = FILES[name]()
    parts = []
    for key, value in table.items():
        rows = (
            "[\n  " + ",\n  ".join(map(json.dumps, value)) + "\n ]"
            if isinstance(value, list)
            else json.dumps(value)
        )
        parts.append(f' "{key}": {rows}')
    return "{\n" + ",\n".join(parts) + "\n}\n"


def main() -> int:
    stale = [name for name in FILES if _read(name) != render(name)]
    if "--check" not in sys.argv:
        for name in stale:
            (FOLDER / name).write_text(render(name), "utf-8")
    print("changed:", ", ".join(stale) or "nothing")
    return 1 if stale and "--check" in sys.argv else 0


def _read(name: str) -> str:
    path = FOLDER / name
    return path.read_text("utf-8") if path.exists() else ""


if __name__ == "__main__":
    raise SystemExit(main())
