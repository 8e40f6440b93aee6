"""What wallets, validators and the guardian do by command: veto, pause, keys, bindings, stakes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from emcd.chain import PublicationState
from emcd.testing import make_key
from tests.support.chain_cli import (
    VALIDATORS,
    Done,
    Network,
    begun_network,
    code_of,
    restored,
    wallet_of,
)
from tests.support.devchain import ETHER

pytestmark = pytest.mark.anvil
V1 = make_key("v1").address
COMPUTE = make_key("c1").address


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    with begun_network(tmp_path_factory.mktemp("office"), "c1") as network:
        yield network


@pytest.fixture
def network(begun: Network, tmp_path: Path) -> Iterator[Network]:
    """The same for every test."""
    with restored(begun, tmp_path) as found:
        yield found


# ------------------------------------------------------------------------- veto


def test_veto_of_more_than_a_third_voids_a_round(network: Network) -> None:
    network.publish(12)
    one = network.run("veto", "sign", "12", "--keystore", network.office.key("v1"), "--yes", "--json")
    assert one.code == 0, one.err
    little = network.run(
        "veto", "submit", one.json["file"], "--keystore", network.office.key("anybody"), "--yes", "--json"
    )
    assert (little.code, little.json["sent"], little.json["is_enough"]) == (1, False, False)
    two = network.run("veto", "sign", "12", "--keystore", network.office.key("v2"), "--yes", "--json")
    files = (one.json["file"], two.json["file"])
    dry = network.run("veto", "submit", *files, "--keystore", network.office.key("anybody"), "--json")
    assert (dry.code, dry.json["sent"]) == (0, False)
    assert trio.run(network.chain.distributor.fetch_publication, 12).state is PublicationState.PENDING

    done = network.run(
        "veto", "submit", *files, "--keystore", network.office.key("anybody"), "--yes", "--json"
    )

    assert (done.code, done.json["sent"]) == (0, True)
    assert trio.run(network.chain.distributor.fetch_publication, 12).state is PublicationState.VOID
    assert network.run("veto", "show", "12", "--json").json["state"] == "void"
    assert code_of(network.run("veto", "submit", *files)) == "EMC-2171"


def test_veto_show_tells_until_when_and_who(network: Network) -> None:
    root = network.publish(12)
    shown = network.run("veto", "show", "12", "--json").json
    text = network.run("veto", "show", "12").out

    assert (shown["state"], shown["root"]) == ("pending", "0x" + root.root.hex())
    assert shown["active_at_s"] > network.office.node.now_s()
    assert {entry["node"] for entry in shown["validators"]} == {make_key(n).address for n in VALIDATORS}
    assert "veto until" in text


@pytest.mark.parametrize("name", ["stranger", "v1-wallet"])
def test_veto_by_a_key_without_a_say_is_not_signed(network: Network, name: str) -> None:
    network.publish(12)
    done = network.run("veto", "sign", "12", "--keystore", network.office.key(name), "--yes")

    assert code_of(done) == "EMC-2170"
    assert not list(network.office.home.glob("veto-*.json"))


def test_veto_of_what_is_not_pending_is_refused(network: Network) -> None:
    unpublished = network.run("veto", "sign", "12", "--keystore", network.office.key("v1"), "--yes")
    network.publish(12)
    signed = network.run("veto", "sign", "12", "--keystore", network.office.key("v1"), "--yes", "--json")
    network.to_round(16)
    late = network.run("veto", "submit", signed.json["file"])

    assert code_of(unpublished) == code_of(late) == "EMC-2171"
    assert "is active" in late.err


def test_veto_signed_for_another_root_is_not_submitted(network: Network) -> None:
    network.publish(12)
    signed = network.run("veto", "sign", "12", "--keystore", network.office.key("v1"), "--yes", "--json")
    file = network.office.home / signed.json["file"]
    table = json.loads(file.read_text())
    table["statement"]["root"] = "0x" + "33" * 32
    file.write_text(json.dumps(table))

    assert code_of(network.run("veto", "submit", file)) == "EMC-2168"


# ------------------------------------------------------------------------- guardian


def test_guardian_pauses_and_ends_it_and_nobody_else(network: Network) -> None:
    guardian = ("--keystore", network.office.key("guardian"))
    stranger = network.run("chain", "pause", "24", "--keystore", network.office.key("v1"), "--yes")
    dry = network.run("chain", "pause", "24", *guardian, "--json")
    assert (code_of(stranger), dry.json["sent"]) == ("EMC-2164", False)
    assert trio.run(network.chain.distributor.fetch_paused_until_s) == 0

    done = network.run("chain", "pause", "24", *guardian, "--yes", "--json")
    assert done.code == 0, done.err
    assert trio.run(network.chain.distributor.fetch_paused_until_s) == network.office.node.now_s() + 86_400
    assert network.run("chain", "status", "--json").json["guardian"]["paused"] is True
    over = network.run("chain", "unpause", *guardian, "--yes", "--json")
    assert over.json["sent"] is True
    assert network.run("chain", "status", "--json").json["guardian"]["paused"] is False
    again = network.run("chain", "pause", "24", *guardian, "--yes")
    assert (code_of(again), "PauseTooSoon" in again.err) == ("EMC-1504", True)
    assert network.run("chain", "pause", "169", *guardian).code == 2


# ------------------------------------------------------------------------- keys


def rotate(network: Network, *arguments: object, wallet: str = "v1-wallet") -> Done:
    return network.run("rotate-key", V1, *arguments, "--keystore", network.office.key(wallet), "--json")


def test_key_is_rotated_and_signs_from_its_epoch_on(network: Network) -> None:
    following = ("--next-keystore", network.office.key("v1-next"))
    dry = rotate(network, *following)
    assert (dry.code, dry.json["sent"], dry.json["from_epoch"]) == (0, False, 3)
    done = rotate(network, *following, "--yes")
    assert done.code == 0, done.err
    shown = network.run("binding", "show", V1, "--json").json
    assert (shown["node"], shown["next_node"], shown["next_from_epoch"]) == (
        V1,
        make_key("v1-next").address,
        3,
    )

    network.to_round(3 * 12)
    after = network.run("binding", "show", V1, "--json").json
    members = network.run("chain", "status", "--json").json["validators"]["members"]
    assert (after["node"], after["account"], after["next_node"]) == (make_key("v1-next").address, V1, None)
    assert make_key("v1-next").address in {member["node"] for member in members}


def test_rotation_is_cancelled_before_it_counts(network: Network) -> None:
    rotate(network, "--next-keystore", network.office.key("v1-next"), "--yes")
    second = rotate(network, "--next-keystore", network.office.key("v1-other"))
    done = rotate(network, "--cancel", "--yes")
    again = rotate(network, "--cancel", "--yes")

    assert json.loads(second.err)["error"]["code"] == "EMC-2163"
    assert done.json["cancelled"] == make_key("v1-next").address
    assert json.loads(again.err)["error"]["code"] == "EMC-2163"
    assert network.run("binding", "show", V1, "--json").json["next_node"] is None


def test_rotation_by_a_stranger_or_of_a_compute_node_is_refused(network: Network) -> None:
    stranger = rotate(network, "--next-keystore", network.office.key("v1-next"), wallet="v2-wallet")
    compute = network.run(
        "rotate-key",
        COMPUTE,
        "--next-keystore",
        network.office.key("c2"),
        "--keystore",
        network.office.key("c1-wallet"),
    )

    assert json.loads(stranger.err)["error"]["code"] == "EMC-2136"
    assert code_of(compute) == "EMC-2162"
    assert network.run("rotate-key", V1, "--keystore", network.office.key("v1-wallet")).code == 2


# ------------------------------------------------------------------------- bindings and stakes


def as_c1(network: Network, *arguments: object) -> Done:
    return network.run(*arguments, "--keystore", network.office.key("c1-wallet"), "--json")


def test_stake_from_the_first_token_to_the_release(network: Network) -> None:
    """Stake, top up, extend, exit, withdraw, release: each priced first, then sent."""

    def both(*arguments: object) -> Any:
        dry = as_c1(network, *arguments)
        assert (dry.code, dry.json["sent"]) == (0, False), dry.err
        nonce = network.office.node.nonce(wallet_of("c1").address)
        done = as_c1(network, *arguments, "--yes")
        assert done.code == 0, done.err
        assert network.office.node.nonce(wallet_of("c1").address) > nonce
        return done.json

    days = network.chain.deployment.params.day_s
    assert both("stake", COMPUTE, "3000")["topped_up"] is False
    assert both("stake", COMPUTE, "500", "--top-up")["topped_up"] is True
    assert both("stake", COMPUTE, "--extend", "--lock-days", "7")["lock_days"] == 7
    assert trio.run(network.chain.staking.find_participant, COMPUTE).lock_days == 7  # type: ignore[union-attr]
    network.office.node.move_to(network.office.node.now_s() + 8 * days)
    assert both("unstake", COMPUTE)["step"] == "exit"
    assert as_c1(network, "unstake", COMPUTE).json["step"] == "unbonding"
    network.to_round(trio.run(network.chain.staking.fetch_current_round) + 25)
    assert both("unstake", COMPUTE)["step"] == "withdraw"
    assert trio.run(network.chain.token.fetch_balance, wallet_of("c1").address) == 10_000 * ETHER
    both("binding", "release", COMPUTE)
    assert code_of(network.run("binding", "show", COMPUTE)) == "EMC-2135"


def test_wallet_gives_its_node_another_wallet_and_an_endpoint(network: Network) -> None:
    approve = as_c1(network, "binding", "approve", COMPUTE, make_key("new-wallet").address, "--yes")
    wallet = ("--keystore", network.office.key("v1-wallet"), "--json")
    endpoint = network.run("binding", "endpoint", V1, "https://v1.example:8443", *wallet, "--yes")
    shown = network.run("binding", "show", V1, "--json").json

    assert approve.code == 0, approve.err
    assert endpoint.code == 0, endpoint.err
    assert (shown["endpoint"], shown["role"], shown["stake_wei"]) == (
        "https://v1.example:8443", "validator", str(1_000_000 * ETHER),
    )  # fmt: skip
    assert network.run("binding", "endpoint", V1, "ftp://x", *wallet).code == 2


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("stake", COMPUTE, "--extend", "--lock-days", "7"), "EMC-2161"),
        (("stake", COMPUTE, "5", "--top-up"), "EMC-2161"),
        (("stake", COMPUTE, "10001"), "EMC-2165"),
        (("stake", COMPUTE, "2999"), "EMC-1504"),
        (("binding", "release", V1), "EMC-2136"),
        (("binding", "approve", make_key("nobody").address, V1), "EMC-2135"),
    ],
)
def test_what_can_not_be_is_refused_before_anything_is_sent(
    network: Network, arguments: tuple[object, ...], code: str
) -> None:
    wallet = wallet_of("c1").address
    network.office.key("c1-wallet")
    nonce = network.office.node.nonce(wallet)
    done = as_c1(network, *arguments, "--yes")

    assert json.loads(done.err)["error"]["code"] == code
    assert network.office.node.nonce(wallet) == nonce


def test_wallet_without_ether_is_told_before_it_signs(network: Network) -> None:
    keystore = network.office.key("c1-wallet")
    network.office.node.fund(wallet_of("c1").address, 10**12)
    dry = network.run("stake", COMPUTE, "3000", "--keystore", keystore)
    done = network.run("stake", COMPUTE, "3000", "--keystore", keystore, "--yes")

    assert (dry.code, "may need" in dry.out) == (0, True)
    assert code_of(done) == "EMC-2160"


@pytest.mark.parametrize(
    "arguments", [("stake", COMPUTE), ("stake", COMPUTE, "5", "--extend"), ("stake", COMPUTE, "--extend")]
)
def test_stake_with_half_its_arguments_says_what_it_wants(
    network: Network, arguments: tuple[str, ...]
) -> None:
    assert as_c1(network, *arguments).code == 2
