"""Chat templates: messages to the text that a model was trained on.

Owns the sandbox in which a model's Jinja template runs. Invariants: a template reads messages and writes
text, and nothing else; it can't change what it is given, reach an attribute of Python's, or learn the
time, so that the same messages make the same prompt wherever they are rendered; its output and the CPU
time it takes are bounded, in loops and macros that write nothing, too. Blocks: call it in a thread.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NoReturn

import jinja2
import jinja2.ext
import jinja2.sandbox
from jinja2 import nodes

from emcd.errors import ConfigError, RemoteProtocolError
from emcd.inference.text_tokenizer import TextTokenizer

MAX_TEMPLATE_BYTES: Final = 1 << 18
MAX_OUTPUT_CHARS: Final = 1 << 24
MAX_CPU_S: Final = 2.0
_MAX_PRODUCT = 1 << 20
_TICK = "emcd_tick"


class TemplateRefused(RemoteProtocolError):
    """The template does not take these messages: they are at fault, not the node."""

    def __init__(self, detail: str) -> None:
        super().__init__("EMC-1654", detail)


class _Environment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """The sandbox, without the operators that make gigabytes of a few letters."""

    intercepted_binops = frozenset(("*", "**", "%"))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "*":
            sized, times = (left, right) if hasattr(left, "__len__") else (right, left)
            if hasattr(sized, "__len__") and isinstance(times, int) and len(sized) * times > _MAX_PRODUCT:
                raise jinja2.exceptions.SecurityError("a product that is too large")
        elif operator == "**" and not (abs(left) <= _MAX_PRODUCT and 0 <= right <= 8):
            raise jinja2.exceptions.SecurityError("a power that is too large")
        elif operator == "%" and isinstance(left, (str, bytes)):
            raise jinja2.exceptions.SecurityError("a text that is formatted by %")
        return super().call_binop(context, operator, left, right)


class ChatTemplate:
    """A compiled chat_template.jinja; safe to use from several threads.

    Args:
        bos, eos: the names of the model's first and last token, which templates write themselves.
    """

    def __init__(self, source: str, *, bos: str = "", eos: str = "") -> None:
        """Raises: ConfigError EMC-1653 when it is no template."""
        if len(source) > MAX_TEMPLATE_BYTES:
            raise ConfigError("EMC-1653", f"it has more than {MAX_TEMPLATE_BYTES} characters")
        environment = _Environment(trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols])
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _refuse
        self._always = {"bos_token": bos, "eos_token": eos, "tools": None, "documents": None}
        try:
            tree = environment.parse(source)
            _insert_ticks(tree, environment)
            self._template = environment.from_string(tree)
        except (jinja2.TemplateError, RecursionError, ValueError, SyntaxError) as exc:
            raise ConfigError("EMC-1653", str(exc)) from exc

    def render(self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True) -> str:
        """The prompt of a conversation.

        Raises: TemplateRefused EMC-1654 when the template objects, fails, or does not come to an end.
        """
        limit_s = time.thread_time() + MAX_CPU_S

        def tick() -> str:
            if time.thread_time() > limit_s:
                raise TemplateRefused(f"the template took more than {MAX_CPU_S} s")
            return ""

        given = {
            **self._always,
            "messages": [dict(message) for message in messages],
            "add_generation_prompt": add_generation_prompt,
            _TICK: tick,
        }
        pieces, chars = [], 0
        try:
            for piece in self._template.generate(given):
                tick()
                chars += len(piece)
                if chars > MAX_OUTPUT_CHARS:
                    raise TemplateRefused(f"the prompt has more than {MAX_OUTPUT_CHARS} characters")
                pieces.append(piece)
        except TemplateRefused:
            raise
        except Exception as exc:  # whatever a template does wrong, it does with these messages
            raise TemplateRefused(f"the model's chat template does not take them: {exc}") from exc
        return "".join(pieces)


def load_template(
    path: Path, tokenizer: TextTokenizer, *, bos_token: int | None, stop_tokens: Sequence[int]
) -> ChatTemplate:
    """The template of a model's folder, as node and validator both open it. Raises: ConfigError EMC-1653."""
    try:
        source = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError("EMC-1653", f"{path}: {exc}") from exc
    eos = tokenizer.name_of(stop_tokens[0] if stop_tokens else None)
    return ChatTemplate(source, bos=tokenizer.name_of(bos_token), eos=eos)


def flatten_message(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message with its text parts put together, as templates want it; `developer` is the new `system`."""
    content = message.get("content")
    if isinstance(content, list):
        content = "\n".join(part["text"] for part in content)
    role = message["role"]
    flat = {"role": "system" if role == "developer" else role, "content": content or ""}
    if message.get("name"):
        flat["name"] = message["name"]
    return flat


def make_chat_prompt(
    template: ChatTemplate,
    tokenizer: TextTokenizer,
    messages: Sequence[Mapping[str, Any]],
    bos: int | None,
    most: int | None = None,
) -> list[int]:
    """The tokens of a conversation, as node and validator both make them.

    Raises: TemplateRefused EMC-1654; TooManyTokens when a long one has surely more than `most`.
    """
    text = template.render([flatten_message(message) for message in messages])
    return _begin(tokenizer.encode(text, specials=False, most=most), bos)


def make_text_prompt(
    tokenizer: TextTokenizer, text: str, bos: int | None, most: int | None = None
) -> list[int]:
    """The tokens of a text to be completed, as node and validator both make them. Raises: TooManyTokens."""
    return _begin(tokenizer.encode(text, specials=True, most=most), bos)


def _begin(ids: list[int], bos: int | None) -> list[int]:
    """`ids` with the model's first token, which template and tokenizer may have written already."""
    return ids if bos is None or ids[:1] == [bos] else [bos, *ids]


def _insert_ticks(tree: nodes.Template, environment: jinja2.Environment) -> None:
    """Make every turn of a loop and every call of a macro look at the time."""
    repeated: list[nodes.For | nodes.Macro | nodes.CallBlock] = [
        *tree.find_all(nodes.For),
        *tree.find_all(nodes.Macro),
        *tree.find_all(nodes.CallBlock),
    ]
    for node in repeated:
        call = nodes.Call(nodes.Name(_TICK, "load"), [], [], None, None)
        node.body.insert(0, nodes.ExprStmt(call).set_lineno(node.lineno))
    tree.set_environment(environment)


def _refuse(message: object) -> NoReturn:
    raise TemplateRefused(str(message)[:500])


def _to_json(value: Any, indent: int | None = None, **_: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)
