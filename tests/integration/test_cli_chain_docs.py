"""docs/deployment.md as its reader follows it: every command of it is run, in order, against anvil."""

from __future__ import annotations

import re
import shlex
import shutil
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from emcd.chain import PublicationState
from emcd.testing import make_key
from tests.support.anvil import CHAIN_ID
from tests.support.chain_cli import VALIDATORS, Done, Network, Office, anvil_node, open_network, wallet_of

pytestmark = pytest.mark.anvil
DOCUMENT = Path(__file__).parents[2] / "docs" / "deployment.md"
BLOCK = re.compile(r"^```(sh|toml)\n(.*?)^```", re.MULTILINE | re.DOTALL)
CHAPTER = re.compile(r"^## (\d+)\. .*$", re.MULTILINE)


class Reader:
    """Somebody who does what the page says; the clock and the hub's work are done for him."""

    def __init__(self, office: Office) -> None:
        self.office = office
        genesis_s = (int(time.time()) + 900) // 15 * 15
        self.values = {
            "CHAIN_ID": str(CHAIN_ID),
            "RPC": office.node.url,
            "GENESIS": f"{datetime.fromtimestamp(genesis_s, UTC):%Y-%m-%dT%H:%M:%SZ}",
            "GUARDIAN": make_key("guardian").address,
            "HOLDER": make_key("holder").address,
        }
        for name in VALIDATORS:
            self.values |= {
                f"{name.upper()}_WALLET": wallet_of(name).address,
                f"{name.upper()}_NODE": make_key(name).address,
            }
        self.done: list[tuple[str, Done]] = []

    def fill(self, text: str) -> str:
        return re.sub(r"\$([A-Z0-9_]+)", lambda found: self.values[found[1]], text)

    def run(self, line: str) -> Done:
        words = shlex.split(self.fill(line))
        assert words[0] == "emcd"
        done = self.office.run(*words[1:])
        self.done.append((line, done))
        return done

    def network(self) -> Network:
        return open_network(self.office, self.office.home / f"deployments/{CHAIN_ID}/deployment.json")

    def prepare(self, chapter: int, line: str) -> None:
        """What others do before a command: keys made elsewhere, configurations filled in, time, a hub."""
        home = self.office.home
        if line.startswith("emcd keys show"):
            from emcd.keys import read_keystore_address

            self.values["DEPLOYER"] = read_keystore_address(home / "deployer.json")
            self.office.node.fund(self.values["DEPLOYER"])
        if chapter == 6 and "v1/emcd.toml" in line and not (home / "v1").exists():
            for name in VALIDATORS:
                self._configure(name)
        if chapter == 7 and self.office.node.now_s() < self.network().chain.deployment.params.genesis_time_s:
            self.network().to_round(1)
            self.network().publish(0)
        if "v1-next.json" in line:
            self.office.key("v1-next")
        if "guardian.json" in line:
            self.office.key("guardian")

    def _configure(self, name: str) -> None:
        """As `emcd init` leaves it, filled in as the page asks."""
        home = self.office.home
        made = self.office.run("init", "--role", "validator", "--dir", name)
        assert made.code == 0, made.err
        file = home / name / "emcd.toml"
        text = file.read_text()
        text = text.replace('hub_url = "FILL-IN"', 'hub_url = "http://127.0.0.1:8420"')
        text = text.replace(
            'hub_address = "FILL-IN"', f'hub_address = "{make_key("hub").address}"\napi_key_env = "KEYS"'
        )
        text = re.sub(
            r"^# *rpc_urls = .*$", f'rpc_urls = ["{self.office.node.url}"]', text, count=1, flags=re.MULTILINE
        )
        assert self.office.node.url in text
        file.write_text(text)
        key = home / name / "data" / "keys" / "validator-key.json"
        key.unlink()
        shutil.copy(self.office.key(name), key)
        shutil.copy(self.office.key(name), home / f"{name}-node.json")
        self.office.key(f"{name}-wallet")
        shutil.copy(
            home / f"deployments/{CHAIN_ID}/deployment.json", home / name / "data" / "deployment.json"
        )


def list_commands() -> Iterator[tuple[int, str, str]]:
    """(chapter, kind, text) of every block, a shell line each."""
    text = DOCUMENT.read_text("utf-8")
    starts = [(found.start(), int(found[1])) for found in CHAPTER.finditer(text)]
    for block in BLOCK.finditer(text):
        chapter = max((number for start, number in starts if start < block.start()), default=0)
        if block[1] == "toml":
            yield chapter, "toml", block[2]
        else:
            lines = block[2].replace("\\\n", " ").splitlines()
            yield from ((chapter, "sh", " ".join(line.split())) for line in lines if line.strip())


def test_every_command_of_the_page_does_what_it_says(tmp_path: Path) -> None:
    with anvil_node() as node:
        reader = Reader(Office(node, tmp_path))
        for chapter, kind, text in list_commands():
            if kind == "toml":
                (tmp_path / "plan.toml").write_text(reader.fill(text))
                continue
            if assigned := re.fullmatch(r'([A-Z]+)="(.*)"', text):
                reader.values[assigned[1]] = reader.fill(assigned[2])
                continue
            reader.prepare(chapter, text)
            names = VALIDATORS if chapter == 6 and "v1" in text else ("v1",)
            for name in names:
                line = text.replace("v1", name).replace("V1", name.upper())
                done = reader.run(line)
                assert done.code == 0, f"{line}\n{done.out}\n{done.err}"
        network = reader.network()
        lines = [line for line, _ in reader.done]
        check_end(reader, network)

    assert len(lines) > 35
    assert sum("--send" in line for line in lines) > 10


def check_end(reader: Reader, network: Network) -> None:
    """What the chain says when the page is done."""
    import trio

    found = network.run("chain", "status", "--json").json
    assert found["publications"]["void"] == [0]
    assert trio.run(network.chain.distributor.fetch_publication, 0).state is PublicationState.VOID
    assert [version["version"] for version in found["parameters"]["versions"]] == [1, 2]
    assert found["guardian"]["paused"] is False
    assert len(found["validators"]["members"]) == 4
    assert {member["endpoint"] for member in found["validators"]["members"]} == {
        f"https://{name}.example:8443" for name in VALIDATORS
    }
    first = next(done for line, done in reader.done if line.startswith("emcd chain status"))
    assert "validators of genesis: 0 of 4 have staked" in first.out


def test_page_names_only_commands_and_files_that_are_there() -> None:
    """Inline commands too: `emcd ...` between backticks."""
    from tests.integration.test_readme import resolve

    text = DOCUMENT.read_text("utf-8")
    inline = [code for code in re.findall(r"`([^`\n]+)`", BLOCK.sub("", text)) if code.startswith("emcd ")]
    assert len(inline) > 5
    for line in inline:
        resolve(line)


def test_page_says_of_every_power_what_the_contracts_hold() -> None:
    """The numbers in its text are those of the code."""
    from emcd.chain.contracts import load_artifact
    from emcd.proto.parameter_rule import FIXED

    text = DOCUMENT.read_text("utf-8")
    names = {entry.get("name") for entry in load_artifact("Distributor").abi}
    assert not names & {"owner", "transferOwnership", "upgradeTo", "setGuardian"}
    assert "7 days at most" in text
    for name in ("genesis", "round", "epoch", "day", "unbonding", "challenge delay", "fee"):
        assert name in text
    assert {"round_s", "epoch_rounds", "day_s", "unbonding_rounds", "challenge_delay_rounds"} <= set(FIXED)
