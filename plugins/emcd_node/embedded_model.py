"""An embedder that runs inside the daemon, answering `/v1/embeddings` in OpenAI's form.

Owns one embedder and the shapes of its requests and answers. Invariants: vectors are exactly
those of the manifest's model, in the order of the texts; usage counts the tokens that were run,
after the cut; a request is bounded before any work is done for it.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Literal

import msgspec
import trio

from emcd.accounting.usage import Usage
from emcd.errors import ConfigError, RecoverableError
from emcd.inference.embedder import Embedder, EmbedderSettings, EmbedRefusal, EmbedResult
from emcd.inference.manifest import EmbeddingManifest
from emcd.inference.minilm import ModelFiles
from emcd.proto.openai import MAX_INPUTS, Endpoint
from emcd_node.served_model import CallRequest, Refused, Reply, unavailable

MAX_TEXT_CHARS = 32_768
"""Of one text: 30 ms of tokenising, and far more than the model reads of it."""
_INLINE_VECTORS = 8
"""More vectors than this are written as JSON in a thread: some 50 us each."""


class _Request(msgspec.Struct, frozen=True):
    model: str
    input: str | list[str]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None


class _Vector(msgspec.Struct, frozen=True):
    object: str
    index: int
    embedding: list[float] | str


class _Usage(msgspec.Struct, frozen=True):
    prompt_tokens: int
    total_tokens: int


class _Answer(msgspec.Struct, frozen=True):
    object: str
    data: list[_Vector]
    model: str
    usage: _Usage


_decoder = msgspec.json.Decoder(_Request)


class EmbeddedModel:
    """An embedding model in this process."""

    def __init__(
        self, manifest: EmbeddingManifest, load: Callable[[], ModelFiles], settings: EmbedderSettings
    ) -> None:
        """`load` finds the files and checks them, in a thread."""
        self.manifest = manifest
        self._load = load
        self._settings = settings
        self._embedder: Embedder | None = None
        self._fault = ""

    def is_available(self) -> bool:
        return self._embedder is not None and self._embedder.is_open

    def complaint(self) -> str:
        if self._fault:
            return self._fault
        return "" if self.is_available() else f"{self.manifest.name} is being opened"

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Build the model if need be, check it, open it, serve.

        A model that does not give its golden vectors here is not served, and the complaint says so.

        Raises: ConfigError EMC-1601 to 1606.
        """
        try:
            files = await trio.to_thread.run_sync(self._load)
        except ConfigError as exc:
            if exc.code != "EMC-1634":
                raise
            self._fault = str(exc)
            task_status.started()
            await trio.sleep_forever()
        self._embedder = Embedder(files, self.manifest, self._settings)
        await self._embedder.run(task_status=task_status)

    async def answer(self, request: CallRequest, reply: Reply) -> Usage | Refused:
        """Embed a request's texts. Cancellation: texts that wait are dropped."""
        if request.endpoint is not Endpoint.EMBEDDINGS:
            return Refused(
                400, "EMC-2005", f"{self.manifest.name} makes embeddings: ask /v1/embeddings", param="model"
            )
        wanted = self._read(request.body)
        if isinstance(wanted, Refused):
            return wanted
        if self._embedder is None:
            return unavailable("EMC-2004", self.complaint())
        texts = [wanted.input] if isinstance(wanted.input, str) else wanted.input
        try:
            outcome = await self._embedder.embed(texts)
        except RecoverableError as exc:
            return unavailable(exc.code, exc.detail)
        if isinstance(outcome, EmbedRefusal):
            return _refuse(outcome)
        as_base64 = wanted.encoding_format == "base64"
        if len(texts) <= _INLINE_VECTORS:
            body = write_answer(self.manifest.name, outcome, as_base64)
        else:
            body = await trio.to_thread.run_sync(write_answer, self.manifest.name, outcome, as_base64)
        await reply.start(200, "application/json")
        await reply.send(body)
        return Usage(sum(outcome.token_counts), 0)

    def _read(self, body: bytes) -> _Request | Refused:
        try:
            wanted = _decoder.decode(body)
        except msgspec.ValidationError as exc:
            if "$.input" in str(exc):
                return _bad("input must be a text or a list of texts (token numbers are not taken)", "input")
            return _bad(str(exc))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
            return _bad(f"the body is not JSON: {exc}")
        texts = [wanted.input] if isinstance(wanted.input, str) else wanted.input
        if not 0 < len(texts) <= MAX_INPUTS:
            return _bad(f"input must hold 1 to {MAX_INPUTS} texts", "input")
        if not all(texts):
            return _bad("input must not hold an empty text", "input")
        if max(map(len, texts)) > MAX_TEXT_CHARS:
            return _bad(f"a text is longer than {MAX_TEXT_CHARS} characters", "input")
        if wanted.dimensions not in (None, self.manifest.dimension):
            return _bad(
                f"{self.manifest.name} has {self.manifest.dimension} dimensions, no others", "dimensions"
            )
        return wanted


def write_answer(model: str, result: EmbedResult, as_base64: bool) -> bytes:
    """The JSON of an answer; base64 is of little-endian float32, as OpenAI's."""
    data = [
        _Vector(
            "embedding",
            index,
            base64.b64encode(row.astype("<f4").tobytes()).decode() if as_base64 else row.tolist(),
        )
        for index, row in enumerate(result.vectors)
    ]
    tokens = sum(result.token_counts)
    return msgspec.json.encode(_Answer("list", data, model, _Usage(tokens, tokens)))


def _bad(message: str, param: str | None = None) -> Refused:
    return Refused(400, "EMC-2005", message, param=param)


def _refuse(refusal: EmbedRefusal) -> Refused:
    if refusal is EmbedRefusal.TOO_LARGE:
        return _bad("the texts together have too many tokens for one call", "input")
    return unavailable("EMC-2006", refusal.value)
