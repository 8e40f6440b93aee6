"""A measurement of one model on this machine: honest answers in many ways of running it, and the known cheats.

Owns the runs. An honest answer is one of the declared model whatever threads, optimisation level, batch and
padding it was computed with; it is compared with the reference run (one thread, all optimisations, alone),
exactly as a validator compares. Everything here blocks: call it in a thread or from a command.
"""

from __future__ import annotations

import os
import platform
import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Final, TypeVar

import onnxruntime as ort

from emcd.accounting.verdict import max_statistic_e12
from emcd.inference.answer_run import judge_run, read_rows, write_answers
from emcd.inference.calibration import Measurement, Near
from emcd.inference.cheaper_graph import CHEATS, Cheat, write_cheaper_graph
from emcd.inference.decoder_session import DecoderSession, open_decoder
from emcd.inference.golden_text import GOLDEN_TEXTS
from emcd.inference.manifest import (
    GRAPH_FILE,
    CheckedManifest,
    EmbeddingManifest,
    TextManifest,
    model_hash,
)
from emcd.inference.minilm import ModelFiles
from emcd.inference.session import EmbeddingSession, Optimization, Vectors
from emcd.inference.text_tokenizer import TextTokenizer
from emcd.inference.token_choice import Sampling
from emcd.inference.tokenizer import Tokenizer

_Item = TypeVar("_Item")
Say = Callable[[str], None]
ANSWER_TOKENS: Final = 64
TOP_LOGPROBS: Final = 5
CHEAT_ANSWERS: Final = 32
_LONGEST_PROMPT: Final = 192


@dataclass(frozen=True)
class WayToRun:
    """One honest way.

    Args:
        together: texts of one batch. padding_tokens: to which all of a batch are padded; 0: to its longest.
    """

    threads: int
    optimization: Optimization
    together: int
    padding_tokens: int = 0

    @property
    def words(self) -> str:
        padded = f", padded to {self.padding_tokens}" if self.padding_tokens else ""
        return f"{self.threads} threads, {self.optimization}, {self.together} together{padded}"


def list_ways(cores: int, longest: int) -> tuple[WayToRun, ...]:
    """The ways that are measured on a machine with so many cores."""
    some, all_of_them = min(2, cores), cores
    return (
        WayToRun(some, "all", 1),
        WayToRun(all_of_them, "all", 4),
        WayToRun(1, "extended", 16),
        WayToRun(some, "basic", 8),
        WayToRun(1, "off", 1),
        WayToRun(all_of_them, "off", 32, longest),
    )


def describe_machine() -> tuple[str, str]:
    """An id of this machine, and what it is in words."""
    processor = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    described = f"{processor}, {os.cpu_count()} cores, onnxruntime {ort.__version__}"
    return sha256(f"{platform.node()}|{described}".encode()).hexdigest()[:16], described


def measure_text_model(
    manifest: TextManifest, graph: Path, tokenizer: Path, *, answers: int, seed: int, say: Say
) -> Measurement:
    """Write answers in every way at T = 1 and T = 0, and judge them by the reference run.

    Raises: ConfigError EMC-1650, 1652; RecoverableError EMC-1651.
    """
    draw = random.Random(seed)  # noqa: S311 - which prompts, nothing to guess
    words, reference = TextTokenizer(tokenizer), open_decoder(graph)
    most = dict.fromkeys(("d", "m", "w", "first"), 0)
    runs: dict[str, int] = {}
    ways = list_ways(os.cpu_count() or 1, 0)
    for way, count in zip(ways, _shares(answers, len(ways)), strict=True):
        session = open_decoder(graph, threads=way.threads, optimization=way.optimization)
        for values in _judge_all(manifest, session, reference, words, draw, count, way.together):
            for name, value in values.items():
                most[name] = max(most[name], value)
            runs[way.words] = runs.get(way.words, 0) + 1
            _tell(say, sum(runs.values()), answers, most)
    cheats = {}
    for cheat, path in _cheaper_graphs(graph, say):
        found = list(_judge_all(manifest, open_decoder(path), reference, words, draw, CHEAT_ANSWERS, 8))
        cheats[cheat] = Near("d", min(values["d"] for values in found), len(found))
    return _result(manifest, most, runs, cheats)


def measure_embedder(
    manifest: EmbeddingManifest, files: ModelFiles, *, answers: int, seed: int, say: Say
) -> Measurement:
    """Embed texts in every way, and compare with the reference run.

    Raises: ConfigError EMC-1603, 1606; RecoverableError EMC-1605.
    """
    draw = random.Random(seed)  # noqa: S311
    tokenizer = Tokenizer(files.tokenizer, manifest.max_tokens)
    reference = EmbeddingSession(files.onnx, 1)
    ways = list_ways(os.cpu_count() or 1, manifest.max_tokens)
    most, runs = {"l2": 0}, dict[str, int]()
    for way, count in zip(ways, _shares(answers, len(ways)), strict=True):
        session = EmbeddingSession(files.onnx, way.threads, optimization=way.optimization)
        for texts in _parts(tokenizer.encode(list(draw_texts(draw, count))), way.together):
            vectors = session.run(texts, way.padding_tokens)
            expected = [reference.run([ids])[0] for ids in texts]
            most["l2"] = max(most["l2"], _distance(expected, vectors))
            runs[way.words] = runs.get(way.words, 0) + len(texts)
            _tell(say, sum(runs.values()), answers, most)
    cheats = {}
    for cheat, path in _cheaper_graphs(files.onnx, say):
        cheaper = EmbeddingSession(path, 1)
        found = [
            _distance(reference.run([ids]), cheaper.run([ids]))
            for ids in tokenizer.encode(list(draw_texts(draw, CHEAT_ANSWERS)))
        ]
        cheats[cheat] = Near("l2", min(found), len(found))
    return _result(manifest, most, runs, cheats)


def draw_texts(draw: random.Random, count: int) -> Iterator[str]:
    """Texts that nobody has seen: words of the golden ones in another order, of all lengths."""
    words = [word for text in GOLDEN_TEXTS for word in text.split(" ") if word]
    for _ in range(count):
        yield " ".join(draw.choices(words, k=draw.choice((1, 3, 8, 20, 50, 120, 300))))


def _judge_all(
    manifest: TextManifest,
    session: DecoderSession,
    reference: DecoderSession,
    words: TextTokenizer,
    draw: random.Random,
    count: int,
    together: int,
) -> Iterator[dict[str, int]]:
    """The statistics of `count` answers that a session writes, by the reference's one prefill of each."""
    longest = min(_LONGEST_PROMPT, manifest.context_tokens - ANSWER_TOKENS)
    asked = [
        (
            words.encode(text, specials=True)[: max(1, longest)],
            Sampling(float(number % 4 > 0), seed=draw.getrandbits(63), top_logprobs=TOP_LOGPROBS),
        )
        for number, text in enumerate(draw_texts(draw, count))
    ]
    for part in _parts(asked, max(together, 16)):
        written = write_answers(
            session, part, tokens=ANSWER_TOKENS, stop_tokens=manifest.stop_tokens, together=together
        )
        for (prompt, _), run in zip(part, written, strict=True):
            judged = judge_run(manifest, prompt, run, read_rows(reference, prompt, run.tokens)).statistics
            yield {name: judged.value(name) for name in ("d", "m", "w", "first")}


def _cheaper_graphs(graph: Path, say: Say) -> Iterator[tuple[Cheat, Path]]:
    for cheat in CHEATS:
        with tempfile.TemporaryDirectory(prefix="emcd-calibration-") as folder:
            say(f"a known cheat: {cheat}")
            path = Path(folder) / GRAPH_FILE
            write_cheaper_graph(graph, path, cheat)
            yield cheat, path


def _parts(items: Sequence[_Item], size: int) -> Iterator[Sequence[_Item]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _distance(expected: Sequence[Vectors] | Vectors, vectors: Vectors) -> int:
    return max_statistic_e12([row.tolist() for row in expected], vectors.tolist())


def _shares(answers: int, ways: int) -> Iterator[int]:
    return (answers // ways + (number < answers % ways) for number in range(ways))


def _tell(say: Say, done: int, answers: int, most: dict[str, int]) -> None:
    shown = ", ".join(f"{name} {value / 1e12:.1e}" for name, value in most.items())
    say(f"{done} of {answers} honest answers: at most {shown}")


def _result(
    manifest: CheckedManifest, most: dict[str, int], runs: dict[str, int], cheats: dict[Cheat, Near]
) -> Measurement:
    machine, described = describe_machine()
    return Measurement(
        model_hash=f"0x{model_hash(manifest).hex()}",
        machine=machine,
        described=described,
        answers=sum(runs.values()),
        most_e12=most,
        runs=runs,
        cheats={str(name): near for name, near in cheats.items()},
    )
