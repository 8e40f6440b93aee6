"""`emcd claim --bundle` and `emcd credits buy`: a chain and a file, and no hub anywhere."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trio

from emcd.chain import Chain, ChainConfig
from emcd.cli.main import main
from emcd.cli.network import Network
from emcd.clock import ManualClock
from emcd.keys import SigningKey, write_keystore
from emcd.proto.messages import Veto
from emcd.proto.network import decode_deployment
from emcd.testing import make_key
from emcd_devchain.evm import EvmChain
from emcd_devchain.genesis import OfflineRpc
from emcd_devchain.store import ChainStore
from emcd_hub.billing.queries import vault_account
from tests.support.devchain import CHAIN_ID, ETHER, sign_raw
from tests.support.network import HOLDER, LiveNetwork
from tests.support.round_world import address_of
from tests.support.settler_world import VALIDATORS, WALLET, Prepared, SettlerWorld, prepare

RECIPIENT = address_of("somebody")


@dataclass
class Done:
    code: object
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Claims:
    """A wallet with a shell, beside a chain."""

    def __init__(self, prepared: Prepared, folder: Path) -> None:
        file = folder / "chain.sqlite"
        shutil.copy(prepared.file, file)
        self.folder = folder
        self.store = ChainStore(file, CHAIN_ID)
        self.rpc = OfflineRpc(EvmChain(self.store, CHAIN_ID))
        self.deployment = decode_deployment(prepared.deployment)
        self.chain = Chain(ChainConfig(("http://127.0.0.1:1",), confirmations=1), self.deployment, self.rpc)
        network = LiveNetwork(self.chain, self.deployment, self.rpc)
        self.world = SettlerWorld(folder, network, None, ManualClock())  # type: ignore[arg-type]
        (folder / "deployment.json").write_text(prepared.deployment)
        (folder / "password").touch(0o600)
        (folder / "password").write_text("a wallet's own\n")
        self.keystores: dict[str, Path] = {}
        self.do(lambda: self.fund(WALLET))

    def do(self, step: Callable[[], Awaitable[Any]]) -> Any:
        return trio.run(step)

    async def fund(self, key: SigningKey, wei: int = ETHER) -> None:
        nonce = int(await self.rpc.call("eth_getTransactionCount", HOLDER.address, "latest"), 16)
        raw = sign_raw(HOLDER, nonce=nonce, to=key.address, value=wei)
        await self.rpc.call("eth_sendRawTransaction", "0x" + raw.hex())

    def close(self, index: int, before: Any = None, **options: Any) -> Any:
        """A closed round; its bundle lies in the folder."""
        closed = self.world.close_round(index, before, **options)
        self.bundle(index).write_bytes(self.world.bundles[index])
        return closed

    def bundle(self, index: int) -> Path:
        return self.folder / f"round-{index}.emcb"

    def publish(self, closed: Any) -> None:
        """In the round after the next, by all validators' word."""
        root = closed.round_root
        keys = [make_key(name) for name in VALIDATORS]
        signed = {key.address: key.sign(self.deployment.distributor_domain, root) for key in keys}
        self.move_to(root.round + 2)
        call = self.chain.distributor.submit_publish(root, signed)
        self.do(lambda: self.world.network.send(HOLDER, call))

    def move_to(self, index: int) -> None:
        self.do(lambda: self.world.move_to_round(index))

    def claimed(self) -> int:
        return int(self.do(lambda: self.chain.distributor.fetch_claimed(WALLET.address)))

    def token(self, account: Any) -> int:
        return int(self.do(lambda: self.chain.token.fetch_balance(account)))

    def sent(self, key: SigningKey = WALLET) -> int:
        return int(self.do(lambda: self.rpc.call("eth_getTransactionCount", key.address, "latest")), 16)

    def claim(self, index: int, *options: object, key: SigningKey = WALLET) -> Done:
        return self.run("claim", "--bundle", self.bundle(index), *options, key=key)

    def run(self, *arguments: object, key: SigningKey = WALLET) -> Done:
        if key.address not in self.keystores:
            self.keystores[key.address] = self.folder / f"{key.address}.json"
            write_keystore(self.keystores[key.address], key, "a wallet's own", kdf="light")
        wallet = ("--keystore", self.keystores[key.address], "--password-file", self.folder / "password")
        network = ("--deployment", self.folder / "deployment.json", "--rpc", "http://127.0.0.1:1")
        out, err = io.StringIO(), io.StringIO()
        code: object = 0
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                main([str(item) for item in (*arguments, *wallet, *network)])
            except SystemExit as exc:
                code = exc.code
        return Done(code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    folder = tmp_path_factory.mktemp("chain")
    return trio.run(prepare, folder)


@pytest.fixture
def claims(prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Claims]:
    monkeypatch.setitem(os.environ, "EMCD_DEVNET_DIR", str(tmp_path / "nowhere"))
    monkeypatch.delenv("EMCD_API_KEY", raising=False)
    made = Claims(prepared, tmp_path)
    monkeypatch.setattr(Network, "open_chain", lambda _: made.chain)
    yield made
    made.store.close()


def earned(closed: Any) -> int:
    return next(
        int.from_bytes(item.cumulative_wei, "big")
        for item in closed.result.totals_after
        if item.wallet == WALLET.address
    )


def assert_refused(done: Done, code: str, *words: str) -> None:
    assert (done.code, done.out) == (1, ""), done
    assert done.err.startswith(f"{code}: "), done.err
    for word in words:
        assert word in done.err, done.err


# ------------------------------------------------------------------------------------ claiming


def test_claim_from_file_and_contract_alone_pays_the_recipient_once(claims: Claims) -> None:
    closed = claims.close(0)
    claims.publish(closed)
    claims.move_to(4)

    dry = claims.claim(0, "--recipient", RECIPIENT, "--json")
    assert (dry.code, dry.json["sent"]) == (0, False)
    assert dry.json["claimable_wei"] == str(earned(closed))
    assert int(dry.json["calls"][0]["expected_cost_wei"]) > 0
    assert (claims.sent(), claims.claimed()) == (0, 0)

    done = claims.claim(0, "--recipient", RECIPIENT, "--yes", "--json")
    assert (done.code, done.json["claimed_wei"]) == (0, str(earned(closed)))
    assert done.json["tx_hash"].startswith("0x")
    again = claims.claim(0, "--yes", "--json")
    assert (again.code, again.json["claimed_wei"]) == (0, "0")
    assert claims.token(RECIPIENT) == claims.claimed() == earned(closed)
    assert claims.sent() == 1


def test_claim_says_what_share_the_gas_takes(claims: Claims) -> None:
    claims.publish(claims.close(0))
    claims.move_to(4)

    plain = claims.claim(0)
    priced = claims.claim(0, "--token-price-eth", "0.0000001")

    assert "at most" in plain.out
    assert "Nothing was sent" in plain.out
    assert "% of it" not in plain.out
    assert "% of it" in priced.out


def test_rounds_that_were_skipped_are_paid_at_once_and_nothing_twice(claims: Claims) -> None:
    """Totals are cumulative: three rounds unclaimed, one claim; then only what is new."""
    rounds: list[Any] = []
    for index in range(3):
        rounds.append(claims.close(index, rounds[-1] if rounds else None))
        claims.publish(rounds[-1])
    claims.move_to(6)
    first = claims.claim(2, "--yes", "--json")
    assert first.json["claimed_wei"] == str(earned(rounds[2])) == str(claims.claimed())
    assert earned(rounds[2]) > earned(rounds[1]) > earned(rounds[0])

    last = claims.close(6, rounds[2])
    claims.publish(last)
    claims.move_to(10)
    second = claims.claim(6, "--yes", "--json")
    assert int(second.json["claimed_wei"]) == earned(last) - earned(rounds[2])
    assert claims.token(WALLET.address) == earned(last)


def test_older_bundle_is_refused_and_the_needed_one_is_named(claims: Claims) -> None:
    first = claims.close(0)
    second = claims.close(1, first)
    claims.publish(first)
    claims.publish(second)
    claims.move_to(6)

    assert_refused(claims.claim(0, "--yes"), "EMC-2145", "older", "the bundle of round 1 is needed")
    assert claims.claim(1, "--yes").code == 0


def test_newer_bundle_is_refused_with_the_time_from_which_it_counts(claims: Claims) -> None:
    first = claims.close(0)
    claims.publish(first)
    claims.move_to(4)
    second = claims.close(3, first)
    assert_refused(claims.claim(3), "EMC-2145", "not published", "round 0 is needed")
    claims.publish(second)
    assert_refused(claims.claim(3), "EMC-2145", "active from 2027", "round 0 is needed")
    veto = Veto(3, second.bundle_hash, second.result.root)
    keys = [make_key(name) for name in VALIDATORS]
    signed = {key.address: key.sign(claims.deployment.distributor_domain, veto) for key in keys}
    claims.do(lambda: claims.world.network.send(HOLDER, claims.chain.distributor.submit_veto(veto, signed)))
    assert_refused(claims.claim(3), "EMC-2145", "voided")


def test_bundle_without_an_active_root_or_of_another_network_is_refused(claims: Claims) -> None:
    closed = claims.close(0)
    assert_refused(claims.claim(0), "EMC-2139")
    claims.publish(closed)
    claims.move_to(4)
    text = (claims.folder / "deployment.json").read_text()
    other = json.loads(text) | {"distributor": make_key("x").address}
    claims.chain.deployment = decode_deployment(json.dumps(other))
    assert_refused(claims.claim(0), "EMC-2144", claims.deployment.distributor)


def test_forged_totals_are_refused_whatever_the_file_says(claims: Claims) -> None:
    closed = claims.close(0)
    claims.publish(closed)
    claims.move_to(4)
    claims.close(0, calls_per_node=9)

    assert_refused(claims.claim(0, "--yes"), "EMC-2140", "is the active root of round 0")
    assert claims.claimed() == 0


@pytest.mark.parametrize("content", [b"", b"x" * 100, b"EMCDBDL3" + bytes(64)])
def test_file_that_is_no_bundle_is_refused(claims: Claims, content: bytes) -> None:
    claims.publish(claims.close(0))
    claims.move_to(4)
    claims.bundle(0).write_bytes(content)

    assert_refused(claims.claim(0), "EMC-2140", "EMC-19")


def test_wallet_that_is_in_no_bundle_is_told_so(claims: Claims) -> None:
    claims.publish(claims.close(0))
    claims.move_to(4)

    done = claims.claim(0, "--yes", key=make_key("stranger"))

    assert done.code == 0
    assert "gives the wallet nothing" in done.out


def test_wallet_without_ether_is_told_before_anything_is_sent(claims: Claims) -> None:
    """The wallet of another node of the same round."""
    poor = SigningKey(_secret("wallet of node-2"))
    claims.publish(claims.close(0))
    claims.move_to(4)

    done = claims.claim(0, "--yes", key=poor)

    assert done.code == 1
    assert claims.sent(poor) == 0


def _secret(name: str) -> bytes:
    from tests.support.round_world import secret_of

    return secret_of(name)


# ------------------------------------------------------------------------------------ credits for token


def test_buy_approves_burns_and_names_what_it_brings(claims: Claims) -> None:
    supply = claims.do(claims.chain.token.fetch_total_supply)
    dry = claims.run("credits", "buy", "acct_1", "2.5", key=HOLDER)
    assert dry.code == 0, dry.err
    assert "2,500.00 credits for acct_1 with 2.5000 EMC; it is burnt" in dry.out
    assert claims.do(claims.chain.token.fetch_total_supply) == supply

    done = claims.run("credits", "buy", "acct_1", "2.5", "--yes", "--json", key=HOLDER)

    assert (done.code, len(done.json["tx_hashes"])) == (0, 2)
    assert "deposit 0 is 1 blocks deep" in done.err
    assert claims.do(claims.chain.token.fetch_total_supply) == supply - 5 * ETHER // 2
    [deposit] = claims.do(_read_deposits(claims))
    assert deposit.account == vault_account("acct_1")
    assert deposit.credits_micro == 2_500_000_000 == int(done.json["credits_micro"])


def _read_deposits(claims: Claims) -> Callable[[], Awaitable[Any]]:
    async def read() -> Any:
        return await claims.chain.vault.fetch_deposits(at=await claims.chain.head())

    return read


def test_buy_of_too_much_too_little_or_for_nobody_is_refused(claims: Claims) -> None:
    assert_refused(claims.run("credits", "buy", "acct_1", "1"), "EMC-2147", "owns 0.0000 EMC")
    assert_refused(claims.run("credits", "buy", "acct_1", "0", key=HOLDER), "EMC-2134")
    tiny = "0.000000000000000001"
    assert_refused(claims.run("credits", "buy", "acct_1", tiny, key=HOLDER), "EMC-2147", "no credit at all")
    assert_refused(claims.run("credits", "buy", "ada", "1", key=HOLDER), "EMC-2148")
