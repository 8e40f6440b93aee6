"""Private keys: keystore v3 files, and the object that signs with a decrypted one.

Owns reading and writing keystore files (mode 0600). It must not log, print or return a secret
except through `SigningKey.reveal`. Invariants: no secret in a repr, a str, a pickle or a
dataclass dump; key derivation is slow and blocking, so every function here that derives is
called in a thread. Source: Web3 Secret Storage v3, through eth-account.
"""

from __future__ import annotations

import json
import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from coincurve import PrivateKey

from emcd.errors import ConfigError
from emcd.proto.address import address_from_bytes, address_of_key
from emcd.proto.eip712 import Domain, TypedStruct, digest
from emcd.recursion import cap_recursion
from emcd.types import Address, Hash

if TYPE_CHECKING:
    from eth_account import Account

Kdf = Literal["scrypt", "light"]
"""`light` is PBKDF2 with 4,096 rounds: for a devnet, whose password is known to everybody."""

_LIGHT_ITERATIONS = 4096
_ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141


class SigningKey:
    """A decrypted private key that signs; it shows nothing but its address."""

    __slots__ = ("_private", "address")

    def __init__(self, secret: bytes) -> None:
        """Raises: ValueError when the 32 bytes are no key of the curve."""
        if len(secret) != 32 or not 0 < int.from_bytes(secret, "big") < _ORDER:
            raise ValueError("a private key is 32 bytes between 1 and the curve's order")
        self._private = PrivateKey(secret)  # kept: making it costs twice what a signature does
        self.address: Address = address_of_key(secret)

    def sign(self, domain: Domain, struct: TypedStruct) -> bytes:
        """Sign an EIP-712 struct: 65 bytes r, s, v."""
        return self.sign_digest(digest(domain, struct))

    def sign_digest(self, message_digest: Hash) -> bytes:
        """Sign 32 bytes that are a digest already: 65 bytes r, s, v."""
        raw = self._private.sign_recoverable(message_digest, hasher=None)
        return raw[:64] + bytes([raw[64] + 27])

    def reveal(self) -> bytes:
        """The secret itself, for the keystore and the chain's transaction signer alone."""
        return self._private.secret

    def __repr__(self) -> str:
        return f"SigningKey({self.address})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SigningKey) and secrets.compare_digest(self.reveal(), other.reveal())

    def __hash__(self) -> int:
        return hash(self.address)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a SigningKey is never pickled or copied")


def generate_key() -> SigningKey:
    """A new key from the operating system's entropy."""
    while True:
        try:
            return SigningKey(secrets.token_bytes(32))
        except ValueError:  # once in 2**128 draws
            continue


def write_keystore(path: Path, key: SigningKey, password: str, *, kdf: Kdf = "scrypt") -> None:
    """Encrypt a key into a new keystore file of mode 0600. Blocking: derives a key.

    Raises: ConfigError EMC-1101 when the file exists (a key is never overwritten), EMC-1104 when
    it can't be written.
    """
    text = json.dumps(encrypt_key(key, password, kdf=kdf), indent=1)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as exc:
        raise ConfigError("EMC-1104", f"{path.parent}: {exc.strerror}") from exc
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError as exc:
        raise ConfigError("EMC-1101", f"{path} exists already") from exc
    except OSError as exc:
        raise ConfigError("EMC-1104", f"{path}: {exc.strerror}") from exc


def encrypt_key(key: SigningKey, password: str, *, kdf: Kdf = "scrypt") -> dict[str, Any]:
    """The keystore's JSON object. Blocking: derives a key."""
    account = _import_account()
    if kdf == "light":
        return dict(account.encrypt(key.reveal(), password, kdf="pbkdf2", iterations=_LIGHT_ITERATIONS))
    return dict(account.encrypt(key.reveal(), password, kdf="scrypt"))


def load_keystore(path: Path, password: str) -> SigningKey:
    """Decrypt a keystore file. Blocking: derives a key.

    Raises: ConfigError EMC-1102 (no such file, unreadable), EMC-1103 (no keystore), EMC-1105
    (wrong password), EMC-1106 (everybody may read the file).
    """
    return decrypt_keystore(_read_keystore(path), password, str(path))


def decrypt_keystore(document: dict[str, Any], password: str, where: str) -> SigningKey:
    """Decrypt a keystore's JSON object; `where` names it in messages. Blocking: derives a key.

    Raises: ConfigError EMC-1103 (no keystore), EMC-1105 (wrong password).
    """
    try:
        secret = bytes(_import_account().decrypt(document, password))
    except ValueError as exc:
        if "MAC" in str(exc):
            raise ConfigError("EMC-1105", f"{where} does not open with this password") from None
        raise ConfigError("EMC-1103", f"{where}: {exc}") from exc
    except (TypeError, KeyError, NotImplementedError) as exc:
        raise ConfigError("EMC-1103", f"{where} is no keystore v3 file") from exc
    key = SigningKey(secret)
    named = document.get("address")
    if isinstance(named, str) and named.lower().removeprefix("0x") != key.address[2:].lower():
        raise ConfigError("EMC-1103", f"{where} names address {named} and holds the key of {key.address}")
    return key


def read_keystore_address(path: Path) -> Address:
    """The address a keystore file names, without its password.

    Raises: ConfigError EMC-1102, EMC-1103, EMC-1106.
    """
    named = _read_keystore(path).get("address")
    if not isinstance(named, str):
        raise ConfigError("EMC-1103", f"{path} names no address")
    try:
        return address_from_bytes(bytes.fromhex(named.removeprefix("0x")))
    except ValueError as exc:
        raise ConfigError("EMC-1103", f"{path} names no address") from exc


def require_private(path: Path) -> None:
    """Raises: ConfigError EMC-1106 when everybody on the machine may read or write the file."""
    if path.stat().st_mode & 0o007:
        raise ConfigError("EMC-1106", f"{path} is open to every user of this machine")


def _import_account() -> type[Account]:
    """eth-account's entrance. It takes 0.6 s to import: only who makes or opens a key pays."""
    from eth_account import Account

    cap_recursion()
    return Account


def _read_keystore(path: Path) -> dict[str, Any]:
    try:
        require_private(path)
        document = json.loads(path.read_bytes())
    except OSError as exc:
        raise ConfigError("EMC-1102", f"{path}: {exc.strerror}") from exc
    except ValueError as exc:
        raise ConfigError("EMC-1103", f"{path} is not JSON") from exc
    if not isinstance(document, dict) or document.get("version") != 3:
        raise ConfigError("EMC-1103", f"{path} is no keystore v3 file")
    return document
