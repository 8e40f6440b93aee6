"""Calls as users' programs make them: written apart from what makes probes, on purpose.

Texts are copied out of documents as a person or a program copies them, bodies have the field order of real
clients, and what a node gets is what the hub makes of them. How often users want what is an assumption
that probes share (the traffic profile); everything else here knows nothing of probes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import msgspec

from emcd.proto.openai import Endpoint, read_request
from tests.support.text_pool import Text

SYSTEM = "You are a helpful assistant."
_SYSTEMS = (
    "You answer in one paragraph.", "You are a senior engineer who reviews code.", "Reply in the user's language.",
    "Be concise.", "You are the support bot of a shop.",
)  # fmt: skip
_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True)
class SeenCall:
    """A call as a node gets it; `topic` is where its text comes from, for whoever splits the data."""

    path: str
    body: bytes
    topic: str


class UserWriter:
    """Users who call one text model and one embedding model."""

    def __init__(self, texts: Sequence[Text], random: Random, text_model: str, embedder: str) -> None:
        self._topics: dict[str, list[Text]] = {}
        for text in texts:
            self._topics.setdefault(text.topic, []).append(text)
        self._names = sorted(self._topics)
        self._random = random
        self._text_model = text_model
        self._embedder = embedder

    def write_texts(self, count: int, context: int) -> Iterator[SeenCall]:
        """Calls to the text model."""
        for _ in range(count):
            document = self._pick_document()
            is_chat = self._random.random() < 0.85
            table = self._write_chat(document, context) if is_chat else self._write_prompt(document, context)
            yield self._forward(Endpoint.CHAT if is_chat else Endpoint.COMPLETIONS, table, document.topic)

    def write_embeddings(self, count: int) -> Iterator[SeenCall]:
        for _ in range(count):
            draw, document = self._random, self._pick_document()
            number = draw.choices((1, 2, 4, 8, 16), (70, 8, 10, 8, 4))[0]
            texts = [self._copy(document, self._draw_words()) for _ in range(number)]
            table: dict[str, Any] = {"model": self._embedder, "input": texts if number > 1 else texts[0]}
            if number == 1 and draw.random() < 0.4:
                table["input"] = texts
            encoding = draw.choices(("base64", "float", ""), (60, 20, 20))[0]
            if encoding:
                table["encoding_format"] = encoding
            yield self._forward(Endpoint.EMBEDDINGS, self._shuffle_fields(table), document.topic)

    def _pick_document(self) -> Text:
        return self._random.choice(self._topics[self._random.choice(self._names)])

    def _forward(self, endpoint: Endpoint, table: dict[str, Any], topic: str) -> SeenCall:
        seed = self._random.getrandbits(63)
        made = read_request(endpoint, _encode(table), evidence=True, seed=seed)
        return SeenCall(endpoint.value, made.body, topic)

    def _write_chat(self, document: Text, context: int) -> dict[str, Any]:
        draw = self._random
        turns = draw.choices((1, 3, 5, 7), (68, 18, 9, 5))[0]
        words = [self._draw_words() for _ in range(turns)]
        if draw.random() < 0.04:
            return self._write_long_chat(document, context)
        table: dict[str, Any] = {"model": self._text_model}
        messages = [{"role": "user" if n % 2 == 0 else "assistant", "content": self._copy(document, size)}
                    for n, size in enumerate(words)]  # fmt: skip
        while len(messages) > 1 and sum(len(m["content"]) for m in messages) > 2 * context:
            del messages[:2]
        if draw.random() < 0.35:
            popular = draw.random() < 0.9
            system = SYSTEM if popular else draw.choice(_SYSTEMS)
            messages.insert(0, {"role": "system", "content": system})
        table["messages"] = messages
        self._add_parameters(table, context, is_chat=True)
        if draw.random() < 0.1:
            table["user"] = f"user-{draw.randint(1, 5000)}"
        return self._shuffle_fields(table)

    def _write_long_chat(self, document: Text, context: int) -> dict[str, Any]:
        """What was looked up for an answer, filling a part of the context, and one question."""
        text = self._copy(document, context)[: round(context * 4 * self._random.uniform(0.4, 0.9))]
        head, _, _ = text.rpartition("\n")
        table: dict[str, Any] = {"model": self._text_model}
        table["messages"] = [{"role": "user", "content": (head or text).rstrip()}]
        self._add_parameters(table, context // 8, is_chat=True)
        return self._shuffle_fields(table)

    def _write_prompt(self, document: Text, context: int) -> dict[str, Any]:
        table: dict[str, Any] = {
            "model": self._text_model,
            "prompt": self._copy(document, self._draw_words()),
        }
        self._add_parameters(table, context, is_chat=False)
        return self._shuffle_fields(table)

    def _add_parameters(self, table: dict[str, Any], context: int, *, is_chat: bool) -> None:
        draw = self._random
        temperature = draw.choices(
            (None, 0, 0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 1.0), (30, 22, 4, 8, 6, 5, 15, 4, 6)
        )[0]
        top_p = draw.choices((None, 1.0, 0.95, 0.9), (72, 14, 8, 6))[0]
        limits = (None, 32, 64, 100, 128, 150, 200, 256, 500, 512)
        limit = draw.choices(limits, (25, 5, 10, 8, 12, 5, 8, 15, 5, 7))[0]
        if temperature is not None:
            table["temperature"] = temperature
        if top_p is not None:
            table["top_p"] = top_p
        if limit is not None:
            named = is_chat and draw.random() < 0.3
            table["max_completion_tokens" if named else "max_tokens"] = min(limit, context // 2)
        if draw.random() < 0.5:
            table["stream"] = True
            if draw.random() < 0.5:
                table["stream_options"] = {"include_usage": draw.random() < 0.7}

    def _shuffle_fields(self, table: dict[str, Any]) -> dict[str, Any]:
        """Clients differ in the order of their fields."""
        names = list(table)
        self._random.shuffle(names)
        return {name: table[name] for name in names}

    def _draw_words(self) -> int:
        first, last = self._random.choices(((4, 15), (16, 60), (61, 200), (201, 600)), (30, 35, 25, 10))[0]
        return self._random.randint(first, last)

    def _copy(self, document: Text, words: int) -> str:
        """Whole lines (of code) or sentences (of prose), from the beginning of one on."""
        lines = document.text.split("\n")
        starts = [n for n, line in enumerate(lines) if line.strip() and (n == 0 or not lines[n - 1].strip())]
        start = self._random.choice(starts)
        taken: list[str] = []
        size = 0
        is_person = self._random.random() < 0.5
        for line in lines[start:]:
            if size >= words and (not is_person or not line.strip()):
                break
            taken.append(line)
            size += len(line.split())
        text = "\n".join(taken).rstrip()
        if not document.is_code and not is_person and size > words:
            end = max(text.rfind(mark, 0, max(20, len(text) * words // size)) for mark in (". ", "? ", ".\n"))
            text = text[: end + 1] if end > 0 else text
        return text or lines[start]
