"""Strict decoding of TOML tables into frozen dataclasses: a class's fields ARE its configuration.

Pure: no file is opened. Invariants: an unknown key is a fault; every fault of the table is
reported, not the first; a value from the environment is never repeated in a message. A field's
type may be str, int, float, bool, Path, Address, Hash, a NewType, Literal, Enum, `X | None`,
tuple[X, ...], dict[str, X], or another dataclass; any other type is our bug (TypeError).
"""

from __future__ import annotations

import dataclasses
import math
import re
import types
from collections.abc import Callable, Mapping
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any, Literal, NewType, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from emcd.config.environment import FromEnvironment
from emcd.config.fault import BAD_VALUE, MISSING_KEY, UNKNOWN_KEY, Fault, did_you_mean
from emcd.errors import EmcdError
from emcd.proto.address import parse_address, parse_hash
from emcd.types import Address, Hash

T = TypeVar("T")

_BOOLEANS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
_SECRET_NAME = re.compile(r"key|token|password|secret", re.IGNORECASE)


class _Wrong(Exception):
    """Faults found below one value; caught where the next value begins."""

    def __init__(self, *faults: Fault) -> None:
        self.faults = list(faults)


def decode(
    cls: type[T], table: object, where: str = "", *, base: Path | None = None
) -> tuple[T | None, list[Fault]]:
    """Decode a table into a dataclass.

    Args:
        where: the table's path for messages.
        base: the folder that relative paths start from; None leaves them relative.

    Returns: (the object, []) or (None, every fault).
    """
    try:
        return cast("T", _Decoder(base).dataclass(cls, table, where)), []
    except _Wrong as wrong:
        return None, wrong.faults


def list_fields(cls: type) -> list[tuple[str, Any, dataclasses.Field[Any]]]:
    """Name, resolved type and field of every setting of a config class."""
    hints = _hints(cls)
    return [(f.name, hints[f.name], f) for f in dataclasses.fields(cls) if f.init]


@cache
def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls)


class _Decoder:
    def __init__(self, base: Path | None) -> None:
        self._base = base

    def dataclass(self, cls: type, table: object, where: str) -> object:
        if isinstance(table, str) and hasattr(cls, "from_text"):
            return self._from_text(cls, table, where)
        if not isinstance(table, Mapping):
            raise _Wrong(Fault(where, f"expected a table, not {_kind(table)}"))
        faults: list[Fault] = []
        known = list_fields(cls)
        names = [name for name, _, _ in known]
        for key in table:
            if key not in names:
                hint = did_you_mean(str(key), names)
                faults.append(Fault(_join(where, str(key)), f"unknown key{hint}", UNKNOWN_KEY))
        values: dict[str, object] = {}
        for name, kind, field in known:
            path = _join(where, name)
            if name not in table:
                if field.default is not dataclasses.MISSING:
                    values[name] = self._rebased(field.default)
                elif field.default_factory is not dataclasses.MISSING:
                    values[name] = self._rebased(field.default_factory())
                else:
                    faults.append(Fault(path, "is required", MISSING_KEY))
                continue
            try:
                values[name] = self._value(kind, table[name], path)
                _require_range(values[name], field.metadata, path)
            except _Wrong as wrong:
                faults += wrong.faults
        if faults:
            raise _Wrong(*faults)
        return _checked(cls(**values), where)

    def _from_text(self, cls: Any, text: str, where: str) -> object:
        try:
            made = cls.from_text(text)
        except ValueError as exc:
            raise _Wrong(Fault(where, str(exc))) from None
        return _checked(self._rebased(made), where)

    def _value(self, kind: Any, value: object, where: str) -> object:
        if kind is Address:
            return _parsed(parse_address, value, where)
        if kind is Hash:
            return _parsed(parse_hash, value, where)
        if isinstance(kind, NewType):
            return self._value(kind.__supertype__, value, where)
        origin = get_origin(kind)
        if origin is not None:
            return self._generic(kind, origin, value, where)
        if dataclasses.is_dataclass(kind):
            return self.dataclass(cast("type", kind), value, where)
        if isinstance(kind, type) and issubclass(kind, Enum):
            members = {str(member.value): member for member in kind}
            return members[_choice(value, list(members), where)]
        if kind is Path:
            return self._path(Path(_text(value, where)))
        return _scalar(kind, value, where)

    def _generic(self, kind: Any, origin: Any, value: object, where: str) -> object:
        arguments = get_args(kind)
        if origin is Literal:
            choices = {str(choice): choice for choice in arguments}
            return choices[_choice(value, list(choices), where)]
        if origin in (Union, types.UnionType):
            inner = [argument for argument in arguments if argument is not types.NoneType]
            if len(inner) != 1:
                raise TypeError(f"{where}: a config field of type {kind} can't be decoded")
            return self._value(inner[0], value, where)
        if origin is tuple and len(arguments) == 2 and arguments[1] is ...:
            if not isinstance(value, list | tuple):
                raise _Wrong(Fault(where, f"expected a list, not {_kind(value)}"))
            items = ((f"{where}[{i}]", item) for i, item in enumerate(value))
            return tuple(self._all(arguments[0], items))
        if origin is dict and arguments[0] is str:
            if not isinstance(value, Mapping):
                raise _Wrong(Fault(where, f"expected a table, not {_kind(value)}"))
            keys = list(value)
            pairs = [(_join(where, key), value[key]) for key in keys]
            return dict(zip(keys, self._all(arguments[1], pairs), strict=True))
        raise TypeError(f"{where}: a config field of type {kind} can't be decoded")

    def _all(self, kind: Any, items: Any) -> list[object]:
        decoded: list[object] = []
        faults: list[Fault] = []
        for where, item in items:
            try:
                decoded.append(self._value(kind, item, where))
            except _Wrong as wrong:
                faults += wrong.faults
        if faults:
            raise _Wrong(*faults)
        return decoded

    def _rebased(self, value: object) -> object:
        """A default, with the relative paths in it resolved as those of a file are."""
        if isinstance(value, Path):
            return self._path(value)
        if isinstance(value, tuple):
            return tuple(self._rebased(item) for item in value)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            names = [f.name for f in dataclasses.fields(value) if f.init]
            return dataclasses.replace(value, **{n: self._rebased(getattr(value, n)) for n in names})
        return value

    def _path(self, path: Path) -> Path:
        path = path.expanduser()
        return self._base / path if self._base is not None else path


def _checked(made: Any, where: str) -> object:
    check = getattr(made, "check", None)
    if check is None:
        return made
    faults = []
    for remark in check():
        if isinstance(remark, Fault):
            faults.append(dataclasses.replace(remark, where=_join(where, remark.where)))
        else:
            faults.append(Fault(where, remark))
    if faults:
        raise _Wrong(*faults)
    return cast("object", made)


def _scalar(kind: Any, value: object, where: str) -> object:
    if kind is str:
        return _text(value, where)
    if kind is bool:
        if isinstance(value, FromEnvironment) and value.lower() in _BOOLEANS:
            return _BOOLEANS[value.lower()]
        if isinstance(value, bool):
            return value
        raise _Wrong(Fault(where, f"expected true or false, not {_show(value, where)}"))
    if kind is int:
        if isinstance(value, FromEnvironment) and re.fullmatch(r"[+-]?[0-9_]+", value):
            return int(value)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        raise _Wrong(Fault(where, f"expected an integer, not {_show(value, where)}"))
    if kind is float:
        number = _float(value)
        if number is not None and math.isfinite(number):
            return number
        raise _Wrong(Fault(where, f"expected a number, not {_show(value, where)}"))
    raise TypeError(f"{where}: a config field of type {kind} can't be decoded")


def _float(value: object) -> float | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return float(value)
    if isinstance(value, FromEnvironment):
        try:
            return float(value)
        except ValueError:
            return None
    return None


def _text(value: object, where: str) -> str:
    if isinstance(value, str):
        return str(value)
    raise _Wrong(Fault(where, f"expected a text in quotes, not {_show(value, where)}"))


def _choice(value: object, choices: list[str], where: str) -> str:
    text = str(value) if isinstance(value, str | int) and not isinstance(value, bool) else ""
    if text in choices:
        return text
    hint = did_you_mean(str(value), choices)
    raise _Wrong(Fault(where, f"expected one of {', '.join(choices)}, not {_show(value, where)}{hint}"))


def _parsed(parse: Callable[[str], object], value: object, where: str) -> object:
    try:
        return parse(_text(value, where))
    except EmcdError as exc:
        raise _Wrong(Fault(where, exc.detail)) from None


def _require_range(value: object, metadata: Mapping[str, Any], where: str) -> None:
    minimum, maximum = metadata.get("minimum"), metadata.get("maximum")
    sized = value if isinstance(value, int | float) else len(value) if hasattr(value, "__len__") else None
    noun = "" if isinstance(value, int | float) else "length "
    if sized is not None and minimum is not None and sized < minimum:
        raise _Wrong(Fault(where, f"{noun}{sized} is below {minimum}", BAD_VALUE))
    if sized is not None and maximum is not None and sized > maximum:
        raise _Wrong(Fault(where, f"{noun}{sized} is above {maximum}", BAD_VALUE))
    pattern = metadata.get("pattern")
    if pattern and isinstance(value, str) and not re.fullmatch(pattern, value):
        raise _Wrong(Fault(where, f"must match {pattern}", BAD_VALUE))


def _join(where: str, name: str) -> str:
    if not name:
        return where
    return f"{where}.{name}" if where else name


def _kind(value: object) -> str:
    names = {bool: "a boolean", int: "an integer", float: "a number", str: "a text", list: "a list"}
    return "a table" if isinstance(value, Mapping) else names.get(type(value), "a text")


def _show(value: object, where: str) -> str:
    if isinstance(value, FromEnvironment):
        return "the value of that environment variable"
    if isinstance(value, str) and not _SECRET_NAME.search(where):
        return repr(value if len(value) <= 60 else value[:60] + "...")
    return repr(value) if isinstance(value, bool | int | float) else _kind(value)
