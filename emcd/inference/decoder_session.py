"""Decoders under onnxruntime: any decoder-only export with a KV cache, opened once, run in threads.

Owns the calls into onnxruntime and the names and shapes of a graph's inputs and outputs. It must not
touch trio: callers choose the thread and the limiter. Inputs are found by their names, those of
Hugging Face's exports: `input_ids`, `attention_mask`, `position_ids` (where the graph has it) and, per
layer, `past_key_values.N.key|value` with its `present.N.key|value`; what the graph asks beyond that is
refused when it is opened. Invariants: the CPU provider alone is used; a long prompt is run in parts, so
that memory is bounded by a part, not by the prompt; roles of one daemon share a session.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple
from weakref import WeakValueDictionary

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from emcd.errors import ConfigError, RecoverableError
from emcd.inference.session import LEVELS, Optimization

Logits = NDArray[np.float32]
Ids = NDArray[np.int64]
Cache = list[NDArray[Any]]
"""Keys and values of every layer in turn, each [rows, kv_heads, tokens, head_size]."""

_TYPES: Final[dict[str, np.dtype[Any]]] = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(float16)": np.dtype(np.float16),
}
_PAST = re.compile(r"past(?:_key_values)?\.(\d+)\.(key|value)")
_PRESENT = re.compile(r"present(?:_key_values)?\.(\d+)\.(key|value)")
_IDS, _MASK, _POSITIONS = "input_ids", "attention_mask", "position_ids"
_LOGITS = "logits"
_ERRORS_ONLY = 3
_MAX_PART_TOKENS = 512
_PART_BYTES = 64 << 20
"""Of one part's logits: a vocabulary of 150,000 fills it with a hundred tokens."""
_PASSES = 8
"""How many times a cached token's bytes move in a run, as a weight's move once (measured: 6 to 10)."""


class _Names(NamedTuple):
    """What a graph calls its inputs and outputs, caches in the order of `Cache`."""

    past: tuple[str, ...]
    outputs: tuple[str, ...]


class DecoderSession:
    """One loaded graph; its methods may be called from several threads at once.

    Attributes:
        vocab_tokens: length of a row of logits; 0: the graph does not say.
        has_positions: whether rows of one run may differ in length. A graph without position_ids makes
            positions of its own, which padding would shift.
        cached_token_bytes: what one token of one row takes in the cache.
        run_cost_tokens: how many tokens of padding in the cache cost about as much as another run.
    """

    def __init__(self, path: Path, *, threads: int = 1, optimization: Optimization = "all") -> None:
        """Raises: ConfigError EMC-1650 when onnxruntime refuses the file, or it is no decoder with a cache."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = _ERRORS_ONLY
        options.graph_optimization_level = LEVELS[optimization]
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._inner = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as exc:  # onnxruntime has a dozen classes without a common base of its own
            raise ConfigError("EMC-1650", f"{path}: {exc}") from exc
        inputs = {item.name: item for item in self._inner.get_inputs()}
        outputs = {item.name: item for item in self._inner.get_outputs()}
        self._names = _find_names(path, list(inputs), list(outputs))
        first = inputs[self._names.past[0]]
        self.layers = len(self._names.past) // 2
        self.kv_heads, self.head_size, self.cache_type = _read_cache_shape(path, first)
        vocab = outputs[_LOGITS].shape[-1]
        self.vocab_tokens = vocab if isinstance(vocab, int) else 0
        self.has_positions = _POSITIONS in inputs
        self.cached_token_bytes = 2 * self.layers * self.kv_heads * self.head_size * self.cache_type.itemsize
        self.run_cost_tokens = max(64, _weigh(path) // (_PASSES * self.cached_token_bytes))

    @property
    def part_tokens(self) -> int:
        """How many tokens of a prompt are run at once."""
        return max(1, min(_MAX_PART_TOKENS, _PART_BYTES // (4 * max(1, self.vocab_tokens))))

    def make_cache(self, rows: int = 1, tokens: int = 0) -> Cache:
        """A cache of zeros; without tokens it is the one to begin with."""
        shape = (rows, self.kv_heads, tokens, self.head_size)
        return [np.zeros(shape, self.cache_type) for _ in self._names.past]

    def run(self, ids: Ids, mask: Ids, positions: Ids, cache: Cache) -> tuple[Logits, Cache]:
        """One step of a batch: a prompt's next part, or one token of each row.

        Args:
            ids: [rows, tokens]; mask: [rows, cached + tokens], 0 where nothing is to be looked at.
            positions: [rows, tokens], of each token within its own text.

        Returns: logits float32 [rows, tokens, vocab], and the cache with these tokens at its end.
        Raises: RecoverableError EMC-1651 when the run fails.
        """
        feeds = {_IDS: ids, _MASK: mask}
        if self.has_positions:
            feeds[_POSITIONS] = positions
        feeds.update(zip(self._names.past, cache, strict=True))
        try:
            logits, *grown = self._inner.run(self._names.outputs, feeds)
        except Exception as exc:
            raise RecoverableError("EMC-1651", str(exc)) from exc
        return logits if logits.dtype == np.float32 else logits.astype(np.float32), grown

    def prefill(self, token_ids: Sequence[int], first: int = 0, chunk_tokens: int | None = None) -> Logits:
        """What the model says after each token, from number `first` on: float32 [len - first, vocab].

        Row k judges what may follow token `first + k`. Raises: RecoverableError EMC-1651.
        """
        return np.concatenate(list(self.prefill_parts(token_ids, first, chunk_tokens)))

    def prefill_parts(
        self, token_ids: Sequence[int], first: int = 0, chunk_tokens: int | None = None
    ) -> Iterator[Logits]:
        """The same part by part, each of at most `chunk_tokens` rows. Raises: RecoverableError EMC-1651."""
        part = chunk_tokens or self.part_tokens
        ids = np.asarray(token_ids, np.int64).reshape(1, -1)
        cache = self.make_cache()
        for start in range(0, ids.shape[1], part):
            end = min(start + part, ids.shape[1])
            positions = np.arange(start, end, dtype=np.int64)[None]
            logits, cache = self.run(ids[:, start:end], np.ones((1, end), np.int64), positions, cache)
            if end > first:
                yield logits[0, max(0, first - start) :]


def _find_names(path: Path, inputs: Sequence[str], outputs: Sequence[str]) -> _Names:
    """Raises: ConfigError EMC-1650 naming what is missing, or what nobody can give."""
    past, present = _number(_PAST, inputs), _number(_PRESENT, outputs)
    missing = [name for name in (_IDS, _MASK) if name not in inputs]
    if _LOGITS not in outputs:
        missing.append(f"the output {_LOGITS}")
    if not past:
        missing.append("past_key_values.0.key (it is exported without a KV cache)")
    missing += [f"the output present.{layer}.{kind}" for layer, kind in sorted(past.keys() - present.keys())]
    if past and sorted(past) != [
        (layer, kind) for layer in range(len(past) // 2) for kind in ("key", "value")
    ]:
        missing.append("a key and a value for every layer from 0 on")
    if missing:
        raise ConfigError("EMC-1650", f"{path}: it has no {', no '.join(missing)}")
    unknown = sorted(set(inputs) - set(past.values()) - {_IDS, _MASK, _POSITIONS})
    if unknown:
        raise ConfigError("EMC-1650", f"{path}: it asks for {', '.join(unknown[:5])}, which nobody gives")
    order = sorted(past)
    return _Names(tuple(past[place] for place in order), (_LOGITS, *(present[place] for place in order)))


def _number(pattern: re.Pattern[str], names: Sequence[str]) -> dict[tuple[int, str], str]:
    found = ((pattern.fullmatch(name), name) for name in names)
    return {(int(match[1]), match[2]): name for match, name in found if match}


def _read_cache_shape(path: Path, value: Any) -> tuple[int, int, np.dtype[Any]]:
    shape, kind = value.shape, _TYPES.get(value.type)
    if len(shape) != 4 or not isinstance(shape[1], int) or not isinstance(shape[3], int) or kind is None:
        raise ConfigError(
            "EMC-1650",
            f"{path}: {value.name} is {value.type} {shape}, not float [batch, heads, past, size] with numbers",
        )
    return shape[1], shape[3], kind


def _weigh(path: Path) -> int:
    """Bytes of the graph and of the weights beside it."""
    beside = (*path.parent.glob(f"{path.name}_data*"), *path.parent.glob(f"{path.name}.data*"))
    return sum(file.stat().st_size for file in (path, *beside))


_lock = threading.Lock()
_open: WeakValueDictionary[tuple[Path, int, int, str], DecoderSession] = WeakValueDictionary()


def open_decoder(path: Path, *, threads: int = 1, optimization: Optimization = "all") -> DecoderSession:
    """The session of a file, shared while somebody holds it. Blocks while it is read.

    Raises: ConfigError EMC-1650.
    """
    try:
        key = (path.resolve(), path.stat().st_mtime_ns, threads, optimization)
    except OSError as exc:
        raise ConfigError("EMC-1650", f"{path}: {exc.strerror}") from exc
    with _lock:
        session = _open.get(key)
        if session is None:
            session = _open[key] = DecoderSession(path, threads=threads, optimization=optimization)
        return session
