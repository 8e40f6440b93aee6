"""The router's small parts: its settings, its reports, what waits to be said, what waits for a node."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from emcd.clock import ManualClock
from emcd.config import Fault, KeyFile
from emcd.net.allowance import Allowance
from emcd.proto.control import RouterStatusMessage, decode_router_control
from emcd.proto.signing import require_signer
from emcd.testing import make_key
from emcd_router.config import HubRef, RouterConfig
from emcd_router.outbox import BYTES, Outbox
from emcd_router.report import Report
from tests.support.hub_world import DOMAIN

KEY, HUB, OTHER = (make_key(name) for name in ("router", "hub", "other"))


def faults_of(*hubs: HubRef) -> list[Any]:
    config = RouterConfig(KeyFile(Path("router.json")), hubs)
    return [*config.check(), *(fault for hub in hubs for fault in hub.check())]


def test_hubs_are_named_once_and_reached_by_tls_off_this_machine() -> None:
    near = HubRef("ws://127.0.0.1:8421", HUB.address)
    far = HubRef("wss://hub.example:8421", OTHER.address)
    assert faults_of(near, far) == []
    for hubs in (
        (near, HubRef("wss://hub.example:8421", HUB.address)),
        (HubRef("ws://hub.example:8421", HUB.address),),
        (HubRef("https://hub.example:8421", HUB.address),),
    ):
        (fault,) = faults_of(*hubs)
        assert isinstance(fault, Fault)
        assert fault.code == "EMC-2306"


def test_reports_are_signed_for_one_hub_and_their_sequence_grows_whatever_the_clock_does() -> None:
    clock = ManualClock()
    report = Report(KEY, DOMAIN, HUB.address, clock, "0.1", "eu-west")
    sequences = []
    for number in range(3):
        message = decode_router_control(report.make(number, 2 * number))
        assert isinstance(message, RouterStatusMessage)
        status = message.status
        require_signer(DOMAIN, status, message.signature, KEY.address)
        assert (status.router, status.hub) == (KEY.address, HUB.address)
        assert (status.nodes, status.in_flight, status.region) == (number, 2 * number, "eu-west")
        assert status.sent_at_ms == clock.now_ms()
        sequences.append(status.sequence)
    assert sequences == sorted(set(sequences))
    assert sequences[0] >= clock.now_ms()


def test_allowance_lets_a_burst_through_and_then_so_much_a_second() -> None:
    allowance = Allowance(per_s=10.0, burst=5.0, now=100.0)
    assert [allowance.take(100.0) for _ in range(5)] == [0.0] * 5
    assert allowance.take(100.0) == pytest.approx(0.1)
    assert allowance.take(100.0) == pytest.approx(0.2)
    assert allowance.take(100.5) == 0.0
    assert [allowance.take(1000.0) for _ in range(6)][4:] == [0.0, pytest.approx(0.1)]


async def test_outbox_keeps_the_order_of_nodes_messages_and_of_news() -> None:
    outbox = Outbox()
    for number in range(3):
        await outbox.room()
        outbox.post(b"%d" % number)
    assert [await outbox.take() for _ in range(3)] == [b"0", b"1", b"2"]


async def test_outbox_that_is_full_lets_nodes_wait_and_takes_news() -> None:
    outbox = Outbox()
    outbox.post(bytes(BYTES))
    passed = False

    async def wait() -> None:
        nonlocal passed
        await outbox.room()
        passed = True

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        assert not passed
        outbox.post(b"news")
        await outbox.take()
        await wait_all_tasks_blocked()
        assert passed
    assert await outbox.take() == b"news"


async def test_outbox_that_is_cleared_lets_those_who_wait_go_on() -> None:
    outbox = Outbox()
    outbox.post(bytes(BYTES))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(outbox.room)
        await wait_all_tasks_blocked()
        outbox.clear()
    outbox.post(b"next")
    assert await outbox.take() == b"next"
