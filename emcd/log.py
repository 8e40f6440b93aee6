"""Log lines: structlog, JSON or coloured, without secrets.

Owns the configuration of logging and the redaction of secrets: by key (password, token, ...) and
by value (everything given to `register_secret`). Invariant: no line is written unredacted,
those of libraries that use the standard library's logging included.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Mapping, MutableMapping
from typing import Any, Literal, TextIO, cast

import structlog

LogFormat = Literal["auto", "json", "console"]
REDACTED = "[redacted]"
_SECRET_KEY = re.compile(r"key|token|password|passphrase|secret|authorization|cookie", re.IGNORECASE)
_HARMLESS_KEY = re.compile(
    r"(^|_)(keystore|public_key|tokens|tokens_per_s)$|_(file|path|dir|id|address|kind)$", re.IGNORECASE
)
"""Where things are, whose they are, and amounts of text, which every line about a call carries."""
_MIN_SECRET = 6
"""Shorter texts would blank out innocent words."""

_secrets: set[str] = set()
_pattern: re.Pattern[str] | None = None


def register_secret(text: str) -> None:
    """Never let this text appear in a log line again."""
    global _pattern
    if len(text) >= _MIN_SECRET and text not in _secrets:
        _secrets.add(text)
        longest_first = sorted(_secrets, key=len, reverse=True)
        _pattern = re.compile("|".join(map(re.escape, longest_first)))


def forget_secrets() -> None:
    """Forget every registered secret; for tests, whose secrets are ordinary words."""
    global _pattern
    _secrets.clear()
    _pattern = None


def redact_text(text: str) -> str:
    """The text without registered secrets."""
    return _pattern.sub(REDACTED, text) if _pattern is not None else text


def redact(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """structlog processor: blank out secrets by key and by value, at any depth."""
    for key, value in event.items():
        event[key] = _redact_item(key, value)
    return event


def _redact_item(key: str, value: Any) -> Any:
    if _is_secret_key(key, value):
        return REDACTED
    return _redact_value(value)


def _is_secret_key(key: str, value: Any) -> bool:
    if isinstance(value, bool | int | float) or value is None:
        return False
    return _SECRET_KEY.search(key) is not None and _HARMLESS_KEY.search(key) is None


def _redact_value(value: Any) -> Any:
    if isinstance(value, str):
        return redact_text(value)
    if isinstance(value, Mapping):
        return {key: _redact_item(str(key), item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_redact_value(item) for item in value]
    if isinstance(value, bytes):
        return redact_text("0x" + value.hex())
    if value is None or isinstance(value, bool | int | float):
        return value
    return redact_text(repr(value))


def configure_logging(format: LogFormat = "auto", level: str = "info", stream: TextIO | None = None) -> None:
    """Set up logging for the whole process; lines go to `stream`, by default stderr."""
    out = sys.stderr if stream is None else stream
    coloured = format == "console" or (format == "auto" and out.isatty())
    number = logging.getLevelNamesMapping()[level.upper()]
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
        structlog.processors.format_exc_info,
        redact,
    ]
    renderer: Any = (
        structlog.dev.ConsoleRenderer(colors=out.isatty())
        if coloured
        else structlog.processors.JSONRenderer(serializer=_to_json)
    )
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(out),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(out)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *shared],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(number, logging.WARNING))


def get_logger(**bound: object) -> structlog.stdlib.BoundLogger:
    """A logger with these fields on every line."""
    return cast("structlog.stdlib.BoundLogger", structlog.get_logger(**bound))


def _to_json(event: Any, **options: Any) -> str:
    return json.dumps(event, **options, separators=(",", ":"), ensure_ascii=False)
