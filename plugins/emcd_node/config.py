"""What an operator sets for a node: its key, its hub, the models it serves.

Pure. Invariants: a hub is reached in clear only on this machine; a cheaper model that is
sold as the full one needs a switch that names it a cheat.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from emcd.config import Fault, KeyFile, setting
from emcd.errors import ConfigError
from emcd.inference.engine import require_engine_url
from emcd.inference.manifest import FILE_NAME, QUANTIZATION
from emcd.inference.minilm import MINILM_NAME
from emcd.net.url_guard import is_loopback, parse_target
from emcd.proto.openai_shape import BASIC_ENDPOINTS, ENDPOINT_WORDS, Endpoint
from emcd.types import Address

EndpointWord = Literal[
    "chat",
    "completions",
    "embeddings",
    "responses",
    "transcriptions",
    "translations",
    "speech",
    "images",
    "image_edits",
    "image_variations",
]
_ENGINE_ONLY = (
    "url",
    "api_key_env",
    "api_key_file",
    "manifest",
    "endpoints",
    "quantization",
    "context_tokens",
)
BAD_HUB_URL = "EMC-2011"
BAD_MODELS = "EMC-2012"
CHEAT = "EMC-2010"


@dataclass(frozen=True)
class ModelConfig:
    """One `[[role.model]]`."""

    kind: Literal["embedded", "engine"] = setting(
        doc="embedded: runs in the daemon; engine: an OpenAI-style server"
    )
    name: str = setting(minimum=1, maximum=256, doc="the name that users ask for")
    threads: int = setting(1, minimum=0, maximum=256, doc="embedded: cores that one run uses; 0: all")
    parallel_runs: int = setting(1, minimum=1, maximum=64, doc="embedded: runs at the same time")
    # A demonstration of a cheat: the cheap model is served and paid as the full one, until validators
    # recompute its answers. Refused unless the role sets allow_cheating_demo.
    serve_instead: Literal["none", "int8", "fewer-layers"] = setting(
        "none", doc="devnet only: serve this under the full model's name"
    )
    url: str = setting("", doc="engine: base URL, such as http://127.0.0.1:8000/v1")
    manifest: str = setting(
        "",
        maximum=128,
        doc="engine: the folder in models_dir whose model it computes; without it, only the name is promised",
    )
    api_key_env: str = setting("", doc="engine: environment variable with its API key")
    api_key_file: Path | None = setting(None, doc="engine: file with its API key")
    endpoints: tuple[EndpointWord, ...] = setting(
        (), doc="engine: what it serves of the model; default: chat, completions, embeddings"
    )
    quantization: str = setting(
        "", maximum=32, doc="engine: of the weights, such as fp16 or int4, for users who ask for one"
    )
    context_tokens: int = setting(0, minimum=0, maximum=2**31 - 1, doc="engine: its context; 0: not said")
    head_timeout_s: float = setting(300.0, minimum=0.1, maximum=3600, doc="engine: until it begins to answer")
    idle_timeout_s: float = setting(
        60.0, minimum=0.1, maximum=3600, doc="engine: longest silence within an answer"
    )

    def check(self) -> list[Fault]:
        faults = self._check_embedded() if self.kind == "embedded" else self._check_engine()
        return [Fault(field, message, BAD_MODELS) for field, message in faults]

    def _check_embedded(self) -> Iterator[tuple[str, str]]:
        if FILE_NAME.fullmatch(self.name) is None:
            yield "name", f"an embedded model is {MINILM_NAME!r} or a folder in models_dir"
        if self.serve_instead == "fewer-layers" and self.name == MINILM_NAME:
            yield "serve_instead", "fewer-layers is made of a text model"
        for field in _ENGINE_ONLY:
            if getattr(self, field):
                yield field, 'belongs to kind = "engine"'

    def _check_engine(self) -> Iterator[tuple[str, str]]:
        try:
            require_engine_url(self.url)
        except ConfigError as exc:
            yield "url", exc.detail
        if self.api_key_env and self.api_key_file is not None:
            yield "", "give api_key_env or api_key_file, not both"
        if len(set(self.endpoints)) != len(self.endpoints):
            yield "endpoints", "one stands twice"
        if self.quantization and QUANTIZATION.fullmatch(self.quantization) is None:
            yield "quantization", "is one word in lower case, such as fp16 or int4"
        if self.serve_instead != "none":
            yield "serve_instead", 'belongs to kind = "embedded"'
        if self.manifest:
            yield from self._check_manifest()

    def _check_manifest(self) -> Iterator[tuple[str, str]]:
        if FILE_NAME.fullmatch(self.manifest) is None:
            yield "manifest", "is the name of a folder in models_dir"
        for field in ("endpoints", "quantization", "context_tokens"):
            if getattr(self, field):
                yield field, "is said by the manifest"

    def list_endpoints(self) -> frozenset[Endpoint]:
        """What the engine serves of the model."""
        return frozenset(ENDPOINT_WORDS[word] for word in self.endpoints) or BASIC_ENDPOINTS


@dataclass(frozen=True)
class RouterRef:
    """A router that the node may connect to."""

    url: str = setting(doc="where it takes nodes; wss:// off this machine")
    address: Address = setting(doc="its address: nobody else can pose as it")
    ca_file: Path | None = setting(None, doc="certificates to trust for it instead of the machine's")

    def check(self) -> list[Fault]:
        return _check_tunnel_url("url", self.url)


@dataclass(frozen=True)
class NodeConfig:
    """`[[role]] kind = "node"`."""

    key: KeyFile = setting(doc="the node's own key, bound to your wallet by `emcd node register`")
    hub_address: Address = setting(doc="the hub's address: only its calls are served")
    hub_url: str = setting(
        "ws://127.0.0.1:8421",
        doc='where the hub takes nodes; wss:// off this machine; with routers: where to go without them, or ""',
    )
    routers: tuple[RouterRef, ...] = setting(
        (), maximum=32, doc='routers to reach the hub through: [{ url = "wss://...", address = "0x..." }]'
    )
    routers_from_chain: bool = setting(
        False, doc="any router that is bound, staked and has published where it is; needs [chain]"
    )
    hub_ca_file: Path | None = setting(None, doc="certificates to trust for the hub instead of the machine's")
    model: tuple[ModelConfig, ...] = setting(
        (ModelConfig("embedded", MINILM_NAME),), minimum=1, maximum=64, doc="the models served"
    )
    max_parallel_calls: int = setting(
        32, minimum=1, maximum=1024, doc="calls at the same time; more are refused"
    )
    call_timeout_s: float = setting(900.0, minimum=1, maximum=86400, doc="a call that takes longer fails")
    models_dir: Path = setting(Path("models"), doc="where built models are kept")
    reconnect_max_s: float = setting(30.0, minimum=0.1, maximum=600, doc="longest pause between dials")
    check_bundles: bool = setting(
        True, doc="look whether the hub's bundles carry this node's calls; needs [chain]"
    )
    hub_api_url: str = setting(
        "", doc="the hub's public API, for its bundles; default: what it published in the staking contract"
    )
    bundle_limit_mb: int = setting(512, minimum=1, maximum=4096, doc="a larger bundle is not downloaded")
    transcript_mb: int = setting(
        1024,
        minimum=1,
        maximum=1 << 20,
        doc="room for the last 12 rounds' calls, to open challenged receipts",
    )
    allow_cheating_demo: bool = setting(False, doc="devnet only: lets serve_instead stand")

    def check(self) -> list[Fault]:
        faults = [*self._check_hub_url(), *self._check_api_url()]
        addresses = [router.address for router in self.routers]
        faults += [
            Fault(f"routers[{index}].address", f"{address} stands twice", BAD_HUB_URL)
            for index, address in enumerate(addresses)
            if address in addresses[:index] or address == self.hub_address
        ]
        names = [model.name for model in self.model]
        faults += [
            Fault(f"model[{index}].name", f"{name!r} stands twice", BAD_MODELS)
            for index, name in enumerate(names)
            if name in names[:index]
        ]
        if not self.allow_cheating_demo:
            faults += [
                Fault(f"model[{index}].serve_instead", "needs allow_cheating_demo = true", CHEAT)
                for index, model in enumerate(self.model)
                if model.serve_instead != "none"
            ]
        return faults

    def _check_api_url(self) -> list[Fault]:
        if not self.hub_api_url:
            return []
        try:
            target = parse_target(self.hub_api_url)
        except ConfigError as exc:
            return [Fault("hub_api_url", exc.detail, BAD_HUB_URL)]
        if not target.tls and not is_loopback(target.host):
            return [Fault("hub_api_url", f"{target.host} is another machine: use https://", BAD_HUB_URL)]
        return []

    def _check_hub_url(self) -> list[Fault]:
        if not self.hub_url and (self.routers or self.routers_from_chain):
            return []
        return _check_tunnel_url("hub_url", self.hub_url)


def _check_tunnel_url(field: str, url: str) -> list[Fault]:
    try:
        target = parse_target(url, ("ws", "wss"))
    except ConfigError as exc:
        return [Fault(field, exc.detail, BAD_HUB_URL)]
    if not target.tls and not is_loopback(target.host):
        return [Fault(field, f"{target.host} is another machine: use wss://", BAD_HUB_URL)]
    return []
