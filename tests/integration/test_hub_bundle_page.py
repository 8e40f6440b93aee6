"""A round's bundle over HTTP: the same bytes from a plain and from a packed file, whole or in parts."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from emcd.errors import RecoverableError
from emcd.log import get_logger
from emcd.net.http_client import request
from emcd.net.http_limit import Limits
from emcd.net.http_server import serve_http
from emcd.proto.address import hex_hash
from emcd_hub.api import bundle as bundle_module
from emcd_hub.api.bundle import BundlePages, Part, choose_part
from emcd_hub.api.error import ApiError
from emcd_hub.api.page import build_app
from emcd_hub.rounds.bundle_row import BundleFacts
from emcd_validator.hub_client import HubClient
from tests.support.hub_ledger import FilledHub, filled_hub

ETAG = '"ab"'


@pytest.mark.parametrize(
    ("headers", "part"),
    [
        ({}, Part(200, 0, 100)),
        ({"range": "bytes=0-0"}, Part(206, 0, 1)),
        ({"range": "bytes=10-19"}, Part(206, 10, 20)),
        ({"range": "bytes=90-"}, Part(206, 90, 100)),
        ({"range": "bytes=90-500"}, Part(206, 90, 100)),
        ({"range": "bytes=-7"}, Part(206, 93, 100)),
        ({"range": "bytes=-700"}, Part(206, 0, 100)),
        ({"range": "bytes=5-9", "if-range": ETAG}, Part(206, 5, 10)),
        ({"range": "bytes=5-9", "if-range": '"other"'}, Part(200, 0, 100)),
        ({"range": "bytes=1-2,4-5"}, Part(200, 0, 100)),
        ({"range": "bytes=-"}, Part(200, 0, 100)),
        ({"range": "lines=1-2"}, Part(200, 0, 100)),
        ({"range": "bytes=" + "9" * 40 + "-"}, Part(200, 0, 100)),
        ({"if-none-match": ETAG}, Part(304, 0, 0)),
        ({"if-none-match": '"x", W/"ab"'}, Part(304, 0, 0)),
        ({"if-none-match": '"x"'}, Part(200, 0, 100)),
    ],
)
def test_part_is_chosen_by_the_headers(headers: dict[str, str], part: Part) -> None:
    assert choose_part(headers, ETAG, 100) == part


@pytest.mark.parametrize("asked", ["bytes=100-", "bytes=500-600", "bytes=9-3", "bytes=-0"])
def test_range_outside_the_bundle_is_refused(asked: str) -> None:
    with pytest.raises(ApiError) as caught:
        choose_part({"range": asked}, ETAG, 100)

    assert caught.value.status == 416


@dataclass
class Served:
    hub: FilledHub
    facts: BundleFacts
    data: bytes
    url: str

    async def get(self, **headers: str) -> Any:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        return await request("GET", f"{self.url}/api/rounds/0/bundle", headers=sent, max_bytes=1 << 24)


@asynccontextmanager
async def serving(folder: Path, limits: Limits | None = None) -> AsyncIterator[Served]:
    async with filled_hub(folder) as hub:
        await hub.add_calls(0, 30)
        facts = await hub.close(0)
        pages = BundlePages(hub.ledger, hub.folder)

        async def get_bundle(asked: Request) -> Response:
            return await pages.find(asked, int(asked.path_params["round"])) or Response(b"{}", 404)

        app = build_app([Route("/api/rounds/{round}/bundle", get_bundle)], get_logger())
        async with trio.open_nursery() as nursery:
            serve = partial(serve_http, app, host="127.0.0.1", port=0, limits=limits or Limits())
            port = await nursery.start(serve)
            yield Served(hub, facts, await hub.read_bundle(0), f"http://127.0.0.1:{port}")
            nursery.cancel_scope.cancel()


@pytest.fixture
async def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Served]:
    monkeypatch.setattr(bundle_module, "PIECE_BYTES", 1000)
    async with serving(tmp_path) as made:
        yield made


async def archive(served: Served) -> None:
    await served.hub.publish(served.facts)
    await served.hub.pass_to(9)
    assert await served.hub.archivist.step()


async def test_bundle_is_served_whole_before_and_after_it_is_packed(served: Served) -> None:
    assert len(served.data) > 3000
    for _ in range(2):
        answer = await served.get()

        assert (answer.status, answer.body) == (200, served.data)
        assert answer.headers["content-length"] == str(len(served.data))
        assert answer.headers["x-emc-bundle-hash"] == hex_hash(served.facts.bundle_hash)
        assert answer.headers["etag"] == f'"{served.facts.bundle_hash.hex()}"'
        assert "immutable" in answer.headers["cache-control"]
        if not list(served.hub.folder.path.glob("*.emcz")):
            await archive(served)


async def test_ranges_are_parts_of_the_bundle(served: Served) -> None:
    for _ in range(2):
        first = await served.get(range="bytes=0-1499")
        rest = await served.get(range="bytes=1500-")

        assert (first.status, rest.status) == (206, 206)
        assert first.body + rest.body == served.data
        assert first.headers["content-range"] == f"bytes 0-1499/{len(served.data)}"
        if not list(served.hub.folder.path.glob("*.emcz")):
            await archive(served)


async def test_bundle_that_the_client_has_is_not_sent_again(served: Served) -> None:
    answer = await served.get(if_none_match=f'"{served.facts.bundle_hash.hex()}"')

    assert (answer.status, answer.body) == (304, b"")


async def test_round_that_is_not_sealed_or_known_is_not_served(served: Served) -> None:
    await served.hub.ledger.write(lambda con: con.execute("DELETE FROM hub_seals") and None)
    assert (await served.get()).status == 404


async def test_bundle_whose_file_is_gone_is_tried_again_later(served: Served) -> None:
    for file in served.hub.folder.path.iterdir():
        file.unlink()

    assert (await served.get()).status == 503


async def test_reader_that_does_not_read_is_cut(tmp_path: Path) -> None:
    async with serving(tmp_path, Limits(write_stall_s=0.2, min_rate_bytes_s=1 << 30)) as served:
        (file,) = served.hub.folder.path.iterdir()
        size = 30 << 20
        with file.open("ab") as out:
            out.truncate(size)
        await served.hub.ledger.write(
            lambda con: con.execute("UPDATE hub_bundle_files SET size_bytes = ?", (size,)) and None
        )
        host, _, port = served.url.removeprefix("http://").partition(":")
        stream = await trio.open_tcp_stream(host, int(port))
        await stream.send_all(b"GET /api/rounds/0/bundle HTTP/1.1\r\nhost: x\r\n\r\n")
        await trio.sleep(1.5)
        got = 0
        async with stream:
            with trio.fail_after(10), suppress(trio.BrokenResourceError):
                while piece := await stream.receive_some(1 << 20):
                    got += len(piece)
        assert got < size


async def test_validator_fetches_a_bundle_once(served: Served, tmp_path: Path) -> None:
    client, path = HubClient(served.url), tmp_path / "fetched.emcb"

    first = await client.find_bundle(0, path, 5.0)
    written = path.stat().st_mtime_ns
    second = await client.find_bundle(0, path, 5.0)

    assert first is not None
    assert first == second
    assert (first.bundle_hash, first.seal) == (served.facts.bundle_hash, served.facts.seal)
    assert path.read_bytes() == served.data
    assert path.stat().st_mtime_ns == written
    path.unlink()
    assert await client.find_bundle(0, path, 5.0) is not None
    assert path.read_bytes() == served.data
    assert await client.find_bundle(1, path, 5.0) is None


async def test_validator_takes_no_bundle_without_its_hash(served: Served, tmp_path: Path) -> None:
    await served.hub.ledger.write(
        lambda con: con.execute("UPDATE hub_bundle_files SET size_bytes = 10") and None
    )
    client = HubClient(served.url)
    found = await client.find_bundle(0, tmp_path / "short.emcb", 5.0)

    assert found is not None
    assert found.path.stat().st_size == 10, "what it is worth is judged by its hash"
    with pytest.raises(RecoverableError):
        await HubClient("http://127.0.0.1:1").find_bundle(0, tmp_path / "none.emcb", 2.0)
    assert not (tmp_path / "none.emcb").exists()
