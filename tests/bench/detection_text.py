"""Text: honest answers in every way of running, every cheat, and what judging costs."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from emcd.inference.calibration_run import list_ways
from emcd.inference.decoder_graph import DecoderShape, build_decoder, random_tensors
from emcd.inference.golden_tokens import make_text_golden
from emcd.inference.manifest import GOLDEN_FILE, GRAPH_FILE, TOKENIZER_FILE, TextManifest
from emcd.inference.model_folder import ModelFolder, hash_files, load_model_folder, write_model_folder
from emcd.inference.training.corpus import read_corpus
from emcd.inference.training.recipe import TINY_SHAPE
from emcd.inference.training.tiny import ensure_tiny
from emcd.proto.messages import Verdict
from emcd_validator.judge import Judgement
from emcd_validator.judge_answer import read_text_answer
from tests.bench.detection_tally import Tally
from tests.support.cheap_graphs import TextGraphs
from tests.support.cheating_node import (
    COMPLETIONS,
    RELAY,
    SPARING,
    TEXT_CHEATS,
    Call,
    CheatingNode,
    TextCheat,
    make_call,
)
from tests.support.decoder_model import shared_tiny_dir
from tests.support.judged_text import TextJudge, draw_calls
from tests.support.small_writer import ensure_small

Say = Callable[[str], None]
HONEST_TOKENS = 32
_COST_CHARS = 130
"""Of a prompt: some 48 tokens, as in VERIFICATION 3."""
MEDIUM = DecoderShape(layers=8, hidden=512, heads=8, kv_heads=8, ffn=1408, vocab=2048, context=512)
"""26 million random weights: what judging costs does not depend on what they say."""


@dataclass(frozen=True)
class TextBench:
    """The tiny model, its judge, and texts that it never saw."""

    folder: ModelFolder
    graphs: TextGraphs
    judge: TextJudge
    texts: Sequence[str]

    @classmethod
    def open(cls, work: Path, say: Say) -> TextBench:
        path = ensure_tiny(shared_tiny_dir(), say)
        say("training the small model")
        folder = load_model_folder(path.parent, path.name)
        graphs = TextGraphs(folder.file(GRAPH_FILE), TINY_SHAPE, work / "text", ensure_small(path))
        return cls(folder, graphs, TextJudge(path), read_corpus().held_out)

    def measure_honest(self, answers: int, say: Say) -> dict[str, Any]:
        """Honest answers over thread counts, batch sizes and optimisation levels; how many do not pass."""
        ways = list_ways(os.cpu_count() or 1, 0)
        all_of_them, rows = Tally(), {}
        for number, way in enumerate(ways):
            count = answers // len(ways) + (number < answers % len(ways))
            node = CheatingNode(
                self.folder, self.graphs.path, threads=way.threads, optimization=way.optimization,
                together=way.together,
            )  # fmt: skip
            tally = Tally()
            calls = self._draw(random.Random(1000 + number), count, HONEST_TOKENS)
            while part := list(islice(calls, 128)):
                for call, answer in zip(part, node.answer(part), strict=True):
                    tally.add(self.judge.judge(call, answer))
                say(f"text, {way.words}: {len(tally.judgements)} of {count}")
            rows[way.words] = tally.show()
            all_of_them.judgements += tally.judgements
            all_of_them.changed += tally.changed
        return {"all": all_of_them.show(), "ways": rows}

    def measure_cheats(self, answers: int, say: Say) -> tuple[dict[str, Any], dict[str, Tally]]:
        """Every row on prompts of its own, a third each at T = 1, 0.7 and 0, and one-token calls."""
        node = CheatingNode(self.folder, self.graphs.path)
        shown, tallies = {}, {}
        for number, cheat in enumerate((*TEXT_CHEATS, RELAY, SPARING)):
            say(f"text: {cheat.name}")
            count = answers // 4 if cheat.accepts is not None else answers
            draw = random.Random(5000 + number)
            tally = self._judge_row(node, cheat, list(self._draw(draw, count, 64)))
            first = self._judge_row(node, cheat, list(self._draw(draw, max(8, count // 4), 1)))
            tallies[cheat.name] = tally
            shown[cheat.name] = {
                **tally.show(),
                "is_caught": cheat.is_caught,
                "first": first.show()["caught"],
            }
        return shown, tallies

    def measure_cost(self, work: Path, say: Say) -> dict[str, Any]:
        """CPU time of writing 64 tokens alone on one thread, and of judging them on one."""
        medium = _make_medium(self.folder, work / "models")
        say("what judging costs")
        return {
            "emcd-tiny-1, 1 M weights": _cost(self.folder, self.judge, self.texts),
            "random, 26 M weights": _cost(medium, TextJudge(medium.path), self.texts),
        }

    def _draw(self, draw: random.Random, count: int, tokens: int) -> Iterator[Call]:
        return draw_calls(draw, count, model=self.folder.manifest.name, texts=self.texts, max_tokens=tokens)

    def _tokens(self, call: Call, answer: bytes) -> tuple[int, ...]:
        """The ids of an answer's tokens; the last digits of its log-probabilities differ by themselves."""
        is_stream = b'"stream":true' in call.body
        read = read_text_answer(answer, is_stream=is_stream, most_tokens=TINY_SHAPE.context)
        assert not isinstance(read, Judgement), read
        return read.token_ids or ()

    def _judge_row(self, node: CheatingNode, cheat: TextCheat, calls: Sequence[Call]) -> Tally:
        calls = [call._replace(looks_like_probe=number % 2 == 0) for number, call in enumerate(calls)]
        tally = Tally()
        for call, answer, honest in zip(calls, node.answer(calls, cheat), node.answer(calls), strict=True):
            changed = self._tokens(call, answer) != self._tokens(call, honest)
            tally.add(self.judge.judge(call, answer), changed=changed)
        return tally


def _make_medium(tiny: ModelFolder, models_dir: Path) -> ModelFolder:
    graph = models_dir.parent / "medium.onnx"
    models_dir.mkdir(parents=True, exist_ok=True)
    graph.write_bytes(build_decoder(random_tensors(MEDIUM, 1), MEDIUM).SerializeToString())
    tokenizer = tiny.file(TOKENIZER_FILE)
    golden = make_text_golden(graph, tokenizer, context_tokens=MEDIUM.context)
    files: dict[str, bytes | Path] = {GRAPH_FILE: graph, TOKENIZER_FILE: tokenizer, GOLDEN_FILE: golden}
    manifest = TextManifest(
        name="medium",
        files=hash_files(files),
        context_tokens=MEDIUM.context,
        vocab_tokens=MEDIUM.vocab,
        bos_token=None,
        stop_tokens=(),
    )
    return write_model_folder(models_dir, "medium", manifest, files)


def _cost(folder: ModelFolder, judge: TextJudge, texts: Sequence[str], calls: int = 12) -> dict[str, float]:
    node = CheatingNode(folder, lambda _: folder.file(GRAPH_FILE), together=1)
    drawn = (
        make_call(text[:_COST_CHARS], seed=number, path=COMPLETIONS, model=folder.manifest.name)
        for number, text in enumerate(texts)
    )
    asked = list(
        islice((call for call in drawn if b'"finish_reason":"length"' in node.answer([call])[0]), calls)
    )
    began = time.process_time()
    answers = node.answer(asked)
    written = time.process_time() - began
    judge.judge(asked[0], answers[0])
    began = time.process_time()
    found = [judge.judge(call, answer) for call, answer in zip(asked, answers, strict=True)]
    judged = time.process_time() - began
    assert all(judgement.verdict is Verdict.PASS for judgement in found)
    return {
        "write_ms": round(1000 * written / calls, 2),
        "judge_ms": round(1000 * judged / calls, 2),
        "share": round(judged / written, 4),
    }
