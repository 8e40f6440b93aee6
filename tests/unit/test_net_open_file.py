"""The limit of open files is raised as far as the system allows, and never lowered."""

from __future__ import annotations

import resource
from typing import Any

import pytest

from emcd.net.open_file import ensure_open_files

NO_LIMIT = resource.RLIM_INFINITY


@pytest.mark.parametrize(
    ("limits", "needed", "found", "changed"),
    [
        ((1024, 20_000), 9000, 9000, (9000, 20_000)),
        ((1024, 4096), 9000, 4096, (4096, 4096)),
        ((1024, NO_LIMIT), 9000, 9000, (9000, NO_LIMIT)),
        ((20_000, 20_000), 9000, 20_000, None),
        ((4096, 4096), 9000, 4096, None),
        ((NO_LIMIT, NO_LIMIT), 9000, 9000, None),
    ],
)
def test_open_files_are_raised_within_the_hard_limit(
    monkeypatch: pytest.MonkeyPatch, limits: Any, needed: int, found: int, changed: Any
) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(resource, "getrlimit", lambda kind: limits)
    monkeypatch.setattr(resource, "setrlimit", lambda kind, value: calls.append(value))
    assert ensure_open_files(needed) == found
    assert calls == ([changed] if changed else [])
