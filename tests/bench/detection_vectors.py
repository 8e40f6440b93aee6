"""Vectors: honest answers in every way of running, every cheat, and what judging costs."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from emcd.inference.calibration_run import draw_texts, list_ways
from emcd.inference.embedder import EmbedResult
from emcd.inference.minilm import MINILM_MANIFEST, MINILM_NAME
from emcd.inference.session import EmbeddingSession
from emcd.inference.training.corpus import read_corpus
from emcd_node.embedded_model import write_answer
from emcd_validator.judge import Judgement
from emcd_validator.judge_embedding import Vectors
from emcd_validator.model import JudgedModel, find_judged
from emcd_validator.reference_embedding import EmbeddingReference
from emcd_validator.verdict_run import judge_vectors
from tests.bench.detection_tally import Tally
from tests.support.cheap_graphs import VectorGraphs
from tests.support.cheating_vectors import (
    PATH,
    RELAY,
    VECTOR_CHEATS,
    VectorCheat,
    VectorNode,
    make_body,
)
from tests.support.inference_model import shared_model, shared_models_dir

Say = Callable[[str], None]
REMEMBERED = 4000
TAU = MINILM_MANIFEST.tau_e12 / 1e12
_COST_TEXTS = 64


class _Reference(EmbeddingReference):
    """Keeps the session of its reruns: opening it for every strike would be most of this benchmark."""

    def __init__(self, model: JudgedModel) -> None:
        super().__init__(model, 1)
        self._other = EmbeddingSession(self._files.onnx, 2, optimization="off")

    def compute_again(self, texts: Sequence[str]) -> list[Vectors]:
        return [tuple(tuple(self._other.run([ids])[0].tolist()) for ids in self._tokenizer.encode(texts))]


class VectorBench:
    """all-MiniLM-L6-v2, its judge, a node, and texts."""

    def __init__(self, work: Path) -> None:
        self.files = shared_model()
        self.model = find_judged(MINILM_NAME, shared_models_dir())
        self.reference = _Reference(self.model)
        self._texts = read_corpus().held_out
        remembered = list(self.draw(random.Random(6), REMEMBERED))
        self.node = VectorNode(self.files, VectorGraphs(self.files.onnx, work / "vectors"), remembered)

    def draw(self, draw: random.Random, count: int) -> Iterator[str]:
        """Texts as people send them: pieces of documentation and code, and words in a row."""
        for text in draw_texts(draw, count):
            piece = draw.choice(self._texts)
            start = draw.randrange(max(1, len(piece) - 60))
            yield (
                piece[start : start + draw.choice((40, 120, 400, 900))] if draw.random() < 0.7 else text
            ) or text

    def judge(self, texts: Sequence[str], answer: bytes) -> Judgement:
        return judge_vectors(self.reference, self.model, PATH, make_body(texts, as_base64=True), answer)

    def measure_honest(self, answers: int, say: Say) -> dict[str, Any]:
        """Honest answers over thread counts, batch sizes, padding and optimisation levels."""
        ways = list_ways(os.cpu_count() or 1, MINILM_MANIFEST.max_tokens)
        all_of_them, rows = Tally(TAU), {}
        for number, way in enumerate(ways):
            count = answers // len(ways) + (number < answers % len(ways))
            session = EmbeddingSession(self.files.onnx, way.threads, optimization=way.optimization)
            texts, tally = list(self.draw(random.Random(100 + number), count)), Tally(TAU)
            for start in range(0, count, way.together):
                part = texts[start : start + way.together]
                token_ids = self.node.tokenizer.encode(part)
                vectors = session.run(token_ids, way.padding_tokens)
                for place, text in enumerate(part):
                    result = EmbedResult(vectors[place : place + 1], (len(token_ids[place]),))
                    tally.add(self.judge([text], write_answer(MINILM_NAME, result, as_base64=True)))
                if start % 256 < way.together:
                    say(f"vectors, {way.words}: {start} of {count}")
            rows[way.words] = tally.show()
            all_of_them.judgements += tally.judgements
            all_of_them.changed += tally.changed
        return {"all": all_of_them.show(), "ways": rows}

    def measure_cheats(self, answers: int, say: Say) -> tuple[dict[str, Any], dict[str, Tally]]:
        """Every row on texts of its own that it changes at all."""
        shown, tallies = {}, {}
        for number, cheat in enumerate((*VECTOR_CHEATS, RELAY)):
            say(f"vectors: {cheat.name}")
            tally = Tally(TAU)
            for text in self._fitting(cheat, random.Random(300 + number), answers):
                body = make_body([text], as_base64=True)
                tally.add(self.judge([text], self.node.answer(body, cheat)))
            self.node.graphs.forget(cheat.graph)
            tallies[cheat.name] = tally
            shown[cheat.name] = {**tally.show(), "is_caught": cheat.is_caught}
        return shown, tallies

    def measure_cost(self) -> dict[str, Any]:
        """CPU time of a text as a node computes it (batched, like lengths together), and as it is judged."""
        texts = sorted(self.draw(random.Random(9), _COST_TEXTS), key=len)
        token_ids = self.node.tokenizer.encode(texts)
        session = EmbeddingSession(self.files.onnx, 1)
        session.run(token_ids[:8])
        began = time.process_time()
        for start in range(0, len(texts), 8):
            session.run(token_ids[start : start + 8])
        served = time.process_time() - began
        body = make_body(texts, as_base64=True)
        answer = self.node.answer(body)
        began = time.process_time()
        judge_vectors(self.reference, self.model, PATH, body, answer)
        judged = time.process_time() - began
        return {
            "write_ms": round(1000 * served / len(texts), 2),
            "judge_ms": round(1000 * judged / len(texts), 2),
            "share": round(judged / served, 4),
        }

    def _fitting(self, cheat: VectorCheat, draw: random.Random, count: int) -> Iterator[str]:
        found = 0
        while found < count:
            text = " ".join(self.draw(draw, 1 if cheat.least_tokens < 64 else 2))
            tokens = len(self.node.tokenizer.encode([text])[0])
            if max(8, cheat.least_tokens) <= tokens < self.node.most_tokens and " " in text.strip():
                found += 1
                yield text
