"""Writing a commented configuration for a role out of its config class: what `emcd init` prints.

Pure. A field without a default stands uncommented with a placeholder to fill in; one with a default
stands commented out, so that later defaults reach old files.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from emcd.config.decode import list_fields
from emcd.config.model import ChainConfig, DaemonConfig, NetworkConfig
from emcd.config.value import HttpListen, KeyFile, Listen

PLACEHOLDER = "FILL-IN"


def render_template(kind: str, name: str, config: type, values: Mapping[str, str]) -> str:
    """A whole configuration file with one role.

    Args:
        values: TOML text of the fields that are known, by field name; "daemon.data_dir" and such
            for the common tables.
    """
    lines = [f"# emcd --config FILE runs this; emcd check FILE judges it. Role: {kind}", "", "[daemon]"]
    lines += _render_fields(DaemonConfig, _below("daemon.", values))
    lines += ["", "[network]", *_render_fields(NetworkConfig, _below("network.", values))]
    lines += ["", "[chain]", *_render_fields(ChainConfig, _below("chain.", values))]
    lines += ["", "[[role]]", f'kind = "{kind}"', f'name = "{name}"']
    lines += _render_fields(config, values)
    return "\n".join(lines) + "\n"


def find_key_fields(config: type) -> list[str]:
    """The fields that take one keystore and have no default."""
    return [
        name for name, type_, field in list_fields(config) if type_ is KeyFile and not _has_default(field)
    ]


def _below(prefix: str, values: Mapping[str, str]) -> dict[str, str]:
    return {name.removeprefix(prefix): text for name, text in values.items() if name.startswith(prefix)}


def _render_fields(config: type, values: Mapping[str, str]) -> Iterator[str]:
    for name, type_, field in list_fields(config):
        doc = field.metadata.get("doc")
        if doc:
            yield f"# {doc}"
        if name in values:
            yield f"{name} = {values[name]}"
        elif _has_default(field):
            text = _to_toml(_default_of(field))
            yield f"# {name} = {text}" if text is not None else f"# {name} = ..."
        else:
            yield f"{name} = {_placeholder(type_)}"


def _has_default(field: dataclasses.Field[Any]) -> bool:
    return field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING


def _default_of(field: dataclasses.Field[Any]) -> object:
    if field.default is not dataclasses.MISSING:
        return field.default
    assert field.default_factory is not dataclasses.MISSING
    return field.default_factory()


def _placeholder(type_: Any) -> str:
    if type_ is KeyFile:
        return '"keys/FILL-IN.json"'
    if type_ in (Listen, HttpListen):
        return '"127.0.0.1:0"'
    if type_ is bool:
        return "false"
    if type_ in (int, float):
        return "0"
    if get_origin(type_) is Literal:
        return json.dumps(get_args(type_)[0])
    if get_origin(type_) is tuple:
        return "[]"
    return json.dumps(PLACEHOLDER)


def _to_toml(value: object) -> str | None:
    """The TOML text of a default, or None for what has none of one line."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Enum):
        return json.dumps(value.value)
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str | Path):
        return json.dumps(str(value))
    if isinstance(value, Listen):
        return json.dumps(str(value))
    if isinstance(value, tuple):
        items = [_to_toml(item) for item in value]
        return None if None in items else f"[{', '.join(item for item in items if item)}]"
    return None
