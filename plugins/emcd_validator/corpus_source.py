"""Text files as the corpus builder takes them: prose, markdown, code and chat logs, in their units.

A unit is what a person copies: a paragraph, a block of code, a turn of a conversation. Its characters stay
as they are: text that was straightened out is a mark. Blocking.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from emcd.errors import ConfigError

MAX_FILE_BYTES = 256 << 20
MAX_UNIT_CHARS = 50_000
_CODE_WORDS = """
py pyi js ts tsx jsx java c h cc cpp hpp cs go rs rb php swift kt scala sh sql lua pl r m css html xml
yaml yml toml ini json vue sol
"""
_CODE_SUFFIXES = frozenset(f".{word}" for word in _CODE_WORDS.split())
_SPEAKER = re.compile(
    r"^(?:\*\*)?(?P<who>user|human|me|you|customer|assistant|ai|bot|chatgpt|agent)(?:\*\*)?\s*:(?:\*\*)?[ \t]*",
    re.IGNORECASE | re.MULTILINE,
)
_USERS = frozenset(("user", "human", "me", "you", "customer"))
_LEAST_CHARS = 3
_decode = msgspec.json.Decoder().decode


@dataclass
class Document:
    """What one file (or one conversation of it) has to give.

    Attributes:
        units: paragraphs or blocks, in order.
        turns: of a conversation, the user's first; then there are no units.
        is_code: whether lines matter more than sentences.
    """

    units: list[str] = field(default_factory=list)
    turns: list[str] = field(default_factory=list)
    is_code: bool = False


def read_documents(path: Path) -> list[Document]:
    """The documents of a file. Raises: ConfigError EMC-1861."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ConfigError("EMC-1861", f"{path} has more than {MAX_FILE_BYTES >> 20} MiB")
        text = path.read_text("utf-8", errors="replace")
    except OSError as exc:
        raise ConfigError("EMC-1861", f"{path}: {exc.strerror}") from exc
    if "\0" in text:
        raise ConfigError("EMC-1861", f"{path} is no text")
    text = text.replace("\r\n", "\n")
    if path.suffix.lower() == ".jsonl":
        return _read_chats(text)
    if talk := _read_talk(text):
        return [Document(turns=turns) for turns in talk]
    is_code = path.suffix.lower() in _CODE_SUFFIXES
    return [Document(units=split_code(text) if is_code else split_prose(text), is_code=is_code)]


def split_prose(text: str) -> list[str]:
    """Paragraphs."""
    parts = re.split(r"\n[ \t]*\n", text)
    return _bound(parts)


def split_code(text: str) -> list[str]:
    """Blocks between empty lines; their indentation stays."""
    parts = re.split(r"\n[ \t]*\n", text)
    return _bound(parts)


def _bound(parts: list[str]) -> list[str]:
    """The units without the empty ones, none too long to be handled quickly."""
    whole = [part.strip("\n").rstrip() for part in parts if len(part.strip()) >= _LEAST_CHARS]
    return [part[i : i + MAX_UNIT_CHARS] for part in whole for i in range(0, len(part), MAX_UNIT_CHARS)]


def _read_talk(text: str) -> list[list[str]]:
    """The conversations of a log in which the speaker stands before each turn; none when it is no log."""
    marks = list(_SPEAKER.finditer(text))
    speakers = ["user" if mark["who"].lower() in _USERS else "assistant" for mark in marks]
    if len(marks) < 2 or set(speakers) != {"user", "assistant"}:
        return []
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    said = [
        (speaker, text[mark.end() : end].strip())
        for speaker, mark, end in zip(speakers, marks, ends, strict=True)
    ]
    return _alternate(said)


def _read_chats(text: str) -> list[Document]:
    """JSON lines: of conversations ({"messages": [...]}) or of texts ({"text": ...}, or a text)."""
    documents: list[Document] = []
    for line in text.splitlines():
        try:
            row: Any = _decode(line) if line.strip() else None
        except (msgspec.MsgspecError, RecursionError):
            continue
        if isinstance(row, dict):
            row = row.get("messages", row.get("conversations", row.get("text", row.get("content"))))
        if isinstance(row, str):
            documents.append(Document(units=split_prose(row)))
        elif isinstance(row, list):
            said = [_read_message(item) for item in row if isinstance(item, dict)]
            documents += [Document(turns=turns) for turns in _alternate(said)]
    return documents


def _read_message(item: dict[str, Any]) -> tuple[str, str]:
    who, what = item.get("role", item.get("from", "")), item.get("content", item.get("value", ""))
    speaker = "user" if who in _USERS else "assistant" if who in ("assistant", "gpt", "ai", "model") else ""
    return speaker, what.strip() if isinstance(what, str) else ""


def _alternate(said: list[tuple[str, str]]) -> list[list[str]]:
    """Conversations in which user and assistant take turns; what does not fit begins a new one."""
    talks: list[list[str]] = []
    turns: list[str] = []
    for speaker, text in said:
        expected = "assistant" if len(turns) % 2 else "user"
        if speaker == expected and text:
            turns.append(text)
            continue
        if speaker == "system":
            continue
        talks.append(turns)
        turns = [text] if speaker == "user" and text else []
    talks.append(turns)
    return [talk for talk in talks if talk]
