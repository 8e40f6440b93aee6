"""Answers of engines, put into the one form in which a text model's evidence is read.

Owns where engines differ: llama.cpp gives completions the log-probabilities of chats and token numbers
within them; vLLM has a completion's prompt numbers within its choice; others tell tokens by their text
alone. Invariants: text, finish reasons, usage and the values of log-probabilities pass as they came; a
token's number is what the engine says, or follows from its bytes where only one token has them; what can't
be known is left out, and the judge sees that it is missing; a stream stays one event for one event.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, MutableMapping
from pathlib import Path
from typing import Any, Final

import msgspec

from emcd.errors import ConfigError, EmcdError, RecoverableError
from emcd.inference.chat_template import ChatTemplate, make_chat_prompt, make_text_prompt
from emcd.inference.manifest import CHAT_TEMPLATE_FILE, TOKENIZER_FILE, TextManifest
from emcd.inference.model_folder import load_model_folder
from emcd.inference.text_tokenizer import TextTokenizer
from emcd.proto.openai_shape import Endpoint

MAX_EVENT_BYTES: Final = 1 << 20
MAX_PROMPT_BYTES: Final = 4 << 20
"""Of a request whose prompt is made into tokens here: of a larger one the engine's own are told, or none."""
_MAX_CHOICES = 4096
_DATA, _DONE = b"data:", b"[DONE]"
Json = dict[str, Any]


class EvidenceForm:
    """What a text model's answers need to be put into form: its words, and how its prompts are made."""

    def __init__(
        self, manifest: TextManifest, tokenizer: TextTokenizer, template: ChatTemplate | None
    ) -> None:
        self._manifest = manifest
        self._tokenizer = tokenizer
        self._template = template

    def make_prompt(self, endpoint: Endpoint, body: bytes) -> list[int] | None:
        """The prompt's token numbers by the manifest's own files. Blocks.

        None when it has no such prompt, or one that is too long for the model, or to be looked at.
        """
        if len(body) > MAX_PROMPT_BYTES:
            return None
        manifest, tokenizer = self._manifest, self._tokenizer
        try:
            table = msgspec.json.decode(body)
            if endpoint is Endpoint.CHAT:
                messages = table["messages"]
                if self._template is None or not all(isinstance(message, dict) for message in messages):
                    return None
                return make_chat_prompt(
                    self._template, tokenizer, messages, manifest.bos_token, manifest.context_tokens
                )
            prompt = table["prompt"]
            if isinstance(prompt, str):
                return make_text_prompt(tokenizer, prompt, manifest.bos_token, manifest.context_tokens)
            return prompt if all(type(token) is int for token in prompt) else None
        except (EmcdError, msgspec.MsgspecError, KeyError, TypeError, ValueError, RecursionError):
            return None

    def put_in_form(
        self,
        endpoint: Endpoint,
        answer: Json,
        offsets: MutableMapping[int, int] | None = None,
        *,
        one_prompt: bool = True,
    ) -> None:
        """Bring an answer's or a chunk's choices into form, in place.

        Args:
            offsets: the length of each choice's text before it, and then after it.
            one_prompt: its numbers go to the top; else each choice keeps those of its own.
        """
        offsets = {} if offsets is None else offsets
        choices = answer.get("choices")
        for place, choice in enumerate(choices if isinstance(choices, list) else ()):
            if not isinstance(choice, dict):
                continue
            prompt = choice.pop("prompt_token_ids", None) if one_prompt else None
            if prompt is not None:
                answer.setdefault("prompt_token_ids", prompt)
            index = choice["index"] if type(choice.get("index")) is int else place
            entries = _list_entries(choice.get("logprobs"))
            if not entries:
                continue
            ids = choice.get("token_ids")
            if not isinstance(ids, list) or len(ids) != len(entries):
                ids = [self._find_id(entry) for entry in entries]
            if None not in ids:
                choice["token_ids"] = ids
            for entry, token in zip(entries, ids, strict=True):
                self._name(entry, token)
            if endpoint is Endpoint.CHAT:
                choice["logprobs"] = {"content": entries, "refusal": None}
            else:
                choice["logprobs"], end = self._as_completion(entries, offsets.get(index, 0))
                if index in offsets or len(offsets) < _MAX_CHOICES:
                    offsets[index] = end

    def _find_id(self, entry: Mapping[str, Any]) -> int | None:
        token = entry.get("id")
        if type(token) is int:
            return token
        data = entry.get("bytes")
        try:
            found = (
                self._tokenizer.find_tokens(bytes(data))
                if isinstance(data, list) and data
                else self._tokenizer.find_named(str(entry.get("token", "")))
            )
        except (ValueError, TypeError):
            return None
        return found[0] if len(found) == 1 else None

    def _name(self, entry: Json, token: int | None) -> None:
        """Tell a token and those beside it by the bytes that the manifest's tokenizer has for them."""
        top = entry.get("top_logprobs")
        beside = [item for item in top if isinstance(item, dict)] if isinstance(top, list) else []
        for item, number in ((entry, token), *((item, self._find_id(item)) for item in beside)):
            if number is not None:
                data = self._tokenizer.token_bytes(number)
                item["token"], item["bytes"] = data.decode("utf-8", "replace"), list(data)
            item.pop("id", None)
        entry["top_logprobs"] = beside

    def _as_completion(self, entries: Iterable[Json], offset: int) -> tuple[Json, int]:
        names: list[str] = []
        tops: list[dict[str, Any]] = []
        offsets: list[int] = []
        logprobs: list[Any] = []
        for entry in entries:
            names.append(_name_of(entry))
            logprobs.append(entry.get("logprob"))
            tops.append({_name_of(item): item.get("logprob") for item in entry["top_logprobs"]})
            offsets.append(offset)
            offset += len(entry.get("token") or "")
        form = {
            "tokens": names,
            "token_logprobs": logprobs,
            "top_logprobs": tops,
            "text_offset": offsets,
        }
        return form, offset


def has_one_prompt(endpoint: Endpoint, body: bytes) -> bool:
    """Whether a request asks about one prompt, as all chats do: completions take a list of them, too."""
    if endpoint is Endpoint.CHAT:
        return True
    try:
        prompt = msgspec.json.decode(body, type=_Asked).prompt
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False
    return not (isinstance(prompt, list) and len(prompt) > 1 and isinstance(prompt[0], str | list))


class _Asked(msgspec.Struct, frozen=True):
    prompt: Any = None


def put_whole_in_form(
    form: EvidenceForm, endpoint: Endpoint, prompt: list[int] | None, body: bytes, *, one_prompt: bool = True
) -> bytes:
    """A whole answer in form; what is no JSON object passes as it is."""
    try:
        answer = msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return body
    if not isinstance(answer, dict) or not isinstance(answer.get("choices"), list):
        return body
    form.put_in_form(endpoint, answer, one_prompt=one_prompt)
    usage = answer.get("usage")
    told = usage.get("prompt_tokens") if isinstance(usage, dict) else None
    if prompt is not None and told in (None, len(prompt)):
        answer.setdefault("prompt_token_ids", prompt)
    return msgspec.json.encode(answer)


class FormedStream:
    """An event stream on its way: fed with the engine's pieces, it gives whole events in form."""

    def __init__(
        self, form: EvidenceForm, endpoint: Endpoint, prompt: list[int] | None, *, one_prompt: bool = True
    ) -> None:
        self._form = form
        self._endpoint = endpoint
        self._prompt = prompt
        self._waiting = b""
        self._one_prompt = one_prompt
        self._offsets: dict[int, int] = {}
        self._begun = False

    def feed(self, piece: bytes) -> bytes:
        """The events that are whole now. Raises: RecoverableError EMC-2035 when one is too large."""
        *events, rest = (self._waiting + piece).replace(b"\r\n", b"\n").split(b"\n\n")
        if len(rest) > MAX_EVENT_BYTES:
            raise RecoverableError("EMC-2035", f"an event of more than {MAX_EVENT_BYTES} bytes")
        self._waiting = rest
        return b"".join(self._form_event(event) + b"\n\n" for event in events)

    def finish(self) -> bytes:
        """What came after the last whole event."""
        return self._waiting

    def _form_event(self, event: bytes) -> bytes:
        data = event.removeprefix(_DATA).strip()
        if not event.startswith(_DATA) or data == _DONE or b"\n" in data:
            return event
        try:
            chunk = msgspec.json.decode(data)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return event
        if not isinstance(chunk, dict) or not chunk.get("choices"):
            return event
        self._form.put_in_form(self._endpoint, chunk, self._offsets, one_prompt=self._one_prompt)
        if not self._begun and self._prompt is not None:
            chunk.setdefault("prompt_token_ids", self._prompt)
        self._begun = True
        return b"data: " + msgspec.json.encode(chunk)


def _list_entries(logprobs: Any) -> list[Json]:
    """One entry a token, as chats have them, from either form; empty when there is none."""
    if not isinstance(logprobs, dict):
        return []
    content = logprobs.get("content")
    if isinstance(content, list):
        return [dict(entry) for entry in content if isinstance(entry, dict)]
    tokens, values = logprobs.get("tokens"), logprobs.get("token_logprobs")
    tops = logprobs.get("top_logprobs")
    if not isinstance(tokens, list) or not isinstance(values, list) or len(tokens) != len(values):
        return []
    if not isinstance(tops, list) or len(tops) != len(tokens):
        tops = [None] * len(tokens)
    return [
        {
            "token": name,
            "logprob": value,
            "top_logprobs": [
                {"token": other, "logprob": its}
                for other, its in (top.items() if isinstance(top, dict) else ())
            ],
        }
        for name, value, top in zip(tokens, values, tops, strict=True)
    ]


def _name_of(entry: Mapping[str, Any]) -> str:
    """A token as completions tell it: its text, or its bytes where they are no whole text."""
    data = entry.get("bytes")
    if not isinstance(data, list):
        return str(entry.get("token", ""))
    try:
        return bytes(data).decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)
    except (ValueError, TypeError):  # they are no bytes
        return str(entry.get("token", ""))


def load_evidence_form(models_dir: Path, name: str) -> EvidenceForm:
    """What a text model's folder has for it. Blocks.

    Raises: ConfigError EMC-1601, EMC-1602 (its files), EMC-1631, EMC-1632, EMC-1652, EMC-1653.
    """
    folder = load_model_folder(models_dir, name)
    manifest = folder.manifest
    if not isinstance(manifest, TextManifest):
        raise ConfigError("EMC-1632", f"{name} is no text model")
    tokenizer = TextTokenizer(folder.file(TOKENIZER_FILE))
    template = None
    if manifest.can_chat:
        source = folder.file(CHAT_TEMPLATE_FILE).read_text("utf-8")
        stop = manifest.stop_tokens[0] if manifest.stop_tokens else None
        template = ChatTemplate(
            source, bos=tokenizer.name_of(manifest.bos_token), eos=tokenizer.name_of(stop)
        )
    return EvidenceForm(manifest, tokenizer, template)
