"""Which of the chain's routers a node would dial."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from emcd.testing import make_key
from emcd.types import Address, ParticipantRole
from emcd_node.router_choice import Way
from emcd_node.router_directory import MOST_ROUTERS, RouterDirectory

MINIMUM = 100


@dataclass
class Row:
    node: Address
    endpoint: str
    role: int = int(ParticipantRole.ROUTER)
    stake_wei: int = MINIMUM


class Chain:
    def __init__(self, rows: list[Row]) -> None:
        self.rows = rows
        self.staking = self

    async def head(self) -> str:
        return "head"

    async def fetch_participants(self, *, at: str) -> list[Row]:
        assert at == "head"
        return self.rows


def address(name: str) -> Address:
    return make_key(name).address


async def fetch(rows: list[Row], *, allow_loopback: bool = False) -> list[Way]:
    def first(ways: Sequence[Way], count: int) -> Sequence[Way]:
        return ways[:count]

    chain: Any = Chain(rows)
    directory = RouterDirectory(
        chain, minimum_wei=lambda: MINIMUM, sample=first, allow_loopback=allow_loopback
    )
    return await directory.fetch()


async def test_bound_and_staked_routers_with_an_endpoint_are_dialled_by_tls() -> None:
    rows = [Row(address("a"), "https://a.example:8423"), Row(address("b"), "https://b.example")]
    assert await fetch(rows) == [
        Way("wss://a.example:8423/", address("a")),
        Way("wss://b.example/", address("b")),
    ]


async def test_others_are_not_dialled() -> None:
    rows = [
        Row(address("little"), "https://a.example:8423", stake_wei=MINIMUM - 1),
        Row(address("hub"), "https://a.example:8423", role=int(ParticipantRole.HUB)),
        Row(address("nowhere"), ""),
        Row(address("clear"), "http://a.example:8423"),
        Row(address("inside"), "https://10.0.0.1:8423"),
        Row(address("here"), "https://127.0.0.1:8423"),
        Row(address("odd"), "ftp://a.example"),
        Row(address("user"), "https://user@a.example"),
    ]
    assert await fetch(rows) == []


async def test_routers_of_this_machine_are_dialled_where_the_hub_is_here_too() -> None:
    rows = [Row(address("a"), "http://127.0.0.1:8423"), Row(address("b"), "http://a.example")]
    assert await fetch(rows, allow_loopback=True) == [Way("ws://127.0.0.1:8423/", address("a"))]


async def test_no_more_routers_are_taken_than_are_worth_measuring() -> None:
    rows = [Row(address(f"{n}"), f"https://r{n}.example") for n in range(MOST_ROUTERS + 5)]
    assert len(await fetch(rows)) == MOST_ROUTERS
