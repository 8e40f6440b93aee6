"""TLS contexts, one way to make each. Reads certificate files, opens no connection.

Invariants: TLS 1.2 or newer; a client always verifies the chain and the name; nothing here can
turn that off. Contexts are made at start, since reading the machine's CA store takes milliseconds.
"""

from __future__ import annotations

import ssl
from functools import cache
from pathlib import Path

from emcd.errors import ConfigError


@cache
def client_context(ca_file: Path | None = None) -> ssl.SSLContext:
    """The context of outgoing connections, made once.

    Args:
        ca_file: trust this CA and no other; default: the machine's CA store.

    Raises: ConfigError EMC-1323 when the CA file cannot be used.
    """
    try:
        context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=ca_file)
    except (OSError, ssl.SSLError) as exc:
        raise ConfigError("EMC-1323", f"{ca_file}: {exc}") from exc
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def server_context(cert_file: Path, key_file: Path) -> ssl.SSLContext:
    """The context of a listener: HTTP/1.1 only, no client certificates.

    Raises: ConfigError EMC-1323 when a file is missing, or key and certificate do not match.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(cert_file, key_file, password=_no_passphrase)
    except (OSError, ssl.SSLError, ValueError) as exc:
        raise ConfigError("EMC-1323", f"{cert_file}, {key_file}: {exc}") from exc
    return context


def _no_passphrase() -> str:
    """An encrypted key would make OpenSSL ask on the terminal, and a daemon wait for ever."""
    raise ValueError("the key is encrypted; give one that is not, readable by the daemon only")
