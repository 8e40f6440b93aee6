"""A node that sells all-MiniLM-L6-v2 and gives other vectors: every row of VERIFICATION 2.

It answers in OpenAI's form, through the node's own writer of answers, so that what judges an honest node
judges this one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from emcd.inference.embedder import EmbedResult
from emcd.inference.minilm import MINILM_MANIFEST, ModelFiles
from emcd.inference.session import EmbeddingSession, open_session
from emcd.inference.tokenizer import Tokenizer
from emcd_node.embedded_model import write_answer
from tests.support.cheap_graphs import TRUE, VectorGraphs

PATH: Final = "/v1/embeddings"
Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class VectorCheat:
    """A row: which graph computes, and of what.

    Args:
        is_caught: whether verification promises to catch it; otherwise it must pass, or be of a class.
        least_tokens: of a text that it changes at all: shorter ones are answered honestly.
    """

    name: str
    graph: str = TRUE
    change: Callable[[VectorNode, str], Vectors] | None = None
    is_caught: bool = True
    least_tokens: int = 0


class VectorNode:
    """One node, its graphs, and what it remembers of other users' texts."""

    def __init__(self, files: ModelFiles, graphs: VectorGraphs, remembered: Sequence[str] = ()) -> None:
        self.graphs, self.remembered = graphs, list(remembered)
        self.tokenizer = Tokenizer(files.tokenizer, MINILM_MANIFEST.max_tokens)
        self.most_tokens = MINILM_MANIFEST.max_tokens
        self._known: Vectors | None = None

    def answer(self, body: bytes, cheat: VectorCheat | None = None) -> bytes:
        """The bytes of an answer to a request's body."""
        asked = msgspec.json.decode(body)
        texts = [asked["input"]] if isinstance(asked["input"], str) else asked["input"]
        counts = tuple(map(len, self.tokenizer.encode(texts)))
        graph = TRUE if cheat is None else cheat.graph
        rows = [
            cheat.change(self, text) if cheat is not None and cheat.change else self.embed(text, graph)
            for text in texts
        ]
        result = EmbedResult(np.stack(rows), counts)
        return write_answer(asked["model"], result, asked.get("encoding_format") == "base64")

    def embed(self, text: str, graph: str = TRUE, most_tokens: int = MINILM_MANIFEST.max_tokens) -> Vectors:
        """One vector, of a text cut to so many tokens, the last of them the end token."""
        ids = self.tokenizer.encode([text])[0]
        ids = ids if len(ids) <= most_tokens else [*ids[: most_tokens - 1], ids[-1]]
        vector: Vectors = self._open(graph).run([ids])[0]
        return vector

    def nearest(self, text: str, among: int) -> Vectors:
        """The remembered answer that is nearest to the true one: the best cache there can be."""
        if self._known is None:
            self._known = np.stack([self.embed(other) for other in self.remembered])
        own = self.embed(text)
        found: Vectors = self._known[int(np.argmax(self._known[:among] @ own))]
        return found

    def _open(self, graph: str) -> EmbeddingSession:
        return open_session(self.graphs.path(graph), 1)


def _random_vector(node: VectorNode, text: str) -> Vectors:
    drawn = np.random.default_rng(len(text)).normal(size=MINILM_MANIFEST.dimension)
    vector: Vectors = (drawn / np.linalg.norm(drawn)).astype(np.float32)
    return vector


def _cut(tokens: int) -> VectorCheat:
    change = partial(_embed_cut, tokens)
    return VectorCheat(f"input cut to {tokens} tokens", change=change, least_tokens=tokens + 16)


def _embed_cut(tokens: int, node: VectorNode, text: str) -> Vectors:
    return node.embed(text, most_tokens=tokens)


def _drop_last_word(node: VectorNode, text: str) -> Vectors:
    return node.embed(text.rsplit(" ", 1)[0])


def _nearest_of(count: int) -> Callable[[VectorNode, str], Vectors]:
    return lambda node, text: node.nearest(text, count)


VECTOR_CHEATS: Final = (
    VectorCheat("int8 weights in one layer", "int8-one-layer"),
    VectorCheat("int8 weights, groups of 32", "int8-group-32"),
    VectorCheat("int8 weights, per channel", "int8-per-channel"),
    VectorCheat("fp8-e4m3 weights", "fp8-weights"),
    VectorCheat("int4 weights, groups of 32", "int4-group-32"),
    VectorCheat("dynamic int8, per channel, signed", "dynamic-s8-channel"),
    VectorCheat("dynamic int8, per tensor, signed", "dynamic-s8-tensor"),
    VectorCheat("dynamic int8, per channel, unsigned", "dynamic-u8-channel"),
    VectorCheat("dynamic int8, per tensor, unsigned", "dynamic-u8-tensor"),
    VectorCheat("10 % pruned", "prune-10"),
    VectorCheat("50 % pruned", "prune-50"),
    VectorCheat("5 of 6 layers", "layers-5"),
    VectorCheat("4 of 6 layers", "layers-4"),
    VectorCheat("3 of 6 layers", "layers-3"),
    VectorCheat("CLS pooling", "cls"),
    VectorCheat("permuted weights", "permuted"),
    VectorCheat("random vector", change=_random_vector),
    _cut(32),
    _cut(64),
    _cut(128),
    VectorCheat("last word dropped", change=_drop_last_word),
    VectorCheat("cached answer of another text", change=_nearest_of(1)),
    VectorCheat("nearest of 300 cached answers", change=_nearest_of(300)),
    VectorCheat("nearest of 4,000 cached answers", change=_nearest_of(4000)),
    VectorCheat("weights with 0.1 % noise (a light fine-tune)", "noise"),
    VectorCheat("fp16 weights, sold as fp32", "fp16"),
    VectorCheat("bf16 weights, sold as fp32", "bf16"),
)
RELAY: Final = VectorCheat("relay to another node", is_caught=False)


def make_body(texts: Sequence[str], *, as_base64: bool = False) -> bytes:
    """A request as the hub passes it on."""
    return msgspec.json.encode(
        {
            "encoding_format": "base64" if as_base64 else "float",
            "input": texts[0] if len(texts) == 1 else list(texts),
            "model": MINILM_MANIFEST.name,
        }
    )
