"""URLs from others: one strict reading, and lists that match exactly."""

from __future__ import annotations

import pytest

from emcd.errors import ConfigError
from emcd.net.url_guard import is_loopback, parse_target, require_allowed, require_public

BAD = [
    "",
    "http://",
    "http:///path",
    "//host/path",
    "host/path",
    "ftp://host/",
    "file:///etc/passwd",
    "http://user@host/",
    "http://user:secret@host/",
    "http://host#frag",
    "http://host/#",
    "http://host:0/",
    "http://host:/",
    "http://host:65536/",
    "http://host:80a/",
    "http://ho st/",
    "http://host/a b",
    "http://host\\@evil/",
    "http://host/\x00",
    "http://host/\n",
    "http://hôst/",
    "http://2130706433/",
    "http://0x7f.1/",
    "http://0x7f000001/",
    "http://127.1/",
    "http://0177.0.0.1/",
    "http://1.2.3.4.5/",
    "http://[::1/",
    "http://[::1%25eth0]/",
    "http://[127.0.0.1]/",
    "http://-host/",
    "http://a..b/",
    "http://" + "a" * 64 + "/",
    "http://host/" + "a" * 5000,
]


@pytest.mark.parametrize("url", BAD)
def test_parse_target_bad_url_raises(url: str) -> None:
    with pytest.raises(ConfigError, match="EMC-1320"):
        parse_target(url)


@pytest.mark.parametrize(
    ("url", "origin", "authority", "path"),
    [
        ("http://Host", "http://host:80", "host", "/"),
        ("https://host:443/a?b=c", "https://host:443", "host", "/a?b=c"),
        ("http://host:443/", "http://host:443", "host:443", "/"),
        ("http://[::1]:8545", "http://[::1]:8545", "[::1]:8545", "/"),
        ("http://[0:0::1]/?", "http://[::1]:80", "[::1]", "/?"),
        ("http://127.0.0.1:8000/v1;p", "http://127.0.0.1:8000", "127.0.0.1:8000", "/v1;p"),
        ("http://vllm_1.internal./x", "http://vllm_1.internal.:80", "vllm_1.internal.", "/x"),
    ],
)
def test_parse_target_good_url_is_read(url: str, origin: str, authority: str, path: str) -> None:
    target = parse_target(url)
    assert (target.origin, target.authority, target.path) == (origin, authority, path)


def test_parse_target_scheme_must_be_asked_for() -> None:
    assert parse_target("wss://hub:8421/", ("ws", "wss")).tls
    with pytest.raises(ConfigError, match="EMC-1320"):
        parse_target("wss://hub:8421/")


def test_target_shown_hides_the_query() -> None:
    assert parse_target("https://rpc.example/v2?key=secret").shown == "https://rpc.example:443/v2"


def test_require_allowed_same_origin_passes() -> None:
    target = require_allowed("http://127.0.0.1:8000/v1/models", ["http://127.0.0.1:8000"])
    assert target.path == "/v1/models"


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:8001/",
        "https://127.0.0.1:8000/",
        "http://127.0.0.1:8000.evil/",
        "http://localhost:8000/",
        "http://127.0.0.2:8000/",
    ],
)
def test_require_allowed_other_origin_raises(url: str) -> None:
    with pytest.raises(ConfigError, match=r"EMC-13(20|21)"):
        require_allowed(url, ["http://127.0.0.1:8000/"])


@pytest.mark.parametrize(
    "url",
    [
        "https://127.0.0.1/",
        "https://10.1.2.3/",
        "https://192.168.1.1/",
        "https://169.254.169.254/latest",
        "https://[::1]/",
        "https://[::ffff:10.0.0.1]/",
        "https://[fd00::1]/",
        "https://localhost/",
        "https://0.0.0.0/",
    ],
)
def test_require_public_private_address_raises(url: str) -> None:
    with pytest.raises(ConfigError, match="EMC-1322"):
        require_public(url)


def test_require_public_plain_http_raises() -> None:
    with pytest.raises(ConfigError, match="EMC-1320"):
        require_public("http://hub.example/")


def test_require_public_https_name_passes() -> None:
    assert require_public("https://hub.example:8420/api").port == 8420


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.9.9.9", "::1", "localhost", "LOCALHOST.", "::ffff:127.0.0.1"]
)
def test_is_loopback_own_machine_is_true(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "localhost.evil.example", "example"])
def test_is_loopback_other_is_false(host: str) -> None:
    assert not is_loopback(host)
