"""emcd-tiny-1 as a model folder: trained once into a data directory, then reused.

Owns `<models_dir>/emcd-tiny-1`. Invariants: the folder appears whole or not at all; one process trains at
a time, others wait for its result; a folder that is damaged, or does not give its golden vectors, is made
anew. Blocks for a minute: call it in a thread, or from a program without a loop.

What is reproducible: the same Python patch version, numpy and kind of processor give the same bytes and so
the same model hash, on any number of cores. Another Python has other texts; another BLAS kernel rounds
otherwise, and training makes of the last bit another net of the same quality: another model, with another
hash. To sell one model on several machines, copy the folder: its hash is that of its files.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import trio

from emcd.child import run_in_child
from emcd.errors import ConfigError
from emcd.inference.golden import check_golden
from emcd.inference.golden_tokens import make_text_golden
from emcd.inference.manifest import (
    CHAT_TEMPLATE_FILE,
    GOLDEN_FILE,
    GRAPH_FILE,
    TOKENIZER_FILE,
    TextManifest,
)
from emcd.inference.model_folder import hash_files, load_model_folder, write_model_folder
from emcd.inference.training.bpe import END_OF_TEXT_ID, IM_END_ID
from emcd.inference.training.recipe import (
    CHILD_ENVIRONMENT,
    TINY_NAME,
    TINY_SHAPE,
    TrainingReport,
    run_recipe,
)

Say = Callable[[str], None]

_TRAINING_S = 3600.0
_STOP_TOKENS = (END_OF_TEXT_ID, IM_END_ID)


def ensure_tiny(models_dir: Path, say: Say) -> Path:
    """The folder of the tiny model, trained first unless a good one is there.

    Args:
        say: gets a line about what goes on, twice a second at most; from the calling thread.

    Raises: ConfigError EMC-1604 (can't write), EMC-1640 (this Python has no sources to learn from);
        RecoverableError EMC-1034 (the training was killed).
    """
    try:
        models_dir.mkdir(parents=True, exist_ok=True)
        with _lock(models_dir / f".{TINY_NAME}.lock", say):
            if not _is_good(models_dir):
                _make(models_dir, say)
    except OSError as exc:
        raise ConfigError("EMC-1604", f"{models_dir}: {exc}") from exc
    return models_dir / TINY_NAME


def _is_good(models_dir: Path) -> bool:
    try:
        return check_golden(load_model_folder(models_dir, TINY_NAME)).ok
    except ConfigError:
        return False


def _make(models_dir: Path, say: Say) -> None:
    say(f"{TINY_NAME} is trained on this machine, once: about a minute on two cores")
    with tempfile.TemporaryDirectory(prefix=".training-", dir=models_dir) as name:
        folder = Path(name)
        report = trio.run(_train, folder, say)
        say(
            f"{report.parameters} parameters, {report.tokens} tokens learned: {report.held_out:.2f} nats a token "
            f"on texts it never saw ({report.unigram:.2f} by the frequencies of tokens alone)"
        )
        graph, tokenizer = folder / GRAPH_FILE, folder / TOKENIZER_FILE
        golden = make_text_golden(
            graph, tokenizer, context_tokens=TINY_SHAPE.context, stop_tokens=_STOP_TOKENS
        )
        files: dict[str, bytes | Path] = {
            GRAPH_FILE: graph,
            TOKENIZER_FILE: tokenizer,
            CHAT_TEMPLATE_FILE: folder / CHAT_TEMPLATE_FILE,
            GOLDEN_FILE: golden,
        }
        manifest = TextManifest(
            name=TINY_NAME,
            files=hash_files(files),
            context_tokens=TINY_SHAPE.context,
            vocab_tokens=TINY_SHAPE.vocab,
            bos_token=None,
            stop_tokens=_STOP_TOKENS,
        )
        write_model_folder(models_dir, TINY_NAME, manifest, files, replace=True)


async def _train(folder: Path, say: Say) -> TrainingReport:
    return await run_in_child(
        run_recipe, folder, timeout_s=_TRAINING_S, on_progress=say, environment=CHILD_ENVIRONMENT
    )


@contextmanager
def _lock(path: Path, say: Say) -> Iterator[None]:
    """Held by one process at a time; the system lets go of it when the process ends."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"another process makes {TINY_NAME}: waiting for it")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
