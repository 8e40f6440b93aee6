"""Log lines carry no secret: not by key, not by value, not from libraries, not in a traceback."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from emcd.log import REDACTED, configure_logging, get_logger, redact_text, register_secret
from emcd.testing import make_key

SECRET = "s3cr3t-of-the-day"


@pytest.fixture
def out() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    stream = io.StringIO()
    configure_logging("json", "debug", stream)
    yield stream
    root.handlers[:], root.level = handlers, level


def lines(out: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.getvalue().splitlines()]


SECRET_KEYS = [
    "password",
    "PASSWORD",
    "api_key",
    "apikey_token",
    "Authorization",
    "secret",
    "secretKey",
    "x-api-key",
    "admin_token",
    "key",
    "keys",
    "node.key",
    "key_hex",
    "passphrase",
    "set-cookie",
    "apikey",
    "bearer_token_value",
    "password_hash",
]


@pytest.mark.parametrize("key", SECRET_KEYS)
def test_log_value_under_a_secret_key_is_redacted(out: io.StringIO, key: str) -> None:
    get_logger().info("event", **{key: SECRET, "nested": {key: [SECRET]}})
    assert SECRET not in out.getvalue()
    assert lines(out)[0][key] == REDACTED


@pytest.mark.parametrize(
    "key",
    ["tokens", "input_tokens", "keystore", "key_file", "api_key_id", "public_key", "round", "tokens_per_s"],
)
def test_log_ordinary_key_is_kept(out: io.StringIO, key: str) -> None:
    get_logger().info("event", **{key: "plain"})
    assert lines(out)[0][key] == "plain"


def test_log_number_under_a_token_key_is_kept(out: io.StringIO) -> None:
    get_logger().info("event", token=17, key=True)
    assert lines(out)[0]["token"] == 17


def test_log_registered_secret_is_redacted_wherever_it_stands(out: io.StringIO) -> None:
    register_secret(SECRET)
    log = get_logger(url=f"http://x/?q={SECRET}")
    log.info(f"called with {SECRET}", items=[{"deep": (SECRET,)}], raw=b"bytes")
    assert SECRET not in out.getvalue()
    assert lines(out)[0]["items"] == [{"deep": [REDACTED]}]


def test_log_secret_bytes_are_redacted_as_hex(out: io.StringIO) -> None:
    key = make_key("a")
    register_secret(key.reveal().hex())
    get_logger().info("event", raw=key.reveal(), shown=key, text="0x" + key.reveal().hex())
    assert key.reveal().hex() not in out.getvalue()
    assert key.address in out.getvalue()


def test_log_secret_in_a_traceback_is_redacted(out: io.StringIO) -> None:
    register_secret(SECRET)
    try:
        raise ValueError(f"bad {SECRET}")
    except ValueError:
        get_logger().exception("failed")
    assert SECRET not in out.getvalue()
    assert "ValueError" in lines(out)[0]["exception"]


def test_log_of_a_library_is_redacted_json_too(out: io.StringIO) -> None:
    register_secret(SECRET)
    logging.getLogger("some.library").warning("sent %s", SECRET)
    logging.getLogger("some.library").info("chatter")
    (line,) = lines(out)
    assert line["event"] == f"sent {REDACTED}"
    assert (line["logger"], line["level"]) == ("some.library", "warning")


def test_log_traceback_of_a_library_is_redacted(out: io.StringIO) -> None:
    register_secret(SECRET)
    try:
        raise ValueError(f"bad {SECRET}")
    except ValueError:
        logging.getLogger("some.library").exception("failed")
    assert SECRET not in out.getvalue()
    assert "ValueError" in lines(out)[0]["exception"]


def test_log_level_is_obeyed() -> None:
    stream = io.StringIO()
    configure_logging("console", "warning", stream)
    get_logger().info("quiet")
    get_logger().warning("loud", password=SECRET)
    logging.getLogger().handlers.clear()
    assert "quiet" not in stream.getvalue() and SECRET not in stream.getvalue()
    assert "loud" in stream.getvalue()


def test_redact_text_longest_secret_first() -> None:
    register_secret("abcdef")
    register_secret("abcdefghij")
    register_secret("abc")  # too short to be told from a word
    assert redact_text("abcdefghij abc") == f"{REDACTED} abc"
