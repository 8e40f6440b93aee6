"""`${VAR}` and `${VAR:-default}` in the strings of a TOML document; `$${` is a literal `${`.

A replaced string becomes `FromEnvironment`, which the decoder may read as the number or boolean
that its field asks for, and which it never repeats in a message: it may be a secret.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from emcd.config.fault import UNSET_VARIABLE, Fault

_REFERENCE = re.compile(r"\$(?:(\$\{)|\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\})")


class FromEnvironment(str):
    """A string in which a variable was replaced."""

    __slots__ = ()


def replace_variables(value: Any, where: str, environment: Mapping[str, str]) -> tuple[Any, list[Fault]]:
    """Replace every reference below `value`. Returns the new value and a fault per unset variable."""
    faults: list[Fault] = []
    return _replace(value, where, environment, faults), faults


def _replace(value: Any, where: str, environment: Mapping[str, str], faults: list[Fault]) -> Any:
    if isinstance(value, str):
        return _replace_text(value, where, environment, faults)
    if isinstance(value, dict):
        return {
            key: _replace(item, f"{where}.{key}" if where else key, environment, faults)
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [_replace(item, f"{where}[{i}]", environment, faults) for i, item in enumerate(value)]
    return value


def _replace_text(text: str, where: str, environment: Mapping[str, str], faults: list[Fault]) -> str:
    if "$" not in text:
        return text

    def find(match: re.Match[str]) -> str:
        literal, name, default = match.groups()
        if literal:
            return "${"
        found = environment.get(name) or default
        if found is None:
            faults.append(Fault(where, f"the environment variable {name} is not set", UNSET_VARIABLE))
            return ""
        return found

    replaced = _REFERENCE.sub(find, text)
    return FromEnvironment(replaced) if replaced != text else text
