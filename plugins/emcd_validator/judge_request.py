"""What a request asks of a model, as far as an answer to it can be judged. Pure.

The challenge kind follows from request and manifest: nobody claims it. A request that asks for what
makes its answer uncheckable (penalties, tools, grammars, several answers) is none that is judged.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from emcd.accounting.token_check import ProbeKind, Sampling
from emcd.inference.manifest import TextManifest
from emcd.proto.json_bound import is_too_fine
from emcd_validator.judge import Judgement, unusable

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
GUMBEL = "emcd-gumbel-v1"
MAX_REQUEST_BYTES = 1 << 20
COMPLETION_TOKENS = 16
"""The least that an engine's own limit gives a completion (OpenAI's, vLLM's and ours; others give more)."""
LEAST_TEMPERATURE, MAX_TEMPERATURE = 1e-4, 100.0
"""Beyond them logits over temperature are no numbers to compare; 0 takes the best token and is judged."""
MAX_STOPS = 4
_LEAST_TOP_LOGPROBS = 5
_UNJUDGED = (
    "frequency_penalty", "presence_penalty", "repetition_penalty", "logit_bias", "min_p", "tools", "functions",
    "response_format", "grammar", "guided_json", "guided_regex", "suffix", "echo", "ignore_eos", "min_tokens",
    "logits_processors", "prompt_embeds", "add_generation_prompt", "continue_final_message",
)  # fmt: skip


@dataclass(frozen=True)
class EmbeddingAsk:
    """Texts to be turned into vectors."""

    texts: tuple[str, ...]


@dataclass(frozen=True)
class TextAsk:
    """One text to be written.

    Args:
        messages: of a chat, or None; `prompt` is a completion's, as text or as token ids.
        limit: how many tokens the answer was asked to have at most; None: that is left to the engine.
        has_seed: whether the sampler's noise is known.
        top_logprobs: how many alternatives each token was asked to come with.
    """

    messages: tuple[dict[str, Any], ...] | None
    prompt: str | tuple[int, ...]
    sampling: Sampling
    has_seed: bool
    limit: int | None
    stops: tuple[str, ...]
    is_stream: bool
    top_logprobs: int

    @property
    def is_chat(self) -> bool:
        return self.messages is not None


class _EmbeddingBody(msgspec.Struct, frozen=True):
    input: str | list[str]


class _TextBody(msgspec.Struct, frozen=True):
    messages: list[dict[str, Any]] | None = None
    prompt: str | list[int] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    stop: str | list[str] | None = None
    stream: bool | None = None
    logprobs: bool | int | None = None
    top_logprobs: int | None = None
    n: int | None = None
    best_of: int | None = None


S = TypeVar("S", bound=msgspec.Struct)

_table_decoder = msgspec.json.Decoder(dict[str, Any])


def read_embedding_ask(body: bytes) -> EmbeddingAsk | Judgement:
    """Read an embeddings request. Returns: the request, or ERROR when its answer can't be judged."""
    parsed = _decode(body, _EmbeddingBody)
    if isinstance(parsed, Judgement):
        return parsed
    texts = (parsed.input,) if isinstance(parsed.input, str) else tuple(parsed.input)
    return EmbeddingAsk(texts) if texts and all(texts) else unusable("the request holds an empty text")


def read_text_ask(path: str, body: bytes) -> TextAsk | Judgement:
    """Read a chat or completions request. Returns: as `read_embedding_ask`."""
    parsed = _decode(body, _TextBody)
    if isinstance(parsed, Judgement):
        return parsed
    odd = _find_odd(body) or _find_fault(path, parsed)
    if odd:
        return unusable(f"the request can't be judged: {odd}")
    prompt = parsed.prompt if isinstance(parsed.prompt, str) else tuple(parsed.prompt or ())
    limits = [item for item in (parsed.max_tokens, parsed.max_completion_tokens) if item is not None]
    stops = [parsed.stop] if isinstance(parsed.stop, str) else parsed.stop or []
    return TextAsk(
        messages=tuple(parsed.messages or ()) if path == CHAT else None,
        prompt=prompt if path == COMPLETIONS else "",
        sampling=Sampling(
            1.0 if parsed.temperature is None else parsed.temperature,
            1.0 if parsed.top_p is None else parsed.top_p,
            parsed.top_k or 0,
            parsed.seed or 0,
        ),
        has_seed=parsed.seed is not None,
        limit=max(limits, default=None),
        stops=tuple(stops),
        is_stream=bool(parsed.stream),
        top_logprobs=(parsed.top_logprobs if path == CHAT else int(parsed.logprobs or 0)) or 0,
    )


def kind_of(ask: EmbeddingAsk | TextAsk, manifest: object) -> ProbeKind:
    """The challenge kind of a request under a model's manifest."""
    if isinstance(ask, EmbeddingAsk):
        return ProbeKind.EMBED
    if ask.limit == 1:
        return ProbeKind.FIRST
    if ask.sampling.temperature <= 0:
        return ProbeKind.GREEDY
    is_known = isinstance(manifest, TextManifest) and manifest.sampler == GUMBEL
    return ProbeKind.SEEDED if is_known and ask.has_seed else ProbeKind.FREE


def _decode(body: bytes, kind: type[S]) -> S | Judgement:
    if len(body) > MAX_REQUEST_BYTES or is_too_fine(body):
        return unusable(f"a request of {len(body)} bytes")
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.MsgspecError, ValueError, RecursionError) as exc:
        return unusable(f"malformed request: {exc}")


def _find_odd(body: bytes) -> str:
    """A field that changes what an engine does with the model."""
    table = _table_decoder.decode(body)
    return next((name for name in _UNJUDGED if table.get(name)), "")


def _find_fault(path: str, parsed: _TextBody) -> str:
    if path == CHAT and not parsed.messages:
        return "no messages"
    if path == COMPLETIONS and not parsed.prompt:
        return "no prompt"
    if parsed.n not in (None, 1) or parsed.best_of not in (None, 1):
        return "several answers"
    numbers = (parsed.temperature, parsed.top_p)
    if not all(item is None or (math.isfinite(item) and item >= 0) for item in numbers):
        return "temperature or top_p"
    if parsed.temperature and not LEAST_TEMPERATURE <= parsed.temperature <= MAX_TEMPERATURE:
        return "temperature"
    if parsed.seed is not None and not -(2**63) <= parsed.seed < 2**63:
        return "seed"
    if any(item is not None and item < 1 for item in (parsed.max_tokens, parsed.max_completion_tokens)):
        return "max_tokens"
    stops = [parsed.stop] if isinstance(parsed.stop, str) else parsed.stop or []
    if len(stops) > MAX_STOPS or not all(stops):
        return "stop"
    wanted = parsed.top_logprobs if path == CHAT else parsed.logprobs
    return "" if wanted and int(wanted) >= _LEAST_TOP_LOGPROBS else "too few logprobs"
