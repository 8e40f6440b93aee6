"""How the gateways that emcd is compared with are had; none is fetched here."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.bench import peers
from tests.bench.peers import HERE, Unavailable


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["no-such-program-of-any-kind"], "No such file"),
        ([sys.executable, "-c", "print('not today'); raise SystemExit(3)"], "not today"),
    ],
)
def test_run_of_what_fails_is_unavailable_with_its_words(command: list[str], said: str) -> None:
    with pytest.raises(Unavailable, match=f"can't have it: .*{said}"):
        peers._run(command, "can't have it")


def test_installed_after_an_install_cut_short_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "CACHE", tmp_path)
    made: list[Path] = []

    def fail(folder: Path) -> None:
        (folder / "half").touch()
        raise Unavailable("the line broke")

    def install(folder: Path) -> None:
        assert not list(folder.iterdir())
        made.append(folder)

    with pytest.raises(Unavailable, match="the line broke"):
        peers._installed("thing", b"lock", fail)
    folder = peers._installed("thing", b"lock", install)
    assert peers._installed("thing", b"lock", install) == folder
    assert peers._installed("thing", b"another lock", install) != folder
    assert len(made) == 2


def test_start_of_what_ends_at_once_is_unavailable_with_its_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "CACHE", tmp_path)
    command = [sys.executable, "-c", "print('no licence'); raise SystemExit(1)"]
    with pytest.raises(Unavailable, match="thing did not start: no licence"):
        peers._start("thing", "1", peers.free_port(), command, {}, tmp_path)


def test_locks_pin_every_package_by_its_hash() -> None:
    lines = (HERE / "litellm.lock").read_text().splitlines()
    pinned = [at for at, line in enumerate(lines) if "==" in line]
    assert any(lines[at].startswith("litellm==") for at in pinned)
    assert all("--hash=sha256:" in lines[at + 1] for at in pinned)
    packages = json.loads((HERE / "portkey" / "package-lock.json").read_text())["packages"]
    assert all(entry["integrity"].startswith("sha512-") for name, entry in packages.items() if name)
