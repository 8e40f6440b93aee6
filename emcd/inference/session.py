"""onnxruntime sessions on the CPU: opened once per file and thread count, run in threads.

Owns every call into onnxruntime. It must not touch trio: callers choose the thread and the
limiter. Invariants: roles of one daemon that open the same file with the same thread count share
one session (90 MB once, not per role); idle threads of a session do not spin, since the event
loop shares their cores; the CPU provider alone is used, in fp32, which is the numeric class that
embedded manifests declare (the CUDA provider defaults to TF32).
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal
from weakref import WeakValueDictionary

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from emcd.errors import ConfigError, RecoverableError

Vectors = NDArray[np.float32]

Optimization = Literal["all", "extended", "basic", "off"]
LEVELS: Final = {
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "off": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
}
_ERRORS_ONLY = 3


class EmbeddingSession:
    """One loaded graph; `run` may be called from several threads at once."""

    def __init__(self, path: Path, threads: int, *, optimization: Optimization = "all") -> None:
        """Raises: ConfigError EMC-1606 when onnxruntime refuses the file."""
        options = ort.SessionOptions()
        options.graph_optimization_level = LEVELS[optimization]
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = _ERRORS_ONLY
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._inner = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as exc:  # onnxruntime has a dozen classes without a common base of its own
            raise ConfigError("EMC-1606", f"{path}: {exc}") from exc

    def run(self, texts: Sequence[Sequence[int]], least_tokens: int = 0) -> Vectors:
        """Embed one batch of token ids, padded to its longest, or to `least_tokens` where that is more.

        Returns: float32 [len(texts), dimension], rows of length 1, in the order given.
        Raises: RecoverableError EMC-1605 when the run fails.
        """
        longest = max(least_tokens, *map(len, texts))
        ids = np.zeros((len(texts), longest), np.int64)
        mask = np.zeros_like(ids)
        for row, tokens in enumerate(texts):
            ids[row, : len(tokens)] = tokens
            mask[row, : len(tokens)] = 1
        try:
            vectors: Vectors = self._inner.run(None, {"input_ids": ids, "attention_mask": mask})[0]
        except Exception as exc:
            raise RecoverableError("EMC-1605", str(exc)) from exc
        return vectors


_lock = threading.Lock()
_open: WeakValueDictionary[tuple[Path, int, int], EmbeddingSession] = WeakValueDictionary()


def open_session(path: Path, threads: int) -> EmbeddingSession:
    """The session of a file, shared while somebody holds it. Blocks for 0.2 s the first time.

    Raises: ConfigError EMC-1606.
    """
    try:
        key = (path.resolve(), path.stat().st_mtime_ns, threads)
    except OSError as exc:
        raise ConfigError("EMC-1606", f"{path}: {exc.strerror}") from exc
    with _lock:
        session = _open.get(key)
        if session is None:
            session = _open[key] = EmbeddingSession(path, threads)
        return session
