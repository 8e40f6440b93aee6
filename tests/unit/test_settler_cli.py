"""`emcd slash`: what it shows, and that nothing is sent unless it is told to."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result

from emcd.command import CommandContext
from emcd.errors import ConfigError
from emcd.keys import write_keystore
from emcd.proto.hashing import keccak
from emcd.proto.messages import Slash
from emcd.testing import make_key
from emcd_settler import cli
from emcd_settler.slash_rule import OrderQuorum
from emcd_settler.slash_view import SeenOffence, SlashBoard

HUB = make_key("hub").address
DEED = keccak(b"deed")
OPEN = SeenOffence(DEED, "double_seal", HUB, 7, [make_key("v1").address], {3: 7_500})
DONE = SeenOffence(keccak(b"done"), "gross", make_key("node").address, 5, [], {}, is_used=True)
QUORUM = OrderQuorum(Slash(HUB, 5_000, DEED, 3), {make_key(f"v{n}").address: bytes(65) for n in (1, 2, 3)})


class Staking:
    """The contract as far as the command asks it."""

    def submit_slash(self, order: Slash, signatures: Any) -> tuple[Slash, int]:
        return order, len(signatures)


class Chain:
    """Keeps what was checked."""

    def __init__(self) -> None:
        self.checked: list[Any] = []
        self.staking = Staking()
        self.rpc = None
        self.deployment = SimpleNamespace(chain_id=31337)

    async def require_can(self, call: Any, sender: str) -> None:
        self.checked.append(call)


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What was sent; the chain and the validators are doubles."""
    calls: list[Any] = []

    async def fetch(chain: Any) -> SlashBoard:
        return SlashBoard([DONE, OPEN], [QUORUM])

    async def send(rpc: Any, chain_id: int, key: Any, call: Any) -> Any:
        calls.append((key.address, call))
        return SimpleNamespace(tx_hash=keccak(b"tx"))

    monkeypatch.setattr(cli, "_fetch", fetch)
    monkeypatch.setattr(cli, "_open_chain", lambda context: Chain())
    monkeypatch.setattr(cli, "send_call", send)
    return calls


def run(*arguments: str, **options: Any) -> Result:
    context = CommandContext(None, lambda _file, _roles: 0, lambda: None)  # type: ignore[arg-type,return-value]
    return CliRunner().invoke(cli.slash, list(arguments), obj=context, **options)


def test_slash_list_names_who_what_and_how_far(sent: list[Any]) -> None:
    shown = run("list").output
    assert "double_seal" in shown
    assert HUB in shown
    assert "75 % in epoch 3" in shown
    assert "slashed" in shown.splitlines()[0]
    rows = msgspec.json.decode(run("list", "--json").output)["offences"]
    assert [(row["kind"], row["slashed"], row["signed_bps"]) for row in rows] == [
        ("gross", True, {}),
        ("double_seal", False, {"3": 7_500}),
    ]


def test_slash_submit_sends_nothing_unless_told_to(sent: list[Any]) -> None:
    done = run("submit", "0x" + DEED.hex())
    assert (done.exit_code, "Nothing was sent" in done.output, sent) == (0, True, [])
    assert run("submit", "0x" + DEED.hex(), "--send").exit_code == 2, "it needs an account"
    assert sent == []


def test_slash_submit_of_what_has_no_quorum_is_refused(sent: list[Any]) -> None:
    done = run("submit", "0x" + keccak(b"other").hex())
    assert isinstance(done.exception, ConfigError)
    assert done.exception.code == "EMC-1976"


def test_slash_submit_asks_and_sends_from_any_account(sent: list[Any], tmp_path: Path) -> None:
    anybody = make_key("anybody")
    write_keystore(tmp_path / "anybody.json", anybody, "secret", kdf="light")
    (tmp_path / "password").write_text("secret\n")
    account = ("--keystore", str(tmp_path / "anybody.json"), "--password-file", str(tmp_path / "password"))
    refused = run("submit", "0x" + DEED.hex(), *account, "--send", input="n\n")
    assert (refused.exit_code, sent) == (1, [])
    done = run("submit", "0x" + DEED.hex(), *account, "--yes", "--json")
    assert msgspec.json.decode(done.output)["sent"] is True
    assert sent == [(anybody.address, (QUORUM.order, 3))]
