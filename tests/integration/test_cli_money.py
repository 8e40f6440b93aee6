"""The money commands, the operator's commands and the openai client, against one running devnet.

The devnet starts once, and the tests run in the order of the file: while its first round goes from
open to claimable, everything that needs no closed round is tried.
"""

from __future__ import annotations

import base64
import contextlib
import csv
import io
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import trio

from emcd.accounting.payout import EXTRACTION_ORDER, ExtractionState
from emcd.chain import Call, Chain, ChainConfig
from emcd.chain.sender import send_call
from emcd.cli.main import main
from emcd.inference.training.recipe import TINY_NAME
from emcd.keys import generate_key, load_keystore, write_keystore
from emcd.money import WEI_PER_TOKEN
from emcd.proto.network import decode_deployment
from emcd_hub.rounds.extraction_row import MAX_OPEN
from tests.support import second_implementation as second
from tests.support.devnet import REPOSITORY, Devnet

MODEL = "all-MiniLM-L6-v2"
GAS_WEI = 10**18
CLOSED = ("closed", "attested", "published", "active")


@dataclass(frozen=True)
class Done:
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Person:
    """Somebody beside a running devnet, with a shell."""

    def __init__(self, devnet: Devnet, home: Path) -> None:
        self.devnet = devnet
        self.home = home
        self.summary = devnet.summary
        self.hub = self.summary["hub_url"]
        self.participants = {entry["name"]: entry for entry in self.summary["participants"]}
        self.password_file = devnet.folder / "password"
        deployment = Path(self.summary["deployment"])
        self.deployment = decode_deployment(deployment.read_bytes(), "deployment.json")
        self.chain = Chain(ChainConfig((self.summary["rpc_url"],), confirmations=1), self.deployment)

    def run(self, *arguments: object, **variables: str) -> Done:
        """Run `emcd ...` in this process, with the devnet's environment and no terminal."""
        out, err = io.StringIO(), io.StringIO()
        code: object = 0
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), _no_terminal():
            with _environment({**self.devnet.environment, **variables}):
                try:
                    main([str(argument) for argument in arguments])
                except SystemExit as exc:
                    code = exc.code
        assert isinstance(code, int)
        return Done(code, out.getvalue(), err.getvalue())

    def wallet(self, name: str) -> tuple[str, ...]:
        """The options that open the wallet of a participant."""
        keystore = self.participants[name]["wallet_keystore"]
        return ("--keystore", keystore, "--password-file", str(self.password_file))

    def node_of(self, name: str) -> str:
        return str(self.participants[name]["node_address"])

    def wallet_of(self, name: str) -> str:
        return str(self.participants[name]["wallet_address"])

    def get(self, path: str, key: str = "") -> httpx.Response:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return httpx.get(self.hub + path, headers=headers, timeout=20)

    def list_rounds(self) -> dict[int, str]:
        return {entry["round"]: entry["state"] for entry in self.get("/api/rounds").json()["rounds"]}

    def client(self, key: str = "") -> openai.OpenAI:
        return openai.OpenAI(
            base_url=self.hub + "/v1", api_key=key or self.summary["api_key"], max_retries=0, timeout=20
        )


@contextlib.contextmanager
def _no_terminal() -> Iterator[None]:
    before, sys.stdin = sys.stdin, io.StringIO()
    try:
        yield
    finally:
        sys.stdin = before


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def wait_for(condition: Callable[[], Any], seconds: float = 90) -> Any:
    """Poll until it holds; what it gave."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.25)
    return found


def assert_refused(done: Done, code: str, *words: str) -> None:
    """Exit code 1, nothing on stdout, the numbered error on stderr with these words."""
    assert (done.code, done.out) == (1, ""), done
    assert done.err.startswith((f"{code}: ", f'{{\n  "error": {{\n    "code": "{code}"')), done.err
    for word in words:
        assert word in done.err


@pytest.fixture(scope="module")
def person(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Person]:
    devnet = Devnet(tmp_path_factory.mktemp("money") / "devnet")
    devnet.start()
    yield Person(devnet, tmp_path_factory.mktemp("home"))
    devnet.stop()


# ------------------------------------------------------------------------------------ API users


def test_openai_client_embeds_in_both_encodings_the_same(person: Person) -> None:
    only = {"provider": {"only": [person.node_of("node-1")]}}
    with person.client() as client:
        plain = client.embeddings.create(
            model=MODEL, input="a receipt", encoding_format="float", extra_body=only
        )
        packed = client.embeddings.with_raw_response.create(
            model=MODEL, input=["a receipt", "an invoice"], encoding_format="base64", extra_body=only
        )
    texts = [item["embedding"] for item in packed.http_response.json()["data"]]
    rows = [np.frombuffer(base64.b64decode(text), "<f4") for text in texts]
    assert [row.shape for row in rows] == [(384,), (384,)]
    assert np.linalg.norm(rows[0]) == pytest.approx(1, abs=1e-5)
    assert rows[0] == pytest.approx(np.array(plain.data[0].embedding, np.float32), abs=1e-5)
    assert np.abs(rows[0] - rows[1]).max() > 1e-3
    assert plain.usage.prompt_tokens > 0
    assert packed.headers["x-emc-node"] == person.node_of("node-1")


def test_openai_client_lists_the_model_and_raises_its_own_errors(person: Person) -> None:
    with person.client() as client:
        assert [model.id for model in client.models.list()] == [MODEL, TINY_NAME]
        with pytest.raises(openai.NotFoundError) as missing:
            client.embeddings.create(model="gpt-9", input="x")
        with pytest.raises(openai.BadRequestError):
            client.embeddings.create(model=MODEL, input=[])
    with (
        person.client("emc_sk_" + "A" * 43) as stranger,
        pytest.raises(openai.AuthenticationError) as refused,
    ):
        stranger.embeddings.create(model=MODEL, input="x")
    assert missing.value.code == "model_not_found"
    assert refused.value.code == "invalid_api_key"


def test_receipt_of_a_call_is_verified_by_the_published_types_alone(person: Person) -> None:
    """With eth-account's encode_typed_data and a tree of ten lines; no code of emcd."""
    with person.client() as client:
        chosen = person.node_of("node-1")
        raw = client.embeddings.with_raw_response.create(
            model=MODEL,
            input="prove it",
            encoding_format="float",
            extra_body={"provider": {"only": [chosen]}},
        )
    path = f"/v1/calls/{raw.headers['x-emc-call-id']}/receipt"
    key = person.summary["api_key"]
    wait_for(lambda: person.get(path, key).status_code == 200, 10)
    shown = person.get(path, key).json()

    hub = person.node_of("hub")
    hashes = {
        kind: second.struct_hash(_typed(person, kind, shown[kind.lower()]))
        for kind in ("Forward", "Receipt", "Delivery")
    }
    for kind, signer in (("Forward", hub), ("Receipt", chosen), ("Delivery", hub)):
        proof = shown[f"{kind.lower()}_proof"]
        leaf = second.climb(second.keccak(hashes[kind]), [_bytes(item) for item in proof["siblings"]])
        assert leaf == _bytes(proof["batch"]["root"]), kind
        typed = _typed(person, "RecordBatch", proof["batch"])
        assert second.recover(typed, _bytes(proof["signature"])) == signer, kind
    assert shown["receipt"]["forward_hash"] == "0x" + hashes["Forward"].hex()
    assert shown["delivery"]["receipt_hash"] == "0x" + hashes["Receipt"].hex()
    assert shown["delivery"]["body_hash"] == "0x" + second.keccak(raw.http_response.content).hex()
    assert shown["forward"]["node"] == raw.headers["x-emc-node"] == chosen
    assert shown["receipt"]["input_tokens"] == raw.parse().usage.prompt_tokens
    assert int(shown["delivery"]["credits_micro"]) / 1e6 == float(raw.headers["x-emc-credits"]) > 0


def _typed(person: Person, kind: str, record: dict[str, Any]) -> dict[str, Any]:
    def value(entry: Any) -> Any:
        return int(entry) if isinstance(entry, str) and entry.isdigit() else entry

    values = [value(entry) for entry in record.values()]
    return second.make_typed_data(
        person.summary["chain_id"], person.summary["contracts"]["staking"], kind, values
    )


def _bytes(text: str) -> bytes:
    return bytes.fromhex(text.removeprefix("0x"))


def test_receipt_of_another_accounts_call_is_not_shown(person: Person) -> None:
    with person.client() as client:
        raw = client.embeddings.with_raw_response.create(model=MODEL, input="mine")
    other = (person.devnet.folder / "api-keys" / "user").read_text().strip()

    assert person.get(f"/v1/calls/{raw.headers['x-emc-call-id']}/receipt", other).status_code == 404


# ------------------------------------------------------------------------------------ operators


def test_api_key_lives_from_create_through_grant_to_revoke(person: Person) -> None:
    admin = (
        "--url",
        person.summary["admin_url"],
        "--token-file",
        person.devnet.folder / "devnet.json",
        "--json",
    )
    made = person.run("api-key", "create", "alice", "--label", "trial", *admin).json
    with person.client(made["api_key"]) as alice:
        with pytest.raises(openai.RateLimitError) as poor:
            alice.embeddings.create(model=MODEL, input="x")
        granted = person.run("credits", "grant", "alice", "20.5", "--key", "g1", *admin).json
        repeated = person.run("credits", "grant", "alice", "20.5", "--key", "g1", *admin).json
        assert len(alice.embeddings.create(model=MODEL, input="x").data) == 1
        listed = person.run("api-key", "list", *admin)
        revoked = person.run("api-key", "revoke", made["key_id"], *admin)
        with pytest.raises(openai.AuthenticationError):
            alice.embeddings.create(model=MODEL, input="x")
    shown = person.run("credits", "show", "alice", *admin).json

    assert poor.value.code == "insufficient_quota"
    assert (granted["granted_micro"], granted["repeated"]) == ("20500000", False)
    assert (repeated["granted_micro"], repeated["repeated"]) == ("20500000", True)
    assert made["api_key"] not in listed.out
    assert made["key_id"] in [key["key_id"] for key in listed.json["api_keys"]]
    assert revoked.code == 0
    assert 0 < int(shown["granted_micro"]) < 20_500_000
    assert person.get("/v1/models", made["api_key"]).status_code == 401


def test_statement_balances_to_the_last_micro_credit(person: Person) -> None:
    admin = ("--url", person.summary["admin_url"], "--token-file", person.devnet.folder / "devnet.json")
    books = person.run("credits", "statement", "alice", *admin, "--json").json
    lines = person.run("credits", "statement", "alice", *admin).out
    table = list(
        csv.DictReader(io.StringIO(person.run("credits", "statement", "alice", *admin, "--csv").out))
    )

    assert books["moved"]["granted_micro"] == "20500000"
    for part in ("granted_micro", "vault_micro"):
        whole = int(books["opening"][part]) + int(books["moved"][part]) - int(books["used"][part])
        assert whole == int(books["closing"][part])
        assert sum(int(row[part]) for row in table[:-1]) == int(table[-1][part]) == whole
    assert "grant (round " in lines
    assert "20.500000" in lines
    assert_refused(person.run("credits", "statement", "alice", *admin, "--round", "x..y"), "EMC-1772")


def test_credits_are_bought_with_token_and_waited_for(person: Person) -> None:
    key_file = person.devnet.folder / "api-keys" / "user"
    own = person.get("/api/account", key_file.read_text().strip()).json()
    wallet = ("--keystore", person.summary["user_wallet_keystore"], "--password-file", person.password_file)
    buy = ("credits", "buy", own["name"], "2", *wallet, "--api-key-file", key_file)

    dry = person.run(*buy)
    assert (dry.code, "Nothing was sent" in dry.out) == (0, True), dry.err
    done = person.run(*buy, "--yes", "--json")
    books = person.get("/api/account/statement", key_file.read_text().strip()).json()

    assert done.code == 0, done.err
    assert "is credited" in done.err
    assert done.json["credits_micro"] in [item["vault_micro"] for item in books["movements"]]


def test_operators_command_with_a_wrong_token_is_refused(person: Person) -> None:
    done = person.run(
        "api-key", "list", "--url", person.summary["admin_url"], EMCD_ADMIN_TOKEN="emc_admin_wrong"
    )

    assert_refused(done, "EMC-1770", "EMC-1703")


# ------------------------------------------------------------------------------------ a new provider


@dataclass(frozen=True)
class Newcomer:
    """A node key, a funded wallet, and a configuration; nothing on chain yet."""

    node: str
    wallet: str
    config: tuple[str, ...]
    variables: dict[str, str]
    wallet_keystore: Path
    wallet_options: tuple[str, ...]


@pytest.fixture(scope="module")
def newcomer(person: Person) -> Newcomer:
    """Keys by `emcd keys new`, coin and token from the devnet's user."""
    data = person.home / "data"
    (data / "keys").mkdir(parents=True)
    shutil.copy(person.summary["deployment"], data / "deployment.json")
    password = person.home / "password"
    password.touch(0o600)
    password.write_text("a newcomer's own\n")
    options = ("--kdf", "light", "--password-file", password, "--json")
    node = person.run("keys", "new", data / "keys" / "node.json", *options).json["address"]
    wallet_keystore = person.home / "wallet.json"
    wallet = person.run("keys", "new", wallet_keystore, *options).json["address"]
    trio.run(_fund, person, wallet)
    return Newcomer(
        node,
        wallet,
        ("--config", str(REPOSITORY / "conf" / "node.toml")),
        {
            "EMCD_DATA_DIR": str(data),
            "EMCD_RPC_URL": person.summary["rpc_url"],
            "EMCD_HUB_ADDRESS": person.node_of("hub"),
            "EMCD_KEY_PASSWORD": "a newcomer's own",
        },
        wallet_keystore,
        ("--keystore", str(wallet_keystore), "--password-file", str(password)),
    )


async def _fund(person: Person, wallet: Any) -> None:
    user = load_keystore(Path(person.summary["user_wallet_keystore"]), person.summary["password"])
    chain_id, rpc = person.deployment.chain_id, person.chain.rpc
    await send_call(rpc, chain_id, user, Call(wallet, b"", GAS_WEI))
    transfer = person.chain.token.submit_transfer(wallet, 4_000 * WEI_PER_TOKEN)
    await send_call(rpc, chain_id, user, transfer)


def test_stake_for_a_node_that_is_not_bound_is_refused(person: Person, newcomer: Newcomer) -> None:
    stake = person.run("stake", newcomer.node, 3000, *newcomer.wallet_options, "--yes")
    unstake = person.run("unstake", newcomer.node, *newcomer.wallet_options, "--yes")

    assert_refused(stake, "EMC-2135", newcomer.node, "emcd node register")
    assert_refused(unstake, "EMC-2135", newcomer.node)


def test_register_to_a_wallet_with_a_wrong_checksum_is_refused(person: Person, newcomer: Newcomer) -> None:
    wrong = newcomer.wallet[:2] + newcomer.wallet[2:].swapcase()

    done = person.run(*newcomer.config, "node", "register", "--wallet", wrong, **newcomer.variables)

    assert_refused(done, "EMC-1491", wrong)


def test_register_sent_from_another_wallet_is_refused(person: Person, newcomer: Newcomer) -> None:
    done = person.run(
        *newcomer.config, "node", "register", "--wallet", newcomer.wallet, "--send", "--yes",
        "--wallet-keystore", person.participants["node-1"]["wallet_keystore"],
        "--wallet-password-file", person.password_file,
        **newcomer.variables,
    )  # fmt: skip

    assert_refused(done, "EMC-2021")


def test_register_binds_the_node_to_its_wallet_on_chain(person: Person, newcomer: Newcomer) -> None:
    done = person.run(
        *newcomer.config, "node", "register", "--wallet", newcomer.wallet, "--send", "--yes", "--json",
        "--wallet-keystore", newcomer.wallet_keystore,
        **newcomer.variables,
    )  # fmt: skip

    assert done.code == 0, done.err
    participant = trio.run(person.chain.staking.find_participant, newcomer.node)
    assert participant is not None
    assert participant.wallet == newcomer.wallet == done.json["binding"]["wallet"]
    assert participant.stake_wei == 0
    assert second.recover(done.json["typed_data"], _bytes(done.json["signature"])) == newcomer.node


def test_register_sent_a_second_time_is_refused_by_the_contract(person: Person, newcomer: Newcomer) -> None:
    done = person.run(
        *newcomer.config, "node", "register", "--wallet", newcomer.wallet, "--nonce", 1, "--send", "--yes",
        "--wallet-keystore", newcomer.wallet_keystore,
        **newcomer.variables,
    )  # fmt: skip

    assert_refused(done, "EMC-1504", "NonceUsed(nonce=1, ")


def test_unstake_of_nothing_says_so(person: Person, newcomer: Newcomer) -> None:
    done = person.run("unstake", newcomer.node, *newcomer.wallet_options, "--yes", "--json")

    assert (done.code, done.json["step"]) == (0, "none")


@pytest.mark.parametrize(
    ("amount", "options", "words"),
    [
        ("2999.5", (), ("BelowMinimum", "minimumWei=3000000000000000000000")),
        ("3000", ("--lock-days", "31"), ("BadLock(lockDays=31)",)),
    ],
)
def test_stake_that_the_contract_refuses_is_told_with_its_error(
    person: Person, newcomer: Newcomer, amount: str, options: tuple[str, ...], words: tuple[str, ...]
) -> None:
    done = person.run("stake", newcomer.node, amount, *options, *newcomer.wallet_options, "--yes")

    assert_refused(done, "EMC-1504", *words)


@pytest.mark.parametrize("amount", ["0", "-1", "many", "1e-19", "nan", "0.0000000000000000001"])
def test_stake_of_no_amount_is_refused_before_anything_is_asked(
    person: Person, newcomer: Newcomer, amount: str
) -> None:
    done = person.run("stake", *newcomer.wallet_options, "--", newcomer.node, amount)

    assert_refused(done, "EMC-2134")


def test_stake_of_more_than_the_wallet_owns_is_refused_before_an_approval(
    person: Person, newcomer: Newcomer
) -> None:
    done = person.run("stake", newcomer.node, "1000000", *newcomer.wallet_options, "--yes")

    assert_refused(done, "EMC-2165", "owns 4,000.0000 EMC of 1,000,000.0000")


def test_stake_without_send_is_priced_and_sends_nothing(person: Person, newcomer: Newcomer) -> None:
    done = person.run("stake", newcomer.node, "3000", *newcomer.wallet_options)

    assert done.code == 0
    assert "stake 3,000.0000 EMC" in done.out
    assert "EMCToken.approve" in done.out
    assert "Nothing was sent" in done.out
    assert trio.run(person.chain.token.fetch_balance, newcomer.wallet) == 4_000 * WEI_PER_TOKEN


def test_stake_without_a_yes_sends_nothing(person: Person, newcomer: Newcomer) -> None:
    done = person.run("stake", newcomer.node, "3000", *newcomer.wallet_options, "--send")

    assert (done.code, done.out) == (130, "")
    assert "stake 3,000.0000 EMC" in done.err
    assert trio.run(person.chain.token.fetch_balance, newcomer.wallet) == 4_000 * WEI_PER_TOKEN


def test_stake_then_top_up_then_leave(person: Person, newcomer: Newcomer) -> None:
    """One stake's life; through the node's own configuration instead of the devnet's."""

    def run(*arguments: object) -> Done:
        options = (*newcomer.wallet_options, "--yes", "--json")
        return person.run(*newcomer.config, *arguments, *options, **newcomer.variables)

    staked = run("stake", newcomer.node, "3000")
    assert staked.code == 0, staked.err
    assert (staked.json["topped_up"], staked.json["amount_wei"]) == (False, str(3_000 * WEI_PER_TOKEN))
    topped = run("stake", newcomer.node, "0.5")
    assert topped.json["topped_up"] is True
    other_lock = run("stake", newcomer.node, "1", "--lock-days", "30")
    assert other_lock.code == 2
    assert "staked for 0 days" in other_lock.err
    exiting = run("unstake", newcomer.node)
    assert (exiting.json["step"], exiting.code) == ("exit", 0)
    assert "3,000.5000 EMC" in exiting.json["text"]
    waiting = run("unstake", newcomer.node)
    assert (waiting.json["step"], waiting.code) == ("unbonding", 0)
    assert waiting.json["exit_round"] >= 24
    again = run("stake", newcomer.node, "100")
    assert_refused(again, "EMC-1504", "StillUnbonding")


def test_unstake_of_a_locked_stake_says_how_long(person: Person) -> None:
    done = person.run("unstake", person.node_of("node-1"), *person.wallet("node-1"), "--yes")

    assert done.code == 0
    assert done.out.startswith("the lock runs for ")


def test_stake_from_another_wallet_is_refused(person: Person) -> None:
    done = person.run("stake", person.node_of("node-1"), "1", *person.wallet("node-2"), "--yes")

    assert_refused(done, "EMC-2136", person.wallet_of("node-1"), person.wallet_of("node-2"))


def test_wallet_with_a_wrong_password_or_none_is_refused(person: Person) -> None:
    wrong = person.home / "wrong"
    wrong.touch(0o600)
    wrong.write_text("not the password\n")
    keystore = person.participants["node-1"]["wallet_keystore"]
    stake = ("stake", person.node_of("node-1"), "1", "--keystore", keystore)

    assert_refused(person.run(*stake, "--yes", "--password-file", wrong), "EMC-1105")
    assert_refused(person.run(*stake, "--yes"), "EMC-1108")


def test_command_beside_no_network_says_how_to_name_one(person: Person) -> None:
    nowhere = {"EMCD_DEVNET_DIR": str(person.home / "nowhere")}
    deployment = ("--deployment", person.summary["deployment"])
    wallet = person.wallet_of("node-1")

    assert_refused(person.run("rewards", wallet, **nowhere), "EMC-2130")
    assert_refused(person.run("rewards", wallet, *deployment, **nowhere), "EMC-2132")
    node = person.node_of("node-1")
    stake = person.run("unstake", node, *deployment, *person.wallet("node-1"), **nowhere)
    assert_refused(stake, "EMC-2131")
    assert_refused(person.run("rewards", wallet, "--hub", "http://127.0.0.1:1"), "EMC-1301")
    assert person.run("rewards", wallet, *deployment, "--hub", person.hub + "/", **nowhere).code == 0


def test_devnet_commands_know_that_it_runs(person: Person) -> None:
    status = person.run("devnet", "status", "--json")

    assert status.json["running"] is True
    assert_refused(person.run("devnet", "run", "--detach"), "EMC-2231")
    assert_refused(person.run("devnet", "reset", "--yes"), "EMC-2231")


# ------------------------------------------------------------------------------------ closed rounds


@pytest.fixture(scope="module")
def closed(person: Person) -> int:
    """The first closed round that pays node-1 and convicts node-3: the very first, unless the machine is slow."""

    def find() -> list[int]:
        numbers = [number for number, state in sorted(person.list_rounds().items()) if state in CLOSED]
        return [number for number in numbers if _is_telling(person, number)]

    return int(wait_for(find)[0])


def _is_telling(person: Person, number: int) -> bool:
    rows = {row["node"]: row for row in person.get(f"/api/rounds/{number}").json()["participants"]}
    paid, cheat = rows.get(person.node_of("node-1")), rows.get(person.node_of("node-3"))
    return bool(paid and cheat and int(paid["reward_wei"]) and cheat["reason"] == "verdict")


def reward_of(person: Person, number: int, name: str) -> int:
    rows = person.get(f"/api/rounds/{number}").json()["participants"]
    return next(int(row["reward_wei"]) for row in rows if row["node"] == person.node_of(name))


def test_extract_before_the_root_is_active_waits_and_ends_claimed(person: Person, closed: int) -> None:
    before_wei = trio.run(person.chain.token.fetch_balance, person.wallet_of("node-1"))
    watch = ("--through-round", closed, "--watch", "--json")
    asked = person.run("extract", *person.wallet("node-1"), *watch)
    assert asked.code == 0, asked.err
    steps = [json.loads(line) for line in asked.out.splitlines()]
    assert [step["through_round"] for step in steps] == [closed] * len(steps)
    states = [step["state"] for step in steps]
    assert states == sorted(states, key=lambda state: EXTRACTION_ORDER[ExtractionState(state)])
    assert states[-1] == "claimed"
    last = steps[-1]
    assert last["claimed"]["recipient"] == person.wallet_of("node-1")
    assert last["published"]["active_at_s"] <= last["claimed"]["at_s"]
    rewards = person.run("rewards", person.wallet_of("node-1"), "--json").json
    assert int(rewards["claimed_wei"]) == int(last["claimed"]["amount_wei"])
    paid = [row for row in rewards["rounds"] if row["round"] == closed and int(row["reward_wei"])]
    assert [row["claimed"]["tx_hash"] for row in paid] == [last["claimed"]["tx_hash"]]
    after_wei = trio.run(person.chain.token.fetch_balance, person.wallet_of("node-1"))
    shown = person.run("rewards", person.wallet_of("node-1"))
    assert after_wei - before_wei >= reward_of(person, closed, "node-1") > 0
    assert "claimed" in shown.out
    assert f"round {closed:>6}" in shown.out


def test_extract_twice_in_a_row_takes_the_next_nonce(person: Person, closed: int) -> None:
    far = ("--through-round", max(person.list_rounds()), "--no-submit", "--json")
    nonces = []
    for _ in range(2):
        done = person.run("extract", *person.wallet("validator-2"), *far)
        assert done.code == 0, done.err
        nonces.append(done.json["extraction"]["nonce"])

    assert nonces[1] == nonces[0] + 1 < MAX_OPEN


def test_extract_of_a_wallet_that_takes_no_part_is_refused(person: Person, closed: int) -> None:
    options = ("--keystore", person.summary["user_wallet_keystore"], "--password-file", person.password_file)

    assert_refused(person.run("extract", *options), "EMC-2137", "the hub answers 4")


def claim_patiently(claim: Callable[[], Done]) -> Done:
    """Claim, and again when another root became active in between, as the error says."""
    done = claim()
    for _ in range(3):
        if not any(code in done.err for code in ("EMC-2140", "EMC-2145", "EMC-1504")):
            break
        time.sleep(1)
        done = claim()
    assert done.code == 0, done.err
    return done


def test_claim_by_the_wallet_from_the_hubs_proof_pays_the_recipient(person: Person, closed: int) -> None:
    recipient = generate_key().address
    payee = next(f"validator-{n}" for n in range(1, 5) if reward_of(person, closed, f"validator-{n}"))
    claim = ("claim", *person.wallet(payee), "--recipient", recipient, "--yes", "--json")

    done = claim_patiently(lambda: person.run(*claim))

    paid_wei = int(done.json["claimed_wei"])
    assert done.json["recipient"] == recipient
    assert paid_wei == trio.run(person.chain.token.fetch_balance, recipient) > 0
    assert paid_wei == trio.run(person.chain.distributor.fetch_claimed, person.wallet_of(payee))


def test_claim_from_a_bundle_needs_no_hub(person: Person, closed: int) -> None:
    bundle = person.home / "active.bin"

    def claim() -> Done:
        active = trio.run(person.chain.distributor.find_active_root)
        assert active is not None
        assert person.run("audit", active.round, "--save", bundle).code == 0
        no_hub = ("--hub", "http://127.0.0.1:1", "--bundle", bundle)
        return person.run("claim", *person.wallet("node-2"), *no_hub, "--yes", "--json")

    done = claim_patiently(claim)

    assert int(done.json["claimed_wei"]) >= reward_of(person, closed, "node-2") > 0


def test_claim_from_a_bundle_that_is_not_the_active_rounds_is_refused(person: Person, closed: int) -> None:
    strange = person.home / "strange.bin"
    strange.write_bytes(_newest_unpublished(person))

    done = person.run("claim", *person.wallet("node-2"), "--yes", "--bundle", strange)

    assert_refused(done, "EMC-2145", "is needed")


def _newest_unpublished(person: Person) -> bytes:
    number = max(number for number, state in person.list_rounds().items() if state in CLOSED)
    active = trio.run(person.chain.distributor.find_active_root)
    assert active is not None
    assert number > active.round
    return person.get(f"/api/rounds/{number}/bundle").content


def test_claim_of_a_wallet_without_rewards_moves_nothing(person: Person, closed: int) -> None:
    wallet = ("--keystore", person.summary["user_wallet_keystore"], "--password-file", person.password_file)
    as_json = person.run("claim", *wallet, "--yes", "--json")
    plain = person.run("claim", *wallet, "--yes")

    assert (as_json.code, as_json.json["claimed_wei"], plain.code) == (0, "0", 0)
    assert "gives the wallet nothing" in plain.out


def test_audit_of_a_round_reproduces_the_root_on_chain(person: Person, closed: int) -> None:
    saved = person.home / "round.bin"
    shown = person.run("audit", closed, "--save", saved, "--json")
    again = person.run("audit", saved, "--deployment", person.summary["deployment"])

    publication = trio.run(person.chain.distributor.fetch_publication, closed)
    assert (shown.code, shown.json["ok"], shown.json["seal"]) == (0, True, "valid")
    assert shown.json["root"] == "0x" + publication.root.hex()
    assert second.recompute_root(saved.read_bytes())["root"] == publication.root
    assert again.code == 0
    assert "every byte, signature and number is reproduced" in again.out


@pytest.mark.parametrize("part", [0.2, 0.5, 0.8, 1.0])
def test_audit_of_a_bundle_with_one_byte_changed_names_the_record(
    person: Person, closed: int, part: float
) -> None:
    data = bytearray((person.home / "round.bin").read_bytes())
    data[int((len(data) - 1) * part)] ^= 0x01
    file = person.home / "changed.bin"
    file.write_bytes(data)

    done = person.run("audit", file, "--json")

    assert done.code == 3
    assert done.json["ok"] is False
    assert done.json["difference"]["code"].startswith("EMC-19")
    assert done.json["difference"]["section"]


def test_audit_of_a_round_that_is_not_there_is_refused(person: Person) -> None:
    assert_refused(person.run("audit", 9999), "EMC-1940", "404")


# ------------------------------------------------------------------------------------ why unpaid


def steps_of(done: Done) -> dict[str, str]:
    """Step -> evidence; the last is the one that counts."""
    return {step["step"]: step["evidence"] for step in done.json["steps"]}


def test_why_unpaid_of_a_paid_node_shows_every_step_and_succeeds(person: Person, closed: int) -> None:
    done = person.run("why-unpaid", closed, "--node", person.node_of("node-1"), "--json")

    assert done.code == 0
    assert list(steps_of(done)) == [
        "bound", "staked", "online", "routed", "served", "metered", "settled", "published", "claimed",
    ]  # fmt: skip
    assert all(step["done"] for step in done.json["steps"])


def test_why_unpaid_of_the_cheat_names_verdict_and_number(person: Person, closed: int) -> None:
    """What convicts node-3 in one round suspends it in the next."""
    node = person.node_of("node-3")
    first = person.run("why-unpaid", closed, "--node", node, "--json")
    wait_for(lambda: person.list_rounds().get(closed + 1) in CLOSED)
    second_round = person.run("why-unpaid", closed + 1, "--node", node)

    assert first.code == second_round.code == 1
    step, evidence = list(steps_of(first).items())[-1]
    assert step in ("settled", "metered")
    assert re.search(r"GROSS \(statistic [0-9.e-]+\) by 0x", evidence)
    assert "statistic " in evidence
    assert "call_" in evidence
    assert second_round.out.splitlines()[-1].startswith("  NO  staked     suspended until round ")


def test_why_unpaid_of_others_names_the_step(person: Person, newcomer: Newcomer, closed: int) -> None:
    unclaimed = person.run("why-unpaid", closed, "--node", person.node_of("validator-3"), "--json")
    late = person.run("why-unpaid", 0, "--node", newcomer.node, "--json")
    hub = person.run("why-unpaid", closed, "--node", person.node_of("hub"), "--json")

    last = unclaimed.json["steps"][-1]
    assert last["step"] in ("claimed", "metered")
    assert unclaimed.code == (0 if last["done"] else 1)  # another test may have claimed for it
    assert list(steps_of(late)) == ["bound"]
    assert "a hub" in steps_of(hub)["bound"]
    assert (late.code, hub.code) == (1, 1)


def test_why_unpaid_of_a_call_follows_its_node(person: Person, closed: int) -> None:
    detail = second.read_bundle((person.home / "round.bin").read_bytes())
    paid, cheated = (
        next(
            call[0][0]
            for call in detail["calls"]
            if _address(call[0][3]) == person.node_of(name).lower() and call[2][5] > 0
        )
        for name in ("node-1", "node-3")
    )

    good = person.run("why-unpaid", "call_" + paid.hex(), "--json")
    bad = person.run("why-unpaid", "call_" + cheated.hex(), "--json")

    assert (good.code, good.json["round"]) == (0, closed)
    assert list(steps_of(good))[-1] == "claimed"
    assert (bad.code, list(steps_of(bad))[-1]) == (1, "settled")


def _address(value: Any) -> str:
    return value.lower() if isinstance(value, str) else "0x" + value.hex()


def test_why_unpaid_of_what_is_not_there_is_refused(person: Person) -> None:
    node = person.node_of("node-1")

    assert_refused(person.run("why-unpaid", 9999, "--node", node), "EMC-2142")
    nobodys = person.run("why-unpaid", "call_" + "0" * 32, "--json")
    assert (nobodys.code, list(steps_of(nobodys))) == (1, ["metered"])
    assert_refused(person.run("why-unpaid", "call_12"), "EMC-1497")
    assert_refused(person.run("why-unpaid", 0), "EMC-2141")


def test_every_command_prints_its_error_as_json_too(person: Person) -> None:
    done = person.run("why-unpaid", 0, "--json")

    assert (done.code, done.out) == (1, "")
    assert json.loads(done.err)["error"]["code"] == "EMC-2141"
    assert json.loads(done.err)["error"]["remedy"]


def test_wallet_bound_to_nothing_is_refused_without_showing_its_key(person: Person) -> None:
    fresh = person.home / "fresh.json"
    key = generate_key()
    write_keystore(fresh, key, "password-1", kdf="light")
    stake = ("stake", person.node_of("node-1"), "1", "--keystore", fresh)

    done = person.run(*stake, EMCD_KEY_PASSWORD="password-1")

    assert_refused(done, "EMC-2136", key.address)
    assert key.reveal().hex() not in done.err
    assert "password-1" not in done.err
