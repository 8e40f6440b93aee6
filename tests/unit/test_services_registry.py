"""Services: one object per type and name; missing ones are named."""

from __future__ import annotations

from typing import Protocol

import pytest

from emcd.errors import ConfigError
from emcd.services import Services


class Clerk(Protocol):
    def ask(self) -> str: ...


class One:
    def ask(self) -> str:
        return "one"


class Two:
    def ask(self) -> str:
        return "two"


def test_get_returns_what_was_offered_under_the_type() -> None:
    services = Services()
    services.offer(Clerk, One())
    services.offer(Clerk, Two(), "second")
    assert services.get(Clerk).ask() == "one"
    assert services.get(Clerk, "second").ask() == "two"
    assert [(name, clerk.ask()) for name, clerk in services.list_named(Clerk)] == [
        ("", "one"),
        ("second", "two"),
    ]


def test_get_of_what_nobody_offers_names_it() -> None:
    with pytest.raises(ConfigError, match=r"EMC-1031.*Clerk\[second\]"):
        Services().get(Clerk, "second")
    assert Services().find(Clerk) is None


def test_offer_twice_is_refused_and_the_first_stays() -> None:
    services = Services()
    services.offer(Clerk, One())
    with pytest.raises(ConfigError, match="EMC-1030.*Clerk"):
        services.offer(Clerk, Two())
    assert services.get(Clerk).ask() == "one"
