"""Files of the devnet's folder: private, whole, made once."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from emcd.errors import ConfigError
from emcd.inference.manifest import TextManifest, model_hash
from emcd.inference.minilm import MINILM_MANIFEST
from emcd.inference.model_folder import hash_files, write_model_folder
from emcd.keys import read_keystore_address
from emcd.proto.network import Deployment
from emcd.proto.parameter_rule import list_faults
from emcd.proto.params import ModelStanding, NetworkParams, PriceTable
from emcd_devchain.devnet import prepare
from emcd_devchain.devnet.layout import DevnetLayout, read_layout
from emcd_devchain.devnet.prepare import daemon_variables, ensure_devnet, keystore, open_key, write_private
from emcd_devchain.devnet.roster import MEMBERS


@pytest.fixture
def layout(tmp_path: Path) -> DevnetLayout:
    return read_layout({"EMCD_DEVNET_DIR": str(tmp_path)})


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_write_private_makes_a_file_for_its_owner_only(tmp_path: Path) -> None:
    write_private(tmp_path / "secret", "x")

    assert mode(tmp_path / "secret") == 0o600


def test_write_private_replaces_a_file_whole_and_closes_an_open_one(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text("an old and longer text")
    file.chmod(0o644)

    write_private(file, "new")

    assert file.read_text() == "new"
    assert mode(file) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["secret"]


def test_make_keys_gives_everybody_a_key_and_a_wallet_of_their_own(layout: DevnetLayout) -> None:
    keys = prepare._make_keys(layout)

    assert {name for member in MEMBERS for name in (member.name, member.wallet_name)} == set(keys)
    assert len({key.address for key in keys.values()}) == len(keys)
    for name, key in keys.items():
        assert read_keystore_address(keystore(layout, name)) == key.address
        assert mode(keystore(layout, name)) == 0o600
    assert open_key(layout, "node-1").address == keys["node-1"].address
    assert mode(layout.password) == mode(layout.admin_token) == 0o600


def test_daemon_variables_hold_no_secret(layout: DevnetLayout) -> None:
    keys = prepare._make_keys(layout)

    variables = daemon_variables(layout)

    assert variables["EMCD_HUB_ADDRESS"] == keys["hub"].address
    for secret in (layout.password.read_text().strip(), layout.admin_token.read_text().strip()):
        assert not any(secret in value for value in variables.values())


def test_clear_half_made_removes_what_a_preparation_makes_and_nothing_else(layout: DevnetLayout) -> None:
    prepare._make_keys(layout)
    layout.chain.write_text("half")
    layout.chain.with_name(layout.chain.name + "-wal").write_text("half")
    (layout.folder / "notes.txt").write_text("mine")

    prepare._clear_half_made(layout)

    assert not layout.keys.exists()
    assert not list(layout.folder.glob("devchain*"))
    assert (layout.folder / "notes.txt").read_text() == "mine"
    assert set(prepare._make_keys(layout))


async def test_ensure_devnet_made_for_another_port_is_refused(layout: DevnetLayout) -> None:
    layout.summary.write_text('{"hub_url": "http://127.0.0.1:9420"}')

    with pytest.raises(ConfigError, match="9420") as caught:
        await ensure_devnet(layout, print)

    assert caught.value.code == "EMC-2230"


async def test_ensure_devnet_made_with_other_participants_is_refused(layout: DevnetLayout) -> None:
    names = [{"name": member.name} for member in prepare.BOUND if member is not prepare.ROUTER]
    layout.summary.write_text(json.dumps({"hub_url": layout.hub_url, "participants": names}))

    with pytest.raises(ConfigError, match="router-1") as caught:
        await ensure_devnet(layout, print)

    assert caught.value.code == "EMC-2238"


def test_paced_tells_the_first_line_at_once_and_then_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(prepare.time, "monotonic", lambda: now)
    told: list[str] = []
    say = prepare._paced(told.append)
    for line in ("one", "two", "three"):
        say(line)
        now += prepare.PACE_S / 2
    assert told == ["one", "three"]


async def test_ensure_devnet_enforces_the_models_that_it_serves(
    layout: DevnetLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The text model's hash is this machine's own: it is made before the chain, and named by it."""
    files: dict[str, bytes | Path] = {"model.onnx": b"a", "tokenizer.json": b"b", "golden.json": b"c"}
    manifest = TextManifest(
        name="emcd-tiny-1",
        files=hash_files(files),
        context_tokens=8,
        vocab_tokens=8,
        bos_token=None,
        stop_tokens=(),
    )

    def train(models_dir: Path, say: object) -> Path:
        return write_model_folder(models_dir, "emcd-tiny-1", manifest, files).path

    built: list[NetworkParams] = []

    async def build(_: object, __: object, params: NetworkParams) -> Deployment:
        built.append(params)
        raise KeyboardInterrupt

    monkeypatch.setattr(prepare, "ensure_tiny", train)
    monkeypatch.setattr(prepare, "_build_chain", build)
    with pytest.raises(KeyboardInterrupt):
        await ensure_devnet(layout, lambda _: None)

    for name in (model_hash(manifest), model_hash(MINILM_MANIFEST)):
        assert built[0].standing_of(name) is ModelStanding.ENFORCED
    assert built[0].standing_of(bytes(32)) is ModelStanding.SHADOW
    assert list_faults(built[0], PriceTable()) == []
