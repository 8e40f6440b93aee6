"""Clients of external engines against engines that are away, slow, cut off or lying."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import trio

from emcd.errors import ConfigError, RecoverableError
from emcd.inference.engine import Engine, EngineTimes, load_api_key
from emcd.proto.openai import Endpoint
from tests.support.inference_engine import SILENCE, answer, scripted_engine, sse

TIMES = EngineTimes(connect_s=1, head_s=0.2, idle_s=0.2, probe_s=0.2, max_bytes=1000)
CHAT = "/v1/chat/completions"


async def _call(engine: Engine, body: bytes = b"{}") -> tuple[int, bytes]:
    async with engine.open_call(Endpoint.CHAT, body) as response:
        return response.status, await response.read()


@pytest.mark.parametrize(
    "url",
    [
        "",
        "127.0.0.1:8000",
        "ftp://127.0.0.1/v1",
        "http://user:secret@127.0.0.1/v1",
        "http://127.0.0.1/v1?key=1",
        "http://127.0.0.1/v1#x",
        "http://2130706433/v1",
        "http://127.0.0.1\\@evil/v1",
    ],
)
def test_engine_bad_url_refused(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Engine(url)
    assert caught.value.code == "EMC-1620"
    assert "secret" not in str(caught.value)


def test_engine_repr_hides_the_key() -> None:
    assert "sk-1" not in repr(Engine("http://127.0.0.1/v1", "sk-1"))


async def test_list_models_names_what_is_served() -> None:
    async with scripted_engine({}) as script:
        assert await Engine(script.url + "/", "sk-1", TIMES).list_models() == {"m"}
        assert script.seen[0].headers["authorization"] == "Bearer sk-1"


@pytest.mark.parametrize(
    ("pieces", "code"),
    [
        ([answer(500, b"{}")], "EMC-1622"),
        ([answer(401, b"{}")], "EMC-1622"),
        ([b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n"], "EMC-1622"),
        ([answer(200, b"[]")], "EMC-1307"),
        ([answer(200, b"\xff")], "EMC-1307"),
        ([answer(200, b"{}", length=10)], "EMC-1304"),
        ([b"hello\r\n\r\n"], "EMC-1305"),
        ([SILENCE], "EMC-1302"),
    ],
)
async def test_list_models_unusable_answer_is_recoverable(pieces: Sequence[bytes], code: str) -> None:
    async with scripted_engine({"/v1/models": pieces}) as script:
        with pytest.raises(RecoverableError) as caught:
            await Engine(script.url, times=TIMES).list_models()
        assert caught.value.code == code


async def test_open_call_relays_bytes_and_sends_only_what_it_must() -> None:
    async with scripted_engine({CHAT: sse({"a": 1}, {"b": 2})}) as script:
        status, body = await _call(Engine(script.url, "sk-1", TIMES), b'{"model": "m"}')
        assert (status, body) == (200, b'data: {"a": 1}\n\ndata: {"b": 2}\n\ndata: [DONE]\n\n')
        (seen,) = script.seen
        assert seen.line == "POST /v1/chat/completions HTTP/1.1"
        assert seen.body == b'{"model": "m"}'
        framing = {"host", "connection", "accept-encoding", "content-length", "user-agent"}
        assert set(seen.headers) == framing | {"authorization", "content-type"}


@pytest.mark.parametrize(
    ("pieces", "code"),
    [
        (sse({"a": 1}, ended=False), "EMC-1304"),
        ([answer(200, b"{}", length=10)], "EMC-1304"),
        ([b"HTTP/1.1 200 OK\r\n\r\nuntil closed"], "EMC-1304"),
        ([answer(200, b"x" * 1001)], "EMC-1303"),
        ([SILENCE], "EMC-1302"),
        ([answer(200, b"{}", length=10), SILENCE], "EMC-1302"),
        ([b"nonsense\r\n\r\n"], "EMC-1305"),
        ([b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 1\r\n\r\nx"], "EMC-1306"),
    ],
)
async def test_open_call_broken_answer_is_recoverable(pieces: Sequence[bytes], code: str) -> None:
    async with scripted_engine({CHAT: pieces}) as script:
        with pytest.raises(RecoverableError) as caught:
            await _call(Engine(script.url, times=TIMES))
        assert caught.value.code == code


async def test_open_call_redirect_is_not_followed() -> None:
    async with scripted_engine({"/v1/models": [answer(200, b"secret")]}) as inner:
        redirect = f"HTTP/1.1 307 X\r\nLocation: {inner.url}/models\r\nContent-Length: 0\r\n\r\n"
        async with scripted_engine({CHAT: [redirect.encode()]}) as script:
            status, body = await _call(Engine(script.url, times=TIMES))
            assert (status, body) == (307, b"")
        assert inner.seen == []


async def test_open_call_engine_away_is_recoverable() -> None:
    async with scripted_engine({}) as script:
        url = script.url
    with pytest.raises(RecoverableError) as caught:
        await _call(Engine(url, times=TIMES))
    assert caught.value.code == "EMC-1301"


async def test_open_call_cancelled_hangs_up_on_the_engine() -> None:
    async with scripted_engine({CHAT: [*sse({"a": 1}, ended=False), SILENCE]}) as script:
        with trio.move_on_after(5):
            async with Engine(script.url).open_call(Endpoint.CHAT, b"{}") as response:
                async for _ in response.pieces:
                    break
        with trio.fail_after(5):
            await script.hung_up.wait()


def test_load_api_key_reads_env_or_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENGINE_KEY", " sk-1\n")
    path = tmp_path / "key"
    path.write_text("sk-2\nsecond line\n")
    assert load_api_key("ENGINE_KEY", None) == "sk-1"
    assert load_api_key("", path) == "sk-2"
    assert load_api_key("", None) == ""


@pytest.mark.parametrize("content", [b"", b"\n", b"a\x01b", "schlüssel".encode(), b"\xff"])
def test_load_api_key_unusable_is_refused_without_its_content(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "key"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_api_key("", path)
    assert caught.value.code == "EMC-1621"
    assert "schl" not in str(caught.value)


def test_load_api_key_missing_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ENGINE_KEY", raising=False)
    for env, file in (("ENGINE_KEY", None), ("", tmp_path / "none")):
        with pytest.raises(ConfigError) as caught:
            load_api_key(env, file)
        assert caught.value.code == "EMC-1621"
