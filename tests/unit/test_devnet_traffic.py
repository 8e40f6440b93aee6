"""The devnet's traffic: bodies as clients send them, a key that comes late, a hub that fails."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from emcd.config import decode
from emcd.errors import RecoverableError
from emcd.ledger import Ledger
from emcd.net.http_client import Response
from emcd.role import HealthState
from emcd.testing import make_context, running_role
from emcd_devchain import traffic as traffic_module
from emcd_devchain.traffic import Traffic, TrafficConfig, draw_body, draw_chat


@pytest.fixture
def config(tmp_path: Path) -> TrafficConfig:
    return TrafficConfig(
        hub_url="http://127.0.0.1:1", api_key_file=tmp_path / "key", calls_per_s=1000.0, parallel=3
    )


class Calls:
    """Stands for the hub: keeps what came, answers when let."""

    def __init__(self, status: int = 200) -> None:
        self.status = status
        self.made: list[dict[str, Any]] = []
        self.under_way = 0
        self.most = 0
        self.free = trio.Event()

    async def request(self, method: str, url: str, **fields: Any) -> Response:
        self.made.append({"method": method, "url": url, **fields})
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        await self.free.wait()
        self.under_way -= 1
        if self.status == 0:
            raise RecoverableError("EMC-1301", "no connection")
        return Response(self.status, {}, b"{}", url)


async def until(condition: Any) -> None:
    with trio.fail_after(5):
        while not condition():
            await trio.sleep(0.005)


def test_body_is_an_embeddings_request_in_several_shapes() -> None:
    draw = random.Random(7)
    bodies = [draw_body(draw, "m") for _ in range(200)]

    assert all(set(body) == {"input", "model", "encoding_format"} and body["model"] == "m" for body in bodies)
    assert {type(body["input"]) for body in bodies} == {str, list}
    assert {body["encoding_format"] for body in bodies} == {"base64", "float"}
    assert len({msgspec.json.encode(body) for body in bodies}) == 200


def test_chat_is_a_request_in_several_shapes() -> None:
    draw = random.Random(7)
    bodies = [draw_chat(draw, "m") for _ in range(200)]

    assert all(body["model"] == "m" and body["messages"] for body in bodies)
    assert {len(body["messages"]) for body in bodies} == {1, 2}  # type: ignore[arg-type]
    assert (
        {"temperature" in body for body in bodies} == {"stream" in body for body in bodies} == {True, False}
    )
    assert {body["max_tokens"] for body in bodies} == {8, 16, 32}


@pytest.mark.parametrize(
    ("share", "paths"), [(0.0, {"embeddings"}), (1.0, {"completions"}), (0.5, {"embeddings", "completions"})]
)
def test_share_of_the_calls_chats_with_the_text_model(
    config: TrafficConfig, share: float, paths: set[str]
) -> None:
    chatty = Traffic(dataclasses.replace(config, text_model="writer", text_share=share))
    draw = random.Random(3)
    drawn = [chatty._draw_call(draw) for _ in range(60)]

    assert {path.rpartition("/")[2] for path, _ in drawn} == paths
    assert {body["model"] for path, body in drawn if path.endswith("completions")} <= {"writer"}
    silent = Traffic(dataclasses.replace(config, text_share=share))
    assert {silent._draw_call(draw)[0] for _ in range(20)} == {"/v1/embeddings"}


def test_config_wants_a_rate_in_its_range() -> None:
    table = {"hub_url": "http://h", "api_key_file": "k", "calls_per_s": 0.0}

    _, faults = decode(TrafficConfig, table, "role")

    assert [fault.where for fault in faults] == ["role.calls_per_s"]


async def test_traffic_waits_for_its_key_and_calls_with_it(
    ledger: Ledger, config: TrafficConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = Calls()
    monkeypatch.setattr(traffic_module, "request", calls.request)
    async with running_role(Traffic(config), make_context("traffic", ledger)) as role:
        assert role.health().state is HealthState.READY
        assert calls.made == []
        config.api_key_file.touch()
        await trio.sleep(0.3)
        assert calls.made == []
        config.api_key_file.write_text("emc_sk_secret\n")
        await until(lambda: calls.made)

    first = calls.made[0]
    assert (first["method"], first["url"]) == ("POST", "http://127.0.0.1:1/v1/embeddings")
    assert first["headers"]["Authorization"] == "Bearer emc_sk_secret"


async def test_traffic_never_has_more_calls_under_way_than_it_may(
    ledger: Ledger, config: TrafficConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = Calls()
    config.api_key_file.write_text("k")
    monkeypatch.setattr(traffic_module, "request", calls.request)
    async with running_role(Traffic(config), make_context("traffic", ledger)):
        await until(lambda: calls.under_way == 3)
        await trio.sleep(0.05)
        calls.free.set()
        await until(lambda: len(calls.made) > 20)

    assert calls.most == 3


@pytest.mark.parametrize("status", [0, 503])
async def test_traffic_goes_on_after_failures(
    ledger: Ledger, config: TrafficConfig, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    calls = Calls(status)
    calls.free.set()
    config.api_key_file.write_text("k")
    monkeypatch.setattr(traffic_module, "request", calls.request)
    async with running_role(Traffic(config), make_context("traffic", ledger)) as role:
        await until(lambda: len(calls.made) > 5)

        assert role._failures >= 5


async def test_traffic_draining_makes_no_new_call(
    ledger: Ledger, config: TrafficConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = Calls()
    calls.free.set()
    config.api_key_file.write_text("k")
    monkeypatch.setattr(traffic_module, "request", calls.request)
    async with running_role(Traffic(config), make_context("traffic", ledger)) as role:
        await until(lambda: calls.made)
        await role.drain()
        await trio.testing.wait_all_tasks_blocked()
        made = len(calls.made)
        await trio.sleep(0.05)

        assert len(calls.made) == made
        assert role.health().state is HealthState.DRAINING
