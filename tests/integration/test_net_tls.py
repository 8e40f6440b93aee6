"""TLS contexts: files that cannot be used stop the start, and nothing old is spoken."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from emcd.errors import ConfigError
from emcd.net.tls import client_context, server_context
from tests.support.net_world import Tls


def test_server_context_of_good_files_speaks_tls_1_2_and_newer(tmp_path: Path) -> None:
    tls = Tls.make(tmp_path)
    context = server_context(tls.cert_file, tls.key_file)
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2


def test_server_context_of_missing_files_raises(tmp_path: Path) -> None:
    tls = Tls.make(tmp_path)
    for cert, key in ((tmp_path / "none", tls.key_file), (tls.cert_file, tmp_path / "none")):
        with pytest.raises(ConfigError, match="EMC-1323"):
            server_context(cert, key)


def test_server_context_of_another_key_raises(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    one, two = Tls.make(tmp_path / "a"), Tls.make(tmp_path / "b")
    with pytest.raises(ConfigError, match="EMC-1323"):
        server_context(one.cert_file, two.key_file)


def test_server_context_of_an_encrypted_key_raises_and_does_not_ask(tmp_path: Path) -> None:
    tls = Tls.make(tmp_path)
    key = serialization.load_pem_private_key(tls.key_file.read_bytes(), None)
    tls.key_file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"password"),
        )
    )
    with pytest.raises(ConfigError, match="EMC-1323"):
        server_context(tls.cert_file, tls.key_file)


def test_client_context_verifies_and_is_made_once() -> None:
    context = client_context()
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
    assert client_context() is context


def test_client_context_of_a_missing_ca_raises(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="EMC-1323"):
        client_context(tmp_path / "none")
