"""How the hub reads validators' pages: one that can't be read costs no other; on doubles of the requests."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import trio

from emcd.errors import RecoverableError
from emcd.ledger import Ledger
from emcd.net.http_client import Response
from emcd.proto.records import format_call_id
from emcd.testing import make_key, temporary_ledger
from emcd_hub.rounds import collector as collector_module
from emcd_hub.rounds.collector import Collector
from emcd_hub.rounds.statement import MAX_OMISSIONS, OMISSIONS_PER_PAGE
from emcd_hub.schema import MIGRATIONS

NODE = make_key("validator").address
VIEW: Any = SimpleNamespace(round=7, endpoints={NODE: "http://127.0.0.1:1"})


class Log:
    """What was said aloud."""

    def __init__(self) -> None:
        self.codes: list[str] = []

    def warning(self, _: str, **values: Any) -> None:
        self.codes.append(values["code"])

    def debug(self, _: str, **values: Any) -> None: ...


def make_collector(ledger: Ledger | None, log: Log) -> Collector:
    parts: dict[str, Any] = {"deployment": None, "parameters": None, "ledger": ledger, "log": log}
    return Collector(hub=make_key("hub").address, timeout_s=0.2, any_endpoint=True, **parts)


async def test_page_that_cannot_be_read_costs_no_other_and_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    async def ask(_: str, url: str, **__: Any) -> Response:
        await trio.lowlevel.checkpoint()
        asked.append(url.split("/")[3])
        if asked[-1] == "reveals":
            raise RecoverableError("EMC-1303", "more than 1 byte")
        return Response(200 if asked[-1] == "rounds" else 404, {}, b"[]", url)

    monkeypatch.setattr(collector_module, "request", ask)
    log = Log()
    async with temporary_ledger(tmp_path, {"hub": MIGRATIONS}) as ledger:
        for _ in range(2):
            await make_twice(make_collector(ledger, log))
            assert asked == ["rounds", "commitments", "reveals", "votes"] * 2
            assert log.codes == ["EMC-1499", "EMC-1303"]
            asked.clear()
            log.codes.clear()


async def make_twice(collector: Collector) -> None:
    terms: Any = SimpleNamespace(powers={})
    for _ in range(2):
        await collector._fetch_statements(VIEW, terms, NODE)


@pytest.mark.parametrize(("pages", "read"), [(3, 3), (10_000, MAX_OMISSIONS // OMISSIONS_PER_PAGE + 1)])
async def test_filed_calls_are_read_page_after_page_and_boundedly(
    monkeypatch: pytest.MonkeyPatch, pages: int, read: int
) -> None:
    asked: list[str] = []

    async def ask(_: str, url: str, **__: Any) -> Response:
        await trio.lowlevel.checkpoint()
        asked.append(url)
        page: dict[str, Any] = {"omissions": []}
        if len(asked) < pages:
            page["next"] = format_call_id(len(asked).to_bytes(16, "big"))
        return Response(200, {}, msgspec.json.encode(page), url)

    monkeypatch.setattr(collector_module, "request", ask)
    collector = make_collector(None, Log())
    collector._deployment = SimpleNamespace(staking_domain=None)  # type: ignore[assignment]
    with trio.fail_after(5):
        await collector._fetch_omissions(VIEW, NODE)
    assert len(asked) == read
    assert asked[0].endswith("/omissions/7")
    assert asked[1].endswith("/omissions/7?from=call_" + "0" * 31 + "1")


async def test_filed_calls_that_cannot_be_read_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    async def ask(_: str, url: str, **__: Any) -> Response:
        await trio.lowlevel.checkpoint()
        raise RecoverableError("EMC-1303", "more than 1 byte")

    monkeypatch.setattr(collector_module, "request", ask)
    log = Log()
    await make_collector(None, log)._fetch_omissions(VIEW, NODE)
    assert log.codes == ["EMC-1303"]
