"""Keystores and keys: nothing leaks, nothing is overwritten, bad files are named."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest

from emcd.errors import ConfigError
from emcd.keys import SigningKey, generate_key, load_keystore, read_keystore_address, write_keystore
from emcd.proto.signing import recover_digest, sign_digest
from emcd.testing import make_key
from emcd.types import Hash

PASSWORD = "correct horse"
SECRET = make_key("a").reveal()
ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141


@pytest.fixture
def keystore(tmp_path: Path) -> Path:
    path = tmp_path / "keys" / "a.json"
    write_keystore(path, SigningKey(SECRET), PASSWORD, kdf="light")
    return path


def test_keystore_round_trip(keystore: Path) -> None:
    key = load_keystore(keystore, PASSWORD)
    assert key == SigningKey(SECRET)
    assert read_keystore_address(keystore) == key.address
    assert keystore.stat().st_mode & 0o777 == 0o600
    assert SECRET.hex() not in keystore.read_text()


def test_keystore_is_never_overwritten(keystore: Path) -> None:
    before = keystore.read_bytes()
    with pytest.raises(ConfigError, match="EMC-1101"):
        write_keystore(keystore, generate_key(), PASSWORD, kdf="light")
    assert keystore.read_bytes() == before


def test_keystore_in_an_unwritable_place_is_a_config_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="EMC-1104"):
        write_keystore(tmp_path / "file" / "a.json", generate_key(), PASSWORD, kdf="light")


def test_keystore_wrong_password_is_named_without_it(keystore: Path) -> None:
    with pytest.raises(ConfigError, match="EMC-1105") as caught:
        load_keystore(keystore, "wrong horse")
    assert "wrong horse" not in str(caught.value)


def edit(path: Path, change: Callable[[dict[str, object]], None]) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def test_keystore_of_another_address_is_refused(keystore: Path) -> None:
    edit(keystore, lambda document: document.update(address=make_key("b").address[2:].lower()))
    with pytest.raises(ConfigError, match="EMC-1103"):
        load_keystore(keystore, PASSWORD)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "null", "{}", '{"version": 1}', '{"version": 3}', '{"version": 3, "address": 7}',
     '{"version": 3, "address": "zz"}', '{"version": 3, "address": "00"}', "\udcff"],
)  # fmt: skip
def test_keystore_garbage_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    path.chmod(0o600)
    for use in (read_keystore_address, lambda p: load_keystore(p, PASSWORD)):
        with pytest.raises(ConfigError, match="EMC-1103"):
            use(path)


def test_keystore_with_unknown_kdf_is_named(keystore: Path) -> None:
    edit(keystore, lambda document: document["crypto"].update(kdf="md5"))  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="EMC-1103"):
        load_keystore(keystore, PASSWORD)


def test_keystore_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"EMC-1102.*none\.json"):
        load_keystore(tmp_path / "none.json", PASSWORD)


@pytest.mark.parametrize("mode", [0o644, 0o604, 0o602, 0o601])
def test_keystore_open_to_everybody_is_refused(keystore: Path, mode: int) -> None:
    keystore.chmod(mode)
    with pytest.raises(ConfigError, match="EMC-1106"):
        load_keystore(keystore, PASSWORD)


@pytest.mark.parametrize("secret", [b"", bytes(32), b"\x01" * 31, b"\x01" * 33, ORDER.to_bytes(32, "big")])
def test_signing_key_of_no_key_is_refused(secret: bytes) -> None:
    with pytest.raises(ValueError, match="private key"):
        SigningKey(secret)


def test_signing_key_shows_its_address_alone() -> None:
    key = SigningKey(SECRET)
    for shown in (repr(key), str(key), f"{key}", f"{[key]}"):
        assert SECRET.hex() not in shown and repr(SECRET) not in shown
        assert key.address in shown
    assert not hasattr(key, "__dict__")


def test_signing_key_is_never_pickled_or_copied() -> None:
    for duplicate in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="never pickled"):
            duplicate(SigningKey(SECRET))


def test_signing_key_signature_recovers_its_address() -> None:
    key = SigningKey(SECRET)
    digest = Hash(b"\x07" * 32)
    assert recover_digest(digest, key.sign_digest(digest)) == key.address
    assert key.sign_digest(digest) == sign_digest(digest, SECRET)


def test_generated_keys_differ() -> None:
    assert generate_key() != generate_key()
    assert generate_key() != "a text"
    assert len({SigningKey(SECRET), SigningKey(SECRET)}) == 1
