"""URLs that somebody else wrote: parsed strictly, and held against a list.

Owns the one reading of a URL that the project's clients use, so that what was checked is what is
connected to. It opens nothing and resolves no name. A URL with credentials, a fragment, a
backslash, a control character, a host written as a number, or another scheme is refused.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from urllib.parse import urlsplit

from emcd.errors import ConfigError

_DEFAULT_PORT = {"http": 80, "https": 443, "ws": 80, "wss": 443}
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMERIC_LABEL = re.compile(r"[0-9]+|0x[0-9a-f]*")
_MAX_URL = 4096


@dataclass(frozen=True, slots=True)
class Target:
    """Where a URL leads. `path` begins with a slash and carries the query."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def authority(self) -> str:
        """The Host header's value: no port where it is the scheme's own."""
        name = f"[{self.host}]" if ":" in self.host else self.host
        return name if self.port == _DEFAULT_PORT[self.scheme] else f"{name}:{self.port}"

    @property
    def origin(self) -> str:
        """Scheme, host and port, written in one way: what an allow list holds."""
        name = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{name}:{self.port}"

    @property
    def shown(self) -> str:
        """For logs and errors: without the query, which may hold a key."""
        return f"{self.origin}{self.path.partition('?')[0]}"

    @property
    def tls(self) -> bool:
        return self.scheme in ("https", "wss")


def parse_target(url: str, schemes: Collection[str] = ("http", "https")) -> Target:
    """Read a URL strictly.

    Raises: ConfigError EMC-1320 with what is wrong with it.
    """
    if len(url) > _MAX_URL or not url.isascii() or any(c <= " " or c in "\\\x7f" for c in url):
        raise ConfigError("EMC-1320", "a URL must be printable ASCII without spaces or backslashes")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as exc:
        raise ConfigError("EMC-1320", str(exc)) from exc
    if parts.scheme not in schemes or parts.scheme not in _DEFAULT_PORT:
        raise ConfigError("EMC-1320", f"scheme {parts.scheme!r} is not one of {', '.join(schemes)}")
    if "@" in parts.netloc:
        raise ConfigError("EMC-1320", "a URL must not carry credentials")
    if "#" in url:
        raise ConfigError("EMC-1320", "a URL must not carry a fragment")
    if port == 0 or parts.netloc.endswith(":"):
        raise ConfigError("EMC-1320", "the port must be a number from 1 to 65535")
    host = _require_host(parts.netloc, (parts.hostname or "").lower())
    path = parts.path or "/"
    return Target(
        scheme=parts.scheme,
        host=host,
        port=port or _DEFAULT_PORT[parts.scheme],
        path=f"{path}?{parts.query}" if "?" in url else path,
    )


def _require_host(netloc: str, host: str) -> str:
    """A DNS name, a dotted quad or a bracketed IPv6 address, nothing that only looks like one."""
    if netloc.startswith("["):
        try:
            return str(IPv6Address(host.replace("%", "?")))  # a zone has no place in a URL of ours
        except ValueError as exc:
            raise ConfigError("EMC-1320", f"{host!r} is not an IPv6 address") from exc
    labels = host.removesuffix(".").split(".")
    if len(host) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        raise ConfigError("EMC-1320", f"{host!r} is not a host name")
    if _NUMERIC_LABEL.fullmatch(labels[-1]):  # resolvers read 2130706433 and 0x7f.1 as addresses
        try:
            return str(IPv4Address(host))
        except ValueError as exc:
            raise ConfigError("EMC-1320", f"{host!r} is not an IPv4 address") from exc
    return host


def require_allowed(url: str, allowed: Collection[str]) -> Target:
    """Read a URL and hold its origin against a list of URLs of which only the origin counts.

    Raises: ConfigError EMC-1320 for a URL that is not well formed, EMC-1321 for one that is
    not on the list. Name, port and scheme must be the same: no suffixes, no wildcards.
    """
    target = parse_target(url)
    if target.origin not in {parse_target(entry).origin for entry in allowed}:
        raise ConfigError("EMC-1321", target.origin)
    return target


def require_public(url: str) -> Target:
    """Read a URL that a stranger published: https, and no address of a private network.

    A name is not resolved here, so this alone does not keep a name that resolves to a private
    address out; TLS does, since nothing private holds a certificate for the stranger's name.

    Raises: ConfigError EMC-1320 or EMC-1322.
    """
    target = parse_target(url, ("https",))
    address = _find_address(target.host)
    if (address is not None and not address.is_global) or is_loopback(target.host):
        raise ConfigError("EMC-1322", target.origin)
    return target


def is_loopback(host: str) -> bool:
    """Whether a host name or address can only be this machine."""
    address = _find_address(host)
    if address is None:
        return host.lower().removesuffix(".") == "localhost"
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return (mapped or address).is_loopback


def _find_address(host: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(host)
    except ValueError:
        return None
