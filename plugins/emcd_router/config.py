"""The router's settings: the fields are the keys of its [[role]] table. Times are seconds.

Pure. Invariant: a hub is reached in clear only on this machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from emcd.config import Fault, KeyFile, Listen, setting
from emcd.errors import ConfigError
from emcd.net.url_guard import is_loopback, parse_target
from emcd.types import Address

BAD_HUBS = "EMC-2306"


@dataclass(frozen=True)
class HubRef:
    """A hub that the router joins."""

    url: str = setting(doc="where it takes tunnels; wss:// off this machine")
    address: Address = setting(doc="its address: nobody else can pose as it")
    ca_file: Path | None = setting(None, doc="certificates to trust for it instead of the machine's")

    def check(self) -> list[Fault]:
        try:
            target = parse_target(self.url, ("ws", "wss"))
        except ConfigError as exc:
            return [Fault("url", exc.detail, BAD_HUBS)]
        if not target.tls and not is_loopback(target.host):
            return [Fault("url", f"{target.host} is another machine: use wss://", BAD_HUBS)]
        return []


@dataclass(frozen=True)
class RouterConfig:
    """`[[role]] kind = "router"`; see README.md."""

    key: KeyFile = setting(
        doc="the router's own key, bound to your wallet by `emcd node register --role router`"
    )
    hubs: tuple[HubRef, ...] = setting(
        minimum=1, maximum=16, doc='the hubs it joins: [{ url = "wss://...", address = "0x..." }]'
    )
    listen: Listen = setting(factory=lambda: Listen("127.0.0.1", 8423), doc="where nodes connect")
    region: str = setting(
        "", maximum=100, doc="a label that the hubs show, such as eu-west; what it means is up to you"
    )
    max_nodes: int = setting(1024, minimum=1, maximum=65536, doc="nodes at the same time, of all hubs")
    max_calls: int = setting(4096, minimum=1, maximum=65536, doc="calls of one hub at the same time")
    line_length: int = setting(64, minimum=0, maximum=4096, doc="calls that may wait for one node's room")
    line_timeout_s: float = setting(5.0, minimum=0.0, maximum=60, doc="how long they may wait")
    ping_interval_s: float = setting(
        2.0, minimum=0.1, maximum=60, doc="a node that is silent for so long is pinged"
    )
    ping_timeout_s: float = setting(3.0, minimum=0.1, maximum=60, doc="and given up so long after")
    resume_s: float = setting(
        2.0, minimum=0.0, maximum=60, doc="how long a node whose connection broke may take to resume"
    )
    hub_lost_s: float = setting(
        15.0, minimum=0.1, maximum=600, doc="without its hub for so long, a node is sent to another router"
    )
    reconnect_max_s: float = setting(
        10.0, minimum=0.1, maximum=600, doc="longest pause between dials of a hub"
    )
    drain_s: float = setting(15.0, minimum=0.1, maximum=600, doc="how long calls may take once it is leaving")

    def check(self) -> list[Fault]:
        addresses = [hub.address for hub in self.hubs]
        return [
            Fault(f"hubs[{index}].address", f"{address} stands twice", BAD_HUBS)
            for index, address in enumerate(addresses)
            if address in addresses[:index]
        ]
