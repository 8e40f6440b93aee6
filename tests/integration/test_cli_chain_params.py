"""`emcd chain params`: a change of parameters from the draft through the signatures to its epoch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from emcd.cli.quorum_file import Tally
from emcd.money import decode_wei
from emcd.net import http_client
from emcd.proto.parameters import decode_document
from emcd.testing import make_key
from emcd.types import Wei
from tests.support.chain_cli import (
    Done,
    Network,
    begun_network,
    code_of,
    restored,
)
from tests.support.devchain import ETHER

pytestmark = pytest.mark.anvil
V1 = make_key("v1").address
SET = ("--set", "prices.default.input_micro_per_mtok=12_000_000_000", "--set", "compute_minimum_token=2500")


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    with begun_network(tmp_path_factory.mktemp("office")) as network:
        yield network


@pytest.fixture
def network(begun: Network, tmp_path: Path) -> Iterator[Network]:
    """The same for every test."""
    with restored(begun, tmp_path) as found:
        yield found


# ------------------------------------------------------------------------- what is counted


@pytest.mark.parametrize(
    ("signed", "total", "two_thirds", "one_third"),
    [(2, 3, False, True), (1, 3, False, False), (667, 1000, True, True), (666, 999, False, True), (334, 1000, False, True),
     (333, 999, False, False), (0, 0, False, False)],
)  # fmt: skip
def test_quorum_is_more_than_the_share_never_the_share_itself(
    signed: int, total: int, two_thirds: bool, one_third: bool
) -> None:
    found = Tally({}, Wei(signed), Wei(total), (), ())

    assert (found.is_more_than(2, 3), found.is_more_than(1, 3)) == (two_thirds, one_third)


# ------------------------------------------------------------------------- parameters


def draft(network: Network, *arguments: str, out: str = "draft.json") -> Done:
    return network.run("chain", "params", "draft", *(arguments or SET), "--out", out, "--json")


def sign(network: Network, name: str, file: str = "draft.json", *arguments: object) -> Done:
    """Offline: no network option is given."""
    return network.office.run(
        "chain", "params", "sign", file, "--keystore", network.office.key(name), "--yes", "--json", *arguments
    )


def signed_by(network: Network, *names: str) -> list[str]:
    files = []
    for name in names:
        done = sign(network, name)
        assert done.code == 0, done.err
        files.append(done.json["file"])
    return files


def version_count(network: Network) -> int:
    return trio.run(network.chain.parameters.fetch_version_count)


def test_parameters_change_from_draft_to_force(network: Network) -> None:
    made = draft(network)
    assert made.code == 0, made.err
    assert any("2,500" in text for text in made.json["differences"])
    assert made.json["change"] == {**made.json["change"], "version": 2, "from_epoch": 4}
    files = signed_by(network, "v1", "v2", "v3")

    dry = network.run(
        "chain", "params", "submit", *files, "--keystore", network.office.key("anybody"), "--json"
    )
    assert (dry.code, dry.json["sent"], version_count(network)) == (0, False, 1)
    sent = network.run(
        "chain", "params", "submit", *files, "--keystore", network.office.key("anybody"), "--yes", "--json"
    )
    assert sent.code == 0, sent.err
    assert (sent.json["sent"], sent.json["signed_wei"]) == (True, str(3_000_000 * ETHER))

    now = network.run("chain", "params", "show", "--json").json
    assert (now["version"], [v["from_epoch"] for v in now["versions"]]) == (1, [0, 4])
    network.to_round(4 * 12)
    shown = network.run("chain", "params", "show", "--json").json
    assert (shown["version"], shown["values"]["params.compute_minimum_token"]) == (2, "2500")
    assert shown["values"]["prices.default.input_micro_per_mtok"] == "12000000000"
    assert decode_wei(decode_document(shown["document"]).params.compute_minimum_wei) == 2_500 * ETHER
    rules = trio.run(network.chain.parameters.fetch_rules_at, 4)
    assert rules.roles[0].minimum_wei == 2_500 * ETHER


def test_parameters_without_two_thirds_are_not_sent(network: Network) -> None:
    draft(network)
    files = signed_by(network, "v1", "v2", "stranger")
    done = network.run(
        "chain", "params", "submit", *files, "--keystore", network.office.key("anybody"), "--yes", "--json"
    )

    assert (done.code, done.json["sent"], done.json["is_enough"]) == (1, False, False)
    assert done.json["signed_wei"] == str(2_000_000 * ETHER)
    assert done.json["strangers"] == [make_key("stranger").address]
    assert sorted(done.json["missing"]) == sorted(make_key(n).address for n in ("v3", "v4"))
    assert version_count(network) == 1


def test_submit_says_how_much_has_signed_without_an_account(network: Network) -> None:
    draft(network)
    files = signed_by(network, "v1")
    text = network.run("chain", "params", "submit", *files)
    send = network.run("chain", "params", "submit", *files, "--send")

    assert "signed by 1 of 4 validators: 1,000,000.0000 of 4,000,000.0000 EMC, 25.00 %" in text.out
    assert "Not enough yet." in text.out
    assert (send.code, "--send needs --keystore" in send.err) == (2, True)


def test_same_signature_twice_counts_once(network: Network) -> None:
    draft(network)
    (first,) = signed_by(network, "v1")
    again = sign(network, "v1", "draft.json", "--out", "again.json").json["file"]
    done = network.run("chain", "params", "submit", first, again, "--json")

    assert done.json["signed_wei"] == str(1_000_000 * ETHER)


def test_signing_needs_no_network(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    draft(network)

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("it asked the network")

    monkeypatch.setattr(http_client, "request", refuse)
    monkeypatch.setattr("emcd.chain.rpc.request", refuse, raising=False)
    done = sign(network, "v1")

    assert done.code == 0, done.err
    assert done.json["signer"] == V1


def edit_draft(network: Network, edit: Any) -> None:
    file = network.office.home / "draft.json"
    table = json.loads(file.read_text())
    edit(table)
    file.write_text(json.dumps(table))


@pytest.mark.parametrize(
    ("edit", "code"),
    [
        (lambda t: t.update(document=t["document"].replace("12000000000", "11000000000")), "EMC-2167"),
        (lambda t: t.update(document=t["document"] + " "), "EMC-2167"),
        (lambda t: t["statement"].update(rules_hash="0x" + "11" * 32), "EMC-2167"),
        (lambda t: t["statement"].update(version="2"), "EMC-2167"),
        (lambda t: t.update(kind="veto"), "EMC-2167"),
        (lambda t: t.update(format=2), "EMC-2167"),
        (lambda t: t.update(more=1), "EMC-2167"),
        (lambda t: t.update(before="{}"), "EMC-2167"),
        (lambda t: t.update(signatures=["0x" + "00" * 65]), "EMC-2167"),
        (lambda t: t.update(contract=make_key("x").address), "EMC-2168"),
        (lambda t: t.update(chain_id=1), "EMC-2168"),
    ],
)
def test_draft_that_was_changed_on_its_way_is_not_signed(network: Network, edit: Any, code: str) -> None:
    draft(network)
    edit_draft(network, edit)
    done = sign(network, "v1", "draft.json", "--deployment", network.deployment_file)

    assert json.loads(done.err)["error"]["code"] == code
    assert not list(network.office.home.glob("draft-*.json"))


def test_signatures_of_different_drafts_do_not_add_up(network: Network) -> None:
    draft(network)
    (first,) = signed_by(network, "v1")
    draft(network, "--set", "validator_set_size=7", out="other.json")
    second = sign(network, "v2", "other.json").json["file"]
    done = network.run("chain", "params", "submit", first, second)

    assert code_of(done) == "EMC-2168"


@pytest.mark.parametrize(
    ("arguments", "codes"),
    [
        (("--set", "round_s=30"), {"EMC-1473"}),
        (("--set", "validator_set_size=3", "--set", "nonsense=1"), {"EMC-1472", "EMC-2169"}),
        (("--set", "minimum_judges=4"), {"EMC-2169"}),
        (("--set", "minimum_judges"), {"EMC-2169"}),
    ],
)
def test_draft_that_no_contract_or_network_takes_is_refused(
    network: Network, arguments: tuple[str, ...], codes: set[str]
) -> None:
    done = draft(network, *arguments)

    assert {fault["code"] for fault in json.loads(done.err)["error"]["faults"]} >= codes
    assert not (network.office.home / "draft.json").exists()


def test_draft_for_an_epoch_that_comes_too_soon_is_refused(network: Network) -> None:
    done = network.run("chain", "params", "draft", *SET, "--from-epoch", "2")

    assert code_of(done) == "EMC-2169"
    assert "3 at the earliest" in done.err


def test_second_change_is_drafted_from_the_newest_version(network: Network) -> None:
    draft(network)
    files = signed_by(network, "v1", "v2", "v3")
    network.run("chain", "params", "submit", *files, "--keystore", network.office.key("anybody"), "--yes")
    second = draft(network, "--set", "minimum_judges=3", out="second.json")

    assert (second.json["change"]["version"], second.json["change"]["from_epoch"]) == (3, 6)
    assert second.json["differences"] == ["minimum judges: 4 becomes 3"]
