"""A node that writes text with a toy model, in OpenAI's forms, written apart from the node's own code.

It samples with `accounting.gumbel` over plain prefills, so that what judges it is not what made it. A
`Cheat` is how a node may stray.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from emcd.accounting.gumbel import choose
from emcd.inference.decoder_graph import DecoderShape
from emcd.inference.decoder_session import DecoderSession, open_decoder
from emcd.inference.golden_tokens import make_text_golden
from emcd.inference.manifest import TextManifest, model_hash
from emcd.inference.model_folder import hash_files, write_model_folder
from emcd.inference.prefill_facts import log_sum, read_candidates, read_logprobs
from emcd.inference.text_tokenizer import TextTokenizer
from emcd_validator.model import JudgedModel
from tests.support.decoder_model import ToyDecoder, make_toy

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
NAME = "toy"
SHAPE = DecoderShape(layers=2, hidden=32, heads=4, kv_heads=2, ffn=64, vocab=320, context=160)
END, END_OF_TURN = 0, 2

Row = np.ndarray[Any, Any]
Distort = Callable[[Row, int], Row]
"""A row of logits and its place to the row that a cheap model would have given."""


def make_text_model(models_dir: Path, *, seed: int = 1, **fields: Any) -> JudgedModel:
    """A toy model in a folder, with its manifest. `fields` replace the manifest's."""
    toy: ToyDecoder = make_toy(models_dir / f".made-{seed}", SHAPE, seed)
    golden = make_text_golden(
        toy.onnx, toy.tokenizer, context_tokens=SHAPE.context, stop_tokens=(END, END_OF_TURN)
    )
    files: dict[str, bytes | Path] = {
        "model.onnx": toy.onnx,
        "tokenizer.json": toy.tokenizer,
        "chat_template.jinja": toy.folder / "chat_template.jinja",
        "golden.json": golden,
    }
    settings: dict[str, Any] = {
        "name": NAME,
        "context_tokens": SHAPE.context,
        "vocab_tokens": SHAPE.vocab,
        "bos_token": None,
        "stop_tokens": (END, END_OF_TURN),
        **fields,
    }
    manifest = TextManifest(files=hash_files(files), **settings)
    write_model_folder(models_dir, manifest.name, manifest, files, replace=True)
    return JudgedModel(manifest, model_hash(manifest), models_dir)


def make_request(path: str = CHAT, **changes: Any) -> bytes:
    """A request that asks for all of the evidence; None takes a field out."""
    table: dict[str, Any] = {
        "model": NAME,
        "max_tokens": 24,
        "seed": 8,
        "temperature": 1,
        "return_token_ids": True,
        **({"logprobs": True, "top_logprobs": 5} if path == CHAT else {"logprobs": 5}),
        **(
            {"messages": [{"role": "user", "content": "the quick brown fox"}]}
            if path == CHAT
            else {"prompt": "pack my box with"}
        ),
        **changes,
    }
    return msgspec.json.encode({name: value for name, value in table.items() if value is not None})


@dataclass(frozen=True)
class Cheat:
    """What a node does other than it says; the plain one is honest.

    Args:
        distort: of the logits that tokens are chosen from; `launders`: yet the true ones are reported.
        sampling: parameters that it uses instead of those asked for.
        prompt: what it makes of the prompt's token ids.
        claim: added to the tokens that it counts.
        stop_after: ends its answer there, without an end token.
        own_limit: of a completion that asks for none.
        edit: of a whole answer, before it is encoded.
    """

    distort: Distort | None = None
    launders: bool = False
    sampling: Mapping[str, Any] | None = None
    prompt: Callable[[list[int]], list[int]] = lambda ids: ids
    claim: int = 0
    stop_after: int | None = None
    own_limit: int = 16
    hides_ids: bool = False
    edit: Callable[[dict[str, Any]], None] = lambda answer: None


HONEST = Cheat()


@dataclass(frozen=True)
class _Step:
    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


class Writer:
    """One node with one model. Its session's threads and optimisation are the caller's choice."""

    def __init__(
        self,
        model: JudgedModel,
        *,
        threads: int = 1,
        optimization: Any = "all",
        chunk_tokens: int | None = None,
        session: DecoderSession | None = None,
    ) -> None:
        assert isinstance(model.manifest, TextManifest)
        self.manifest = model.manifest
        graph = model.folder / "model.onnx"
        self.session = session or open_decoder(graph, threads=threads, optimization=optimization)
        self.chunk_tokens = chunk_tokens
        self.tokenizer = TextTokenizer(model.folder / "tokenizer.json")

    def answer(self, path: str, body: bytes, cheat: Cheat = HONEST) -> bytes:
        """The bytes of a whole answer, or of a stream's events where one is asked for."""
        table = msgspec.json.decode(body)
        prompt = self.find_prompt(path, body)
        steps, reason = self._write(cheat.prompt(prompt), {**table, **(cheat.sampling or {})}, cheat)
        text = self._cut(self.tokenizer.decode([step.token for step in steps]), table)
        if table.get("stream"):
            return self._stream(path, prompt, steps, text, reason, cheat)
        whole = self._whole(path, prompt, steps, text, reason, cheat)
        cheat.edit(whole)
        return msgspec.json.encode(whole)

    def find_prompt(self, path: str, body: bytes) -> list[int]:
        """The prompt's token ids."""
        table = msgspec.json.decode(body)
        if path == COMPLETIONS:
            asked = table["prompt"]
            return asked if isinstance(asked, list) else self.tokenizer.encode(asked, specials=True)
        text = "".join(
            f"<|im_start|>{item['role']}\n{item['content']}<|im_end|>\n" for item in table["messages"]
        )
        return self.tokenizer.encode(text + "<|im_start|>assistant\n", specials=False)

    def _write(self, prompt: list[int], table: dict[str, Any], cheat: Cheat) -> tuple[list[_Step], str]:
        temperature = table.get("temperature", 1)
        steps: list[_Step] = []
        own = cheat.own_limit if "prompt" in table else self.manifest.context_tokens
        limit = table.get("max_tokens") or table.get("max_completion_tokens") or own
        most = min(limit, self.manifest.context_tokens - len(prompt))
        while len(steps) < most:
            if cheat.stop_after == len(steps):
                return steps, "stop"
            ids = [*prompt, *(step.token for step in steps)]
            true = self.session.prefill(ids, len(ids) - 1, self.chunk_tokens)[0]
            row = true if cheat.distort is None else cheat.distort(true, len(steps))
            token = choose(
                read_candidates(row),
                log_total=log_sum(row, temperature) if temperature else log_sum(row),
                temperature=temperature,
                top_p=table.get("top_p", 1),
                top_k=table.get("top_k", 0),
                seed=table.get("seed", 0),
                t=len(steps),
            )
            steps.append(_report(true if cheat.launders else row, token))
            text = self.tokenizer.decode([step.token for step in steps])
            if token in (END, END_OF_TURN) or any(stop in text for stop in _stops(table)):
                return steps, "stop"
        return steps, "length"

    def _cut(self, text: str, table: dict[str, Any]) -> str:
        places = [text.find(stop) for stop in _stops(table) if stop in text]
        return text[: min(places)] if places else text

    def _whole(
        self, path: str, prompt: list[int], steps: Sequence[_Step], text: str, reason: str, cheat: Cheat
    ) -> dict[str, Any]:
        choice: dict[str, Any] = {
            "index": 0,
            "finish_reason": reason,
            "logprobs": self._logprobs(path, steps),
            "token_ids": [step.token for step in steps],
        }
        choice |= {"message": {"role": "assistant", "content": text}} if path == CHAT else {"text": text}
        answer = {"choices": [choice], "usage": _usage(prompt, steps, cheat), "prompt_token_ids": prompt}
        if cheat.hides_ids:
            del answer["prompt_token_ids"], choice["token_ids"]
        return answer

    def _stream(
        self, path: str, prompt: list[int], steps: Sequence[_Step], text: str, reason: str, cheat: Cheat
    ) -> bytes:
        """Two tokens an event, the whole text with the last of them, then the usage."""
        events: list[dict[str, Any]] = []
        for start in range(0, len(steps), 2):
            part = steps[start : start + 2]
            is_last = start + 2 >= len(steps)
            said = text if is_last else ""
            choice: dict[str, Any] = {
                "index": 0,
                "finish_reason": reason if is_last else None,
                "logprobs": self._logprobs(path, part),
                "token_ids": [step.token for step in part],
            }
            choice |= {"delta": {"content": said}} if path == CHAT else {"text": said}
            events.append({"choices": [choice], **({} if start else {"prompt_token_ids": prompt})})
        events.append({"choices": [], "usage": _usage(prompt, steps, cheat)})
        data = b"".join(b"data: " + msgspec.json.encode(event) + b"\n\n" for event in events)
        return data + b"data: [DONE]\n\n"

    def _logprobs(self, path: str, steps: Sequence[_Step]) -> dict[str, Any]:
        if path == CHAT:
            return {"content": [self._entry(step.token, step.logprob, step.top) for step in steps]}
        name = self.tokenizer.token_name
        return {
            "tokens": [name(step.token) for step in steps],
            "token_logprobs": [round(step.logprob, 6) for step in steps],
            "top_logprobs": [{name(token): round(value, 6) for token, value in step.top} for step in steps],
        }

    def _entry(
        self, token: int, logprob: float, top: Sequence[tuple[int, float]] | None = None
    ) -> dict[str, Any]:
        data = self.tokenizer.token_bytes(token)
        entry: dict[str, Any] = {
            "token": self.tokenizer.token_text(token) if data else self.tokenizer.token_name(token),
            "logprob": round(logprob, 6),
            "bytes": list(data),
        }
        if top is not None:
            entry["top_logprobs"] = [self._entry(*item) for item in top]
        return entry


def _report(row: Row, token: int) -> _Step:
    best = [item for item, _ in read_candidates(row, 5)]
    logprobs = read_logprobs(row, [*best, token])
    return _Step(token, logprobs[token], tuple((item, logprobs[item]) for item in best))


def _usage(prompt: list[int], steps: Sequence[_Step], cheat: Cheat) -> dict[str, int]:
    return {"prompt_tokens": len(prompt), "completion_tokens": len(steps) + cheat.claim}


def _stops(table: dict[str, Any]) -> list[str]:
    stop = table.get("stop")
    return [stop] if isinstance(stop, str) else list(stop or ())


def with_noise(scale: float, seed: int = 0) -> Distort:
    """Logits as other arithmetic would give them: the same noise at the same place."""

    def distort(row: Row, place: int) -> Row:
        noise = np.random.default_rng([seed, place]).normal(0, scale, row.shape)
        moved: Row = (row + noise).astype(np.float32)
        return moved

    return distort


def honest_but(**fields: Any) -> Cheat:
    return replace(HONEST, **fields)
