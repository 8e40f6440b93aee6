"""Sound and images: what their requests may cost, and what an answer of theirs may call itself. Pure.

Nobody knows the tokens of a sound or an image before an engine has counted them, and many engines do
not. So what such a call may cost is a rule that looks at sizes alone, and a call whose engine counts more
is charged no more than that. The rule: a text is a token a byte; a file is 8,192 tokens and one more for
each 64 bytes (25 MB of sound: 400,000, a tenth of what a JSON body of 4 MB reserves); what comes out is
bounded by what went in.
"""

from __future__ import annotations

import re
from typing import Any, Final

from emcd.proto.openai_form import Form, read_boundary, read_form, write_form_type
from emcd.proto.openai_shape import (
    JSON,
    MAX_CHOICES,
    Endpoint,
    UpstreamRequest,
    read_bool,
    read_number,
    require_model,
    wrong,
)
from emcd.proto.wish import ANY, Wish

FILE_TOKENS: Final = 8192
FILE_BYTES_A_TOKEN: Final = 64
IMAGE_TOKENS: Final = 8192
"""Of one image that is made: OpenAI's largest today has 6,240."""
HEARD_BYTES_A_TOKEN: Final = 256
"""Speech in the closest coding in use, 6 kbit/s, has three words in 750 bytes."""
SPOKEN_TOKENS_A_BYTE: Final = 2
LEAST_TOKENS: Final = 1024
_WANTED: Final = frozenset(("model", "stream", "n"))
_USUAL: Final = frozenset((JSON, "text/event-stream"))
_TRUTHS: Final = {"true": True, "True": True, "1": True, "false": False, "False": False, "0": False}
_TYPE = re.compile(
    r"(application/json|application/octet-stream|application/x-subrip|text/(?:plain|vtt|event-stream)"
    r"|audio/[a-z0-9][a-z0-9.+-]{0,40})((?:; ?[a-z]{1,16}=[A-Za-z0-9_.-]{1,32}){0,4})"
)


def name_form(body: bytes, content_type: str) -> tuple[str, bool]:
    """The model that a form names, and whether it asks for a stream. Raises: RequestError EMC-1702."""
    return _name(read_form(body, read_boundary(content_type), _WANTED))


def read_form_request(endpoint: Endpoint, body: bytes, content_type: str) -> UpstreamRequest:
    """Read a form. Its bytes go on as they came. Raises: RequestError EMC-1702."""
    boundary = read_boundary(content_type)
    form = read_form(body, boundary, _WANTED)
    model, stream = _name(form)
    if not form.files:
        raise wrong("file", "the form holds no file")
    size = sum(form.files)
    images = _read_count(form)
    if endpoint in (Endpoint.IMAGE_EDITS, Endpoint.IMAGE_VARIATIONS):
        output = images * IMAGE_TOKENS
    else:
        output = LEAST_TOKENS + size // HEARD_BYTES_A_TOKEN
    entering = form.text_bytes + FILE_TOKENS * len(form.files) + size // FILE_BYTES_A_TOKEN
    return UpstreamRequest(
        endpoint=endpoint,
        model=model,
        body=body,
        stream=stream,
        wants_usage=True,
        inputs=1,
        choices=images,
        input_bound_tokens=entering,
        output_bound_tokens=output,
        content_type=write_form_type(boundary),
    )


def read_media_request(
    endpoint: Endpoint, table: dict[str, Any], model: str, upstream: bytes, wish: Wish = ANY
) -> UpstreamRequest:
    """A JSON request for speech or images. Raises: RequestError EMC-1702."""
    if endpoint is Endpoint.SPEECH:
        text = table.get("input")
        if not isinstance(text, str) or not text:
            raise wrong("input", "input must be a text, and not empty")
        stream, images = True, 1
        output = LEAST_TOKENS + SPOKEN_TOKENS_A_BYTE * len(text.encode(errors="replace"))
    else:
        prompt = table.get("prompt")
        if not isinstance(prompt, str) or not prompt:
            raise wrong("prompt", "prompt must be a text, and not empty")
        stream = read_bool(table, "stream")
        images = read_number(table, "n", MAX_CHOICES) or 1
        output = images * IMAGE_TOKENS
    return UpstreamRequest(
        endpoint=endpoint,
        model=model,
        body=upstream,
        stream=stream,
        wants_usage=True,
        inputs=1,
        choices=images,
        input_bound_tokens=len(upstream) + LEAST_TOKENS,
        output_bound_tokens=output,
        wish=wish,
    )


def find_answer_type(endpoint: Endpoint, content_type: str) -> str:
    """The content type under which an answer may be passed on, "" for none.

    A closed list: what a node calls its answer must never be something that a browser would run.
    """
    if content_type in _USUAL:
        return content_type
    text = content_type.strip().lower()
    match = _TYPE.fullmatch(text)
    if match is None:
        return ""
    kind = match[1]
    if kind in _USUAL:
        return kind
    if endpoint is Endpoint.SPEECH:
        return text if kind.startswith("audio/") or kind == "application/octet-stream" else ""
    if endpoint in (Endpoint.TRANSCRIPTIONS, Endpoint.TRANSLATIONS):
        return text if kind.startswith("text/") or kind == "application/x-subrip" else ""
    return ""


def _name(form: Form) -> tuple[str, bool]:
    stream = _TRUTHS.get(form.fields.get("stream", "false"))
    if stream is None:
        raise wrong("stream", "stream must be true or false")
    return require_model(form.fields.get("model")), stream


def _read_count(form: Form) -> int:
    text = form.fields.get("n", "1")
    if not text.isascii() or not text.isdecimal() or len(text) > 2 or not 1 <= int(text) <= MAX_CHOICES:
        raise wrong("n", f"n must be 1 to {MAX_CHOICES}")
    return int(text)
