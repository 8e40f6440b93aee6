"""The child's side of `emcd.child`: one function, run in a process of its own.

Frames on both pipes are a kind (one byte), a length (8 bytes, big-endian) and a pickle. Invariants:
nothing but frames goes to the parent (what the function prints goes to stderr); the process ends
when its parent does, which closes our stdin.
"""

from __future__ import annotations

import gc
import importlib
import os
import pickle
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any, BinaryIO

from emcd.errors import EmcdError

PROGRESS, RESULT, KNOWN_ERROR, FAULT = b"P", b"R", b"E", b"F"
HEAD_BYTES = 9
PROGRESS_EVERY_S = 0.5
_TRACE_CHARACTERS = 4_000


def pack_frame(kind: bytes, value: object) -> bytes:
    payload = pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)
    return kind + len(payload).to_bytes(8, "big") + payload


def resolve(module: str, name: str) -> Callable[..., Any]:
    """The module-level function of that name."""
    found: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return found


class Reporter:
    """Tells the parent how far the work is, at most twice a second."""

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self._next_s = 0.0

    def __call__(self, *said: object) -> None:
        now_s = time.monotonic()
        if now_s >= self._next_s:
            self._next_s = now_s + PROGRESS_EVERY_S
            self._out.write(pack_frame(PROGRESS, said))
            self._out.flush()


def main() -> None:
    """Read one request, answer it, end."""
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    module, name, args, wants_progress, niceness = _read_request(sys.stdin.buffer)
    os.nice(niceness)
    gc.disable()  # millions of small records without a cycle among them, and then the end
    threading.Thread(target=_end_with_parent, daemon=True).start()
    named = {"progress": Reporter(out)} if wants_progress else {}
    try:
        answer = pack_frame(RESULT, resolve(module, name)(*args, **named))
    except EmcdError as exc:
        answer = pack_frame(KNOWN_ERROR, (type(exc).__module__, type(exc).__name__, exc.code, exc.detail))
    except Exception:  # noqa: BLE001 - the parent raises it, with its traceback
        answer = pack_frame(FAULT, traceback.format_exc()[-_TRACE_CHARACTERS:])
    out.write(answer)
    out.flush()
    os._exit(0)  # without it the thread that waits for the parent would be waited for


def _read_request(source: BinaryIO) -> Any:
    head = source.read(HEAD_BYTES)
    return pickle.loads(source.read(int.from_bytes(head[1:], "big")))  # noqa: S301 - from our own parent


def _end_with_parent() -> None:
    while os.read(0, 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    main()
