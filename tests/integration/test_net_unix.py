"""The HTTP server on a unix socket: who gets in, who owns the path, what a killed process leaves."""

from __future__ import annotations

import errno
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from emcd.config import HttpListen
from emcd.net.http_server import serve_http
from tests.support.hub_world import ADMIN_TOKEN, running_world
from tests.support.net_world import WAIT_S, http_server, parse_answers, read_all, request_bytes


async def tell_origin(scope: Any, receive: Any, send: Any) -> None:
    origin = f"{scope['client']} {scope['server']} {scope['scheme']}"
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": origin.encode()})


async def ask(path: Path, data: bytes) -> bytes:
    stream = await trio.open_unix_socket(str(path))
    async with stream:
        await stream.send_all(data)
        return await read_all(stream)


async def test_unix_server_answers_and_tells_where_it_listens(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    async with http_server(tell_origin, unix=path):
        data = await ask(path, request_bytes() + request_bytes(close=True))
        answers = parse_answers(data, ["POST", "POST"])
    assert {a.body for a in answers} == {f"None ('{path}', None) http".encode()}
    assert list(tmp_path.iterdir()) == []


async def test_unix_server_has_its_mode_before_anybody_gets_in(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    async with http_server(tell_origin, unix=path, unix_mode=0o600):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


async def test_unix_path_of_a_server_that_runs_is_refused_and_the_server_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    async with http_server(tell_origin, unix=path):
        with pytest.raises(OSError, match="another process listens there") as caught:
            await serve_http(tell_origin, unix=path)
        assert caught.value.errno == errno.EADDRINUSE
        assert b"200 OK" in await ask(path, request_bytes(close=True))


async def test_unix_path_of_another_program_is_refused_and_left(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        with pytest.raises(OSError, match="another program listens there"):
            await serve_http(tell_origin, unix=path)
        assert path.is_socket()


async def test_unix_path_of_a_full_backlog_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    with socket.socket(socket.AF_UNIX) as other, socket.socket(socket.AF_UNIX) as waiting:
        other.bind(str(path))
        other.listen(0)
        waiting.connect(str(path))
        with pytest.raises(OSError, match="another program listens there"):
            await serve_http(tell_origin, unix=path)


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
async def test_unix_path_that_is_no_socket_is_refused_and_left(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.sock"
    target = tmp_path / "precious"
    target.write_text("kept")
    if kind == "file":
        path.write_text("kept")
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(target)
    with pytest.raises(OSError, match="no socket"):
        await serve_http(tell_origin, unix=path)
    assert path.exists() and target.read_text() == "kept"
    assert not (tmp_path / "a.sock.lock").exists()


KILLED = """
import os, sys, trio
from pathlib import Path
from emcd.net.http_server import serve_http
async def app(scope, receive, send): ...
class Started:
    def started(self, port): os.write(1, b"up"); os.kill(os.getpid(), 9)
serve = lambda: serve_http(app, unix=Path(sys.argv[1]), task_status=Started())
trio.run(serve)
"""


async def test_unix_path_that_a_killed_process_left_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    command = [sys.executable, "-c", KILLED, str(path)]
    with trio.fail_after(WAIT_S):
        done = await trio.run_process(command, capture_stdout=True, check=False, stderr=subprocess.DEVNULL)
    assert done.stdout == b"up"
    assert path.is_socket()
    async with http_server(tell_origin, unix=path):
        assert b"200 OK" in await ask(path, request_bytes(close=True))


async def test_unix_path_is_free_once_the_drain_began(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    async with http_server(tell_origin, unix=path) as old:
        busy = await trio.open_unix_socket(str(path))
        async with busy:
            await busy.send_all(request_bytes(close=True)[:-3])
            await trio.testing.wait_all_tasks_blocked()
            old.drain.set()
            await trio.testing.wait_all_tasks_blocked()
            async with http_server(tell_origin, unix=path):
                assert b"200 OK" in await ask(path, request_bytes(close=True))
                await busy.send_all(request_bytes(close=True)[-3:])
                assert b"200 OK" in await read_all(busy)
                with trio.fail_after(WAIT_S):
                    await old.ended.wait()
                assert b"200 OK" in await ask(path, request_bytes(close=True)), "the old one took it away"


async def test_unix_path_in_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        await serve_http(tell_origin, unix=tmp_path / "none" / "a.sock")


async def test_hub_serves_users_and_operator_on_unix_sockets(tmp_path: Path) -> None:
    public, admin = tmp_path / "public.sock", tmp_path / "admin.sock"
    listen, admin_listen = HttpListen(unix=public), HttpListen(unix=admin)
    async with running_world(tmp_path, listen=listen, admin_listen=admin_listen) as world:
        head = b"GET %b HTTP/1.1\r\nHost: hub\r\nConnection: close\r\nAuthorization: Bearer %b\r\n\r\n"
        assert (world.role.ports["public"], world.role.ports["admin"]) == (0, 0)
        (models,) = parse_answers(await ask(public, head % (b"/v1/models", world.api_key.encode())), ["GET"])
        assert models.status == 200
        (refused,) = parse_answers(await ask(public, head % (b"/v1/models", b"wrong")), ["GET"])
        assert refused.status == 401
        accounts = await ask(admin, head % (b"/admin/accounts", ADMIN_TOKEN.encode()))
        assert parse_answers(accounts, ["GET"])[0].status == 200
    assert not os.path.lexists(public) and not os.path.lexists(admin)
