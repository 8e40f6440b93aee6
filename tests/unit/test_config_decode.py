"""Strict decoding: every type, every fault at once, nothing secret repeated."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Literal

import pytest

from emcd.config import Fault, HttpListen, KeyFile, Listen, decode, setting
from emcd.config.environment import FromEnvironment
from emcd.testing import make_key
from emcd.types import Address, Hash, Wei

ADDRESS = make_key("a").address


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True)
class Inner:
    depth: int = setting(1, minimum=0, maximum=9)


@dataclass(frozen=True)
class Everything:
    text: str
    count: int = setting(5, minimum=1, maximum=10)
    share: float = 0.5
    on: bool = False
    path: Path = Path("some/where")
    mode: Literal["fast", "slow"] = "fast"
    colour: Colour = Colour.RED
    maybe: int | None = None
    names: tuple[str, ...] = setting((), maximum=2)
    inner: Inner = Inner()
    inners: tuple[Inner, ...] = ()
    table: dict[str, int] = setting(factory=dict)
    owner: Address | None = None
    root: Hash | None = None
    amount: Wei = Wei(0)
    word: str = setting("abc", pattern="[a-z]+")


@dataclass(frozen=True)
class Pair:
    low: int
    high: int

    def check(self) -> list[str | Fault]:
        faults: list[str | Fault] = []
        if self.low > self.high:
            faults += ["low is above high", Fault("high", "is below low", "EMC-1003")]
        return faults


@dataclass(frozen=True)
class Holder:
    pair: Pair
    key: KeyFile = KeyFile(Path("keys/x.json"))


def messages(cls: type, table: object, where: str = "t") -> list[str]:
    value, faults = decode(cls, table, where)
    assert (value is None) == bool(faults)
    return [f"{fault.where}: {fault.message}" for fault in faults]


def test_decode_every_type_of_value() -> None:
    table: dict[str, Any] = {
        "text": "x",
        "count": 7,
        "share": 2,
        "on": True,
        "path": "a/b",
        "mode": "slow",
        "colour": "blue",
        "maybe": 3,
        "names": ["p", "q"],
        "inner": {"depth": 2},
        "inners": [{"depth": 3}, {}],
        "table": {"k": 1},
        "owner": ADDRESS,
        "root": "0x" + "ab" * 32,
        "amount": 10**30,
        "word": "xyz",
    }
    value, faults = decode(Everything, table)
    assert faults == []
    assert value == Everything(
        "x", 7, 2.0, True, Path("a/b"), "slow", Colour.BLUE, 3, ("p", "q"), Inner(2), (Inner(3), Inner(1)),
        {"k": 1}, ADDRESS, Hash(b"\xab" * 32), Wei(10**30), "xyz",
    )  # fmt: skip


def test_decode_every_fault_is_reported_at_once() -> None:
    table = {
        "cuont": 3,
        "count": 99,
        "share": "much",
        "on": 1,
        "mode": "fats",
        "colour": "green",
        "names": ["a", 2, "c", False],
        "inner": {"depth": -1, "hight": 2},
        "inners": [{"depth": "x"}, 4],
        "table": {"k": "v"},
        "owner": ADDRESS.lower(),
        "root": "0x12",
        "word": "A1",
    }
    found = messages(Everything, table)
    assert found == [
        "t.cuont: unknown key (did you mean 'count'?)",
        "t.text: is required",
        "t.count: 99 is above 10",
        "t.share: expected a number, not 'much'",
        "t.on: expected true or false, not 1",
        "t.mode: expected one of fast, slow, not 'fats' (did you mean 'fast'?)",
        "t.colour: expected one of red, blue, not 'green'",
        "t.names[1]: expected a text in quotes, not 2",
        "t.names[3]: expected a text in quotes, not False",
        "t.inner.hight: unknown key",
        "t.inner.depth: -1 is below 0",
        "t.inners[0].depth: expected an integer, not 'x'",
        "t.inners[1]: expected a table, not an integer",
        "t.table.k: expected an integer, not 'v'",
        f"t.owner: {ADDRESS.lower()} fails the EIP-55 checksum",
        "t.root: '0x12' is not a hash of 0x and 64 hex digits",
        "t.word: must match [a-z]+",
    ]


@pytest.mark.parametrize("value", [True, 1.0, "1", None, [1], float("nan")])
def test_decode_integer_is_never_coerced(value: object) -> None:
    assert messages(Inner, {"depth": value})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), True, "1.5"])
def test_decode_float_is_finite_and_a_number(value: object) -> None:
    assert messages(Everything, {"text": "", "share": value})


@pytest.mark.parametrize(
    ("field", "text", "expected"),
    [
        ("count", "7", 7),
        ("share", "0.25", 0.25),
        ("on", "true", True),
        ("on", "0", False),
        ("text", "7", "7"),
    ],
)
def test_decode_value_from_environment_takes_the_type_of_its_field(
    field: str, text: str, expected: object
) -> None:
    value, faults = decode(Everything, {"text": "", field: FromEnvironment(text)})
    assert faults == []
    assert getattr(value, field) == expected


@pytest.mark.parametrize("field", ["count", "share", "on"])
def test_decode_value_from_environment_is_never_repeated(field: str) -> None:
    found = messages(Everything, {"text": "", field: FromEnvironment("hunter2-secret")})
    assert len(found) == 1
    assert "hunter2" not in found[0]


def test_decode_secret_looking_field_is_never_repeated() -> None:
    @dataclass(frozen=True)
    class Secretive:
        api_key: int = 0

    assert "hunter2" not in "".join(messages(Secretive, {"api_key": "hunter2"}))


def test_decode_check_of_a_nested_table_names_its_place() -> None:
    assert messages(Holder, {"pair": {"low": 2, "high": 1}}) == [
        "t.pair: low is above high",
        "t.pair.high: is below low",
    ]


def test_decode_relative_paths_start_at_the_base() -> None:
    base = Path("/base")
    value, faults = decode(Everything, {"text": "", "path": "x"}, base=base)
    assert faults == [] and value is not None and value.path == Path("/base/x")
    value, _ = decode(Everything, {"text": "", "path": "/abs"}, base=base)
    assert value is not None and value.path == Path("/abs")
    value, _ = decode(Everything, {"text": ""}, base=base)
    assert value is not None and value.path == Path("/base/some/where")
    holder, _ = decode(Holder, {"pair": {"low": 1, "high": 2}}, base=base)
    assert holder is not None and holder.key.file == Path("/base/keys/x.json")


@pytest.mark.parametrize("table", ["text", 3, [1], None])
def test_decode_no_table_is_a_fault(table: object) -> None:
    assert len(messages(Everything, table)) == 1


def test_decode_unsupported_type_is_our_bug() -> None:
    @dataclass(frozen=True)
    class Odd:
        both: int | str = 1

    with pytest.raises(TypeError, match="can't be decoded"):
        decode(Odd, {"both": 1})


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [("127.0.0.1:80", "127.0.0.1", 80), ("[::1]:0", "::1", 0), ("localhost:65535", "localhost", 65535)],
)
def test_listen_text_is_parsed(text: str, host: str, port: int) -> None:
    value, faults = decode(Listen, text)
    assert faults == [] and value == Listen(host, port)


@pytest.mark.parametrize(
    "text",
    ["", "8420", "127.0.0.1", "127.0.0.1:", ":8420", "127.0.0.1:http", "127.0.0.1:65536", "127.0.0.1:-1",
     "::1:80", "[::1]", "bad host:80"],
)  # fmt: skip
def test_listen_bad_text_is_a_fault(text: str) -> None:
    assert messages(Listen, text)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "hub.example.org"])
def test_listen_off_loopback_without_tls_is_refused(host: str) -> None:
    _, faults = decode(Listen, {"host": host, "port": 80}, "listen")
    assert [fault.code for fault in faults] == ["EMC-1010"]


def test_listen_off_loopback_with_tls_is_accepted(tmp_path: Path) -> None:
    cert, key = tmp_path / "c.pem", tmp_path / "k.pem"
    cert.touch()
    key.touch()
    table = {"host": "0.0.0.0", "port": 443, "tls_cert": str(cert), "tls_key": str(key)}
    value, faults = decode(Listen, table)
    assert faults == [] and value is not None and value.tls_cert == cert


def test_listen_half_of_tls_or_missing_files_are_faults(tmp_path: Path) -> None:
    assert messages(Listen, {"host": "127.0.0.1", "port": 1, "tls_cert": "c"})
    absent = {"host": "0.0.0.0", "port": 1, "tls_cert": str(tmp_path / "c"), "tls_key": str(tmp_path / "k")}
    assert len(messages(Listen, absent)) == 2


def test_http_listen_is_an_address_or_a_unix_socket(tmp_path: Path) -> None:
    assert decode(HttpListen, "127.0.0.1:80")[0] == HttpListen("127.0.0.1", 80)
    assert decode(HttpListen, {"host": "::1", "port": 0})[0] == HttpListen("::1", 0)
    value, faults = decode(HttpListen, "unix:run/hub.sock", base=tmp_path)
    assert faults == [] and value == HttpListen(unix=tmp_path / "run/hub.sock", unix_mode=0o660)
    value, faults = decode(HttpListen, {"unix": "/run/hub.sock", "unix_mode": 0o600})
    assert faults == [] and value == HttpListen(unix=Path("/run/hub.sock"), unix_mode=0o600)
    assert str(value) == "unix:/run/hub.sock"


@pytest.mark.parametrize(
    "table",
    [
        "unix:",
        "unix:" + "a" * 120,
        {},
        {"host": "127.0.0.1"},
        {"port": 80},
        {"unix": "a", "host": "127.0.0.1", "port": 80},
        {"unix": "a", "port": 0},
        {"unix": "a", "tls_cert": "c", "tls_key": "k"},
        {"unix": "a", "unix_mode": 0o1777},
        {"unix": "a", "unix_mode": 0},
        {"host": "0.0.0.0", "port": 80},
    ],
)
def test_http_listen_that_names_no_place_or_two_is_a_fault(table: object) -> None:
    assert decode(HttpListen, table)[1]


def test_listen_of_a_tunnel_takes_no_unix_socket() -> None:
    assert messages(Listen, "unix:hub.sock")
    assert messages(Listen, {"unix": "hub.sock"})


def test_key_file_is_a_text_or_a_table() -> None:
    assert decode(KeyFile, "k.json")[0] == KeyFile(Path("k.json"))
    table = {"file": "k.json", "password_env": "SECRET"}
    assert decode(KeyFile, table)[0] == KeyFile(Path("k.json"), None, "SECRET")
    assert messages(KeyFile, {"file": "k", "password_file": "p", "password_env": "E"})
    assert messages(KeyFile, {"file": "k", "password": "clear"})
