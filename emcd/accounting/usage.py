"""Tokens used, read from an engine's answer in OpenAI's form, whole or streamed.

Invariants: bounded memory whatever the engine sends; a count that is no non-negative integer is
no usage.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

MAX_EVENT_BYTES = 1 << 20
_MAX_TOKENS = 2**53 - 1
_USAGE_KEY = b'"usage"'


@dataclass(frozen=True)
class Usage:
    """What a call used; embeddings have no output tokens."""

    input_tokens: int
    output_tokens: int


class _WireUsage(msgspec.Struct, frozen=True):
    prompt_tokens: int
    completion_tokens: int | None = 0


class _WithUsage(msgspec.Struct, frozen=True):
    usage: _WireUsage | None = None


_decoder = msgspec.json.Decoder(_WithUsage)


def read_usage(body: bytes) -> Usage | None:
    """The usage of a whole answer (or of one event's data); None when it states none."""
    try:
        wire = _decoder.decode(body).usage
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    if wire is None:
        return None
    usage = Usage(wire.prompt_tokens, wire.completion_tokens or 0)
    return (
        usage if 0 <= usage.input_tokens <= _MAX_TOKENS and 0 <= usage.output_tokens <= _MAX_TOKENS else None
    )


class StreamUsage:
    """Reads the usage out of a stream of server-sent events, however its bytes are cut.

    `usage` is the last one stated. An event longer than `MAX_EVENT_BYTES` is passed over.
    """

    def __init__(self) -> None:
        self.usage: Usage | None = None
        self._rest = bytearray()
        self._skipping = False

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes of the stream."""
        self._rest += chunk
        *lines, last = self._rest.replace(b"\r", b"\n").split(b"\n")
        for line in lines:
            if not self._skipping:
                self._read_line(bytes(line))
            self._skipping = False
        if len(last) > MAX_EVENT_BYTES:
            self._skipping = True
            last = bytearray()
        self._rest = last

    def _read_line(self, line: bytes) -> None:
        if line.startswith(b"data:") and _USAGE_KEY in line:
            self.usage = read_usage(line[5:].strip()) or self.usage
