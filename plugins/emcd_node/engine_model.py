"""A model behind an external engine: relayed, not looked into but for its usage.

Owns one engine's health and the relay. A generation call states neutral sampling values for what its
caller left open (`engine_request`). Invariants: bytes of an answer and of a stream pass unchanged, unless
the model is sold under a manifest that anyone can recompute: then its evidence is brought into the form
in which it is read (`engine_answer`), and an engine of another name or version than the manifest promises
is not served; what reaches the hub as a stream has ended as its API ends streams, and without an error of
the engine's in it, or the call fails; an engine's refusal of the operator (401, 403, 404, 429) is the
node's fault, never the client's; where the engine stands is told to the operator alone.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial

import msgspec
import trio

from emcd.accounting.usage import Usage, read_usage
from emcd.errors import RecoverableError
from emcd.inference.engine import Engine, EngineAnswer
from emcd.inference.engine_kind import (
    OLLAMA,
    TRANSFORMERS,
    UNKNOWN,
    EngineIdentity,
    confirm_engine,
    describe_engine_fault,
)
from emcd.inference.engine_request import GENERATION, list_ollama_faults, shape_request
from emcd.inference.manifest import Manifest, TextManifest, make_engine_manifest
from emcd.log import get_logger
from emcd.proto.openai_media import find_answer_type
from emcd.proto.openai_shape import BASIC_ENDPOINTS, JSON, Endpoint
from emcd_node.engine_answer import EvidenceForm, FormedStream, has_one_prompt, put_whole_in_form
from emcd_node.prompt_reading import PromptReading
from emcd_node.served_model import CallRequest, Refused, Reply, unavailable

PROBE_INTERVAL_S = 10.0
_RELAYED_REFUSALS = frozenset((400, 413, 422))
_AWAY, _LATE = "EMC-1301", "EMC-1302"
_ENGINE_FAULTS = frozenset(f"EMC-13{number:02d}" for number in range(1, 9))
EVENT_STREAM = "text/event-stream"
DONE = b"data: [DONE]\n\n"
_NO_USAGE = Usage(0, 0)


class EngineModel:
    """One model of one engine."""

    def __init__(
        self,
        name: str,
        engine: Engine,
        endpoints: Collection[Endpoint] = BASIC_ENDPOINTS,
        *,
        quantization: str = "",
        context_tokens: int = 0,
        manifest: Manifest | None = None,
        load: Callable[[], EvidenceForm] | None = None,
    ) -> None:
        """`manifest`: what is promised beyond the name, where anything is; `load`: what a text model's
        evidence is brought into form with, read in a thread."""
        self.manifest = manifest or make_engine_manifest(
            name, endpoints, quantization=quantization, context_tokens=context_tokens
        )
        self._endpoints = frozenset(endpoints)
        self._engine = engine
        self._log = get_logger(role="node")
        self._complaint = f"{name}: the engine was not asked yet"
        self._load = load
        self._form: EvidenceForm | None = None
        self._reading = PromptReading()
        self.identity: EngineIdentity = UNKNOWN
        """What the engine says it is, when it was last asked."""

    def is_available(self) -> bool:
        return not self._complaint

    def complaint(self) -> str:
        return self._complaint

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Ask the engine again and again whether it serves the model.

        Raises: ConfigError EMC-1601, 1602, 1652 and 1653 when the manifest's files can't be used.
        """
        if self._load is not None:
            self._form = await trio.to_thread.run_sync(self._load)
        await self.probe()
        task_status.started()
        while True:
            await trio.sleep(PROBE_INTERVAL_S)
            await self.probe()

    async def probe(self) -> None:
        """Bring `is_available` up to date."""
        name = self.manifest.name
        try:
            served = await self._engine.list_models()
            if name in served:
                fault = await self._find_fault()
            else:
                fault = f"{self._engine.url} serves only {', '.join(sorted(served)[:5]) or 'nothing'}"
        except RecoverableError as exc:
            fault = str(exc)
        self._complaint = f"{name}: {fault}" if fault else ""

    async def _find_fault(self) -> str:
        """Why this engine can't serve what is sold; "" when it can. Raises: RecoverableError, it is away."""
        known = self.identity
        if known == UNKNOWN and not self._complaint:
            return ""  # it answers none of the questions: asked again when it was away
        self.identity = await confirm_engine(self._engine, known)
        if self.identity != known:
            self._log.info("node.engine_identified", model=self.manifest.name, engine=str(self.identity))
        if not isinstance(self.manifest, TextManifest):
            return ""
        fault = describe_engine_fault(self.identity, self.manifest.engine, self.manifest.engine_versions)
        if fault or self.identity.name != OLLAMA:
            return fault
        shown = await self._engine.ask("/api/show", {"model": self.manifest.name}) or {}
        return "; ".join(list_ollama_faults(str(shown.get("parameters", ""))))

    def describe(self) -> str:
        """What serves it, for the operator."""
        return f"{self.manifest.name}: {self.identity}"

    async def answer(self, request: CallRequest, reply: Reply) -> Usage | Refused:
        """Relay one call.

        Raises: RecoverableError when the engine or its stream breaks after the head.
        Cancellation: the connection to the engine is closed, which stops its work.
        """
        if request.endpoint not in self._endpoints:
            return Refused(
                404,
                "EMC-2004",
                f"{self.manifest.name} is not served at {request.endpoint.path}",
                code="not_found",
            )
        if self._complaint:
            return unavailable("EMC-2007", f"the engine of {self.manifest.name} is away")
        head_sent = False
        change, stream = await self._open_form(request)
        body = shape_request(self.identity.name, request.endpoint, request.body)
        try:
            opened = self._engine.open_call(request.endpoint, body, request.content_type)
            async with opened as answer:
                kind = await _judge_head(answer, request)
                if isinstance(kind, Refused):
                    return kind
                if not request.stream:
                    return await _relay_whole(answer, kind, reply, change)
                head_sent = True
                end = DONE if self.identity.name == TRANSFORMERS and request.endpoint in GENERATION else b""
                return await _relay_pieces(answer, kind, reply, stream, end)
        except RecoverableError as exc:
            name = self.manifest.name
            if exc.code not in _ENGINE_FAULTS:
                raise
            self._log.warning("node.engine_failed", model=name, code=exc.code, detail=exc.detail)
            if head_sent:
                raise RecoverableError("EMC-2007", f"the engine's stream broke ({exc.code})") from exc
            if exc.code == _AWAY:
                self._complaint = f"{name}: {exc}"  # until the next probe
            return _bad_gateway(f"the engine failed ({exc.code})", 504 if exc.code == _LATE else 502)

    async def _open_form(
        self, request: CallRequest
    ) -> tuple[Callable[[bytes], bytes], FormedStream] | tuple[None, None]:
        """What brings this call's answer into form, as a whole and as a stream."""
        form, endpoint = self._form, request.endpoint
        if form is None or endpoint not in GENERATION:
            return None, None
        lane = self._reading.lane(len(request.body))
        prompt, one = await trio.to_thread.run_sync(_read_prompt, form, request, limiter=lane)
        whole = partial(put_whole_in_form, form, endpoint, prompt, one_prompt=one)
        return whole, FormedStream(form, endpoint, prompt, one_prompt=one)


def _read_prompt(form: EvidenceForm, request: CallRequest) -> tuple[list[int] | None, bool]:
    """A request's prompt, and whether it is the only one. Blocks."""
    prompt = form.make_prompt(request.endpoint, request.body)
    return prompt, prompt is not None or has_one_prompt(request.endpoint, request.body)


async def _judge_head(answer: EngineAnswer, request: CallRequest) -> str | Refused:
    """The content type under which the answer is passed on."""
    if answer.status == 200:
        kind = find_answer_type(request.endpoint, answer.content_type)
        if request.endpoint is Endpoint.SPEECH:
            is_right = kind not in ("", JSON)
        elif request.stream:
            is_right = kind == EVENT_STREAM
        else:
            is_right = kind not in ("", EVENT_STREAM)
        if is_right:
            return kind
        expected = (
            "a sound" if request.endpoint is Endpoint.SPEECH else EVENT_STREAM if request.stream else JSON
        )
        return _bad_gateway(
            f"the engine answers {answer.content_type[:80] or 'nothing'} instead of {expected}"
        )
    if answer.status in _RELAYED_REFUSALS:
        return _client_error(answer.status, await answer.read())
    return _bad_gateway(f"the engine answers {answer.status}", 503 if answer.status in (429, 503) else 502)


def _bad_gateway(message: str, status: int = 502) -> Refused:
    return unavailable("EMC-2007", message, status)


async def _relay_whole(
    answer: EngineAnswer, kind: str, reply: Reply, change: Callable[[bytes], bytes] | None
) -> Usage | Refused:
    body = await answer.read()
    if change is not None:
        body = change(body)
    usage = read_usage(body) if kind == JSON else None
    if kind == JSON and usage is None and not _is_object(body):
        return _bad_gateway("the engine's answer is not a JSON object")
    await reply.start(200, kind)
    await reply.send(body)
    return usage or _NO_USAGE


def _is_object(body: bytes) -> bool:
    try:
        return isinstance(msgspec.json.decode(body), dict)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False


async def _relay_pieces(
    answer: EngineAnswer, kind: str, reply: Reply, formed: FormedStream | None, end: bytes
) -> Usage:
    """Pass a stream on. `end`: what it ends with when the engine states its usage last, and no end."""
    await reply.start(200, kind)
    async for piece in answer.pieces:
        whole = formed.feed(piece) if formed else piece
        if whole:
            await reply.send(whole)
    if formed is not None and (rest := formed.finish()):
        await reply.send(rest)
    if kind != EVENT_STREAM:
        return _NO_USAGE
    meter = reply.end_events()
    if end and meter.usage is not None and not meter.ended and not meter.failed:
        await reply.send(end)
        meter = reply.end_events()
    if meter.failed:
        raise RecoverableError("EMC-2007", "the engine reports an error in its stream")
    if not meter.ended:
        raise RecoverableError("EMC-2007", "the engine's stream stopped without its end")
    return meter.usage or _NO_USAGE


class _ErrorFields(msgspec.Struct, frozen=True):
    message: str = ""
    type: str = "invalid_request_error"
    param: str | None = None


class _EngineError(msgspec.Struct, frozen=True):
    error: _ErrorFields | None = None
    message: str = ""


def _client_error(status: int, body: bytes) -> Refused:
    """The engine's complaint about the request, in OpenAI's shape whatever its own."""
    try:
        told = msgspec.json.decode(body, type=_EngineError)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        told = _EngineError()
    fields = told.error or _ErrorFields(told.message)
    message = fields.message or told.message or "the engine refuses the request"
    return Refused(status, "EMC-2005", message[:2000], fields.type, None, fields.param)
