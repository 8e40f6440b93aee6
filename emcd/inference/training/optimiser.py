"""AdamW over one flat vector, and the rate's course.

Pure numpy, in place. Source: Decoupled Weight Decay Regularization (arXiv 1711.05101).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from emcd.inference.weights import Tensors

Vector = NDArray[np.float32]


def make_views(sizes: dict[str, tuple[int, ...]]) -> tuple[Vector, Tensors]:
    """One vector of zeros and, by name, the parts of it in their shapes: writing to either writes to both."""
    flat = np.zeros(sum(map(math.prod, sizes.values())), np.float32)
    views: Tensors = {}
    start = 0
    for name, size in sizes.items():
        views[name] = flat[start : start + math.prod(size)].reshape(size)
        start += math.prod(size)
    return flat, views


def cosine_rate(
    step: int, steps: int, peak: float, *, warmup_share: float = 0.05, floor: float = 0.05
) -> float:
    """Up in a line, then down along half a cosine to `floor` of the peak."""
    warmup = max(1, round(steps * warmup_share))
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done)))


@dataclass
class AdamW:
    """Moves `weights` in place; `decayed` is 1.0 where weights shrink and 0.0 elsewhere."""

    weights: Vector
    decayed: Vector
    decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    clip_norm: float = 1.0
    _mean: Vector = field(init=False)
    _square: Vector = field(init=False)
    _steps: int = 0

    def __post_init__(self) -> None:
        self._mean, self._square = np.zeros_like(self.weights), np.zeros_like(self.weights)

    def step(self, gradient: Vector, rate: float) -> float:
        """One step; `gradient` is overwritten. Returns its norm before it was clipped."""
        self._steps += 1
        norm = float(np.sqrt(np.dot(gradient, gradient)))
        if norm > self.clip_norm:
            gradient *= np.float32(self.clip_norm / norm)
        self._mean *= np.float32(self.beta1)
        self._mean += np.float32(1 - self.beta1) * gradient
        self._square *= np.float32(self.beta2)
        gradient *= gradient
        self._square += np.float32(1 - self.beta2) * gradient
        scale = np.sqrt(self._square)
        scale *= np.float32(1 / math.sqrt(1 - self.beta2**self._steps))
        scale += np.float32(self.epsilon)
        np.divide(self._mean, scale, out=scale)
        scale *= np.float32(rate / (1 - self.beta1**self._steps))
        np.multiply(self.weights, self.decayed, out=gradient)
        gradient *= np.float32(rate * self.decay)
        self.weights -= gradient
        self.weights -= scale
        return norm
