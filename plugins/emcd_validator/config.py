"""The validator's configuration; the fields are the keys of its `[[role]]` table."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from emcd.config import Fault, KeyFile, Listen, setting
from emcd.errors import ConfigError
from emcd.inference.model_folder import require_folder_name
from emcd.net.url_guard import parse_target
from emcd.types import Address

DEFAULT_MODEL = "all-MiniLM-L6-v2"


@dataclass(frozen=True)
class ValidatorConfig:
    """See README.md for the whole table."""

    key: KeyFile = setting(doc="the hot signing key; its address is the one bound on chain as a validator")
    listen: Listen = setting(doc="where peers, hub and settler fetch what this validator signed")
    hub_url: str = setting(doc="the hub's OpenAI API, like any user's base URL without /v1")
    hub_address: Address = setting(doc="the hub's key, pinned: it signs receipts and bundle seals")
    more_keys: tuple[KeyFile, ...] = setting(
        (),
        maximum=8,
        doc="older and coming hot keys; in each epoch the one that the chain has in force signs",
    )
    api_key_file: Path | None = setting(None, doc="hub API keys, one a line; several are used in turn")
    api_key_env: str = setting("", doc="or the environment variable that holds them, separated by commas")
    key_probes: int = setting(
        2_000, minimum=10, maximum=1_000_000, doc="after how many probes an API key is retired"
    )
    key_days: int = setting(30, minimum=1, maximum=3_650, doc="after how many days an API key is retired")
    models: tuple[str, ...] = setting((DEFAULT_MODEL,), minimum=1, doc="the models this validator can judge")
    corpus: Path | None = setting(None, doc="the private corpus; without it one is generated at first start")
    corpus_leaves: int = setting(20_000, minimum=100, maximum=1_000_000, doc="size of a generated corpus")
    profile: Path | None = setting(
        None, doc="the traffic profile: what users' calls look like (clients, and a generated corpus)"
    )
    models_dir: Path | None = setting(None, doc="where model files are; default: models in the data folder")
    reference_threads: int = setting(1, minimum=1, maximum=64, doc="threads of a reference run")
    call_timeout_s: float = setting(60.0, minimum=0.5, maximum=600, doc="how long a probe may take")

    def check(self) -> list[Fault]:
        faults = []
        if (self.api_key_file is None) == (self.api_key_env == ""):
            faults.append(Fault("api_key_file", "give api_key_file or api_key_env, one of them"))
        try:
            parse_target(self.hub_url)
        except ConfigError as exc:
            faults.append(Fault("hub_url", exc.detail))
        for name in self.models:
            try:
                require_folder_name(name)
            except ConfigError as exc:
                faults.append(Fault("models", exc.detail))
        return faults
