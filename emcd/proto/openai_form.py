"""Forms (multipart/form-data) as far as a gateway must read them: strictly, and without changing them. Pure.

A form that two readers could read differently is refused, since the gateway and the engine behind it
are two: no preamble, no epilogue, the delimiter nowhere but where it delimits, only the headers that a
form needs, and no field twice of those that are read. Bounds: parts, headers, texts.
Source: RFC 7578, RFC 2046 5.1.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Final, NamedTuple

from emcd.proto.openai_shape import FORM, RequestError, wrong

MAX_PARTS: Final = 64
MAX_HEAD_BYTES: Final = 2048
MAX_TEXT_BYTES: Final = 1024
_TYPE = re.compile(
    r"multipart/form-data[ \t]*;[ \t]*boundary="
    r"(?:([0-9A-Za-z!#$%&'*+.^_`|~-]{1,70})|\"([0-9A-Za-z'()+_,./:=? -]{0,69}[0-9A-Za-z'()+_,./:=?-])\")[ \t]*",
    re.IGNORECASE,
)
_TOKEN = re.compile(r"[0-9A-Za-z!#$%&'*+.^_`|~-]+")
_DISPOSITION = re.compile(
    rb"form-data; ?name=\"([^\"\\\x00-\x1f\x7f]{1,128})\""
    rb"((?:; ?filename=\"(?:[^\"\\\x00-\x1f\x7f]|\\[\\\"]){0,1024}\")?"
    rb"(?:; ?filename\*=[0-9A-Za-z!#$%&'+.^_`|~-]{1,1024})?)",
    re.IGNORECASE,
)
_PLAIN = re.compile(rb"text/plain(?:; ?charset=\"?utf-8\"?)?", re.IGNORECASE)
_KIND = re.compile(rb"[\x20-\x7e]{1,256}")


class Form(NamedTuple):
    """A form. `fields`: those asked for; `text_bytes`: of all parts that are no file; `files`: their sizes."""

    fields: dict[str, str]
    text_bytes: int
    files: tuple[int, ...]


class _Part(NamedTuple):
    name: bytes
    is_file: bool
    kind: bytes


def read_boundary(content_type: str) -> str:
    """The boundary of a form's content type. Raises: RequestError EMC-1702 (415) when it is none."""
    match = _TYPE.fullmatch(content_type)
    if match is None:
        raise RequestError(
            "EMC-1702", f"the content type must be {FORM} with one boundary", "content-type", 415
        )
    return match[1] or match[2]


def write_form_type(boundary: str) -> str:
    """The one way in which a form's content type is written on its way to a node."""
    return f"{FORM}; boundary=" + (boundary if _TOKEN.fullmatch(boundary) else f'"{boundary}"')


def read_form(body: bytes, boundary: str, wanted: Collection[str]) -> Form:
    """Read a form. Raises: RequestError EMC-1702."""
    delimiter = b"--" + boundary.encode()
    fields: dict[str, str] = {}
    files = []
    text_bytes = 0
    at = len(delimiter) + 2
    if body[:at] != delimiter + b"\r\n":
        raise _broken("it does not begin with its boundary")
    parts = 0
    while True:
        parts += 1
        if parts > MAX_PARTS:
            raise _broken(f"more than {MAX_PARTS} parts")
        start = body.find(b"\r\n\r\n", at, at + MAX_HEAD_BYTES) + 4
        if start < 4:
            raise _broken("a part's header does not end")
        part = _read_head(body[at : start - 4])
        end = body.find(b"\r\n" + delimiter, start)
        if end < 0:
            raise _broken("its last boundary is missing")
        if part.is_file:
            files.append(end - start)
        else:
            text_bytes += end - start + len(part.name)
        _take_field(fields, part, body, start, end, wanted)
        at = end + 2 + len(delimiter) + 2
        after = body[at - 2 : at]
        if after == b"--":
            break
        if after != b"\r\n":
            raise _broken("a boundary is followed by something else")
    if body[at:] not in (b"", b"\r\n"):
        raise _broken("something follows its last boundary")
    if body.count(delimiter) != parts + 1:
        raise _broken("its boundary stands within a part")
    return Form(fields, text_bytes, tuple(files))


def drop_boundary(body: bytes, boundary: str) -> bytes:
    """A form's body without its boundary: the same for two forms that say the same."""
    return body.replace(b"--" + boundary.encode(), b"--")


def _take_field(
    fields: dict[str, str], part: _Part, body: bytes, start: int, end: int, wanted: Collection[str]
) -> None:
    try:
        name = part.name.decode()
    except UnicodeDecodeError:
        raise _broken("a field's name is not UTF-8") from None
    if name == "_charset_":
        raise wrong(name, "a form's texts are UTF-8: _charset_ can't stand in it")
    if name == "provider" or name.startswith("provider["):
        raise wrong("provider", "provider can't stand in a form: use the x-emc-* headers")
    if name not in wanted:
        return
    if name in fields:
        raise wrong(name, f"{name} stands twice")
    if part.is_file or end - start > MAX_TEXT_BYTES or not (_PLAIN.fullmatch(part.kind) or not part.kind):
        raise wrong(name, f"{name} must be a short text")
    try:
        fields[name] = body[start:end].decode()
    except UnicodeDecodeError:
        raise wrong(name, f"{name} is not UTF-8") from None


def _read_head(head: bytes) -> _Part:
    disposition: re.Match[bytes] | None = None
    kind = b""
    seen = set()
    for line in head.split(b"\r\n"):
        name, colon, value = line.partition(b":")
        name, value = name.lower(), value.strip(b" \t")
        if not colon or name in seen:
            raise _broken("a part's header is wrong")
        seen.add(name)
        if name == b"content-disposition":
            disposition = _DISPOSITION.fullmatch(value)
        elif name == b"content-type" and _KIND.fullmatch(value):
            kind = value
        else:
            raise _broken(f"a part's header can't be read: {name[:40].decode('latin-1')!r}")
    if disposition is None:
        raise _broken("a part has no name, or one that can be read in two ways")
    return _Part(disposition[1], bool(disposition[2]), kind)


def _broken(detail: str) -> RequestError:
    return wrong("body", f"the form can't be read: {detail}")
