"""What a node could train to tell probes from users' calls: features of what it gets, and two classifiers.

Cross-validated over topics: a call of the held-out part has text that no call of the training part has.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from tests.support.user_calls import SeenCall

Floats = NDArray[np.float32]
WIDTH = 2048
_WORD = re.compile(r"\w+|[^\w\s]")


def features_of_form(call: SeenCall) -> list[str]:
    """Which fields there are, with which values, in which order: everything but the text."""
    table = msgspec.json.decode(call.body)
    names = [f"{call.path} {name}" for name in table] + ["order " + " ".join(table)]
    for name, value in table.items():
        if name in ("messages", "prompt", "input", "seed"):
            continue
        names.append(f"{name}={msgspec.json.encode(value).decode()}")
    names += [
        f"seed bits {int(table.get('seed', 0)).bit_length() // 4}",
        f"seed odd {int(table.get('seed', 0)) % 2}",
    ]
    texts = list_texts_of(table)
    names += [f"texts {len(texts)}", f"list {isinstance(table.get('input'), list)}"]
    names += ["roles " + " ".join(m["role"] + "/" + " ".join(m) for m in table.get("messages", []))]
    names += [f"size {int(2 * math.log2(1 + len(call.body)))}"]
    return names


def features_of_shape(call: SeenCall) -> list[str]:
    """How the texts look: lengths, beginnings and ends, lines, marks."""
    texts = list_texts_of(msgspec.json.decode(call.body))
    names = []
    for place, text in enumerate(texts[-3:]):
        lines = text.split("\n")
        blank = sum(not line.strip() for line in lines)
        names += [
            f"{place} words {int(2 * math.log2(1 + len(text.split())))}",
            f"{place} lines {int(2 * math.log2(1 + len(lines)))}",
            f"blank {min(blank, 9)}",
            f"first {_kind(text[:1])}", f"last {_kind(text[-1:])}", f"last two {text[-2:]!r}",
            f"ends line {text.endswith(chr(10))}", f"tabs {chr(9) in text}", f"double {'  ' in text}",
            f"trailing {any(line != line.rstrip() for line in lines)}", f"ascii {text.isascii()}",
            f"indent {len(text) - len(text.lstrip())}", f"last indent {len(lines[-1]) - len(lines[-1].lstrip())}",
            f"last line {int(math.log2(1 + len(lines[-1])))}",
            f"upper {round(10 * sum(c.isupper() for c in text) / len(text))}",
            f"marks {round(10 * sum(not c.isalnum() and not c.isspace() for c in text) / len(text))}",
            f"digits {round(20 * sum(c.isdigit() for c in text) / len(text))}",
        ]  # fmt: skip
    sizes = [len(text) for text in texts]
    names.append(f"even {int(4 * max(sizes) / (sum(sizes) + 1))}")
    return names


def features_of_words(call: SeenCall) -> list[str]:
    """Words and pairs of words."""
    words = [w.lower() for text in list_texts_of(msgspec.json.decode(call.body)) for w in _WORD.findall(text)]
    return words + [f"{a} {b}" for a, b in pairwise(words)]


def features_of_bytes(call: SeenCall) -> list[str]:
    """Sequences of three and four bytes of the body as it comes, and its first and last bytes."""
    text = call.body.decode("utf-8", "replace")[:3_000]
    grams = [text[i : i + n] for n in (3, 4) for i in range(len(text) - n + 1)]
    return [*grams, "begins " + text[:24], "ends " + call.body[-24:].decode("utf-8", "replace")]


def features_of_all(call: SeenCall) -> list[str]:
    return features_of_form(call) + features_of_shape(call) + features_of_words(call)


FEATURES: dict[str, Callable[[SeenCall], list[str]]] = {
    "form": features_of_form,
    "shape": features_of_shape,
    "words": features_of_words,
    "bytes": features_of_bytes,
    "all": features_of_all,
}


def list_texts_of(table: dict[str, Any]) -> list[str]:
    """The texts of a body."""
    if "messages" in table:
        return [message["content"] for message in table["messages"]]
    value = table.get("input", table.get("prompt"))
    return [value] if isinstance(value, str) else list(value or [""])


def measure_accuracy(
    probes: Sequence[SeenCall], users: Sequence[SeenCall], features: Callable[[SeenCall], list[str]], *,
    folds: int = 5, by_topic: bool = True, width: int = WIDTH,
) -> float:  # fmt: skip
    """The better classifier's share of right answers on held-out calls; both classes count alike."""
    matrix = np.stack([_hash(features(call), width) for call in (*probes, *users)])
    labels = np.array([1.0] * len(probes) + [0.0] * len(users), dtype=np.float32)
    keys = [call.topic if by_topic else str(n) for n, call in enumerate((*probes, *users))]
    parts = np.array([zlib.crc32(key.encode()) % folds for key in keys])
    right: dict[str, list[float]] = {"logistic": [], "bayes": []}
    for part in range(folds):
        train, held = parts != part, parts == part
        if not 0 < labels[held].sum() < held.sum():
            continue
        right["logistic"].append(
            _balanced(labels[held], _logistic(matrix[train], labels[train], matrix[held]))
        )
        right["bayes"].append(_balanced(labels[held], _bayes(matrix[train], labels[train], matrix[held])))
    return max(float(np.mean(values)) for values in right.values())


def _hash(names: list[str], width: int) -> Floats:
    places = [zlib.crc32(name.encode("utf-8", "replace")) % width for name in names]
    row: Floats = np.log1p(np.bincount(places, minlength=width).astype(np.float32))
    return row


def _logistic(train: Floats, labels: Floats, held: Floats) -> Floats:
    """Regularised logistic regression, by gradient descent with momentum on scaled features."""
    scale = np.sqrt((train**2).mean(axis=0)) + 0.05
    x, z = train / scale, held / scale
    x /= np.sqrt(x.shape[1]) / 8
    z /= np.sqrt(z.shape[1]) / 8
    weights = np.zeros(x.shape[1], dtype=np.float32)
    step = np.zeros_like(weights)
    bias = 0.0
    balance = np.where(labels > 0, 0.5 / labels.mean(), 0.5 / (1 - labels.mean())).astype(np.float32)
    for _ in range(80):
        error = balance * (1 / (1 + np.exp(-np.clip(x @ weights + bias, -30, 30))) - labels)
        step = 0.9 * step - 0.3 * (x.T @ error / len(labels) + 2e-3 * weights)
        weights += step
        bias -= 0.3 * float(error.mean())
    out: Floats = (z @ weights + bias).astype(np.float32)
    return out


def _bayes(train: Floats, labels: Floats, held: Floats) -> Floats:
    """Naive Bayes over whether a feature is there."""
    present, shown = train > 0, held > 0
    yes = (present[labels > 0].sum(axis=0) + 0.5) / (labels.sum() + 1)
    no = (present[labels == 0].sum(axis=0) + 0.5) / ((1 - labels).sum() + 1)
    weights = np.log(yes / no)
    missing = np.log((1 - np.clip(yes, 0, 0.999)) / (1 - np.clip(no, 0, 0.999)))
    out: Floats = (shown @ weights + (~shown) @ missing).astype(np.float32)
    return out


def _balanced(labels: Floats, scores: Floats) -> float:
    said = scores > 0
    return float((said[labels > 0].mean() + (~said[labels == 0]).mean()) / 2)


def _kind(letter: str) -> str:
    if letter.isalpha():
        return "upper" if letter.isupper() else "lower"
    return "digit" if letter.isdigit() else letter


def measure_values(
    probes: Sequence[Sequence[float]], users: Sequence[Sequence[float]], folds: int = 5
) -> float:
    """The same for numbers, such as times: each is cut into twenty bins of equal weight."""
    values = np.array([*probes, *users], dtype=np.float64)
    labels = np.array([1.0] * len(probes) + [0.0] * len(users), dtype=np.float32)
    columns = []
    for column in values.T:
        edges = np.quantile(column, np.linspace(0, 1, 21)[1:-1])
        columns.append(np.eye(20, dtype=np.float32)[np.searchsorted(edges, column)])
    matrix: Floats = np.hstack(columns)
    parts = np.arange(len(labels)) % folds
    found = []
    for part in range(folds):
        train, held = parts != part, parts == part
        scores = _bayes(matrix[train], labels[train], matrix[held])
        found.append(_balanced(labels[held], scores))
    return float(np.mean(found))
