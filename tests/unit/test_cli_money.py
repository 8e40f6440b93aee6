"""The money commands where a devnet can't bring them in a test's time: exits, lying hubs, void rounds."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from emcd.cli import extract as extract_module
from emcd.cli import why_unpaid as why_module
from emcd.cli.network import Network, NetworkOptions, resolve_network
from emcd.cli.stake import _parse_amount, _plan_exit
from emcd.command import CommandContext
from emcd.config import load_config
from emcd.errors import ConfigError
from emcd.keys import generate_key
from emcd.money import WEI_PER_TOKEN
from emcd.net.http_client import Response
from emcd.proto.network import Deployment, encode_deployment
from emcd.registry import Registry
from tests.support.round_world import CHAIN_ID, DISTRIBUTOR, STAKING, World, address_of

NODE = address_of("node-1")
WALLET = generate_key()
HUB = "http://hub"
DEPLOYMENT = Deployment(CHAIN_ID, STAKING, STAKING, DISTRIBUTOR, STAKING, 0, World().params)


@dataclass(frozen=True)
class Held:
    """What the staking contract says of NODE."""

    wallet: str = WALLET.address
    stake_wei: int = 0
    pending_wei: int = 0
    unbonding_wei: int = 0
    exit_round: int = 0
    lock_end_s: int = 0


class FakeChain:
    """A staking contract and a distributor of fixed answers."""

    def __init__(self, held: Held | None = None, nonce: int = 0, claimed_wei: int = 0) -> None:
        async def find_participant(_: str) -> Any:
            return held

        async def fetch_current_round() -> int:
            return 100

        async def fetch_extraction_nonce(_: str) -> int:
            return nonce

        async def find_last_round() -> int:
            return 9

        async def find_active_root() -> Any:
            return SimpleNamespace(round=9)

        async def fetch_claimed(_: str) -> int:
            return claimed_wei

        self.staking = SimpleNamespace(
            find_participant=find_participant,
            fetch_current_round=fetch_current_round,
            submit_withdraw=lambda node: ("withdraw", node),
            submit_request_exit=lambda node: ("exit", node),
        )
        self.distributor = SimpleNamespace(
            fetch_extraction_nonce=fetch_extraction_nonce,
            find_last_round=find_last_round,
            find_active_root=find_active_root,
            fetch_claimed=fetch_claimed,
        )


async def plan(held: Held | None) -> dict[str, Any]:
    return await _plan_exit(FakeChain(held), NODE, WALLET)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------ stake


@pytest.mark.parametrize(
    ("held", "step", "sends", "words"),
    [
        (Held(), "none", None, "nothing is staked"),
        (Held(stake_wei=WEI_PER_TOKEN), "exit", ("exit", NODE), "the exit of 1.0000 EMC"),
        (Held(stake_wei=WEI_PER_TOKEN, pending_wei=WEI_PER_TOKEN), "exit", ("exit", NODE), "2.0000 EMC"),
        (Held(pending_wei=WEI_PER_TOKEN), "exit", ("exit", NODE), "1.0000 EMC"),
        (
            Held(unbonding_wei=WEI_PER_TOKEN, exit_round=101),
            "unbonding",
            None,
            "until round 101; now is round 100",
        ),
        (
            Held(unbonding_wei=WEI_PER_TOKEN, exit_round=100),
            "withdraw",
            ("withdraw", NODE),
            "withdraw 1.0000 EMC",
        ),
        (Held(stake_wei=1, lock_end_s=2**40), "locked", None, "more hours"),
    ],
)
async def test_unstake_takes_the_next_step_of_leaving(held: Held, step: str, sends: Any, words: str) -> None:
    planned = await plan(held)

    assert (planned["step"], planned["call"]) == (step, sends)
    assert words in planned["text"]


@pytest.mark.parametrize(("held", "code"), [(None, "EMC-2135"), (Held(wallet=NODE), "EMC-2136")])
async def test_unstake_of_another_wallets_node_is_refused(held: Held | None, code: str) -> None:
    with pytest.raises(ConfigError) as caught:
        await plan(held)

    assert caught.value.code == code


@pytest.mark.parametrize("text", ["0", "0.0", "-3", "three", "", "1e-19", "inf", "nan"])
def test_amount_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        _parse_amount(text)

    assert caught.value.code == "EMC-2134"


def test_amount_is_exact() -> None:
    assert _parse_amount("3000.000000000000000001") == 3_000 * WEI_PER_TOKEN + 1


# ------------------------------------------------------------------------------------ extract


@pytest.mark.parametrize(
    ("listed", "of_contract", "expected"),
    [([], 4, 4), ([0, 1, 2], 3, 3), ([3, 4], 3, 5), ([2**255, 5], 3, 3), ([3, 2**256 - 1], 3, 4)],
)
async def test_extract_takes_the_first_free_nonce_whatever_the_hub_lists(
    monkeypatch: pytest.MonkeyPatch, listed: list[int], of_contract: int, expected: int
) -> None:
    async def fetch(url: str) -> dict[str, Any]:
        assert url == f"{HUB}/api/wallets/{WALLET.address}/extractions"
        return {"extractions": [{"extraction": {"nonce": nonce}} for nonce in listed]}

    monkeypatch.setattr(extract_module, "fetch_document", fetch)
    chain: Any = FakeChain(nonce=of_contract)

    assert await extract_module._find_free_nonce(HUB, chain, WALLET.address) == expected


@pytest.mark.parametrize(
    ("states", "expected"),
    [({5: "closed", 6: "grace", 7: "open"}, 5), ({5: "active", 6: "published", 7: "void"}, 6)],
)
async def test_extract_asks_up_to_the_last_closed_round(
    monkeypatch: pytest.MonkeyPatch, states: dict[int, str], expected: int
) -> None:
    monkeypatch.setattr(extract_module, "fetch_document", rounds_of(states))

    assert await extract_module._find_last_closed(HUB) == expected


async def test_extract_before_the_first_round_has_closed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extract_module, "fetch_document", rounds_of({0: "grace", 1: "open"}))

    with pytest.raises(ConfigError) as caught:
        await extract_module._find_last_closed(HUB)

    assert caught.value.code == "EMC-2138"


def rounds_of(states: dict[int, str]) -> Any:
    async def fetch(_: str) -> dict[str, Any]:
        return {"rounds": [{"round": number, "state": state} for number, state in states.items()]}

    return fetch


# ------------------------------------------------------------------------------------ why-unpaid


class FakeHub:
    """One closed round, round_world's."""

    def __init__(self, state: str = "active", data: bytes | None = None) -> None:
        self.state = state
        self.data = World().close().data if data is None else data

    async def fetch_document(self, url: str) -> dict[str, Any]:
        rounds = [{"round": 7, "state": self.state}, {"round": 8, "state": "grace"}]
        return {"rounds": rounds} if url.endswith("/api/rounds") else rounds[0]

    async def request(self, _: str, url: str, **__: Any) -> Response:
        assert url == f"{HUB}/api/rounds/7/bundle"
        return Response(200, {}, self.data, url)


def patched(monkeypatch: pytest.MonkeyPatch, hub: FakeHub, **facts: int) -> Network:
    monkeypatch.setattr(why_module, "fetch_document", hub.fetch_document)
    monkeypatch.setattr(why_module, "request", hub.request)
    monkeypatch.setattr(Network, "open_chain", lambda _: FakeChain(**facts))
    return Network(DEPLOYMENT, (), 1, HUB)


async def test_why_unpaid_of_a_void_round_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    network = patched(monkeypatch, FakeHub("void"), claimed_wei=10**30)

    steps, number = await why_module._trace_round(network, 7, NODE)

    assert (number, steps[-1].name, steps[-1].is_done) == (7, "published", False)


async def test_why_unpaid_of_a_call_finds_its_round(monkeypatch: pytest.MonkeyPatch) -> None:
    network = patched(monkeypatch, FakeHub(), claimed_wei=10**30)
    call_id = World().calls[0].forward.call_id

    steps, number = await why_module._trace_call(network, call_id)

    assert (number, steps[-1].name, steps[-1].is_done) == (7, "claimed", True)


async def test_why_unpaid_of_a_bundle_that_fails_its_audit_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    damaged = bytearray(World().close().data)
    damaged[-1] ^= 1
    network = patched(monkeypatch, FakeHub(data=bytes(damaged)))

    with pytest.raises(ConfigError) as caught:
        await why_module._trace_round(network, 7, NODE)

    assert caught.value.code == "EMC-2143"


async def test_why_unpaid_of_a_call_of_an_open_round_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    network = patched(monkeypatch, FakeHub("grace"))

    with pytest.raises(ConfigError) as caught:
        await why_module._trace_call(network, bytes(16))

    assert caught.value.code == "EMC-2142"


# ------------------------------------------------------------------------------------ which network


def context(file: Path | None = None) -> CommandContext:
    return CommandContext(file, lambda *_: 0, lambda: load_config(file, Registry()))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EMCD_DEVNET_DIR", str(tmp_path))
    (tmp_path / "deployment.json").write_text(encode_deployment(DEPLOYMENT))
    return tmp_path


def write_summary(folder: Path, **changes: Any) -> None:
    table = {"deployment": str(folder / "deployment.json"), "rpc_url": "http://chain", "hub_url": HUB}
    (folder / "devnet.json").write_text(json.dumps({**table, **changes}))


def test_network_of_the_devnet_here(folder: Path) -> None:
    write_summary(folder)

    assert resolve_network(context(), NetworkOptions(None, "", "")) == Network(
        DEPLOYMENT, ("http://chain",), 1, HUB
    )


def test_network_options_come_before_what_is_known(folder: Path) -> None:
    write_summary(folder)
    other = replace_deployment(folder, chain_id=5)

    found = resolve_network(context(), NetworkOptions(other, "http://other", "http://elsewhere/"))

    assert found.deployment.chain_id == 5
    assert (found.rpc_urls, found.hub_url) == (("http://other",), "http://elsewhere")


def replace_deployment(folder: Path, **changes: Any) -> Path:
    file = folder / "other.json"
    file.write_text(json.dumps(json.loads((folder / "deployment.json").read_text()) | changes))
    return file


def test_network_of_a_configuration(folder: Path) -> None:
    write_summary(folder)
    file = folder / "emcd.toml"
    file.write_text(
        f'[daemon]\ndata_dir = "{folder}"\n[chain]\nrpc_urls = ["http://mine"]\nconfirmations = 7\n'
        '[[role]]\nkind = "traffic"\nhub_url = "http://configured"\napi_key_file = "key"\n'
    )

    assert resolve_network(context(file), NetworkOptions(None, "", "")) == Network(
        DEPLOYMENT, ("http://mine",), 7, "http://configured"
    )


@pytest.mark.parametrize(
    "content", ["{", "[]", "{}", "null", '{"deployment": 5, "rpc_url": "", "hub_url": ""}']
)
def test_network_of_a_damaged_devnet_file_is_refused(folder: Path, content: str) -> None:
    (folder / "devnet.json").write_text(content)

    with pytest.raises(ConfigError) as caught:
        resolve_network(context(), NetworkOptions(None, "", ""))

    assert caught.value.code == "EMC-2130"
    assert "devnet.json" in caught.value.detail


def test_network_whose_deployment_is_gone_is_refused(folder: Path) -> None:
    write_summary(folder, deployment=str(folder / "gone.json"))

    with pytest.raises(ConfigError, match=r"gone\.json") as caught:
        resolve_network(context(), NetworkOptions(None, "", ""))

    assert caught.value.code == "EMC-2130"


def test_network_nowhere_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve_network(context(), NetworkOptions(None, "", ""))

    assert caught.value.code == "EMC-2130"


def test_network_without_a_chain_or_a_hub_says_which() -> None:
    nothing = Network(DEPLOYMENT, (), 1, "")

    with pytest.raises(ConfigError) as no_chain:
        nothing.open_chain()
    with pytest.raises(ConfigError) as no_hub:
        nothing.require_hub()

    assert (no_chain.value.code, no_hub.value.code) == ("EMC-2131", "EMC-2132")
