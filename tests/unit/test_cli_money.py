"""The money commands where a devnet can't bring them in a test's time: exits, lying hubs, void rounds."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from emcd.chain.abi import load_contract
from emcd.chain.rpc import RpcRefused
from emcd.cli import extract as extract_module
from emcd.cli import payment_facts as facts_module
from emcd.cli import why_unpaid as why_module
from emcd.cli.network import Network, NetworkOptions, resolve_network
from emcd.cli.stake import ExitStep, _parse_amount, _plan_exit
from emcd.command import CommandContext
from emcd.config import load_config
from emcd.errors import ConfigError
from emcd.keys import generate_key
from emcd.money import WEI_PER_TOKEN
from emcd.net.download import Download
from emcd.net.http_client import Response
from emcd.proto.network import Deployment, encode_deployment
from emcd.proto.records import format_call_id
from emcd.registry import Registry
from emcd.types import ParticipantRole
from tests.support.round_world import CHAIN_ID, DISTRIBUTOR, STAKING, World, address_of, edited

NODE = address_of("node-1")
WALLET = generate_key()
HUB = "http://hub"
DEPLOYMENT = Deployment(CHAIN_ID, STAKING, STAKING, DISTRIBUTOR, STAKING, STAKING, 0, World().params)


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

    def __init__(
        self,
        held: Held | None = None,
        nonce: int = 0,
        claimed_wei: int = 0,
        paused_until_s: int = 0,
        slashed_wei: int = 0,
    ) -> None:
        async def find_participant(_: str) -> Any:
            return held

        async def head() -> Any:
            return SimpleNamespace(timestamp_s=1_800_000_000)

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

        async def fetch_paused_until_s() -> int:
            return paused_until_s

        async def fetch_participants(*, at: Any) -> list[Any]:
            return [
                SimpleNamespace(
                    node=WALLET.address, role=ParticipantRole.VALIDATOR, endpoint="http://validator/"
                )
            ]

        async def call(method: str, wanted: Any) -> list[Any]:
            assert method == "eth_getLogs"
            if slashed_wei < 0:
                raise RpcRefused(-32005, "too many blocks")
            return [slash_log(wanted["topics"], slashed_wei)] if slashed_wei else []

        self.head = head
        self.deployment = DEPLOYMENT
        self.rpc = SimpleNamespace(call=call)
        self.staking = SimpleNamespace(
            find_participant=find_participant,
            fetch_current_round=fetch_current_round,
            fetch_participants=fetch_participants,
            abi=load_contract("Staking"),
            address=STAKING,
            submit_withdraw=lambda node: ("withdraw", node),
            submit_request_exit=lambda node: ("exit", node),
        )
        self.distributor = SimpleNamespace(
            fetch_extraction_nonce=fetch_extraction_nonce,
            find_last_round=find_last_round,
            find_active_root=find_active_root,
            fetch_claimed=fetch_claimed,
            fetch_paused_until_s=fetch_paused_until_s,
        )


def slash_log(topics: list[str], amount_wei: int) -> dict[str, Any]:
    """A slash of 10 % in epoch 4, as a node's eth_getLogs gives it."""
    word = "{:064x}".format
    return {
        "address": STAKING,
        "topics": [*topics, "0x" + "ab" * 32, "0x" + word(4)],
        "data": "0x" + word(1000) + word(amount_wei),
        "blockNumber": "0x1",
        "blockHash": "0x" + "00" * 32,
        "transactionHash": "0x" + "00" * 32,
        "logIndex": "0x0",
    }


async def plan(held: Held | None) -> ExitStep:
    return await _plan_exit(FakeChain(held), NODE, WALLET.address)  # type: ignore[arg-type]


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

    assert (planned.name, planned.call) == (step, sends)
    assert words in planned.text


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
    """One closed round, round_world's; the wallet's newest request, where a test gives one."""

    def __init__(self, state: str = "active", data: bytes | None = None, **request: Any) -> None:
        self.state = state
        self.data = World().close().data if data is None else data
        self.extractions = [request] if request else []

    async def fetch_document(self, url: str) -> dict[str, Any]:
        if "/extractions" in url:
            return {"extractions": self.extractions}
        rounds = [{"round": 7, "state": self.state}, {"round": 8, "state": "grace"}]
        return {"rounds": rounds} if url.endswith("/api/rounds") else rounds[0]

    async def download(self, url: str, target: Path, **_: Any) -> Download:
        if url != f"{HUB}/api/rounds/7/bundle":
            return Download(404, {}, 0, url)
        target.write_bytes(self.data)
        return Download(200, {}, len(self.data), url)


def patched(
    monkeypatch: pytest.MonkeyPatch, hub: FakeHub, chain: FakeChain | None = None, **facts: int
) -> Network:
    made = chain or FakeChain(**facts)
    monkeypatch.setattr(why_module, "fetch_document", hub.fetch_document)
    monkeypatch.setattr(facts_module, "fetch_document", hub.fetch_document)
    monkeypatch.setattr(facts_module, "download", hub.download)
    monkeypatch.setattr(Network, "open_chain", lambda _: made)
    return Network(DEPLOYMENT, (), 1, HUB)


def id_of(round_index: int, tail: int = 1) -> bytes:
    """A call id of a round: it begins with the time."""
    return World().params.round_start_ms(round_index).to_bytes(6, "big") + tail.to_bytes(10, "big")


async def test_why_unpaid_of_a_void_round_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    network = patched(monkeypatch, FakeHub("void"), claimed_wei=10**30)

    steps, number = await why_module._trace_round(network, 7, NODE)

    assert (number, steps[-1].name, steps[-1].is_done) == (7, "published", False)
    assert steps[-1].evidence.endswith("its calls are carried")


@pytest.mark.parametrize("call_id", [id_of(7), id_of(0)], ids=["by its time", "of another hub's making"])
async def test_why_unpaid_of_a_call_finds_its_round(monkeypatch: pytest.MonkeyPatch, call_id: bytes) -> None:
    def rename(kind: str, record: Any) -> Any:
        return edited(record, call_id=call_id) if kind == "forward" else record

    world = World()
    world.calls.append(world.make_call("node-1", world.params.round_start_ms(7) + 9, edit=rename))
    network = patched(monkeypatch, FakeHub(data=world.close().data), claimed_wei=10**30)

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


async def test_why_unpaid_of_a_round_without_a_bundle_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    network = patched(monkeypatch, FakeHub())

    with pytest.raises(ConfigError) as caught:
        await why_module._trace_round(network, 8, NODE)

    assert caught.value.code == "EMC-2142"


async def test_why_unpaid_of_a_call_of_a_round_in_grace_says_when_it_is_settled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    network = patched(monkeypatch, FakeHub())

    steps, number = await why_module._trace_call(network, id_of(8))

    assert (number, [step.name for step in steps]) == (8, ["settled"])
    assert "its round 8 is grace" in steps[0].evidence


@pytest.mark.parametrize("files", [True, False])
async def test_why_unpaid_of_a_call_in_no_bundle_asks_the_validators(
    monkeypatch: pytest.MonkeyPatch, files: bool
) -> None:
    network = patched(monkeypatch, FakeHub())
    call_id = id_of(7, 99)

    async def ask(_: str, url: str, **__: Any) -> Response:
        assert url in (f"http://validator/omissions/{n}?from={format_call_id(call_id)}" for n in (7, 8))
        body = json.dumps({"omissions": [{"call_id": format_call_id(call_id)}] if files else []})
        return Response(200, {}, body.encode(), url)

    monkeypatch.setattr(facts_module, "request", ask)

    steps, _ = await why_module._trace_call(network, call_id)

    assert [step.name for step in steps] == ["metered"]
    assert (f"filed as an omission with {WALLET.address}" in steps[0].evidence) is files


async def test_why_unpaid_shows_slash_pause_and_the_settlers_word(monkeypatch: pytest.MonkeyPatch) -> None:
    note = {"by": "0x1", "text": "0.1 EMC is below 1 EMC, the least", "at_ms": 5}
    hub = FakeHub(through_round=7, state="synchronised", reason="", note=note)
    hub.extractions = [{"through_round": 7, "state": "synchronised", "reason": "", "note": note}]
    chain = FakeChain(paused_until_s=2**40, slashed_wei=300 * WEI_PER_TOKEN)
    network = patched(monkeypatch, hub, chain)

    steps, _ = await why_module._trace_round(network, 7, NODE)

    assert "slashed: 300.0000 EMC (10 %) in epoch 4, evidence 0x" in steps[1].evidence
    assert (steps[-1].name, steps[-1].is_done) == ("claimed", False)
    assert "claims are paused by the guardian until 2242" in steps[-1].evidence
    assert "the settler 0x1 says: 0.1 EMC is below 1 EMC, the least" in steps[-1].evidence


async def test_slashes_are_left_out_where_the_chain_gives_no_logs(monkeypatch: pytest.MonkeyPatch) -> None:
    network = patched(monkeypatch, FakeHub(), FakeChain(slashed_wei=-1), claimed_wei=10**30)

    steps, _ = await why_module._trace_round(network, 7, NODE)

    assert "slashed" not in steps[1].evidence


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
        "max_fee_per_gas_wei = 60000000000\n"
        '[[role]]\nkind = "traffic"\nhub_url = "http://configured"\napi_key_file = "key"\n'
    )

    found = resolve_network(context(file), NetworkOptions(None, "", ""))
    assert found == Network(DEPLOYMENT, ("http://mine",), 7, "http://configured", found.chain)
    assert found.open_chain().config.fees.ceiling_wei == 60 * 10**9


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
