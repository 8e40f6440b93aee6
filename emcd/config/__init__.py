"""Strict configuration: every fault at once, with its place and a suggestion.

Owns TOML, environment variables in it, and decoding into frozen dataclasses. It knows no role:
the registry tells which config class a kind has. Nothing here opens a key or a socket.
"""

from __future__ import annotations

from emcd.config.decode import decode, list_fields
from emcd.config.fault import ConfigFaults, Fault
from emcd.config.load import find_config_file, load_config, load_daemon_config, load_document
from emcd.config.model import (
    ChainConfig,
    Config,
    DaemonConfig,
    NetworkConfig,
    RoleEntry,
    RoleKinds,
    list_key_files,
    list_values,
)
from emcd.config.value import HttpListen, KeyFile, Listen, is_loopback, setting

__all__ = [
    "ChainConfig",
    "Config",
    "ConfigFaults",
    "DaemonConfig",
    "Fault",
    "HttpListen",
    "KeyFile",
    "Listen",
    "NetworkConfig",
    "RoleEntry",
    "RoleKinds",
    "decode",
    "find_config_file",
    "is_loopback",
    "list_fields",
    "list_key_files",
    "list_values",
    "load_config",
    "load_daemon_config",
    "load_document",
    "setting",
]
