"""Tokens a second of the embedded text engine: streams that are written together, and a bare loop.

The bare loop is one batch over the same session that takes the likeliest token and does nothing else: no
sampler, no log-probabilities, no text, nobody who comes or goes. Beside it the generator (temperature 1,
seed, five log-probabilities a token: what every call has that goes through a hub), and the whole of what
a node does but for its tunnel, events in JSON included. They take turns in one process; the ratios
hold where absolute figures do not, and tokens per CPU-second hold on a machine that others use too.

    PYTHONPATH=.:plugins python -m tests.bench.bench_generation [--tokens 96] [--passes 5] [--json]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import trio

from emcd.accounting.event_stream import StreamMeter
from emcd.accounting.usage import Usage
from emcd.inference.decoder_graph import DecoderShape
from emcd.inference.decoder_session import DecoderSession, open_decoder
from emcd.inference.generator import Generation, GenerationRequest, Generator, GeneratorSettings
from emcd.inference.manifest import TextManifest
from emcd.inference.text_tokenizer import TextTokenizer
from emcd.inference.token_choice import Sampling
from emcd.inference.training.recipe import TINY_SHAPE
from emcd.proto.openai_shape import Endpoint
from emcd_node.served_model import CallRequest
from emcd_node.text_model import TextModel
from tests.bench.statistic import ratio, spread
from tests.support.decoder_model import make_toy
from tests.support.text_world import TEXT_MODEL, write_toy_folder

STREAMS: Final = (1, 8, 32)
PROMPT_TOKENS: Final = 32
LARGER: Final = DecoderShape(layers=8, hidden=512, heads=8, kv_heads=4, ffn=1408, vocab=8192, context=1024)
SHAPES: Final = {"emcd-tiny-1": TINY_SHAPE, "29 M parameters": LARGER}
"""Weights are random: speed does not look at them."""

Row = dict[str, float]


class _Sink:
    """A reply that counts bytes."""

    def __init__(self) -> None:
        self.bytes = 0

    async def start(self, status: int, content_type: str) -> None:
        assert status == 200

    async def send(self, piece: bytes) -> None:
        self.bytes += len(piece)
        await trio.lowlevel.checkpoint()

    def end_events(self) -> StreamMeter:
        raise AssertionError("the model states its usage itself")


def run_bare(session: DecoderSession, streams: int, tokens: int) -> None:
    """The loop that everything is compared with."""
    ids = np.ones((streams, PROMPT_TOKENS), np.int64)
    places = np.arange(PROMPT_TOKENS + tokens, dtype=np.int64)
    mask = np.ones((streams, len(places)), np.int64)
    positions = np.tile(places[:PROMPT_TOKENS], (streams, 1))
    logits, cache = session.run(ids, mask[:, :PROMPT_TOKENS], positions, session.make_cache(streams))
    for at in range(PROMPT_TOKENS, PROMPT_TOKENS + tokens - 1):
        ids = logits[:, -1].argmax(axis=1)[:, None]
        positions = np.full((streams, 1), at, np.int64)
        logits, cache = session.run(ids, mask[:, : at + 1], positions, cache)


async def run_generator(generator: Generator, streams: int, tokens: int) -> None:
    """As many calls at once, each to its last token."""

    async def call(number: int) -> None:
        prompt = [1 + (number + at) % 200 for at in range(PROMPT_TOKENS)]
        order = GenerationRequest(prompt, tokens, Sampling(seed=number, top_logprobs=5))
        async with generator.generate(order) as generation:
            assert isinstance(generation, Generation)
            made = sum([len(piece.choices) async for pieces in generation for piece in pieces])
            assert made == tokens

    async with trio.open_nursery() as nursery:
        for number in range(streams):
            nursery.start_soon(call, number)


async def run_model(model: TextModel, streams: int, tokens: int) -> None:
    """The same through the node's model: requests and events in JSON."""

    async def call(number: int) -> None:
        body = {
            "model": TEXT_MODEL,
            "prompt": [1 + (number + at) % 200 for at in range(PROMPT_TOKENS)],
            "max_tokens": tokens,
            "seed": number,
            "logprobs": 5,
            "return_token_ids": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        request = CallRequest(Endpoint.COMPLETIONS, TEXT_MODEL, msgspec.json.encode(body), stream=True)
        assert await model.answer(request, _Sink()) == Usage(PROMPT_TOKENS, tokens)

    async with trio.open_nursery() as nursery:
        for number in range(streams):
            nursery.start_soon(call, number)


async def _timed(run: Callable[[], Awaitable[None]], tokens: int) -> Row:
    wall, cpu = time.perf_counter(), time.process_time()
    await run()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {"tokens_per_s": tokens / wall, "tokens_per_cpu_s": tokens / cpu}


async def measure_shape(shape: DecoderShape, tokens: int, passes: int) -> dict[str, Any]:
    """Every number of streams; what is compared takes turns."""
    with tempfile.TemporaryDirectory() as name:
        toy = await trio.to_thread.run_sync(make_toy, Path(name) / "toy", shape)
        folder = await trio.to_thread.run_sync(write_toy_folder, Path(name), toy)
        assert isinstance(folder.manifest, TextManifest)
        manifest = msgspec.structs.replace(folder.manifest, stop_tokens=())
        settings = GeneratorSettings(max_running=max(STREAMS))
        session, words = open_decoder(toy.onnx), TextTokenizer(toy.tokenizer)
        generator = Generator(session, words, context_tokens=shape.context, stop_tokens=(), settings=settings)
        model = TextModel(manifest, lambda: folder, settings)
        async with trio.open_nursery() as nursery:
            await nursery.start(generator.run)
            await nursery.start(model.run)
            runs: dict[str, Callable[[int, int], Awaitable[None]]] = {
                "bare loop": lambda streams, made: trio.to_thread.run_sync(run_bare, session, streams, made),
                "generator": partial(run_generator, generator),
                "node's model": partial(run_model, model),
            }
            found = {str(streams): await _take_turns(runs, streams, tokens, passes) for streams in STREAMS}
            nursery.cancel_scope.cancel()
    return found


async def _take_turns(
    runs: dict[str, Callable[[int, int], Awaitable[None]]], streams: int, tokens: int, passes: int
) -> dict[str, Any]:
    """Medians of each, and of the ratios pass by pass."""
    for run in runs.values():
        await run(streams, 4)
    rows: dict[str, list[Row]] = {name: [] for name in runs}
    for _ in range(passes):
        for name, run in runs.items():
            rows[name].append(await _timed(partial(run, streams, tokens), streams * tokens))
    found: dict[str, Any] = {}
    for name, passed in rows.items():
        found[name] = {figure: spread([row[figure] for row in passed]).median for figure in passed[0]}
        for figure in ("tokens_per_s", "tokens_per_cpu_s"):
            shares = [
                ratio(row[figure], bare[figure]) for row, bare in zip(passed, rows["bare loop"], strict=True)
            ]
            found[name][f"{figure}_to_bare"] = spread(shares)._asdict()
    return found


def measure(tokens: int = 96, passes: int = 5) -> dict[str, Any]:
    """Every shape."""
    return {name: trio.run(measure_shape, shape, tokens, passes) for name, shape in SHAPES.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=96, help="of each stream")
    parser.add_argument("--passes", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    results = measure(args.tokens, args.passes)
    if args.json:
        print(json.dumps(results, indent=1))
        return
    for shape, by_streams in results.items():
        for streams, rows in by_streams.items():
            for name, row in rows.items():
                print(shape, streams, name, row)


if __name__ == "__main__":
    main()
