"""The training run: token ids in, weights out.

Owns the order of batches, the threads and the report of progress. Invariants: every batch is cut into the
same number of shards, whose gradients are added in order, so the number of cores changes the time alone;
the last stage is as long as the context, or the net would know no place beyond its training texts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from emcd.inference.decoder_graph import DecoderShape, list_tensor_shapes, random_tensors
from emcd.inference.training.net import Net
from emcd.inference.training.optimiser import AdamW, cosine_rate, make_views
from emcd.inference.weights import Tensors

Tokens = NDArray[np.int64]
_SHARDS = 2
_REPORT_STEPS = 20


@dataclass(frozen=True)
class Stage:
    """Part of a run: `steps` batches of `texts` texts of `places` tokens."""

    steps: int
    texts: int
    places: int


@dataclass(frozen=True)
class Plan:
    """A whole run."""

    stages: tuple[Stage, ...]
    peak_rate: float
    seed: int

    @property
    def steps(self) -> int:
        return sum(stage.steps for stage in self.stages)

    @property
    def tokens(self) -> int:
        return sum(stage.steps * stage.texts * stage.places for stage in self.stages)


@dataclass(frozen=True)
class Progress:
    """Where a run is; `loss` is the mean of the last steps, in nats per token."""

    step: int
    steps: int
    loss: float


def train(tokens: Tokens, shape: DecoderShape, plan: Plan, report: Callable[[Progress], None]) -> Tensors:
    """Learn a stream of token ids, from its start and around again.

    Args:
        tokens: int64 [count]; texts one after another, longer than one batch.
        report: called every few steps, and at the end.
    """
    weights, tensors = make_views(list_tensor_shapes(shape))
    decayed, decays = make_views(list_tensor_shapes(shape))
    for name, value in random_tensors(shape, plan.seed).items():
        tensors[name][...] = value
        decays[name][...] = value.ndim > 1
    optimiser, net = AdamW(weights, decayed), Net(tensors, shape)
    sides = [make_views(list_tensor_shapes(shape)) for _ in range(_SHARDS)]
    losses: list[float] = []
    with ThreadPoolExecutor(_SHARDS, "training") as threads:
        for step, batch in enumerate(_batches(tokens, plan)):
            shards = np.array_split(batch, _SHARDS)
            work = zip(shards, (views for _, views in sides), strict=True)
            done = list(threads.map(lambda pair: net.add_gradients(*pair), work))
            losses.append(
                sum(loss * len(shard) for loss, shard in zip(done, shards, strict=True)) / len(batch)
            )
            total = _join([flat for flat, _ in sides], [len(shard) / len(batch) for shard in shards])
            optimiser.step(total, cosine_rate(step, plan.steps, plan.peak_rate))
            if (step + 1) % _REPORT_STEPS == 0 or step + 1 == plan.steps:
                recent = losses[-_REPORT_STEPS:]
                report(Progress(step + 1, plan.steps, sum(recent) / len(recent)))
    return tensors


def _batches(tokens: Tokens, plan: Plan) -> Sequence[Tokens]:
    """Batches int64 [texts, places + 1], in the stream's order."""
    batches = []
    start = 0
    for stage in plan.stages:
        for _ in range(stage.steps):
            places = (
                start + np.arange(stage.texts)[:, None] * stage.places + np.arange(stage.places + 1)
            ) % len(tokens)
            batches.append(tokens[places])
            start += stage.texts * stage.places
    return batches


def _join(gradients: list[NDArray[np.float32]], shares: list[float]) -> NDArray[np.float32]:
    """The whole batch's gradient; those of the shards are zero again."""
    total = np.zeros_like(gradients[0])
    for gradient, share in zip(gradients, shares, strict=True):
        total += gradient * np.float32(share)
        gradient[...] = 0
    return total


def compute_held_out(tensors: Tensors, shape: DecoderShape, tokens: Tokens, places: int) -> float:
    """Mean nats per token over the whole of `tokens`, cut into texts of `places` tokens."""
    net = Net(tensors, shape)
    rows = tokens[: (len(tokens) - 1) // places * places + 1]
    starts = range(0, len(rows) - places, places)
    texts = np.stack([rows[start : start + places + 1] for start in starts])
    groups = np.array_split(texts, max(1, len(texts) // 8))
    return sum(net.compute_loss(group) * len(group) for group in groups) / len(texts)


def compute_unigram(learned: Tokens, tokens: Tokens, vocab: int) -> float:
    """Mean nats per token of `tokens` when only the frequencies in `learned` are known (with one added to each)."""
    counts = np.bincount(learned, minlength=vocab) + 1
    return float(-np.mean(np.log(counts / counts.sum())[tokens]))
