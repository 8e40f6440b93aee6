"""Values with a meaning of their own in a config file: listening addresses and keystore files.

A class with `from_text` may be written as a string; `check` judges the whole of it.
"""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from emcd.config.fault import Fault

OPEN_WITHOUT_TLS = "EMC-1010"
BAD_ADDRESS = "EMC-1011"
UNIX = "unix:"
_UNIX_BYTES = 107  # what the kernel takes as a unix socket's path


def setting(
    default: Any = ...,
    *,
    factory: Any = None,
    minimum: float | None = None,
    maximum: float | None = None,
    pattern: str | None = None,
    doc: str = "",
) -> Any:
    """A dataclass field with a range (of the number, or of a text's or list's length) and a sentence.

    Args:
        pattern: a regular expression that the whole text must match.
        doc: what the setting does; `emcd init` writes it as a comment.
    """
    metadata = {"minimum": minimum, "maximum": maximum, "pattern": pattern, "doc": doc}
    if factory is not None:
        return field(default_factory=factory, metadata=metadata)
    if default is ...:
        return field(metadata=metadata)
    return field(default=default, metadata=metadata)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the host."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True)
class Listen:
    """Where a server listens: "127.0.0.1:8420", "[::1]:8420", or a table with the TLS files.

    Port 0 takes any free port. Off loopback both TLS files are required.
    """

    host: str
    port: int = setting(minimum=0, maximum=65535)
    tls_cert: Path | None = None
    tls_key: Path | None = None

    @classmethod
    def from_text(cls, text: str) -> Self:
        """Parse "host:port". Raises: ValueError."""
        host, separator, port = text.rpartition(":")
        if not separator or not port.isascii() or not port.isdigit() or int(port) > 65535:
            raise ValueError("expected host:port with a port between 0 and 65535")
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
        elif ":" in host:
            raise ValueError("an IPv6 address stands in brackets: [::1]:8420")
        if not host:
            raise ValueError("the host is missing: 127.0.0.1 for this machine, 0.0.0.0 for all networks")
        return cls(host, int(port))

    def check(self) -> list[Fault]:
        if (self.tls_cert is None) != (self.tls_key is None):
            return [Fault("", "tls_cert and tls_key belong together")]
        if not is_loopback(self.host):
            if self.host != "" and _no_host(self.host):
                return [Fault("host", f"{self.host!r} is neither an IP address nor a host name", BAD_ADDRESS)]
            if self.tls_cert is None:
                return [
                    Fault("", f"{self.host} is reached from other machines and has no TLS", OPEN_WITHOUT_TLS)
                ]
        return [
            Fault(name, f"{path} can't be read", BAD_ADDRESS)
            for name, path in (("tls_cert", self.tls_cert), ("tls_key", self.tls_key))
            if path is not None and not os.access(path, os.R_OK)
        ]

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True)
class HttpListen(Listen):
    """Where an HTTP server listens: as `Listen`, or on a unix socket of this machine: "unix:PATH".

    Only processes of this machine reach a unix socket, so it wants no TLS; `unix_mode` says whose.
    """

    host: str = ""
    port: int = setting(-1, minimum=0, maximum=65535)
    unix: Path | None = None
    unix_mode: int = setting(0o660, minimum=0o600, maximum=0o777, doc="of the socket's file: who may connect")

    @classmethod
    def from_text(cls, text: str) -> Self:
        """Parse "unix:PATH" or "host:port". Raises: ValueError."""
        if not text.startswith(UNIX):
            return super().from_text(text)
        path = text.removeprefix(UNIX)
        if not path or "\0" in path:
            raise ValueError("the path is missing: unix:hub.sock, for one in the data directory")
        return cls(unix=Path(path))

    def check(self) -> list[Fault]:
        if self.unix is None:
            if not self.host or self.port < 0:
                return [Fault("", "give host and port, or unix")]
            return super().check()
        if self.host or self.port >= 0 or self.tls_cert is not None or self.tls_key is not None:
            return [Fault("unix", "takes the place of host and port, and wants no TLS")]
        if len(os.fsencode(self.unix)) > _UNIX_BYTES:
            return [Fault("unix", f"{self.unix} is longer than {_UNIX_BYTES} bytes", BAD_ADDRESS)]
        return []

    def __str__(self) -> str:
        return super().__str__() if self.unix is None else f"{UNIX}{self.unix}"


@dataclass(frozen=True)
class KeyFile:
    """A keystore file and where its password comes from; never the password itself."""

    file: Path
    password_file: Path | None = None
    password_env: str = ""

    @classmethod
    def from_text(cls, text: str) -> KeyFile:
        """A file alone; the password comes from EMCD_KEY_PASSWORD."""
        return cls(Path(text))

    def check(self) -> list[Fault]:
        if self.password_file is not None and self.password_env:
            return [Fault("", "give password_file or password_env, not both")]
        return []


def _no_host(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        labels = host.rstrip(".").split(".")
        return not all(
            label and len(label) <= 63 and label.replace("-", "a").replace("_", "a").isalnum()
            for label in labels
        )
    return False
