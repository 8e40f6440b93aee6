"""`emcd check`, `emcd init`, `emcd doctor` and what stands behind them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from emcd.cli import check as check_module
from emcd.cli import examination
from emcd.cli import init as init_module
from emcd.cli.examination import Verdict, check_clock, check_disk, check_lock
from emcd.cli.examination_config import check_chain, check_port
from emcd.cli.main import main
from emcd.config import Config, HttpListen, KeyFile, Listen, RoleEntry, load_document, setting
from emcd.daemon.prepare import prepare
from emcd.errors import ConfigError, RecoverableError
from emcd.keys import write_keystore
from emcd.registry import Registry
from emcd.role import RoleSpec
from emcd.services import HealthBoard
from emcd.testing import make_key

Run = Callable[..., tuple[int, str, str]]
PASSWORD = "correct horse"


class Needed:
    """A service nobody may offer."""


@dataclass(frozen=True)
class SampleConfig:
    hub_url: str = setting(doc="where the hub is")
    key: KeyFile = setting(doc="the key it signs with")
    listen: Listen = Listen("127.0.0.1", 0)
    slots: int = setting(4, minimum=1, doc="how many at once")
    models: tuple[str, ...] = ("a", "b")


class Sample(Registry):
    """One installed role."""

    def __init__(self, **changes: object) -> None:
        super().__init__([])
        options = {"needs_network": False, "requires": (HealthBoard,)} | changes
        self.spec = RoleSpec(kind="sample", config=SampleConfig, build=lambda c: None, **options)  # type: ignore[arg-type, return-value]

    def list_kinds(self) -> list[str]:
        return ["sample"]

    def get(self, kind: str) -> RoleSpec:
        if kind != "sample":
            raise ConfigError("EMC-1015", kind)
        return self.spec


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EMCD_DATA_DIR", str(tmp_path / "data"))
    for name in ("EMCD_CONFIG", "EMCD_KEY_PASSWORD"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(check_module, "Registry", Sample)
    monkeypatch.setattr(init_module, "Registry", Sample)

    def invoke(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        out, err = capsys.readouterr()
        assert isinstance(caught.value.code, int)
        return caught.value.code, out, err

    return invoke


@pytest.fixture
def keystore(tmp_path: Path) -> Path:
    path = tmp_path / "k.json"
    write_keystore(path, make_key("k"), PASSWORD, kdf="light")
    return path


def make_config(tmp_path: Path, key: object, registry: Registry | None = None) -> Config:
    document = {
        "daemon": {"data_dir": str(tmp_path)},
        "role": [{"kind": "sample", "hub_url": "x", "key": key}],
    }
    return load_document(document, registry or Sample(), environment={})


def codes(config: Config, registry: Registry, **environment: str) -> list[str]:
    _, faults = prepare(config, registry, environment=environment)
    return [fault.code for fault in faults]


def test_prepare_opens_the_keys_of_every_role(tmp_path: Path, keystore: Path) -> None:
    config = make_config(tmp_path, str(keystore))
    prepared, faults = prepare(config, Sample(), environment={"EMCD_KEY_PASSWORD": PASSWORD})
    assert faults == []
    assert [key.address for key in prepared.keys.values()] == [make_key("k").address]
    assert make_key("k").reveal().hex() not in repr(prepared)


def test_prepare_password_sources(tmp_path: Path, keystore: Path) -> None:
    secret = tmp_path / "password"
    secret.write_text(PASSWORD + "\n")
    secret.chmod(0o600)
    by_file = {"file": str(keystore), "password_file": str(secret)}
    by_name = {"file": str(keystore), "password_env": "MY_PASSWORD"}
    assert codes(make_config(tmp_path, by_file), Sample()) == []
    assert codes(make_config(tmp_path, by_name), Sample(), MY_PASSWORD=PASSWORD) == []
    assert codes(make_config(tmp_path, by_name), Sample(), EMCD_KEY_PASSWORD=PASSWORD) == ["EMC-1108"]
    secret.chmod(0o644)
    assert codes(make_config(tmp_path, by_file), Sample()) == ["EMC-1106"]
    secret.unlink()
    assert codes(make_config(tmp_path, by_file), Sample()) == ["EMC-1108"]


def test_prepare_faults_are_all_found(tmp_path: Path) -> None:
    registry = Sample(requires=(Needed,), needs_network=True)
    found = codes(make_config(tmp_path, "none.json", registry), registry)
    assert found == ["EMC-1031", "EMC-1006", "EMC-1102"]
    (tmp_path / "deployment.json").write_text("{}")
    assert "EMC-1020" in codes(make_config(tmp_path, "none.json", registry), registry)


def test_prepare_wrong_password_is_a_fault(tmp_path: Path, keystore: Path) -> None:
    config = make_config(tmp_path, str(keystore))
    assert codes(config, Sample(), EMCD_KEY_PASSWORD="wrong horse") == ["EMC-1105"]
    assert codes(config, Sample()) == ["EMC-1108"]


def test_prepare_old_anyio_is_refused(
    tmp_path: Path, keystore: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda name: "3.7.1")
    config = make_config(tmp_path, str(keystore))
    _, faults = prepare(config, Sample(), environment={"EMCD_KEY_PASSWORD": PASSWORD})
    assert [fault.code for fault in faults] == ["EMC-1300"]
    assert "requirements.lock" in str(ConfigError(faults[0].code, faults[0].message))


def test_check_good_file_notes_what_it_could_not_open(run: Run, keystore: Path) -> None:
    Path("emcd.toml").write_text('[[role]]\nkind = "sample"\nhub_url = "x"\nkey = "' + str(keystore) + '"')
    code, out, _ = run("check", "emcd.toml")
    assert code == 0
    assert "was not opened" in out and "no fault found. Roles: sample" in out


def test_check_prints_every_fault_numbered(run: Run) -> None:
    Path("emcd.toml").write_text('[daemon]\nx = 1\n[[role]]\nkind = "sample"\nslots = 0')
    code, out, _ = run("check", "emcd.toml")
    assert code == 1
    assert [line[:2] for line in out.splitlines()] == ["1.", "2.", "3.", "4.", "em"]
    assert out.splitlines()[-1] == "emcd.toml: 4 faults"
    code, out, _ = run("check", "emcd.toml", "--json")
    data = json.loads(out)
    assert (code, data["ok"], [fault["number"] for fault in data["faults"]]) == (1, False, [1, 2, 3, 4])


def test_check_missing_file_is_a_fault(run: Run) -> None:
    code, out, _ = run("check", "none.toml")
    assert code == 1 and "EMC-1001" in out


def test_init_writes_a_config_that_checks(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMCD_KEY_PASSWORD", PASSWORD)
    monkeypatch.setattr("emcd.cli.init.write_keystore", lambda *a: write_keystore(*a, kdf="light"))
    code, out, err = run("init", "--role", "sample", "--dir", "here", "--json")
    assert code == 0, err
    text = Path("here/emcd.toml").read_text()
    assert "# how many at once\n# slots = 4" in text and '# models = ["a", "b"]' in text
    assert 'hub_url = "FILL-IN"' in text and 'key = "keys/sample-key.json"' in text
    assert Path("here/data/keys/sample-key.json").stat().st_mode & 0o777 == 0o600
    code, checked, _ = run("check", "here/emcd.toml")
    assert code == 0, checked
    assert json.loads(out)["keys"]["key"].startswith("0x")
    code, _, err = run("init", "--role", "sample", "--dir", "here")
    assert (code, err[:8]) == (1, "EMC-1033")


@pytest.mark.parametrize("kind", Registry().list_kinds())
def test_init_template_of_every_installed_role_is_toml(kind: str) -> None:
    import tomllib

    from emcd.config.template import render_template

    document = tomllib.loads(render_template(kind, kind, Registry().get(kind).config, {}))
    assert document["role"][0]["kind"] == kind


def test_doctor_prints_one_verdict_per_check(run: Run) -> None:
    code, out, _ = run("doctor", "--json")
    findings = json.loads(out)
    assert [f["check"] for f in findings] == [
        "python", "anyio", "packages", "sqlite", "onnxruntime", "disk", "sync", "clock",
    ]  # fmt: skip
    assert code == int(any(f["verdict"] == "bad" for f in findings))


def test_doctor_with_a_config_looks_at_its_faults(run: Run) -> None:
    Path("emcd.toml").write_text("[daemon]\nx = 1")
    code, out, _ = run("doctor", "emcd.toml")
    assert code == 1
    assert "FAIL  config" in out


def test_check_lock_names_what_differs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = tmp_path / "requirements.lock"
    lock.write_text(
        "trio==0.0.1 \\\n    --hash=sha256:00\nno-such-package==1 ; python_version > '3'\npip==0\n"
    )
    finding = check_lock(lock)
    assert finding.verdict is Verdict.BAD
    assert "trio" in finding.detail and "no-such-package missing (lock: 1)" in finding.detail
    assert "pip" not in finding.detail.replace("pip install", "")
    monkeypatch.setattr(examination, "_find_version", lambda name: {"trio": "0.0.1"}.get(name, "1"))
    assert check_lock(lock).verdict is Verdict.GOOD
    assert check_lock(tmp_path / "none").verdict is Verdict.WARNING


def test_check_clock_in_the_past_is_bad() -> None:
    assert check_clock(0).verdict is Verdict.BAD


def test_check_disk_looks_at_the_nearest_folder_that_exists(tmp_path: Path) -> None:
    assert check_disk(tmp_path / "a" / "b").verdict in (Verdict.GOOD, Verdict.WARNING)


def test_check_port_in_use_is_bad_unless_it_is_ours() -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        listen = Listen("127.0.0.1", taken.getsockname()[1])
        assert check_port("hub.listen", listen, running=False).verdict is Verdict.BAD
        assert check_port("hub.listen", listen, running=True).verdict is Verdict.GOOD
    assert check_port("hub.listen", Listen("127.0.0.1", 0), running=False).verdict is Verdict.GOOD


def test_check_port_of_a_unix_socket_is_bad_unless_free_or_ours(tmp_path: Path) -> None:
    import socket

    path = tmp_path / "hub.sock"
    listen = HttpListen(unix=path)
    assert check_port("hub.listen", listen, running=False).verdict is Verdict.GOOD
    with socket.socket(socket.AF_UNIX) as taken:
        taken.bind(str(path))
        taken.listen()
        assert check_port("hub.listen", listen, running=False).verdict is Verdict.BAD
        assert check_port("hub.listen", listen, running=True).verdict is Verdict.GOOD
    assert check_port("hub.listen", listen, running=False).verdict is Verdict.GOOD, "left by a killed process"
    path.unlink()
    path.write_text("a file")
    assert check_port("hub.listen", listen, running=True).verdict is Verdict.BAD
    elsewhere = HttpListen(unix=tmp_path / "none" / "hub.sock")
    assert check_port("hub.listen", elsewhere, running=False).verdict is Verdict.BAD


def test_role_entry_shows_no_key(tmp_path: Path, keystore: Path) -> None:
    config = make_config(tmp_path, str(keystore))
    assert isinstance(config.roles[0], RoleEntry)
    assert PASSWORD not in repr(config)


@pytest.mark.parametrize(
    ("head_lag_s", "verdict"), [(-1, Verdict.GOOD), (-3600, Verdict.WARNING), (60, Verdict.BAD)]
)
def test_check_chain_compares_the_clock_with_the_newest_block(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, keystore: Path, head_lag_s: int, verdict: Verdict
) -> None:
    async def ask(_prepared: object) -> tuple[int, int, list[str]]:
        return 31337, int(time.time()) + head_lag_s, []

    monkeypatch.setattr("emcd.cli.examination_config._ask_chain", ask)
    prepared, _ = prepare(make_config(tmp_path, str(keystore)), Sample(), passwords_required=False)
    assert check_chain(prepared).verdict is verdict


def test_check_chain_one_of_two_addresses_that_fails_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, keystore: Path
) -> None:
    async def ask(_prepared: object) -> tuple[int, int, list[str]]:
        return 31337, int(time.time()), ["http://two:1: refused"]

    monkeypatch.setattr("emcd.cli.examination_config._ask_chain", ask)
    prepared, _ = prepare(make_config(tmp_path, str(keystore)), Sample(), passwords_required=False)
    finding = check_chain(prepared)
    assert finding.verdict is Verdict.WARNING
    assert "http://two:1: refused" in finding.detail


def test_check_chain_without_an_answer_is_bad(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, keystore: Path
) -> None:
    async def ask(_prepared: object) -> tuple[int, int, list[str]]:
        raise RecoverableError("EMC-1502", "nobody there")

    monkeypatch.setattr("emcd.cli.examination_config._ask_chain", ask)
    prepared, _ = prepare(make_config(tmp_path, str(keystore)), Sample(), passwords_required=False)
    finding = check_chain(prepared)
    assert (finding.verdict, finding.detail) == (Verdict.BAD, "nobody there")
