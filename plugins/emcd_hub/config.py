"""The hub's settings: the fields are the keys of its [[role]] table."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from emcd.config import Fault, HttpListen, KeyFile, Listen, setting
from emcd.types import Address, Hash
from emcd_hub.calls.limits import CallLimits
from emcd_hub.nodes.rules import RoutingRules
from emcd_hub.rounds.retention import Retention

Scope = Literal["keys", "credits", "read"]
DAY_MS = 86_400_000
_HEX_64 = r"[0-9a-f]{64}"


@dataclass(frozen=True)
class AdminToken:
    """Who may use the admin listener. Only the token's SHA-256 stands here."""

    name: str = setting(minimum=1, maximum=64)
    token_hash: str = setting(pattern=_HEX_64, doc="sha256 of the token, 64 hex digits")
    scopes: tuple[Scope, ...] = setting(minimum=1)


@dataclass(frozen=True)
class HubConfig:
    """See README.md; times are seconds."""

    key: KeyFile
    listen: HttpListen = setting(factory=lambda: HttpListen("127.0.0.1", 8420), doc="the API that users call")
    tunnel_listen: Listen = setting(factory=lambda: Listen("127.0.0.1", 8421), doc="where nodes connect")
    admin_listen: HttpListen = setting(
        factory=lambda: HttpListen("127.0.0.1", 8422), doc="for the operator alone"
    )
    admin_tokens: tuple[AdminToken, ...] = ()
    admit: Literal["staked", "listed"] = setting(
        "staked", doc="staked: nodes bound and staked on chain, and allowed_nodes; listed: allowed_nodes only"
    )
    allowed_nodes: tuple[Address, ...] = setting((), doc="nodes that may join whatever the chain says")
    allowed_routers: tuple[Address, ...] = setting(
        (), doc="routers that may join whatever the chain says; others: bound and staked as router"
    )
    max_nodes_per_router: int = setting(2048, minimum=1, maximum=65536)
    manifests: dict[str, tuple[Hash, ...]] = setting(
        factory=dict, doc="model name -> the only manifest hashes that may serve it; others: any"
    )
    use_first: Literal["granted", "vault"] = setting("granted", doc="which credits a call uses first")
    default_output_tokens: int = setting(
        4096, minimum=1, maximum=1_000_000, doc="reserved per choice where a client sets no max_tokens"
    )
    body_bytes: int = setting(4 * 1024 * 1024, minimum=1024, maximum=16 * 1024 * 1024)
    form_bytes: int = setting(
        25 * 1024 * 1024, minimum=1024, maximum=28 * 1024 * 1024, doc="a body with files: sound, images"
    )
    bodies_bytes: int = setting(
        512 * 1024 * 1024, minimum=1024, doc="all large bodies together; more are asked to wait"
    )
    idempotency_bytes: int = setting(
        64 * 1024 * 1024, minimum=0, doc="answers kept for a day for requests with an Idempotency-Key"
    )
    idempotency_wait_s: float = setting(
        30.0, minimum=0.0, maximum=600.0, doc="for a request with the same Idempotency-Key"
    )
    answer_bytes: int = setting(64 * 1024 * 1024, minimum=1024)
    max_attempts: int = setting(3, minimum=1, maximum=10, doc="nodes that are tried for one call")
    head_timeout_s: float = setting(60.0, minimum=0.05, doc="until a stream begins")
    answer_head_timeout_s: float = setting(
        300.0, minimum=0.05, doc="until an answer that is not streamed begins"
    )
    idle_timeout_s: float = setting(60.0, minimum=0.05, doc="between two pieces of a stream")
    call_timeout_s: float = setting(600.0, minimum=0.05, doc="for an answer that is not streamed")
    queue_timeout_s: float = setting(10.0, minimum=0.0, doc="for a node to have room")
    credit_wait_s: float = setting(
        2.0, minimum=0.0, maximum=60.0, doc="for credit that calls in flight hold and may not use"
    )
    max_waiting: int = setting(1024, minimum=0)
    routing: Literal["least_loaded", "speed"] = setting(
        "least_loaded",
        doc="who gets a call: the node with the most room, or the fastest by its share of load",
    )
    routing_by_model: dict[str, Literal["least_loaded", "speed"]] = setting(factory=dict)
    affinity: bool = setting(True, doc="calls of one session or with one prompt's beginning go to one node")
    max_calls: int = setting(2048, minimum=1)
    max_calls_per_account: int = setting(512, minimum=1)
    max_connections: int = setting(4096, minimum=16)
    max_tunnels: int = setting(8192, minimum=16, doc="nodes and routers that are connected at a time")
    wrong_keys_per_minute: int = setting(30, minimum=1, doc="failed authentications of one address")
    registry_poll_s: float = setting(
        2.0, minimum=0.1, doc="the least time between two readings of the registry"
    )
    collect_poll_s: float = setting(
        5.0, minimum=0.1, doc="how often validators are asked for what is missing"
    )
    retain_calls_days: float = setting(
        30.0, minimum=0.0, doc="how long an archived call is still known to be its account's, for its receipt"
    )
    retain_results_days: float = setting(
        90.0, minimum=1.0, doc="how long the results of archived rounds stand in the ledger, too"
    )
    retain_bundles_rounds: int = setting(
        0, minimum=0, doc="how many rounds' bundles are kept; 0: all, for ever"
    )
    models_dir: Path | None = setting(
        None, doc="folders of models whose tokens are counted again; default: models in the data folder"
    )
    reconcile_share: float = setting(
        0.0625,
        minimum=0.0,
        maximum=1.0,
        doc="calls with evidence that are counted again; odd ones always are",
    )
    private_validators: bool = setting(
        False, doc="validators' endpoints may be http or private addresses (always so on a loopback hub)"
    )

    def check(self) -> list[Fault]:
        faults = []
        names = [token.name for token in self.admin_tokens]
        if len(set(names)) != len(names):
            faults.append(Fault("admin_tokens", "two tokens have one name"))
        listens = [self.listen, self.tunnel_listen, self.admin_listen]
        places = [str(listen) for listen in listens if listen.port]
        if len(set(places)) != len(places):
            faults.append(Fault("", "listen, tunnel_listen and admin_listen must differ"))
        if self.admit == "listed" and not self.allowed_nodes:
            faults.append(Fault("allowed_nodes", 'is empty, so with admit = "listed" no node may join'))
        return faults

    @property
    def retention(self) -> Retention:
        return Retention(
            calls_ms=int(self.retain_calls_days * DAY_MS),
            results_ms=int(self.retain_results_days * DAY_MS),
            bundles_rounds=self.retain_bundles_rounds,
        )

    @property
    def routing_rules(self) -> RoutingRules:
        return RoutingRules(self.routing, self.routing_by_model, self.affinity, self.queue_timeout_s)

    @property
    def call_limits(self) -> CallLimits:
        return CallLimits(
            use_first=self.use_first,
            default_output_tokens=self.default_output_tokens,
            max_attempts=self.max_attempts,
            head_timeout_s=self.head_timeout_s,
            answer_head_timeout_s=self.answer_head_timeout_s,
            idle_timeout_s=self.idle_timeout_s,
            call_timeout_s=self.call_timeout_s,
            answer_bytes=self.answer_bytes,
            credit_wait_s=self.credit_wait_s,
            max_calls=self.max_calls,
        )
