"""Forms: what is read of them, and every way in which two readers could read one differently is refused."""

from __future__ import annotations

import pytest

from emcd.proto.openai_form import (
    MAX_HEAD_BYTES,
    MAX_PARTS,
    MAX_TEXT_BYTES,
    drop_boundary,
    read_boundary,
    read_form,
    write_form_type,
)
from emcd.proto.openai_shape import RequestError

WANTED = frozenset(("model", "stream", "n"))
MODEL = b'Content-Disposition: form-data; name="model"\r\n\r\nm'
FILE = b'Content-Disposition: form-data; name="file"; filename="a.mp3"\r\nContent-Type: audio/mpeg\r\n\r\n\x00\xff--x\r\n'


def form(*parts: bytes, boundary: bytes = b"B", end: bytes = b"--\r\n") -> bytes:
    return b"".join(b"--" + boundary + b"\r\n" + part + b"\r\n" for part in parts) + b"--" + boundary + end


def field(name: bytes, value: bytes) -> bytes:
    return b'Content-Disposition: form-data; name="%s"\r\n\r\n%s' % (name, value)


def test_form_is_read_without_being_changed() -> None:
    body = form(MODEL, FILE, field(b"prompt", b"x" * 5000), field(b"stream", b"true"))
    read = read_form(body, "B", WANTED)
    assert read.fields == {"model": "m", "stream": "true"}
    assert read.files == (7,)
    assert read.text_bytes == 5000 + 6 + 1 + 5 + 4 + 6


@pytest.mark.parametrize("end", [b"--", b"--\r\n"])
def test_form_may_end_with_or_without_a_line_end(end: bytes) -> None:
    assert read_form(form(MODEL, end=end), "B", WANTED).fields == {"model": "m"}


@pytest.mark.parametrize(
    "head",
    [
        b'content-disposition: form-data; name="model"',
        b'Content-Disposition: form-data;name="model"',
        b'Content-Disposition: form-data; name="model"\r\nContent-Type: text/plain',
        b'Content-Disposition: form-data; name="model"\r\nContent-Type: text/plain; charset=utf-8',
    ],
)
def test_form_reads_a_field_as_clients_write_it(head: bytes) -> None:
    assert read_form(form(head + b"\r\n\r\nm"), "B", WANTED).fields == {"model": "m"}


@pytest.mark.parametrize(
    "disposition",
    [
        b'form-data; name="file"; filename="a.mp3"',
        b'form-data; name="file"; filename=""',
        b'form-data; name="file"; filename="a%22b.mp3"',
        b'form-data; name="file"; filename="a\\"b\\\\c.mp3"',
        b'form-data; name="file"; filename="a.mp3"; filename*=utf-8\'\'%e2%82%ac.mp3',
        b"form-data; name=\"file\"; filename*=utf-8''a.mp3",
        'form-data; name="file"; filename="ä ö.mp3"'.encode(),
    ],
)
def test_form_takes_files_as_clients_name_them(disposition: bytes) -> None:
    body = form(MODEL, b"Content-Disposition: " + disposition + b"\r\n\r\nsound")
    assert read_form(body, "B", WANTED).files == (5,)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"--B",
        b"--B--\r\n",  # no part
        b"\r\n" + form(MODEL),  # a preamble
        b"note\r\n" + form(MODEL),
        form(MODEL) + b"x",  # an epilogue
        form(MODEL) + b"\r\n",
        form(MODEL)[:-4],  # the last boundary is no last one
        form(MODEL, end=b"-\r\n"),
        form(MODEL, end=b"X--\r\n"),  # a longer boundary that begins with this one
        form(MODEL, end=b" --\r\n"),  # padding
        form(field(b"a", b"x\r\n--BX\r\ny"), MODEL),  # the same within a part
        form(field(b"a", b"x\n--B\n" + MODEL), MODEL),  # a bare line feed before the delimiter
        form(field(b"a", b"x\r--B\r" + MODEL), MODEL),
        form(field(b"a", b"x --B y"), MODEL),  # the delimiter in the middle of a line
        form(MODEL).replace(b"\r\n", b"\n"),
        form(b"\r\n\r\nm"),  # a part without a header
        form(b"Content-Type: text/plain\r\n\r\nm"),  # and without a name
        form(b'Content-Disposition: form-data; name=""\r\n\r\nm'),
        form(b"Content-Disposition: form-data; name=model\r\n\r\nm"),  # not quoted
        form(b"Content-Disposition: form-data; name*=utf-8''model\r\n\r\nm"),
        form(b'Content-Disposition: form-data; name="model"; name="other"\r\n\r\nm'),
        form(b'Content-Disposition: form-data; name="mo\\del"\r\n\r\nm'),
        form(b'Content-Disposition: form-data; name="a\x00b"\r\n\r\nm'),
        form(b'Content-Disposition: attachment; name="model"\r\n\r\nm'),
        form(
            b'Content-Disposition: form-data; name="model"\r\nContent-Disposition: form-data; name="x"\r\n\r\nm'
        ),
        form(b'Content-Disposition: form-data;\r\n name="model"\r\n\r\nm'),  # folded
        form(b'Content-Disposition : form-data; name="model"\r\n\r\nm'),
        form(
            b'Content-Disposition: form-data; name="model"\r\nContent-Transfer-Encoding: base64\r\n\r\nbQ=='
        ),
        form(b'Content-Disposition: form-data; name="model"\r\nContent-Length: 1\r\n\r\nmm'),
        form(b'Content-Disposition: form-data; name="model"\r\nX: y\nZ: w\r\n\r\nm'),
        form(b'Content-Disposition: form-data; name="\xff"\r\n\r\nm'),
        form(b"x" * MAX_HEAD_BYTES + b"\r\n\r\nm"),
        form(MODEL, *[field(b"a", b"b")] * MAX_PARTS),
    ],
)
def test_form_that_could_be_read_in_two_ways_is_refused(body: bytes) -> None:
    with pytest.raises(RequestError) as caught:
        read_form(body, "B", WANTED)
    assert (caught.value.code, caught.value.param) == ("EMC-1702", "body")


@pytest.mark.parametrize(
    ("parts", "param"),
    [
        ((MODEL, MODEL), "model"),
        ((MODEL, field(b"stream", b"true"), field(b"stream", b"false")), "stream"),
        ((b'Content-Disposition: form-data; name="model"; filename="m"\r\n\r\nm',), "model"),
        ((b'Content-Disposition: form-data; name="model"\r\nContent-Type: application/json\r\n\r\n"m"',), "model"),
        ((b'Content-Disposition: form-data; name="model"\r\nContent-Type: text/plain; charset=utf-16\r\n\r\nm',), "model"),
        ((field(b"model", b"m" * (MAX_TEXT_BYTES + 1)),), "model"),
        ((field(b"model", b"\xff"),), "model"),
        ((MODEL, field(b"_charset_", b"utf-16")), "_charset_"),
        ((MODEL, field(b"provider", b"{}")), "provider"),
        ((MODEL, field(b"provider[only][]", b"0x")), "provider"),
    ],
)  # fmt: skip
def test_form_with_a_field_that_is_wrong_names_it(parts: tuple[bytes, ...], param: str) -> None:
    with pytest.raises(RequestError) as caught:
        read_form(form(*parts), "B", WANTED)
    assert (caught.value.code, caught.value.param) == ("EMC-1702", param)


@pytest.mark.parametrize(
    ("content_type", "boundary"),
    [
        ("multipart/form-data; boundary=abc", "abc"),
        ("Multipart/Form-Data;BOUNDARY=----WebKitFormBoundary7MA4", "----WebKitFormBoundary7MA4"),
        ('multipart/form-data; boundary="a b:c"', "a b:c"),
    ],
)
def test_boundary_is_read_and_written_in_one_way(content_type: str, boundary: str) -> None:
    assert read_boundary(content_type) == boundary
    assert read_boundary(write_form_type(boundary)) == boundary


@pytest.mark.parametrize(
    "content_type",
    [
        "",
        "application/json",
        "multipart/mixed; boundary=a",
        "multipart/form-data",
        "multipart/form-data; boundary=",
        'multipart/form-data; boundary=""',
        'multipart/form-data; boundary="a',
        "multipart/form-data; boundary=a; boundary=b",
        "multipart/form-data; boundary=a, multipart/form-data; boundary=b",
        "multipart/form-data; boundary=a; charset=utf-8",
        "multipart/form-data; boundary=" + "a" * 71,
        "multipart/form-data; boundary=a\r\nX: y",
        "multipart/form-data; boundary=a/b",
    ],
)
def test_content_type_without_one_clear_boundary_is_refused(content_type: str) -> None:
    with pytest.raises(RequestError) as caught:
        read_boundary(content_type)
    assert (caught.value.status, caught.value.param) == (415, "content-type")


def test_boundary_alone_makes_no_other_request() -> None:
    one, other = form(MODEL, FILE, boundary=b"one"), form(MODEL, FILE, boundary=b"other")
    assert drop_boundary(one, "one") == drop_boundary(other, "other")
    assert drop_boundary(one, "one") != drop_boundary(form(MODEL, boundary=b"one"), "one")
