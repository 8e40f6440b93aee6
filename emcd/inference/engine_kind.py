"""Which engine stands behind a URL, and in which version.

Owns the questions by which engines are told apart, each in the engine's own API beside OpenAI's.
Invariants: an engine is only asked, never changed; who answers none of the questions is unknown, which is
no fault. An engine can lie about itself: what it computes is judged by its answers, not by this.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from emcd.errors import ConfigError
from emcd.inference.engine import Engine
from emcd.inference.engine_version import is_in_range

VLLM, SGLANG, LLAMA_CPP, OLLAMA, TGI, TRANSFORMERS = (
    "vllm",
    "sglang",
    "llama.cpp",
    "ollama",
    "tgi",
    "transformers",
)
MAX_VERSION_CHARS: Final = 64


class EngineIdentity(NamedTuple):
    """An engine's name, one of this module's words or "", and its version as it says it, or ""."""

    name: str
    version: str

    def __str__(self) -> str:
        return f"{self.name or 'an unknown engine'} {self.version}".strip()


UNKNOWN: Final = EngineIdentity("", "")


class _Question(NamedTuple):
    """`read` finds the version in the answer: None when it is another engine's."""

    name: str
    path: str
    read: Callable[[Mapping[str, Any]], str | None]


def _text(name: str, *others: str) -> Callable[[Mapping[str, Any]], str | None]:
    """The text of one field, when the other fields are there too."""

    def read(answer: Mapping[str, Any]) -> str | None:
        value = answer.get(name)
        return value if isinstance(value, str) and all(other in answer for other in others) else None

    return read


def _read_transformers(answer: Mapping[str, Any]) -> str | None:
    """`transformers serve` tells no version; it is known by the paths that it alone has."""
    paths = answer.get("paths")
    if isinstance(paths, dict) and {"/load_model", "/reset", "/v1/chat/completions"} <= set(paths):
        return ""
    return None


# Engines that took over another's paths are asked before it: SGLang and others also answer /version.
_QUESTIONS: Final = (
    _Question(LLAMA_CPP, "/props", _text("build_info")),
    _Question(SGLANG, "/server_info", _text("version", "model_path")),
    _Question(SGLANG, "/get_server_info", _text("version", "model_path")),
    _Question(TGI, "/info", _text("version", "model_id")),
    _Question(OLLAMA, "/api/version", _text("version")),
    _Question(VLLM, "/version", _text("version")),
    _Question(TRANSFORMERS, "/openapi.json", _read_transformers),
)


async def identify_engine(engine: Engine) -> EngineIdentity:
    """Ask until one of the answers fits.

    Raises: RecoverableError EMC-1301 to 1308 when the engine is away.
    """
    for question in _QUESTIONS:
        version = await _ask(engine, question)
        if version is not None:
            return EngineIdentity(question.name, version[:MAX_VERSION_CHARS])
    return UNKNOWN


async def confirm_engine(engine: Engine, known: EngineIdentity) -> EngineIdentity:
    """What stands there now, with one question where it is what it was. Raises: as `identify_engine`."""
    for question in _QUESTIONS:
        if question.name == known.name and await _ask(engine, question) == known.version:
            return known
    return await identify_engine(engine)


async def _ask(engine: Engine, question: _Question) -> str | None:
    answer = await engine.ask(question.path)
    return question.read(answer) if answer is not None else None


def describe_engine_fault(identity: EngineIdentity, engine: str, versions: str) -> str:
    """Why a model that is sold with an engine can't be served by this one; "" when it can."""
    promised = f"{engine} {versions}".strip()
    if identity.name != engine:
        return f"the manifest promises {promised}, and this is {identity}"
    try:
        if not is_in_range(identity.version, versions):
            return f"the manifest promises {promised}, and this is {identity}"
    except ConfigError as exc:
        return str(exc)
    return ""
