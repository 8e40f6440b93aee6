"""Whose archived calls were: found by position, unknown stays unknown, damage says so."""

from __future__ import annotations

from pathlib import Path

import pytest

from emcd.errors import RecoverableError
from emcd_hub.rounds.owners import read_owner, write_owners

OWNERS = ["acct_a", None, "acct_b", "acct_a"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    with (tmp_path / "owners").open("wb") as out:
        write_owners(out, OWNERS)
    return tmp_path / "owners"


def test_owner_is_found_by_the_position_of_the_call(path: Path) -> None:
    assert [read_owner(path, position) for position in range(4)] == OWNERS


def test_position_past_the_end_is_refused(path: Path) -> None:
    with pytest.raises(RecoverableError) as caught:
        read_owner(path, 4)

    assert caught.value.code == "EMC-1756"


@pytest.mark.parametrize("edit", [lambda data: b"x" + data[1:], lambda data: data[:12] + b"\xc1" + data[13:]])
def test_damaged_file_is_refused(path: Path, edit: object) -> None:
    assert callable(edit)
    path.write_bytes(edit(path.read_bytes()))

    with pytest.raises(RecoverableError) as caught:
        read_owner(path, 0)

    assert caught.value.code == "EMC-1756"
