"""A real engine behind the node: llama.cpp with the tensors of our own graph, judged by the validator's judge."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from emcd.accounting.event_stream import PassingStream, StreamMeter
from emcd.inference.decoder_graph import read_tensors
from emcd.inference.manifest import TextManifest, model_hash
from emcd.inference.model_folder import read_manifest, write_model_folder
from emcd.inference.training.recipe import TINY_NAME, TINY_SHAPE
from emcd.proto.messages import Verdict
from emcd.proto.openai import ENDPOINTS, read_request
from emcd.proto.openai_shape import Endpoint
from emcd_node.config import ModelConfig
from emcd_node.engine_model import EngineModel
from emcd_node.model_choice import make_model
from emcd_node.served_model import CallRequest, Refused
from emcd_validator.judge import Judgement
from emcd_validator.model import JudgedModel
from emcd_validator.reference_text import TextReference
from emcd_validator.verdict_run import judge_writing
from tests.support.decoder_model import tiny_folder
from tests.support.gguf_file import write_gguf
from tests.support.llama_server import find_llama_server, running_llama

__all__ = ["tiny_folder"]
pytestmark = pytest.mark.deep
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
EXACT = ("--cache-type-k", "f32", "--cache-type-v", "f32", "--flash-attn", "off")
TEXTS = (
    "What does len do?",
    "Explain sorted.",
    "Tell me about ValueError in Python.",
    "def read_lines(path):\n",
    "The \u201cwith\u201d statement \U0001f98a is",
    "import json\n\n# Load a file and print",
    "   indented\n\n\n\ttext  with   spaces   ",
    "Write a poem about the sea.",
)


class Sent:
    """A reply that keeps what it is given."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint, self.body = endpoint, b""

    async def start(self, status: int, content_type: str) -> None:
        assert status == 200

    async def send(self, piece: bytes) -> None:
        await trio.lowlevel.checkpoint()
        self.body += piece

    def end_events(self) -> StreamMeter:
        stream = PassingStream(self.endpoint)
        stream.feed(self.body)
        stream.end()
        return stream.meter


@pytest.fixture(scope="module")
def models_dir(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained model, sold behind llama.cpp."""
    find_llama_server()
    folder = tmp_path_factory.mktemp("models")
    manifest = read_manifest(tiny_folder.parent, TINY_NAME)
    sold = msgspec.structs.replace(manifest, engine="llama.cpp", sampler="engine")
    write_model_folder(folder, TINY_NAME, sold, {name: tiny_folder / name for name in sold.files})
    return folder


@pytest.fixture(scope="module")
def gguf(models_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    source = models_dir / TINY_NAME
    write_gguf(
        path,
        read_tensors(source / "model.onnx"),
        TINY_SHAPE,
        source / "tokenizer.json",
        chat_template=(source / "chat_template.jinja").read_text(),
        eos=2,
    )
    return path


@pytest.fixture(scope="module")
def judged(models_dir: Path) -> tuple[JudgedModel, TextReference]:
    manifest = read_manifest(models_dir, TINY_NAME)
    model = JudgedModel(manifest, model_hash(manifest), models_dir)
    return model, TextReference(model, 1)


async def call(node: EngineModel, path: str, **fields: Any) -> tuple[bytes, bytes]:
    """The request as a node gets it, and its answer."""
    body = json.dumps({"model": TINY_NAME, **fields}).encode()
    upstream = read_request(ENDPOINTS[path], body, evidence=True, seed=2**62 + 11)
    sent = Sent(ENDPOINTS[path])
    done = await node.answer(CallRequest(ENDPOINTS[path], TINY_NAME, upstream.body, upstream.stream), sent)
    assert not isinstance(done, Refused), done
    return upstream.body, sent.body


def list_calls() -> Iterator[tuple[str, dict[str, Any]]]:
    stream = {"stream": True, "stream_options": {"include_usage": True}}
    for way in ({"temperature": 0}, {}, {"temperature": 0.7, "top_p": 0.9}, {"max_tokens": 1}, stream):
        for text in TEXTS:
            asked: dict[str, Any] = {"max_tokens": 48, **way}
            yield CHAT, asked | {"messages": [{"role": "user", "content": text}]}
            yield COMPLETIONS, asked | {"prompt": text}


async def judge_all(
    url: str, models_dir: Path, judged: tuple[JudgedModel, TextReference]
) -> list[tuple[str, dict[str, Any], Judgement]]:
    node = make_model(ModelConfig("engine", TINY_NAME, url=url, manifest=TINY_NAME), models_dir)
    assert isinstance(node, EngineModel)
    model, reference = judged
    found = []
    async with trio.open_nursery() as nursery:
        await nursery.start(node.run)
        assert node.complaint() == ""
        assert node.identity.name == "llama.cpp"
        for path, fields in list_calls():
            request, answer = await call(node, path, **fields)
            found.append((path, fields, judge_writing(reference, model, path, request, answer, None)))
        nursery.cancel_scope.cancel()
    return found


def report(found: list[tuple[str, dict[str, Any], Judgement]]) -> None:
    values: dict[str, list[int]] = {}
    for _, _, judgement in found:
        for name, value in judgement.numbers.values.items() if judgement.numbers else ():
            values.setdefault(f"{judgement.numbers.kind}.{name}" if judgement.numbers else name, []).append(
                value
            )
    for name, all_of in sorted(values.items()):
        ordered = sorted(all_of)
        print(
            f"{name}: median {ordered[len(ordered) // 2] / 1e12:.2e}, worst {ordered[-1] / 1e12:.2e} ({len(ordered)})"
        )


async def test_real_engine_in_fp32_passes_every_probe(
    gguf: Path, models_dir: Path, judged: tuple[JudgedModel, TextReference]
) -> None:
    async with running_llama(gguf, TINY_NAME, *EXACT) as url:
        found = await judge_all(url, models_dir, judged)
    report(found)
    bad = [
        (path, fields, judgement)
        for path, fields, judgement in found
        if judgement.verdict is not Verdict.PASS
    ]
    assert not bad, (len(bad), bad[:3])


async def test_real_engine_with_a_cheaper_cache_is_not_of_its_class(
    gguf: Path, models_dir: Path, judged: tuple[JudgedModel, TextReference]
) -> None:
    """llama.cpp's default keeps keys and values in fp16, which is no fp32 model."""
    async with running_llama(gguf, TINY_NAME) as url:
        found = await judge_all(url, models_dir, judged)
    report(found)
    verdicts = {judgement.verdict for _, _, judgement in found}
    assert verdicts <= {Verdict.PASS, Verdict.CLASS, Verdict.FAIL}
    assert verdicts & {Verdict.CLASS, Verdict.FAIL}


async def test_real_engine_of_another_version_is_not_served(
    gguf: Path, models_dir: Path, tmp_path: Path
) -> None:
    manifest = msgspec.structs.replace(read_manifest(models_dir, TINY_NAME), engine_versions="<1")
    assert isinstance(manifest, TextManifest)
    files = {name: models_dir / TINY_NAME / name for name in manifest.files}
    write_model_folder(tmp_path, TINY_NAME, manifest, files)
    async with running_llama(gguf, TINY_NAME, *EXACT) as url:
        node = make_model(ModelConfig("engine", TINY_NAME, url=url, manifest=TINY_NAME), tmp_path)
        assert isinstance(node, EngineModel)
        await node.probe()
        assert "promises llama.cpp <1" in node.complaint()
