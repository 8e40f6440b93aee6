"""The hub's own count of a call's tokens, by the tokenizer that the model's manifest names.

Owns the tokenizers. Only tokenizer.json and the chat template are opened, and only with the sha256 of the
manifest. Invariant: whatever a node or a client wrote, the outcome is a number or None. Blocks, up to a
second or two for the largest: call it in a thread, from one at a time.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from emcd.errors import ConfigError, RemoteProtocolError
from emcd.inference.manifest import (
    CHAT_TEMPLATE_FILE,
    TOKENIZER_FILE,
    CheckedManifest,
    EmbeddingManifest,
    TextManifest,
    model_hash,
)
from emcd.inference.model_folder import list_models, read_manifest
from emcd.inference.weights import require_sha256
from emcd.proto.openai_shape import Endpoint

MAX_BODY_BYTES = 1 << 20
MAX_LOADED = 4
LOOK_AGAIN_MS = 600_000
"""When a folder that was missing is looked for again."""


class CountJob(NamedTuple):
    """A call to be counted. `ids`, `texts`: as in `Held`, None where they were too many."""

    endpoint: Endpoint
    model_hash: bytes
    body: bytes
    ids: list[int] | None
    texts: list[bytes] | None


class Counted(NamedTuple):
    """None: it can't be counted here."""

    prompt_tokens: int | None = None
    tokens: int | None = None
    spelled: bool | None = None


Count = Callable[[CountJob], Counted]
NOTHING = Counted()
_UNREADABLE = (
    msgspec.MsgspecError, RemoteProtocolError, LookupError, TypeError, ValueError, AttributeError, RecursionError
)  # fmt: skip
"""What a body or an answer of any shape raises where it is looked into."""
_decode = msgspec.json.Decoder().decode


class TokenCounter:
    """The tokenizers of the models in one folder."""

    def __init__(self, models_dir: Path) -> None:
        self._models_dir = models_dir
        self._loaded: OrderedDict[bytes, Count] = OrderedDict()
        self._missing: dict[bytes, int] = {}
        self.problem = ""
        """Why a model that has a folder can't be counted."""

    def count(self, job: CountJob, now_ms: int) -> Counted:
        """Count a call's tokens."""
        count = self._find(job.model_hash, now_ms)
        if count is None or len(job.body) > MAX_BODY_BYTES:
            return NOTHING
        return count(job)

    def is_missing(self, model_hash: bytes, now_ms: int) -> bool:
        """Whether there was no folder for it a moment ago. From any thread."""
        return now_ms < self._missing.get(model_hash, 0)

    def _find(self, wanted: bytes, now_ms: int) -> Count | None:
        found = self._loaded.get(wanted)
        if found is not None:
            self._loaded.move_to_end(wanted)
            return found
        if now_ms < self._missing.get(wanted, 0):
            return None
        try:
            found = self._load(wanted)
        except (ConfigError, OSError, UnicodeDecodeError) as exc:
            self.problem = str(exc)
        if found is None:
            if len(self._missing) >= 1024:
                self._missing.clear()
            self._missing[wanted] = now_ms + LOOK_AGAIN_MS
            return None
        self._loaded[wanted] = found
        if len(self._loaded) > MAX_LOADED:
            self._loaded.popitem(last=False)
        return found

    def _load(self, wanted: bytes) -> Count | None:
        """Raises: ConfigError EMC-1602, EMC-1603, EMC-1652, EMC-1653 for files that can't be used."""
        for name in list_models(self._models_dir):
            try:
                manifest = read_manifest(self._models_dir, name)
            except ConfigError:
                continue
            if bytes(model_hash(manifest)) == wanted:
                return _make_count(self._models_dir / name, manifest)
        return None


def _make_count(folder: Path, manifest: CheckedManifest) -> Count:
    """Opens the files. The libraries for it are imported here: a hub without models needs none."""
    path = folder / TOKENIZER_FILE
    require_sha256(path, manifest.files[TOKENIZER_FILE])
    if isinstance(manifest, EmbeddingManifest):
        from emcd.inference.tokenizer import Tokenizer

        tokenizer = Tokenizer(path, manifest.max_tokens)
        return lambda job: _count_texts(job, tokenizer.encode)
    return _make_text_count(folder, path, manifest)


def _make_text_count(folder: Path, path: Path, manifest: TextManifest) -> Count:
    from emcd.inference.chat_template import ChatTemplate, make_chat_prompt, make_text_prompt
    from emcd.inference.text_tokenizer import TextTokenizer

    tokenizer = TextTokenizer(path)
    bos, stops = manifest.bos_token, manifest.stop_tokens
    template: ChatTemplate | None = None
    if CHAT_TEMPLATE_FILE in manifest.files:
        source = folder / CHAT_TEMPLATE_FILE
        require_sha256(source, manifest.files[CHAT_TEMPLATE_FILE])
        eos = tokenizer.name_of(stops[0]) if stops else ""
        template = ChatTemplate(source.read_text("utf-8"), bos=tokenizer.name_of(bos), eos=eos)

    def count_prompt(asked: dict[str, Any]) -> int | None:
        if "messages" in asked:
            return len(make_chat_prompt(template, tokenizer, asked["messages"], bos)) if template else None
        prompts = asked["prompt"]
        if isinstance(prompts, list) and isinstance(prompts[0], int):
            return len(prompts)
        if isinstance(prompts, str):
            return len(make_text_prompt(tokenizer, prompts, bos))
        return None

    def count(job: CountJob) -> Counted:
        try:
            asked = _decode(job.body)
            prompt_tokens = count_prompt(asked)
            text = None if job.texts is None else read_text(job.texts)
        except _UNREADABLE:
            return NOTHING
        if text is None or asked.get("n") or asked.get("best_of") or asked.get("echo"):
            return Counted(prompt_tokens)
        ends = bool(job.ids) and job.ids is not None and job.ids[-1] in stops
        tokens = len(tokenizer.encode(text, specials=False)) + ends
        if job.ids is None:
            return Counted(prompt_tokens, tokens)
        spelled = tokenizer.decode(job.ids)
        return Counted(prompt_tokens, tokens, is_spelled(text, spelled, asked.get("stop")))

    return count


def _count_texts(job: CountJob, encode: Callable[[list[str]], list[list[int]]]) -> Counted:
    """An embedder's input; nothing comes out in tokens."""
    try:
        texts = _decode(job.body)["input"]
        texts = [texts] if isinstance(texts, str) else texts
        if not all(isinstance(text, str) for text in texts):
            return NOTHING
        return Counted(sum(map(len, encode(texts))), 0)
    except _UNREADABLE:
        return NOTHING


def read_text(pieces: list[bytes]) -> str:
    """The text of one choice's message, deltas or texts."""
    out = []
    for piece in pieces:
        value = _decode(piece)
        text = value.get("content") if isinstance(value, dict) else value
        if isinstance(text, str):
            out.append(text)
    return "".join(out)


def is_spelled(text: str, spelled: str, stop: object) -> bool:
    """Whether tokens that spell the one make the other: at a stop text what follows is cut off."""
    if spelled == text:
        return True
    stops = [stop] if isinstance(stop, str) else stop if isinstance(stop, list) else []
    return spelled.startswith(text) and any(
        isinstance(item, str) and item and spelled.startswith(item, len(text)) for item in stops
    )
