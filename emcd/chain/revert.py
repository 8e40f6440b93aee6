"""Why a call was refused by a contract: revert data decoded with the errors of our contracts.

Owns the reading of revert data. Whatever the data is, a `Revert` comes out: names are best effort,
the bytes are always kept.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

from emcd.chain.abi import DecodeError, ErrorAbi, decode_values, load_contract
from emcd.chain.contracts import CONTRACT_NAMES
from emcd.errors import EmcdError

_PANICS = {
    0x01: "assertion failed",
    0x11: "arithmetic overflow",
    0x12: "division by zero",
    0x21: "bad enum value",
    0x32: "index out of range",
    0x41: "out of memory",
    0x51: "call of an empty function",
}
_ERROR_SELECTOR = bytes.fromhex("08c379a0")
_PANIC_SELECTOR = bytes.fromhex("4e487b71")


@dataclass(frozen=True)
class Revert:
    """A contract's refusal. `name` is the custom error, "Error", "Panic" or "" when unknown."""

    name: str
    args: dict[str, Any] = field(default_factory=dict)
    data: bytes = b""
    message: str = ""

    @property
    def text(self) -> str:
        """One line for people."""
        if self.name == "Error":
            return str(self.args.get("message", ""))
        if self.name == "Panic":
            code = int(self.args.get("code", 0))
            return f"panic 0x{code:02x} ({_PANICS.get(code, 'unknown')})"
        if self.name:
            return f"{self.name}({', '.join(f'{k}={_show(v)}' for k, v in self.args.items())})"
        return self.message or (
            f"reverted with 0x{self.data[:68].hex()}" if self.data else "reverted without a reason"
        )


class CallReverted(EmcdError):
    """EMC-1504: a contract refused; `reason` says why."""

    def __init__(self, reason: Revert, what: str = "") -> None:
        super().__init__("EMC-1504", f"{what}: {reason.text}" if what else reason.text)
        self.reason = reason


def decode_revert(data: bytes, message: str = "") -> Revert:
    """Read revert data; `message` is what the node said, used when the data says nothing."""
    selector, rest = data[:4], data[4:]
    try:
        if selector == _ERROR_SELECTOR:
            return Revert("Error", {"message": decode_values(("string",), rest)[0]}, data, message)
        if selector == _PANIC_SELECTOR:
            return Revert("Panic", {"code": decode_values(("uint256",), rest)[0]}, data, message)
        error = _known_errors().get(selector)
        if error is not None:
            return Revert(error.name, error.decode(rest), data, message)
    except DecodeError:
        pass
    return Revert("", {}, data, message)


@cache
def _known_errors() -> dict[bytes, ErrorAbi]:
    found: dict[bytes, ErrorAbi] = {}
    for name in CONTRACT_NAMES:
        for selector, error in load_contract(name).errors.items():
            found[selector] = _merge(found[selector], error) if selector in found else error
    return found


def _merge(one: ErrorAbi, other: ErrorAbi) -> ErrorAbi:
    """An error that two contracts declare: an argument that they name differently has its place for a name.

    Which of them refused can't be told from the data, nor from the address: calls are nested.
    """
    inputs = tuple(
        a if a.name == b.name else replace(a, name=str(place))
        for place, (a, b) in enumerate(zip(one.inputs, other.inputs, strict=True))
    )
    return replace(one, inputs=inputs)


def _show(value: Any) -> str:
    return "0x" + value.hex() if isinstance(value, bytes) else str(value)
